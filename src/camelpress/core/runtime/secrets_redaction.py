"""Detection and redaction of secrets: tokens, keys and logins.

Secrets are recognized by their form, or by the values of the environment variables in
`CREDENTIAL_VARIABLES`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

MIN_SECRET_BYTES = 8  # bytes of a credential; shorter values would match ordinary text
# fmt: off
SECRET_PATTERNS: Mapping[str, re.Pattern[bytes]] = {
    "a Hugging Face token":     re.compile(
        rb"(?<![A-Za-z0-9])((hf_|api_org_)[A-Za-z0-9]{30,}|hf_(oauth|jwt)_[\w.-]{30,})"
    ),
    "a web token":              re.compile(
        rb"(?<![A-Za-z0-9])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    ),
    "a GitHub token":           re.compile(rb"(?<![A-Za-z0-9])(gh[opsur]_|github_pat_)\w{30,}"),
    "an AWS key":               re.compile(rb"(?<![A-Za-z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"),
    "a login in a URL":         re.compile(
        rb"(https?:/{1,2}[^\s/\"'<>]{1,300}|:/{1,2}[^\s/@:\"'<>]{1,100}:[^\s/\"'<>]{1,200}"
        rb"|(?<!\w)hf:[^\s/@:\"'<>]{1,100}:[^\s/\"'<>]{1,200})@(?=[\w\[])"
    ),
    "a private key":            re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
CREDENTIAL_VARIABLES = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "ORAS_PASS", "GITHUB_TOKEN", "GH_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
    "CAMELPRESS_JUDGE_KEY",
)
# fmt: on


SECRET_QUERY = re.compile(  # secret parameter of a URL; redacted, but allowed in release texts
    rb"([?&](?:[\w-]*(?:token|signature|secret|password|api[_-]?key)|sig|key)=)[^&\s\"'<>]{6,}",
    re.IGNORECASE,
)


def secret_patterns() -> Iterator[tuple[str, re.Pattern[bytes]]]:
    """Yields each kind of secret and its pattern, the credentials of this process first."""
    for name in CREDENTIAL_VARIABLES:
        value = os.environ.get(name, "").strip().encode(errors="surrogatepass")
        if len(value) >= MIN_SECRET_BYTES:
            yield f"the value of {name}", re.compile(re.escape(value))
    yield from SECRET_PATTERNS.items()


def redact_secrets(text: str) -> str:
    """Replaces each secret in a text with the name of its kind."""
    content = text.encode(errors="surrogatepass")
    for kind, pattern in secret_patterns():
        content = pattern.sub(f"[{kind}]".encode(), content)
    content = SECRET_QUERY.sub(rb"\1[a secret]", content)
    return content.decode(errors="surrogatepass")
