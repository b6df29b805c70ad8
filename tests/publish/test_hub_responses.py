"""A hub that answers 200 and does nothing is found out; any answer of another shape is one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import hub_client
from camelpress.core.errors import CheckpointProblem, OutputProblem, Problem
from camelpress.core.hub.model_location import locate_model
from camelpress.publish.destinations import hub_destination as target
from camelpress.publish.publish_release import publish_release as deliver
from camelpress.publish.settings import PublishSettings
from camelpress.publish.verify_release import verify_release_at
from hub_repositories import Hub
from local_server import answering
from long_answers import endless, replying

pytestmark = pytest.mark.filterwarnings(hub_client.OLD_WAY)
Judge = Callable[..., Path]
NAME, VARIANT = "pico/tulu-gptq", "gptq-4bit-32g"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "READ_BACK_PAUSES", (0.0,))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_client.talking(monkeypatch, hub_client.TOKEN) as hub:
        yield hub


def send(candidate: Path, report: Path, **settings: Any) -> Any:
    values = {"license": "tulu", "to": f"hf:{NAME}"} | settings
    return deliver(candidate, report, PublishSettings.parse(values, source="test"), force=False)


PUBLIC = {"public": True, "i_have_the_right": True}


@pytest.mark.parametrize("settings", [{}, PUBLIC])
def test_without_its_gate_nothing_is_sent_and_nothing_becomes_public(
    hub: Hub, candidate: Path, judge: Judge, settings: dict[str, Any]
) -> None:
    hub.deaf = {"settings"}
    with pytest.raises(OutputProblem, match="shows it without a gate") as told:
        send(candidate, judge(), **settings)
    assert "manual approval" in told.value.next_step
    found = hub.repositories[NAME]
    assert found.private and len(found.commits) == 1 and not hub.large
    hub.deaf = set()
    report = send(candidate, judge(), **settings)
    assert found.gated == "manual" and report.facts.record["delivered"]["gated"] is True


def test_a_gate_that_opens_meanwhile_keeps_the_repository_private(
    hub: Hub, candidate: Path, judge: Judge
) -> None:
    def open_it() -> None:
        if any("/commit/" in asked for asked in hub.asked):
            hub.repositories[NAME].gated = False

    hub.step = open_it
    with pytest.raises(OutputProblem, match="shows it without a gate"):
        send(candidate, judge(), **PUBLIC)
    assert hub.repositories[NAME].private


def test_a_gate_that_is_lost_by_becoming_public_makes_it_private_again(
    hub: Hub, candidate: Path, judge: Judge
) -> None:
    def lose() -> None:
        found = hub.repositories.get(NAME)
        if found and not found.private:
            found.gated = False

    hub.step = lose
    with pytest.raises(OutputProblem, match="lost its gate when it became public"):
        send(candidate, judge(), **PUBLIC)
    assert hub.repositories[NAME].private


def test_a_report_never_says_public_of_what_is_private(
    hub: Hub, candidate: Path, judge: Judge
) -> None:
    hub.add(NAME).gated = "manual"
    hub.deaf = {"settings"}
    with pytest.raises(OutputProblem, match=f"confirmed {NAME} as public, but shows it as private"):
        send(candidate, judge(), **PUBLIC)


@pytest.mark.parametrize("unknown", ["private", "gated"])
def test_what_the_hub_does_not_say_is_not_taken_for_granted(
    hub: Hub, candidate: Path, judge: Judge, unknown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = hub.add(NAME)
    monkeypatch.setattr(found, unknown, None)
    hub.deaf = {"settings"}
    with pytest.raises(OutputProblem, match=r"does not say whether|without a gate"):
        send(candidate, judge())
    assert len(found.commits) == 1


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ("unbranch", "confirmed the removal of staging-"),
        ("branch", "confirmed the move of|no longer shows|gives answers unlike a hub"),
    ],
)
def test_branches_are_read_back(
    hub: Hub, candidate: Path, judge: Judge, route: str, said: str
) -> None:
    hub.deaf = {route}
    with pytest.raises(OutputProblem, match=said):
        send(candidate, judge(), **PUBLIC)
    assert hub.repositories[NAME].private
    hub.deaf = set()
    send(candidate, judge(), **PUBLIC)
    assert set(hub.repositories[NAME].branches) == {"main", VARIANT}


# --- answers of any shape ------------------------------------------------------------------------

# fmt: off
ANSWERS: dict[str, tuple[int, str, bytes]] = {
    "a web page":       (200, "text/html", b"<html><form>Log in</form></html>"),
    "a list":           (200, "application/json", b"[]"),
    "a list of lists":  (200, "application/json", b"[[1]]"),
    "null":             (200, "application/json", b"null"),
    "a number":         (200, "application/json", b"7"),
    "a text":           (200, "application/json", b'"no"'),
    "nothing":          (200, "application/json", b""),
    "an empty object":  (200, "application/json", b"{}"),
    "null fields":      (200, "application/json",
                         b'{"id": null, "sha": null, "private": null, "siblings": null, '
                         b'"branches": null, "gated": null}'),
    "other types":      (200, "application/json",
                         b'{"id": 7, "sha": [], "private": "no", "siblings": {"a": 1}, '
                         b'"branches": [null], "lastModified": 7}'),
    "an error in 200":  (200, "application/json", b'{"error": "you are banned"}'),
    "half an object":   (200, "application/json", b'{"id": "pico/'),
    "deep":             (200, "application/json", b"[" * 100_000),
    "no text":          (200, "application/json", b"\xff\xfe\x00"),
    "a redirect":       (302, "text/html", b""),
    "teapot":           (418, "text/plain", b"I am a teapot"),
}
# fmt: on


class _Odd(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, answer: tuple[int, str, bytes], *arguments: Any) -> None:
        self.answer = answer
        super().__init__(*arguments)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        status, kind, content = self.answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status == 302:
            self.send_header("Location", self.path)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Any]:
    """A hub that answers everything alike."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def odd(name: str) -> Any:
        return answering(partial(_Odd, ANSWERS[name]))

    return odd


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_any_shape_is_one_line(
    hub: Hub, candidate: Path, judge: Judge, odd: Callable[[str], Any], name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    report = judge()
    works: tuple[tuple[Callable[[], object], type[Problem]], ...] = (
        (lambda: send(candidate, report), OutputProblem),
        (lambda: locate_model(Path("hf:org/model")), CheckpointProblem),
        (lambda: verify_release_at(Path("hf:org/model")), CheckpointProblem),
    )
    with odd(name) as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            endpoint + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
        for work, kind in works:
            with pytest.raises(kind) as told:
                work()
            assert len(str(told.value).splitlines()) == 1
            assert json.dumps(str(told.value))
            assert "banned" not in str(told.value) and "teapot" not in str(told.value)


def test_an_answer_without_end_is_one_line(
    hub: Hub, candidate: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = judge()
    with replying(endless) as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        with pytest.raises(OutputProblem) as refused:
            send(candidate, report)
    assert refused.value.message == (
        "the hub gives answers unlike a hub (it sends more than 16,777,216 bytes in one answer)"
    )
