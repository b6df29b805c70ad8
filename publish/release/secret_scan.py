"""The last look before a folder may leave: does any file hold a secret?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from camelpress.core.errors import OutputProblem
from camelpress.core.runtime.secrets_redaction import secret_patterns

MAX_HEADER_BYTES = 100_000_000  # of safetensors itself


def require_no_secrets(files: Iterable[Path], *, relative_to: Path) -> None:
    """Search all text: whole files, and of weights the header.

    Raises:
        OutputProblem: names the file, the line and the kind, never the secret.
    """
    secrets = list(secret_patterns())
    for path in files:
        text = _searchable_bytes(path)
        for kind, pattern in secrets:
            found = pattern.search(text)
            if found:
                line = text.count(b"\n", 0, found.start()) + 1
                raise OutputProblem(
                    f"{path.relative_to(relative_to)} would publish {kind} (line {line})",
                    next_step="revoke it, remove it from the source of that file and run again",
                )


def _searchable_bytes(path: Path) -> bytes:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES))
