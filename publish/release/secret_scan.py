"""Searches the files of a release for secrets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from camelpress.core.errors import OutputProblem
from camelpress.core.runtime.secrets_redaction import secret_patterns

MAX_HEADER_BYTES = 100_000_000  # bytes, the limit of safetensors itself


def require_no_secrets(files: Iterable[Path], *, relative_to: Path) -> None:
    """Searches whole files, and the header of weight files.

    Raises:
        OutputProblem: a file holds a secret; the message has file, line and kind only.
    """
    secrets = list(secret_patterns())
    for path in files:
        text = _searchable_bytes(path)
        for kind, pattern in secrets:
            match = pattern.search(text)
            if match:
                line = text.count(b"\n", 0, match.start()) + 1
                raise OutputProblem(
                    f"{path.relative_to(relative_to)} would publish {kind} (line {line})",
                    next_step="revoke it, remove it from the source of that file and run again",
                )


def _searchable_bytes(path: Path) -> bytes:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES))
