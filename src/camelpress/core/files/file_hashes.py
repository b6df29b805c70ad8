"""What went in and what came out, as SHA-256."""

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
from camelpress.core.files.regular_files import open_regular
from camelpress.core.hub.model_location import CHAT_TEMPLATES_FOLDER

CHECKSUM_FILE = "SHA256SUMS"
PROVENANCE_FILE = "provenance.json"
BOM_FILE = "bom.cdx.json"
RELEASE_METADATA_FILES = (PROVENANCE_FILE, BOM_FILE)  # of a release about itself
REPORT_SUFFIX = "-report.json"
PACKAGES = ("camelpress", "numba", "numpy", "safetensors", "tokenizers", "torch", "transformers")
FileStates = tuple[tuple[str, int, int, int, int], ...]
CLOCK_TICK_NS = 2 * 10**7  # ns; clocks of file systems are finer
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
    """Returns the hash of a regular file's bytes, read in pieces.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1(content: bytes) -> str:
    """The name that git gives a file's bytes."""
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def sha256_json(content: Any) -> str:
    """The hash of plain data in canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_manifest(paths: Iterable[Path], *, relative_to: Path) -> dict[str, str]:
    """Name to hash, in the order of names."""
    names = {path.relative_to(relative_to).as_posix(): path for path in paths}
    return {name: sha256_file(path) for name, path in sorted(names.items())}


def is_checkpoint_file(name: str) -> bool:
    """Whether a file of this name makes a model what it is: weights, configs, tokenizer."""
    return (
        any(PurePath(name).match(pattern) for pattern in MODEL_FILE_PATTERNS)
        and name not in RELEASE_METADATA_FILES
        and not name.endswith(REPORT_SUFFIX)
    )


def checkpoint_file_hashes(
    folder: Path, known: Mapping[Path, str] = MappingProxyType({})
) -> dict[str, str]:
    """Name to hash of all that makes a model what it is; reports about it do not.

    Args:
        folder: of the checkpoint.
        known: hashes of files that were read already.
    """
    beside = sorted(
        path for path in folder.iterdir() if is_checkpoint_file(path.name) and path.is_file()
    )
    files = [*beside, *sorted(folder.glob(f"{CHAT_TEMPLATES_FOLDER}/*.jinja"))]
    return {
        path.relative_to(folder).as_posix(): known.get(path) or sha256_file(path) for path in files
    }


def checkpoint_digest(folder: Path) -> str:
    """One hash for a model."""
    return sha256_json(checkpoint_file_hashes(folder))


def file_identity(path: Path) -> list[int]:
    """Size, times of change (ns) and inode of a file, without a look at its content.

    A program can set the modification time back, as `cp -p` and `touch -r` do, but then either the
    time of the last status change or the inode is another.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def file_states(folder: Path) -> FileStates:
    """Returns name, size, times (ns) and inode of each file that makes a model.

    The time of the last status change comes last: `chmod` and a hard link change it alone.
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
    """Checks that the files of a model are still in the states that they were in.

    A file whose status alone has changed is read again, if its hash is known: a program that
    writes in place can set back the size and the time of the content.

    Args:
        folder: of the model.
        states: of its files before they were read.
        hashes: name to SHA-256 of files as they were read.
    Raises:
        CheckpointProblem: names the first file that was written, replaced, added or removed.
    """
    now = file_states(folder)
    different = {name for name, *_ in {*_content_states(now)} ^ {*_content_states(states)}}
    touched = {name for name, *_ in {*now} ^ {*states}} & hashes.keys() - different
    different |= {name for name in touched if sha256_file(folder / name) != hashes[name]}
    if different:
        raise CheckpointProblem(
            f"{folder / min(different)} changed while it was read",
            next_step="let nothing write there, and run the same command again",
        )


def _content_states(states: FileStates) -> list[tuple[str, int, int, int]]:
    """Returns states without the time of the last status change."""
    return [(name, size, time, inode) for name, size, time, inode, _ in states]


def package_versions() -> dict[str, str]:
    """What this program runs on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


@cache
def camelpress_commit() -> str | None:
    """The commit of camelpress itself, if it runs from a checkout or was installed from one.

    It ends in `-dirty` where a file of the checkout was changed since.
    """
    told = distribution("camelpress").read_text("direct_url.json")
    source = json.loads(told) if told else {}
    if "vcs_info" in source:
        found: str | None = source["vcs_info"].get("commit_id")
        return found
    here = str(Path(__file__).resolve().parent)
    command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() if ended.returncode == 0 and source.get("dir_info") else None


class FileHashCache:
    """File hashes that are remembered while the identity of a file stays the same.

    Args:
        known: path to identity and hash; updated in place, so that it can be kept in a file.
    """

    def __init__(self, known: dict[str, Any]) -> None:
        self._known = known

    def file_digest(self, path: Path) -> str:
        """The SHA-256 of a file, read only if it looks changed."""
        key = str(path.resolve())
        kept = self._known.get(key)
        if (
            isinstance(kept, list)
            and kept[:-1] == file_identity(path)
            and isinstance(kept[-1], str)
        ):
            return kept[-1]
        _wait_clock_tick(path)
        now, digest = file_identity(path), sha256_file(path)
        self._known[key] = [*now, digest]
        return digest

    def tree_digest(self, path: Path) -> str:
        """One hash for a file, or for a folder with everything in it; "" where there is none."""
        if not path.exists():
            return ""
        if path.is_file():
            return self.file_digest(path)
        inside = sorted(member for member in path.rglob("*") if member.is_file())
        return sha256_json(
            {member.relative_to(path).as_posix(): self.file_digest(member) for member in inside}
        )


def _wait_clock_tick(path: Path) -> None:
    """Wait until a later change of the file must have another time than the last one."""
    age = time.time_ns() - path.stat().st_ctime_ns
    if 0 <= age < CLOCK_TICK_NS:
        time.sleep((CLOCK_TICK_NS - age) / 1e9)


def checksum_lines(hashes: Mapping[str, str]) -> str:
    """The form that `sha256sum -c` checks."""
    return "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
