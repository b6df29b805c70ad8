"""`SHA256SUMS` of a release: its lines read with suspicion, and the files that they speak of."""

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
    """Name to hash of the lines that can be followed, and what is wrong with the others.

    Raises:
        CheckpointProblem: there is no such file, or it is not text.
    """
    try:
        text = read_regular(path, MAX_JSON_BYTES).decode("utf-8")
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointProblem(
            f"{path} cannot be read", next_step="give a folder that publish wrote, complete"
        ) from error
    listed: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        found = CHECKSUM_LINE.fullmatch(line)
        if not found or found[2] in listed:
            problems.append(f"{CHECKSUM_FILE} line {number} is not a hash and a new name")
        elif not _is_plain(found[2]):
            problems.append(f"{CHECKSUM_FILE} line {number} leads out of the folder: {found[2]!r}")
        else:
            listed[found[2]] = found[1]
    if not listed:
        problems.append(f"{CHECKSUM_FILE} lists nothing")
    return listed, problems


def _is_plain(name: str) -> bool:
    """A relative path that names one file below the folder in one way, on any system."""
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
    """The files of a finished release, and the hashes that they have to arrive with.

    The hashes are those that the release was sealed with, so a file that changes on the way - its
    weights may be links to the candidate's - is not taken for what was validated.

    Args:
        files: name to place; `SHA256SUMS` is the last.
        sha256: name to hash.
    """

    files: Mapping[str, Path]
    sha256: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> ReleaseFiles:
        """What a folder's `SHA256SUMS` lists, and that file itself.

        Raises:
            CheckpointProblem: it has none, or one that cannot be followed.
        """
        listed, problems = read_checksums(folder / CHECKSUM_FILE)
        if problems:
            raise CheckpointProblem(f"{folder}: {problems[0]}", next_step="publish it again")
        hashes = listed | {CHECKSUM_FILE: sha256_file(folder / CHECKSUM_FILE)}
        return cls({name: folder / name for name in hashes}, hashes)

    def require_unchanged(self, name: str, found: str) -> None:
        """See that what is about to be sent is what was sealed.

        Args:
            name: of a file.
            found: its hash now.
        Raises:
            OutputProblem: it changed.
        """
        if found != self.sha256[name]:
            raise OutputProblem(
                f"{name} changed while the release was on its way",
                next_step="let nothing write to the candidate, and run the same command again",
            )

    def matches_remote(self, differing: Iterable[str], there: Container[str]) -> bool:
        """Whether a place holds this release already, perhaps with another signature of it.

        Args:
            differing: names of files that are only here or only there, or not the same.
            there: names of files of that place.
        """
        both_signed = SIGNATURE_FILE in self.files and SIGNATURE_FILE in there
        return {*differing} <= ({*UNSIGNED_FILES} if both_signed else set())
