"""Reads the address and the API key of a judge service.

The key comes from the environment, because other users of the machine can read arguments. It is a
`SecretStr`, so logs and errors never show it by accident.
"""

from __future__ import annotations

import ipaddress
import os

import httpx2
from pydantic import SecretStr

from camelpress.core.errors import RecipeProblem

KEY_VARIABLE = "CAMELPRESS_JUDGE_KEY"


def completions_url(url: str) -> httpx2.URL:
    """Returns the URL for chat completions of a service.

    Args:
        url: base URL of the service, or its chat completions URL.
    Raises:
        RecipeProblem: The URL is not http or https, or holds a password, query or fragment.
    """
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise RecipeProblem(
            "the judge's url is not a valid URL", next_step="give https://HOST/v1"
        ) from error
    if address.userinfo or address.query or address.fragment:
        raise RecipeProblem(
            "the judge's url holds more than an address",
            next_step=f"give https://HOST/v1, and the key in {KEY_VARIABLE}",
        )
    if address.scheme not in ("http", "https") or not address.host:
        raise RecipeProblem(
            f"the judge's url {url!r} is not the address of a service",
            next_step="give https://HOST/v1",
        )
    path = address.path.rstrip("/")
    tail = "" if path.endswith("/chat/completions") else "/chat/completions"
    return address.copy_with(path=path + tail)


def read_api_key(address: httpx2.URL) -> SecretStr | None:
    """Returns the API key from the environment, or None.

    Raises:
        RecipeProblem: The key has invalid characters, or would travel unencrypted.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise RecipeProblem(
            f"{KEY_VARIABLE} holds characters that are invalid in a key", next_step="correct it"
        )
    if address.scheme == "http" and not _is_loopback(address.host):
        raise RecipeProblem(
            f"the key in {KEY_VARIABLE} would go to {address.host} unencrypted",
            next_step=f"give an https:// address, or unset {KEY_VARIABLE}",
        )
    return SecretStr(key)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
