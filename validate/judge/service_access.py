"""Where a judge is asked, and the key that it wants: from the environment, and only to be sent.

A key is never an argument, which other users of the machine could read, and is held so that nothing
shows it by accident.
"""

from __future__ import annotations

import ipaddress
import os

import httpx2
from pydantic import SecretStr

from camelpress.core.errors import RecipeProblem

KEY_VARIABLE = "CAMELPRESS_JUDGE_KEY"


def completions_url(url: str) -> httpx2.URL:
    """Where questions are posted, from the address of a service or of its completions.

    Raises:
        RecipeProblem: it is no address of the web, or it holds a password.
    """
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise RecipeProblem("the judge's url is none", next_step="give https://HOST/v1") from error
    if address.userinfo or address.query or address.fragment:
        raise RecipeProblem(
            "the judge's url holds more than an address",
            next_step=f"give https://HOST/v1, and the key in {KEY_VARIABLE}",
        )
    if address.scheme not in ("http", "https") or not address.host:
        raise RecipeProblem(
            f"the judge's url {url!r} is no address of a service", next_step="give https://HOST/v1"
        )
    path = address.path.rstrip("/")
    tail = "" if path.endswith("/chat/completions") else "/chat/completions"
    return address.copy_with(path=path + tail)


def read_api_key(address: httpx2.URL) -> SecretStr | None:
    """The key, if the environment has one.

    Raises:
        RecipeProblem: it cannot be one, or it would be sent where everyone can read it.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise RecipeProblem(
            f"{KEY_VARIABLE} holds characters that no key has", next_step="correct it"
        )
    if address.scheme == "http" and not _is_loopback(address.host):
        raise RecipeProblem(
            f"the key in {KEY_VARIABLE} would go to {address.host} for everyone on the way to read",
            next_step=f"give an https:// address, or unset {KEY_VARIABLE}",
        )
    return SecretStr(key)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
