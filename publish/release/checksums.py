"""Reads `SHA256SUMS` of a release with strict checks, and tracks the listed files."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from camelpress.core.errors import CheckpointProblem, OutputProblem
from camelpress.core.files.file_hashes import CHECKSUM_FILE, sha256_file
from camelpress.core.files.regular_files import read_regular
from camelpress.core.input_limits import MAX_JSON_BYTES
from camelpress.publish.release.signing import SIGNATURE_FILE, UNSIGNED_FILES

CHECKSUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def read_checksums(path: Path) -> tuple[dict[str, str], list[str]]:
    """Returns a mapping of names to hashes from the valid lines, and problems of the others.

    Raises:
        CheckpointProblem: the file is missing or not UTF-8.
    """
    try:
        text = read_regular(path, MAX_JSON_BYTES).decode("utf-8")
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointProblem(
            f"{path} cannot be read", next_step="give a folder that publish wrote, complete"
        ) from error
    digests: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        match = CHECKSUM_LINE.fullmatch(line)
        if not match or match[2] in digests:
            problems.append(f"{CHECKSUM_FILE} line {number} is not a hash and a new name")
        elif not _is_plain(match[2]):
            problems.append(f"{CHECKSUM_FILE} line {number} leads out of the folder: {match[2]!r}")
        else:
            digests[match[2]] = match[1]
    if not digests:
        problems.append(f"{CHECKSUM_FILE} lists nothing")
    return digests, problems


def _is_plain(name: str) -> bool:
    """Returns True for a normalized relative path inside the folder, valid on any system."""
    path = PurePosixPath(name)
    return (
        name.isprintable()
        and name == path.as_posix()
        and not path.is_absolute()
        and ".." not in path.parts
        and not PureWindowsPath(name).drive
        and "\\" not in name
        and name != CHECKSUM_FILE
    )


@dataclass(frozen=True)
class ReleaseFiles:
    """Files of a finished release with their expected hashes.

    The hashes come from `SHA256SUMS`. A change during an upload is therefore detected, even in
    weights that are hard links to the candidate.

    Args:
        files: mapping of names to paths; `SHA256SUMS` is the last.
        sha256: mapping of names to SHA-256.
    """

    files: Mapping[str, Path]
    sha256: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> ReleaseFiles:
        """Reads the file list of a release folder, `SHA256SUMS` included.

        Raises:
            CheckpointProblem: `SHA256SUMS` is missing or has an invalid line.
        """
        digests, problems = read_checksums(folder / CHECKSUM_FILE)
        if problems:
            raise CheckpointProblem(f"{folder}: {problems[0]}", next_step="publish it again")
        hashes = digests | {CHECKSUM_FILE: sha256_file(folder / CHECKSUM_FILE)}
        return cls({name: folder / name for name in hashes}, hashes)

    def require_unchanged(self, name: str, digest: str) -> None:
        """Checks the hash of a file right before its upload.

        Args:
            name: name of a file.
            digest: current SHA-256 of the file.
        Raises:
            OutputProblem: the file has changed.
        """
        if digest != self.sha256[name]:
            raise OutputProblem(
                f"{name} changed during the upload of the release",
                next_step="let nothing write to the candidate, and run the same command again",
            )

    def matches_remote(self, different_names: Iterable[str], remote_names: Container[str]) -> bool:
        """Returns True if a remote location holds this release, apart from its signature.

        Args:
            different_names: names of files with different content, or present on one side only.
            remote_names: names of files at the remote location.
        """
        both_signed = SIGNATURE_FILE in self.files and SIGNATURE_FILE in remote_names
        return {*different_names} <= ({*UNSIGNED_FILES} if both_signed else set())
