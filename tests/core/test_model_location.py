"""A file of a data set by its name on the hub: it alone is fetched, every way to fail is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import hub_server
import pico
from camelpress.core.errors import DataProblem, RecipeProblem
from camelpress.core.hub.model_location import FileLocation, locate_file
from hub_server import Hub, commit
from refusal import refusal

BROKEN = "run the same command again: it resumes with the files that are not complete"
UNREACHED = "run the same command once with a connection and without HF_HUB_OFFLINE"
LOGIN = "accept the licence on its page and log in with `hf auth login`, or set HF_TOKEN"
COMMANDS = """
import json, sys
from pathlib import Path
from camelpress.core.errors import Problem
from camelpress.core.hub.model_location import locate_file

told = []
for place in json.load(sys.stdin):
    try:
        found = locate_file(Path(place))
        told.append([0, str(found.path), found.name])
    except Problem as problem:
        told.append([problem.exit_code, problem.message, problem.next_step])
json.dump(told, sys.stdout)
"""
Told = list[tuple[int, str, str]]


def located(home: Path, *places: str, **settings: str) -> Told:
    """Files, located one after another in one process with the hub's cache in `home`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    ended = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=json.dumps(places),
        env=clean | {"HF_HOME": str(home), "NO_PROXY": "*"} | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [(code, what, more) for code, what, more in json.loads(ended.stdout)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a data set."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "raw").mkdir()
    pico.write_chat(folder / "raw" / "chat.jsonl")
    pico.write_chat(folder / "other.jsonl", seed=1)
    return folder


@pytest.fixture(scope="module")
def served(data: Path) -> Iterator[Hub]:
    with hub_server.serving({}) as hub:
        hub.datasets = {
            name: {"main": data, "v1": data}
            for name in ("pico/chat", "pico/cut", "pico/gated", "pico/expired")
        }
        hub.gated, hub.expired = {"pico/gated"}, {"pico/expired"}
        hub.cut, hub.reset = {"pico/cut": 100}, {"pico/cut"}
        yield hub


PLACES = {
    "found": "hf:pico/chat:raw/chat.jsonl",
    "of a revision": "hf:pico/chat@v1:raw/chat.jsonl",
    "of its commit": f"hf:pico/chat@{commit('pico/chat')}:raw/chat.jsonl",
    "cut": "hf:pico/cut:other.jsonl",
    "again": "hf:pico/cut:other.jsonl",
    "no data set": "hf:pico/nothing:chat.jsonl",
    "no revision": "hf:pico/chat@v9:raw/chat.jsonl",
    "no file": "hf:pico/chat:chat.jsonl",
    "gated": "hf:pico/gated:other.jsonl",
    "expired": "hf:pico/expired:other.jsonl",
}


@pytest.fixture(scope="module")
def online(served: Hub, home: Path) -> dict[str, tuple[int, str, str]]:
    """What became of each place, on an empty cache."""
    ended = located(home, *PLACES.values(), HF_ENDPOINT=served.endpoint)
    return dict(zip(PLACES, ended, strict=True))


@pytest.mark.parametrize(
    ("which", "revision"), [("found", "main"), ("of a revision", "v1"), ("of its commit", "main")]
)
def test_a_file_has_the_name_of_its_commit(
    online: dict[str, tuple[int, str, str]], data: Path, which: str, revision: str
) -> None:
    code, path, name = online[which]
    assert (code, name) == (0, f"pico/chat@{commit('pico/chat', revision)}:raw/chat.jsonl")
    assert Path(path).read_bytes() == (data / "raw" / "chat.jsonl").read_bytes()


@pytest.mark.usefixtures("online")
def test_nothing_else_is_fetched(served: Hub) -> None:
    assert served.sent("pico/chat") == {"raw/chat.jsonl"}


def test_a_connection_that_breaks_is_told_and_the_next_run_has_the_file(
    online: dict[str, tuple[int, str, str]], data: Path
) -> None:
    what = "the hub broke off in the middle of pico/cut (ReadError)"
    assert online["cut"] == (3, what, BROKEN)
    assert Path(online["again"][1]).read_bytes() == (data / "other.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("which", "what", "next_step"),
    [
        (
            "no data set",
            "the hub has no data set pico/nothing, or does not show it",
            "correct the name; for a private data set, log in with `hf auth login` or set HF_TOKEN",
        ),
        (
            "no revision",
            "the hub has no revision v9 of pico/chat",
            "name a branch, a tag or a commit of that data set",
        ),
        (
            "no file",
            "the hub has no file chat.jsonl in pico/chat",
            "correct its name; it is listed on the page of that data set",
        ),
        ("gated", "the hub does not give pico/gated to everyone", LOGIN),
        (
            "expired",
            "the hub refuses this login (HTTP 401)",
            "log in again with `hf auth login`, or correct HF_TOKEN",
        ),
    ],
)
def test_what_the_hub_refuses_is_told(
    online: dict[str, tuple[int, str, str]], which: str, what: str, next_step: str
) -> None:
    assert online[which] == (3, what, next_step)


def test_offline_the_cache_is_enough(
    online: dict[str, tuple[int, str, str]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    _, path, name = online["found"]
    found = locate_file(Path(PLACES["found"]))
    assert found == FileLocation(Path(path), name, Path(f"hf:{name}"))
    assert locate_file(found.place) == found


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    "place", ["hf:pico/chat:other.jsonl", "hf:pico/unseen:chat.jsonl", "hf:pico/chat@v2:x.json"]
)
def test_offline_what_is_not_in_the_cache_is_refused(
    place: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    repository = place.removeprefix("hf:").partition(":")[0].partition("@")[0]
    with refusal(
        DataProblem,
        f"the hub is out of reach (OfflineModeIsEnabled) and {repository} is not all in its cache",
        next_step=UNREACHED,
        out=None,
    ):
        locate_file(Path(place))


@pytest.mark.parametrize(
    "place",
    [
        "hf:org/name",
        "hf:org/name:",
        "hf:org/name@main",
        "hf:name:a.jsonl",
        "hf:org/name:../a.jsonl",
        "hf:org/name:/a.jsonl",
        "hf:org/name:a/../../b.jsonl",
        "hf:org/name:a:b",
        "hf:org/name:a\\b",
        "hf:",
    ],
)
def test_what_names_no_file_is_refused_without_a_look(place: str) -> None:
    with refusal(
        RecipeProblem,
        f"{Path(place)} names no file of a data set on the hub",
        next_step="write it as hf:org/name:file.jsonl, or hf:org/name@revision:file.jsonl",
        exit_code=2,
        out=None,
    ):
        locate_file(Path(place))


def test_a_file_here_is_itself(tmp_path: Path) -> None:
    assert locate_file(tmp_path / "a:b") == FileLocation(tmp_path / "a:b", "a:b", tmp_path / "a:b")
