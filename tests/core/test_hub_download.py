"""A checkpoint by its name on the hub: what is fetched, what is not, and every way to fail."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import hub_server
import pico
import stages
import weights
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem
from camelpress.core.hub import hub_download, model_location, repo_id
from hub_server import Hub, commit
from refusal import refusal

TOKEN = "hf_Tell0No0One0What0This0Token0Is"
CUT = 11_000_000  # bytes: the client keeps what has come in pieces of 10 MiB
LIMIT = 2**24  # bytes a file may have: a disk that is full, without a disk
CHECKPOINT = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}

LOGIN = "accept the licence on its page and log in with `hf auth login`, or set HF_TOKEN"
UNREACHED = "run the same command once with a connection and without HF_HUB_OFFLINE"
BROKEN = "run the same command again: it resumes with the files that are not complete"
NAME = "correct the name; for a private model, log in with `hf auth login` or set HF_TOKEN"

COMMANDS = """
import contextlib, io, json, resource, sys
from camelpress.cli import entry_point

_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), most))
ended = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["camelpress", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            entry_point.main()
        except SystemExit as end:
            code = end.code
    ended.append((code, out.getvalue(), err.getvalue()))
json.dump(ended, sys.stdout)
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def problem(self) -> str:
        """The line of the error."""
        return self.err.splitlines()[-1]


def run(home: Path, *commands: tuple[str, ...], **settings: str) -> list[Ended]:
    """Commands one after another in one process of its own, with the hub's cache in `home`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    told = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(LIMIT)],
        input=json.dumps(commands),
        env=clean | {"HF_HOME": str(home), "HF_TOKEN": TOKEN, "NO_PROXY": "*"} | settings,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, "")
    return [Ended(*each) for each in json.loads(told.stdout)]


def cached(home: Path, name: str) -> Path:
    """The weights of a model in the cache."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    return repository / "snapshots" / commit(name) / "model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the models of the hub, its cache and the outputs."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def diff(base: Path, tuned: Path, place: Path) -> Path:
    """tuned - base."""
    stages.make_diff(base, tuned, place / "diff")
    return place / "diff"


@pytest.fixture(scope="module")
def full(base: Path, place: Path) -> Path:
    """The base, with more in its repository than a checkpoint needs."""
    folder = shutil.copytree(base, place / "full")
    for extra in (
        "model.md",
        "pytorch_model.bin",
        "original/model.safetensors",
        "tokenizer/x.json",
        "additional_chat_templates_old/x.jinja",
        "additional_chat_templates/deep/x.jinja",
    ):
        (folder / extra).parent.mkdir(exist_ok=True, parents=True)
        (folder / extra).write_text("not fetched")
    for extra in ("LICENSE", "README.md", "additional_chat_templates/rag.jinja"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_text(f"fetched: {extra}")
    return folder


@pytest.fixture(scope="module")
def pickled(base: Path, place: Path) -> Path:
    """The base as a pickle."""
    folder = shutil.copytree(base, place / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def large(place: Path) -> Path:
    """A model of 13 MB."""
    return pico.write_model(place / "large", pico.PICO._replace(vocab=50_000))


@pytest.fixture(scope="module")
def huge(base: Path, place: Path) -> Path:
    """A model whose weights are larger than a file may be."""
    folder = shutil.copytree(base, place / "huge")
    os.truncate(folder / "model.safetensors", LIMIT + 1)
    return folder


@pytest.fixture(scope="module")
def served(
    full: Path, base: Path, diff: Path, pickled: Path, large: Path, huge: Path
) -> Iterator[Hub]:
    models = {
        "pico/base": {"main": full},
        "pico/diff": {"main": base, "v1": diff},
        "pico/pickled": {"main": pickled},
        "pico/large": {"main": large},
        "pico/reset": {"main": base},
        "pico/gated": {"main": base},
        "pico/expired": {"main": base},
        "pico/huge": {"main": huge},
    }
    with hub_server.serving(models) as found:
        found.gated = {"pico/gated"}
        found.expired = {"pico/expired"}
        found.cut = {"pico/large": CUT, "pico/reset": 1000}
        found.reset = {"pico/reset"}
        yield found


@pytest.fixture(scope="module")
def online(served: Hub, place: Path) -> dict[str, Ended]:
    """What each command ended with, on an empty cache."""
    commands = {  # the library's log goes to the stderr of the first one
        "cut": ("inspect", "pico/large", "--json", "-q"),
        "recover": ("recover", "pico/base", "hf:pico/diff@v1", "out", "--json"),
        "pickled": ("inspect", "pico/pickled", "--json"),
        "reset": ("inspect", "hf:pico/reset"),
        "again": ("inspect", "hf:pico/reset", "--json"),
        "no model": ("inspect", "pico/nothing", "--json"),
        "no model, surely meant": ("inspect", "hf:pico/nothing"),
        "no revision": ("inspect", "hf:pico/base@v9"),
        "gated": ("inspect", "hf:pico/gated", "--debug"),
        "expired": ("inspect", "hf:pico/expired", "--debug"),
        "disk": ("inspect", "hf:pico/huge"),
    }
    ended = run(place, *commands.values(), HF_ENDPOINT=served.endpoint)
    return dict(zip(commands, ended, strict=True))


def test_recover_takes_models_from_the_hub(
    online: dict[str, Ended], base: Path, diff: Path, place: Path, tmp_path: Path
) -> None:
    assert online["recover"].code == 0, online["recover"].err
    assert json.loads(online["recover"].out)["stage"] == "recover"
    stages.recover(base, diff, tmp_path / "local")
    assert weights.same(weights.read(place / "out"), weights.read(tmp_path / "local"))


@pytest.mark.usefixtures("online")
def test_only_what_makes_a_checkpoint_is_fetched(served: Hub) -> None:
    assert served.sent("pico/base") == CHECKPOINT | {
        "LICENSE",
        "README.md",
        "additional_chat_templates/rag.jinja",
    }


def test_pickles_are_fetched_where_there_is_nothing_else(
    online: dict[str, Ended], served: Hub
) -> None:
    assert json.loads(online["pickled"].out)["files"].keys() == {"pytorch_model.bin"}
    assert "pytorch_model.bin" in served.sent("pico/pickled")


def test_a_cut_connection_resumes_in_the_middle_of_a_file(
    online: dict[str, Ended], served: Hub, large: Path, place: Path
) -> None:
    assert (online["cut"].code, online["cut"].err) == (0, "")
    ranges = [
        each.range
        for each in served.asked
        if (each.method, each.name, each.file) == ("GET", "pico/large", "model.safetensors")
    ]
    assert ranges[-2:] == [None, f"bytes={constants.DOWNLOAD_CHUNK_SIZE}-"]
    assert cached(place, "pico/large").read_bytes() == (large / "model.safetensors").read_bytes()


def test_a_reset_connection_ends_the_command_and_the_next_one_fetches_the_rest(
    online: dict[str, Ended], served: Hub, base: Path, place: Path
) -> None:
    assert online["reset"].code == 3
    assert online["reset"].problem == (
        f"error: the hub broke off in the middle of pico/reset (ReadError); {BROKEN}"
    )
    assert json.loads(online["again"].out)["path"] == f"reset@{commit('pico/reset')}"
    assert cached(place, "pico/reset").read_bytes() == (base / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("command", "what", "next_step"),
    [
        (
            "no model",
            "pico/nothing is not a folder here, and the hub has no model pico/nothing, "
            "or does not show it",
            NAME,
        ),
        ("no model, surely meant", "the hub has no model pico/nothing, or does not show it", NAME),
        (
            "no revision",
            "the hub has no revision v9 of pico/base",
            "name a branch, a tag or a commit of that model",
        ),
        ("gated", "the hub does not give pico/gated to everyone", LOGIN),
        (
            "expired",
            "the hub refuses this login (HTTP 401)",
            "log in again with `hf auth login`, or correct HF_TOKEN",
        ),
        (
            "disk",
            "{cache} cannot hold hf:pico/huge: File too large",
            "free some space, or set HF_HOME to a folder that can be written",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line_and_exit_code_3(
    online: dict[str, Ended], place: Path, command: str, what: str, next_step: str
) -> None:
    ended = online[command]
    assert ended.code == 3
    assert ended.problem == f"error: {what.format(cache=place / 'hub')}; {next_step}"


def test_json_is_the_only_thing_on_stdout(online: dict[str, Ended]) -> None:
    assert json.loads(online["no model"].out)["error"]["next_step"] == NAME
    assert [ended.out for ended in online.values() if not ended.out.startswith("{")] == [""] * 6


def test_the_token_goes_to_the_hub_and_nowhere_else(online: dict[str, Ended], served: Hub) -> None:
    assert {each.token for each in served.asked if each.file == "config.json"} == {
        f"Bearer {TOKEN}"
    }
    assert {each.token for each in served.asked if each.host == "weights"} == {None}
    assert not any(TOKEN in text for ended in online.values() for text in (ended.out, ended.err))


@pytest.mark.usefixtures("online")
def test_without_a_connection_the_cache_is_enough(place: Path) -> None:
    found, absent = run(
        place,
        ("recover", "pico/base", "pico/diff@v1", "again", "--json"),
        ("recover", "hf:pico/nothing", "pico/diff@v1", "never"),
        HF_ENDPOINT="http://127.0.0.1:1",
    )
    assert found.code == 0, found.err
    assert weights.same(weights.read(place / "out"), weights.read(place / "again"))
    assert absent.code == 3
    assert absent.problem == (
        "error: the hub is out of reach (ConnectError) and pico/nothing is not all in its cache; "
        f"{UNREACHED}"
    )


@pytest.mark.usefixtures("online")
def test_offline_the_cache_is_enough(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    snapshot = cached(place, "pico/base").parent
    found = model_location.locate_model(Path("pico/base"))
    assert found == model_location.ModelLocation(snapshot, f"pico/base@{commit('pico/base')}")
    assert (
        model_location.locate_model(Path("pico/diff@v1")).origin
        == f"pico/diff@{commit('pico/diff', 'v1')}"
    )


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("name", ["pico/nothing", "pico/gated"])  # never seen, and seen in part
def test_offline_without_the_cache_is_refused(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    with refusal(
        CheckpointProblem,
        f"{name} is not a folder here, and the hub is out of reach (OfflineModeIsEnabled) "
        f"and {name} is not all in its cache",
        next_step=UNREACHED,
        out=None,
    ):
        model_location.locate_model(Path(name))


@pytest.mark.parametrize(
    ("error", "what", "next_step"),
    [
        (
            RuntimeError(f"CAS Client Error: https://cas?signature={TOKEN}"),  # hf_xet's only kind
            "the hub broke off in the middle of org/name (RuntimeError)",
            BROKEN,
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "{cache} cannot hold hf:org/name: No space left on device",
            "free some space, or set HF_HOME to a folder that can be written",
        ),
        (
            PermissionError("XetAuthenticationError"),
            "the hub refuses this login (PermissionError)",
            "log in again with `hf auth login`, or correct HF_TOKEN",
        ),
    ],
)
def test_faults_without_a_server(
    monkeypatch: pytest.MonkeyPatch, error: Exception, what: str, next_step: str
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(hub_download, "snapshot_download", fail)
    with refusal(
        CheckpointProblem,
        what.format(cache=constants.HF_HUB_CACHE),
        next_step=next_step,
        out=None,
    ):
        model_location.locate_model(Path("hf:org/name"))


def test_a_folder_is_itself_whatever_its_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    place = Path("org/name")
    assert model_location.locate_model(place) == model_location.ModelLocation(place, "org/name")
    assert Checkpoint.open(place).source_name == "org/name"


def test_a_checkpoint_of_the_hub_knows_its_commit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = shutil.copytree(base, tmp_path / commit("org/name"))
    monkeypatch.setattr(hub_download, "snapshot_download", lambda *_, **__: str(snapshot))
    opened = Checkpoint.open(Path("org/name@main"))
    assert (opened.folder, opened.source_name) == (snapshot, f"org/name@{snapshot.name}")


@pytest.mark.parametrize(
    "place",
    [
        "name",
        "/org/name",
        "../name",
        "~/name",
        "org/name/more",
        "org/na me",
        "org/näme",
        "org/name@",
        "org/name@-v1",
        "org/name@refs/../../x",
        "hf:name",
        "hf:/org/name",
        "file/here",
    ],
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "here").touch()
    monkeypatch.chdir(tmp_path)
    with refusal(
        CheckpointProblem,
        f"{place} is not a folder",
        next_step="give a Hugging Face checkpoint folder",
        out=None,
    ):
        model_location.locate_model(Path(place))


NAMES = st.text(st.sampled_from("aZ9_-./é "), max_size=8) | st.sampled_from(["a" * 96, "a" * 97])


@given(NAMES, NAMES, st.sampled_from(["", ".git", "--", ".."]))
def test_hub_ids_are_those_of_the_library(owner: str, name: str, end: str) -> None:
    text = f"{owner}/{name}{end}"
    try:
        validate_repo_id(text)
        valid = text.count("/") == 1
    except HFValidationError:
        valid = False
    found = repo_id.REPO_ID_PATTERN.fullmatch(f"hf:{text}@main")
    assert bool(found) == bool(repo_id.REPO_ID_PATTERN.fullmatch(text)) == valid
    assert found is None or found.groupdict() == {
        "prefix": "hf:",
        "repository": text,
        "revision": "main",
    }
