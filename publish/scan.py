"""The last look before a folder may leave: does any file hold a secret?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from camelpress.core.errors import OutputProblem

HEADER_LIMIT = 100_000_000  # of safetensors itself
# fmt: off
SECRETS: Mapping[str, re.Pattern[bytes]] = {
    "a Hugging Face token":     re.compile(rb"(?<![A-Za-z0-9])(hf_|api_org_)[A-Za-z0-9]{30,}"),
    "a GitHub token":           re.compile(rb"(?<![A-Za-z0-9])(gh[opsur]_|github_pat_)\w{30,}"),
    "an AWS key":               re.compile(rb"(?<![A-Za-z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"),
    "a login in a URL":         re.compile(
        rb"(https?://[^\s/@\"'<>]{1,300}|://[^\s/@:\"'<>]{1,100}:[^\s/@\"'<>]{1,200})@\w"
    ),
    "a private key":            re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
# fmt: on


def require_no_secrets(files: Iterable[Path], *, relative_to: Path) -> None:
    """Search all text: whole files, and of weights the header.

    Raises:
        OutputProblem: names the file, the line and the kind, never the secret.
    """
    for path in files:
        text = _text(path)
        for kind, pattern in SECRETS.items():
            found = pattern.search(text)
            if found:
                line = text.count(b"\n", 0, found.start()) + 1
                raise OutputProblem(
                    f"{path.relative_to(relative_to)} would publish {kind} (line {line})",
                    next_step="revoke it, remove it from the source of that file and run again",
                )


def _text(path: Path) -> bytes:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), HEADER_LIMIT))
