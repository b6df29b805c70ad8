"""SHA-256 hashes of files, folders and JSON data, and the versions of this program."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import distribution, version
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from camelpress.core.errors import CheckpointProblem
from camelpress.core.file_names import CHAT_TEMPLATES_FOLDER
from camelpress.core.files.regular_files import open_regular

CHECKSUM_FILE = "SHA256SUMS"
PROVENANCE_FILE = "provenance.json"
BOM_FILE = "bom.cdx.json"
RELEASE_METADATA_FILES = (PROVENANCE_FILE, BOM_FILE)  # metadata of a release, not part of a model
REPORT_SUFFIX = "-report.json"
PACKAGES = ("camelpress", "numba", "numpy", "safetensors", "tokenizers", "torch", "transformers")
FileStates = tuple[tuple[str, int, int, int, int], ...]
CLOCK_TICK_NS = 2 * 10**7  # ns; upper bound of the clock tick of file systems
MODEL_FILE_PATTERNS = (
    "*.safetensors",
    "*.bin",
    "*.pth",
    "*.json",
    "*.model",
    "*.jinja",
    "merges.txt",
)


def sha256_file(path: Path) -> str:
    """Hashes a regular file in chunks.

    Returns:
        SHA-256 as 64 hexadecimal digits.
    Raises:
        OSError: The file is missing, not regular, or cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1(content: bytes) -> str:
    """Returns the git object id of a file's bytes."""
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def sha256_json(content: Any) -> str:
    """Returns the SHA-256 of plain data in canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_manifest(paths: Iterable[Path], *, relative_to: Path) -> dict[str, str]:
    """Maps relative names to SHA-256, sorted by name."""
    names = {path.relative_to(relative_to).as_posix(): path for path in paths}
    return {name: sha256_file(path) for name, path in sorted(names.items())}


def is_checkpoint_file(name: str) -> bool:
    """Returns True for the name of a weight, config or tokenizer file."""
    return (
        any(PurePath(name).match(pattern) for pattern in MODEL_FILE_PATTERNS)
        and name not in RELEASE_METADATA_FILES
        and not name.endswith(REPORT_SUFFIX)
    )


def checkpoint_file_hashes(
    folder: Path, file_digests: Mapping[Path, str] = MappingProxyType({})
) -> dict[str, str]:
    """Maps the names of weights, configs and tokenizer files to their hashes; excludes reports.

    Args:
        folder: Checkpoint folder.
        file_digests: Path to SHA-256 of files hashed before.
    """
    top_level = sorted(
        path for path in folder.iterdir() if is_checkpoint_file(path.name) and path.is_file()
    )
    files = [*top_level, *sorted(folder.glob(f"{CHAT_TEMPLATES_FOLDER}/*.jinja"))]
    return {
        path.relative_to(folder).as_posix(): file_digests.get(path) or sha256_file(path)
        for path in files
    }


def checkpoint_digest(folder: Path) -> str:
    """Returns one SHA-256 over all files of a model."""
    return sha256_json(checkpoint_file_hashes(folder))


def file_identity(path: Path) -> list[int]:
    """Returns size, modification time (ns), status change time (ns) and inode of a file.

    A program can restore the modification time, such as `cp -p` and `touch -r`, but this changes
    the status change time or the inode.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def file_states(folder: Path) -> FileStates:
    """Returns name, size, modification time (ns), inode and status change time (ns) of model files.

    The status change time comes last: `chmod` and a hard link change nothing else.
    """
    files = sorted(
        path for path in folder.glob("*") if is_checkpoint_file(path.name) and path.is_file()
    )
    states = [(path.name, path.stat()) for path in files]
    return tuple(
        (name, state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns)
        for name, state in states
    )


def require_file_states(folder: Path, states: FileStates, hashes: Mapping[str, str]) -> None:
    """Checks that the files of a model have not changed since `states` was taken.

    A file with a new status change time alone is hashed again if its hash is known, since a program
    can write in place and restore size and modification time.

    Args:
        folder: Model folder.
        states: States of its files before they were read.
        hashes: Name to SHA-256 of the files as read.
    Raises:
        CheckpointProblem: A file was written, replaced, added or removed; names the first one.
    """
    new_states = file_states(folder)
    changes = {name for name, *_ in {*_content_states(new_states)} ^ {*_content_states(states)}}
    candidates = {name for name, *_ in {*new_states} ^ {*states}} & hashes.keys() - changes
    changes |= {name for name in candidates if sha256_file(folder / name) != hashes[name]}
    if changes:
        raise CheckpointProblem(
            f"{folder / min(changes)} changed while it was read",
            next_step="let nothing write there, and run the same command again",
        )


def _content_states(states: FileStates) -> list[tuple[str, int, int, int]]:
    """Drops the status change time from states."""
    return [(name, size, time, inode) for name, size, time, inode, _ in states]


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the main packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


@cache
def camelpress_commit() -> str | None:
    """Returns the git commit of camelpress; None unless it was installed from a repository.

    The commit of a checkout ends in `-dirty` after changes to its files.
    """
    text = distribution("camelpress").read_text("direct_url.json")
    source = json.loads(text) if text else {}
    if "vcs_info" in source:
        commit: str | None = source["vcs_info"].get("commit_id")
        return commit
    folder = str(Path(__file__).resolve().parent)
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 and source.get("dir_info") else None


class FileHashCache:
    """Caches file hashes by path; a changed file identity invalidates an entry.

    Args:
        entries: Path to identity and SHA-256; updated in place, so the caller can save it.
    """

    def __init__(self, entries: dict[str, Any]) -> None:
        self._entries = entries

    def file_digest(self, path: Path) -> str:
        """Returns the SHA-256 of a file; reads the file only if its identity changed."""
        key = str(path.resolve())
        entry = self._entries.get(key)
        if (
            isinstance(entry, list)
            and entry[:-1] == file_identity(path)
            and isinstance(entry[-1], str)
        ):
            return entry[-1]
        _wait_clock_tick(path)
        identity, digest = file_identity(path), sha256_file(path)
        self._entries[key] = [*identity, digest]
        return digest

    def tree_digest(self, path: Path) -> str:
        """Returns one SHA-256 for a file or a whole folder; "" if the path does not exist."""
        if not path.exists():
            return ""
        if path.is_file():
            return self.file_digest(path)
        members = sorted(member for member in path.rglob("*") if member.is_file())
        return sha256_json(
            {member.relative_to(path).as_posix(): self.file_digest(member) for member in members}
        )


def _wait_clock_tick(path: Path) -> None:
    """Waits until a later change of the file gets a later timestamp."""
    age = time.time_ns() - path.stat().st_ctime_ns
    if 0 <= age < CLOCK_TICK_NS:
        time.sleep((CLOCK_TICK_NS - age) / 1e9)


def checksum_lines(hashes: Mapping[str, str]) -> str:
    """Formats hashes as lines for `sha256sum -c`."""
    return "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
