"""What went in and what came out, as SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "SHA256SUMS"
IDENTITY = ("*.safetensors", "*.bin", "*.json", "*.model", "*.jinja", "merges.txt")


def sha256_file(path: Path) -> str:
    """The hash of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """The hash of plain data in canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def manifest(paths: Iterable[Path], *, relative_to: Path) -> dict[str, str]:
    """Name to hash, in the order of names."""
    return {path.relative_to(relative_to).as_posix(): sha256_file(path) for path in sorted(paths)}


def checkpoint_digest(folder: Path) -> str:
    """One hash for a model: over weights, configs and tokenizer, but not over reports."""
    files = {
        path
        for pattern in IDENTITY
        for path in folder.glob(pattern)
        if path.is_file() and not path.name.endswith("-report.json")
    }
    return sha256_json(manifest(files, relative_to=folder))


def manifest_text(hashes: Mapping[str, str]) -> str:
    """The form that `sha256sum -c` checks."""
    return "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
