"""The real client of the hub in this process, turned to a hub on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from hub_repositories import Hub
from hub_writable import serving

# huggingface_hub 2.4.0 sends a file in a way that its HTTP client calls old.
OLD_WAY = "ignore:Use 'content=:DeprecationWarning"
TOKEN = "hf_Tell0No0One0What0This0Token0Is"


class Place(NamedTuple):
    """What a command that publishes finds, and what else it is given."""

    hub: Hub
    candidate: Path
    report: Path
    judge: Callable[..., Path]
    patch: pytest.MonkeyPatch
    options: list[str]


@contextmanager
def talking(monkeypatch: pytest.MonkeyPatch, token: str) -> Iterator[Hub]:
    """A hub that this process talks to, without pauses before a request is tried again."""
    quick = vars(time) | {"sleep": lambda _seconds: None}
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(_http, "time", SimpleNamespace(**quick))
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setenv("NO_PROXY", "*")
        _http.close_session()
        yield hub
        _http.close_session()
