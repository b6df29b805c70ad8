"""A release on a hub: what is there afterwards, and that nothing else ever was."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import save_file

import hub_client
from camelpress.core.errors import OutputExists, OutputProblem, Problem, RecipeProblem
from camelpress.publish import publish_release as uploading
from camelpress.publish.card.card_markdown import read_front_matter
from camelpress.publish.destinations.hub_destination import HubDestination as Target
from camelpress.publish.destinations.hub_errors import hub_errors
from camelpress.publish.publish_release import publish_release as deliver
from camelpress.publish.run import run
from camelpress.publish.settings import PublishSettings
from camelpress.publish.verify_release import verify_release, verify_release_at
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict
from ec_key import write_key
from hub_repositories import Fault, Hub, Repository

pytestmark = pytest.mark.filterwarnings(hub_client.OLD_WAY)
Judge = Callable[..., Path]
Sender = Callable[..., Report]
TOKEN = "hf_Tell0No0One0What0This0Token0Is"
NAME = "pico/tulu-gptq"
VARIANT = "gptq-4bit-32g"
KILLS = 20


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process talks to."""
    with hub_client.talking(monkeypatch, TOKEN) as hub:
        yield hub


@pytest.fixture
def weighty(candidate: Path, judge: Judge) -> Path:
    """A candidate with two files that a hub stores as large ones, and a report of it."""
    layer = "model.layers.0.mlp.down_proj"
    tensors = {
        f"{layer}.qweight": torch.arange(9600, dtype=torch.int32).view(24, 400),
        f"{layer}.scales": torch.ones(6, 400, dtype=torch.float16),
    }
    save_file(tensors, candidate / "model.safetensors", {"format": "pt"})
    (candidate / "tokenizer.json").write_text(f'{{"version": "{"1" * 10_000}"}}')
    judge()
    return candidate


@pytest.fixture
def send(hub: Hub, weighty: Path, tmp_path: Path) -> Sender:
    """Publishes that candidate there; keywords are settings."""

    def send(to: str = f"hf:{NAME}", force: bool = False, **settings: object) -> Report:
        chosen = PublishSettings.parse({"license": "tulu", "to": to} | settings, source="test")
        return deliver(weighty, tmp_path / "report", chosen, force=force)

    return send


@pytest.fixture
def release(weighty: Path, judge: Judge, tmp_path: Path) -> Path:
    """A finished release, as a target gets it."""
    settings = PublishSettings.parse({"license": "tulu", "name": "Tulu"}, source="test")
    run(weighty, tmp_path / "report", tmp_path / "release", settings)
    return tmp_path / "release"


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def published(found: Repository) -> set[str]:
    """The branches that hold anything."""
    return {name for name in found.branches if found.tree(name)}


def test_a_new_repository_is_private_gated_and_complete(
    send: Sender, hub: Hub, weighty: Path
) -> None:
    report = send()
    found = hub.repositories[NAME]
    assert (found.private, found.gated) == (True, "manual")
    assert set(found.branches) == {"main", VARIANT}
    tree = found.tree(VARIANT)
    assert tree == found.tree("main")
    assert tree.keys() == {*report.outputs, "SHA256SUMS", "provenance.json"}
    assert tree["model.safetensors"] == (weighty / "model.safetensors").read_bytes()
    assert f"hf:{NAME}@{VARIANT}" in tree["provenance.json"].decode()
    assert report.facts.record["delivered"] == {
        "to": f"hf:{NAME}@{VARIANT}",
        "commit": found.branches[VARIANT],
        "private": True,
        "gated": True,
        "files": len(tree),
    }
    assert not list(weighty.parent.glob("candidate.uploading*"))
    assert (weighty / "model.safetensors").stat().st_nlink == 1


def test_the_card_loads_what_was_published_and_names_the_other_variants(
    send: Sender, hub: Hub
) -> None:
    send(f"hf:{NAME}@first")
    send(f"hf:{NAME}@second")
    found = hub.repositories[NAME]
    card = found.tree("second")["README.md"].decode()
    assert f'snapshot_download("{NAME}", revision="second")' in card
    assert f"[`first`](https://huggingface.co/{NAME}/tree/first)" in card
    assert f"camelpress verify hf:{NAME}@second" in card
    assert found.tree("main") == found.tree("first")


def test_only_finished_variants_are_linked_and_a_name_is_no_markup(send: Sender, hub: Hub) -> None:
    send(f"hf:{NAME}@first")
    found = hub.repositories[NAME]
    odd = "x`](javascript:a)<b>"
    found.branches |= {odd: found.branches["first"], "notes": found.add("notes", {"a": b""})}
    send(f"hf:{NAME}@second")
    card = found.tree("second")["README.md"].decode()
    assert f"[`first`](https://huggingface.co/{NAME}/tree/first), " in card
    assert r"x\`\](javascript:a)&lt;b&gt;." in card
    assert "notes" not in card


def test_the_lines_of_the_card_fetch_the_release(
    send: Sender, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send()
    card = hub.repositories[NAME].tree(VARIANT)["README.md"].decode()
    (program, *_) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    lines = [line for line in program.splitlines() if "snapshot_download" in line]
    assert len(lines) == 2
    found: dict[str, str] = {}
    exec("\n".join(lines), found)  # noqa: S102 - as a reader would
    folder = Path(found["folder"])
    assert folder.is_relative_to(cache)
    assert verify_release(folder, cache=cache).verdict is Verdict.PASS


def test_the_same_again_changes_nothing(send: Sender, hub: Hub) -> None:
    first = send()
    before = dict(hub.repositories[NAME].branches)
    hub.asked.clear()
    assert send().facts.record["delivered"] == first.facts.record["delivered"]
    assert hub.repositories[NAME].branches == before
    assert all(asked.startswith("GET") for asked in hub.asked)


def test_another_release_is_replaced_only_by_force_and_in_one_commit(
    send: Sender, hub: Hub
) -> None:
    send(name="one")
    found = hub.repositories[NAME]
    before = dict(found.branches)
    with pytest.raises(OutputExists, match=f"{VARIANT} holds another release; .* --force"):
        send(name="two")
    assert found.branches == before
    send(name="two", force=True)
    assert "# two" in found.tree(VARIANT)["README.md"].decode()
    assert "# one" in found.tree("main")["README.md"].decode()
    assert published(found) == {"main", VARIANT}


@pytest.mark.parametrize("to", [f"hf:{NAME}@main", f"hf:{NAME}@mine"])
def test_files_of_somebody_are_never_replaced(send: Sender, hub: Hub, to: str) -> None:
    found = hub.add(NAME, {"model.bin": b"years of work"})
    found.branches["mine"] = found.branches["main"]
    with pytest.raises(
        OutputProblem, match=r"holds files other than a release, for example model\.bin"
    ):
        send(to, force=True)
    assert len(found.commits) == 1
    send()
    assert found.tree("main") == {"model.bin": b"years of work"}
    assert "model.bin" not in found.tree(VARIANT)


def test_a_public_repository_is_not_filled_unasked(send: Sender, hub: Hub) -> None:
    found = hub.add(NAME, private=False)
    with pytest.raises(OutputProblem, match=f"hf:{NAME} is public; make it private"):
        send()
    assert len(found.commits) == 1


def test_public_asks_for_the_right_and_is_the_last_thing_done(send: Sender, hub: Hub) -> None:
    with pytest.raises(RecipeProblem, match="would show a model under tulu to everybody"):
        send(public=True)
    assert hub.asked == []
    send(public=True, i_have_the_right=True)
    found = hub.repositories[NAME]
    assert (found.private, found.gated) == (False, "manual")
    *_, last = [asked for asked in hub.asked if not asked.startswith("GET")]
    assert last == f"PUT /api/models/{NAME}/settings"
    assert b'"i_have_the_right": true' in found.tree(VARIANT)["provenance.json"]


def test_another_signature_of_the_same_files_is_the_same_release(
    send: Sender, hub: Hub, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing", reason="needs camelpress[sign]")
    key = write_key(tmp_path / "key.pem")
    send(sign_with=str(key))
    before = dict(hub.repositories[NAME].branches)
    send(sign_with=str(key))
    assert hub.repositories[NAME].branches == before
    with pytest.raises(OutputExists, match="holds another release"):
        send(sign_with=str(write_key(key)))


def test_what_is_free_and_public_has_no_gate(send: Sender, hub: Hub) -> None:
    send(license="mit", public=True, i_have_the_right=True)
    assert hub.repositories[NAME].gated is False


def test_a_gate_that_is_there_is_never_opened(send: Sender, hub: Hub) -> None:
    send("hf:pico/tulu-gptq@restricted")
    report = send("hf:pico/tulu-gptq@free", license="mit", public=True, i_have_the_right=True)
    assert hub.repositories[NAME].gated == "manual"
    assert report.facts.record["delivered"]["gated"] is True


@pytest.mark.parametrize("gated", [False, "auto"])
def test_a_gate_that_lets_everybody_in_is_closed_before_anything_is_sent(
    send: Sender, hub: Hub, gated: str | bool
) -> None:
    hub.add(NAME).gated = gated
    send()
    assert hub.repositories[NAME].gated == "manual"
    first, *_ = [asked for asked in hub.asked if not asked.startswith("GET")]
    assert first == f"PUT /api/models/{NAME}/settings"


def test_the_upload_of_another_variant_is_left_alone(send: Sender, hub: Hub) -> None:
    found = hub.add(NAME)
    others = [f"staging-{VARIANT}-true-0123456789ab", f"staging-{VARIANT}"]
    found.branches |= dict.fromkeys(
        [*others, f"staging-{VARIANT}-0123456789ab"], found.branches["main"]
    )
    send()
    assert set(found.branches) == {"main", VARIANT, *others}


def test_a_repository_that_turns_up_public_meanwhile_is_not_filled(
    send: Sender, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = HfApi.create_repo

    def create(self: HfApi, *arguments: object, **options: object) -> object:
        hub.add(NAME, private=False)
        return original(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(HfApi, "create_repo", create)
    with pytest.raises(OutputProblem, match=f"hf:{NAME} is public"):
        send()
    assert len(hub.repositories[NAME].commits) == 1


def test_weights_that_change_on_the_way_are_not_published(hub: Hub, release: Path) -> None:
    def change() -> None:
        (release / "model.safetensors").write_bytes(b"\0" * 5000)

    hub.step = change
    with pytest.raises(OutputProblem, match=r"model\.safetensors changed during the upload"):
        upload(NAME, release)
    assert published(hub.repositories[NAME]) == set()


ALWAYS = 1000
# fmt: off
FAULTS = {
    "bad login":     (Fault("info", 401, words="Invalid credentials in Authorization header"),
                      "refuses this login"),
    "gated":         (Fault("refs", 403, code="GatedRepo"), "which is gated"),
    "not mine":      (Fault("create", 403), f"does not let this login write to {NAME}"),
    "read-only":     (Fault("branch", 403), "does not let this login write"),
    "conflict":      (Fault("create", 409, times=ALWAYS), f"no longer shows {NAME}"),
    "race":          (Fault("commit", 412), "changed during the upload"),
    "in the way":    (Fault("branch", 409), "changed during the upload"),
    "full":          (Fault("batch", 403, words="Private repository storage limit reached"),
                      "has no storage left"),
    "too large":     (Fault("commit", 413), "has no storage left"),
    "metadata":      (Fault("yaml", 400, words="license: not one of the list"),
                      "rejects the metadata at the top of the card of"),
    "too many":      (Fault("preupload", 429, times=ALWAYS), "asks for a pause"),
    "no pause":      (Fault("commit", 429), "asks for a pause"),
    "ill":           (Fault("put", 500, times=ALWAYS), "HTTP 500"),
    "ill at last":   (Fault("branch", 500, after=1), "HTTP 500"),
    "cut":           (Fault("put", 0, times=ALWAYS, cut=True), "lost the connection"),
    "cut commit":    (Fault("commit", 0, cut=True), "lost the connection"),
}
# fmt: on


def test_a_disk_that_fails_while_the_copy_is_removed_is_told_in_one_line(
    send: Sender, hub: Hub, weighty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(uploading, "remove_output", fail)
        with pytest.raises(OutputProblem, match="cannot be written: No space left on device"):
            send()
    send()
    assert published(hub.repositories[NAME]) == {"main", VARIANT}
    assert not list(weighty.parent.glob("candidate.uploading*"))


@pytest.mark.parametrize("what", FAULTS)
def test_every_fault_is_one_line_and_leaves_nothing_published(
    send: Sender, hub: Hub, weighty: Path, what: str
) -> None:
    fault, said = FAULTS[what]
    hub.faults = [fault]
    with pytest.raises(OutputProblem, match=said) as told:
        send()
    assert str(told.value).startswith("the hub ")
    assert len(str(told.value).splitlines()) == 1
    assert "Private repository" not in str(told.value)
    found = hub.repositories.get(NAME)
    assert found is None or not {name for name in published(found) if not name.startswith("stag")}
    assert not list(weighty.parent.glob("candidate.uploading*"))
    hub.faults = []
    send()
    assert published(hub.repositories[NAME]) == {"main", VARIANT}


@pytest.mark.parametrize("fault", [Fault("put", 500), Fault("put", 0, cut=True)])
def test_a_passing_fault_is_waited_out(send: Sender, hub: Hub, fault: Fault) -> None:
    hub.faults = [fault]
    send()
    assert published(hub.repositories[NAME]) == {"main", VARIANT}


def test_a_file_that_the_hub_keeps_otherwise_is_noticed(send: Sender, hub: Hub) -> None:
    hub.flip = "NOTICE"
    with pytest.raises(OutputProblem, match="the hub stored other bytes of NOTICE than sent"):
        send()
    assert all(name.startswith("staging-") for name in published(hub.repositories[NAME]))


def test_nobody_publishes_without_a_login(
    send: Sender, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no such token"))
    with pytest.raises(
        OutputProblem, match="needs a login to publish .*`hf auth login`, or set HF_TOK"
    ):
        send()
    assert hub.asked == []


def test_the_login_of_the_hubs_own_command_is_used(
    send: Sender, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_of_the_login_store")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    send()
    assert hub.tokens - {None} == {"Bearer hf_of_the_login_store"}


def test_a_hub_that_is_not_there_is_one_line(send: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OutputProblem, match="cannot be reached, or lost the connection"):
        send()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            TimeoutError(110, "Connection timed out"),
            "the hub cannot be reached, or lost the connection",
        ),
        (socket.gaierror(-2, "Name or service not known"), "the hub cannot be reached"),
        (OSError(5, "Input/output error", "/weights"), "/weights cannot be read: Input/output err"),
        (OSError(5, "Input/output error"), "a file of the release cannot be read"),
    ],
)
def test_the_disk_is_not_blamed_for_the_network(error: OSError, said: str) -> None:
    with pytest.raises(OutputProblem, match=said), hub_errors(NAME):
        raise error


@pytest.mark.parametrize(
    "to", ["hf:", "hf:name", "hf:a/b@staging-x", "hf:a/b@refs/pr/1", "hf:a b/c"]
)
def test_a_place_that_is_none_is_told(send: Sender, hub: Hub, to: str) -> None:
    with pytest.raises(RecipeProblem, match="is not a repository on the hub"):
        send(to)
    assert hub.asked == []


def test_an_upload_killed_anywhere_and_run_again_ends_in_one_release(
    hub: Hub, release: Path
) -> None:
    expected = contents(release)
    steps = count_steps(hub, partial(upload, "pico/whole", release))
    for moment in random.Random(8).sample(range(1, steps + 1), KILLS):
        name = f"pico/killed-{moment}"
        hub.large.clear()
        _kill(hub, moment, partial(upload, name, release))
        found = hub.repositories.get(name, Repository(private=True))
        for branch in published(found):
            assert found.tree(branch) == expected, f"after {moment} of {steps} steps: {branch}"
        upload(name, release)
        found = hub.repositories[name]
        assert set(found.branches) == {"main", VARIANT}
        assert found.tree(VARIANT) == found.tree("main") == expected
        assert (found.private, found.gated) == (True, "manual")


def test_a_replacement_killed_anywhere_leaves_the_old_release_or_the_new_one(
    hub: Hub, release: Path, weighty: Path, tmp_path: Path
) -> None:
    settings = PublishSettings.parse({"license": "tulu", "name": "Another"}, source="test")
    run(weighty, tmp_path / "report", tmp_path / "other", settings)
    old, new = contents(release), contents(tmp_path / "other")
    replace = partial(upload, release=tmp_path / "other", force=True)
    upload("pico/whole", release)
    hub.large.clear()
    steps = count_steps(hub, partial(replace, "pico/whole"))
    for moment in random.Random(9).sample(range(1, steps + 1), KILLS // 3):
        name = f"pico/killed-{moment}"
        upload(name, release)
        hub.large.clear()
        _kill(hub, moment, partial(replace, name))
        found = hub.repositories[name]
        assert found.tree(VARIANT) in (old, new), f"after {moment} of {steps} steps"
        replace(name)
        assert set(found.branches) == {"main", VARIANT}
        assert (found.tree(VARIANT), found.tree("main")) == (new, old)


def upload(name: str, release: Path, *, force: bool = False) -> None:
    """A finished release, to a repository."""
    Target(name, VARIANT, public=False, gated=True, force=force).upload(release)


def count_steps(hub: Hub, work: Callable[[], None]) -> int:
    """The moments of a conversation at which a client may die."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    hub.step = step
    work()
    hub.step = lambda: None
    return steps


def _kill(hub: Hub, moment: int, work: Callable[[], None]) -> None:
    """Work in a process of its own that is killed at a moment of the conversation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the server is a thread of ours
        child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    left = moment

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(child, signal.SIGKILL)

    hub.step = step
    _, status = os.waitpid(child, 0)
    hub.step = lambda: None
    assert os.WIFSIGNALED(status)


def test_a_candidate_that_did_not_pass_never_reaches_the_hub(
    send: Sender, hub: Hub, judge: Judge
) -> None:
    judge(None)
    with pytest.raises(Problem, match="nothing was judged"):
        send()
    assert hub.asked == []


@pytest.fixture
def cache(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where what is fetched goes."""
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_on_the_hub_is_verified_and_then_without_it(
    send: Sender, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send()
    place = Path(f"hf:{NAME}@{VARIANT}")
    report = verify_release_at(place)
    assert (report.verdict, report.facts.record["problems"]) == (Verdict.PASS, [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert verify_release_at(place).verdict is Verdict.PASS
    assert hub.asked == []
    weights = next(cache.rglob("snapshots/*/model.safetensors"))
    content = weights.read_bytes()
    weights.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (fault,) = verify_release_at(place).facts.record["problems"]
    assert fault.startswith("'model.safetensors' has changed: sha256 ")


@pytest.mark.parametrize(
    ("place", "said"),
    [("hf:pico/nothing", "has no model pico/nothing"), ("hf:one", "names no repository")],
)
def test_what_is_not_there_cannot_be_verified(hub: Hub, cache: Path, place: str, said: str) -> None:
    with pytest.raises(Problem, match=said):
        verify_release_at(Path(place))


def test_the_gate_of_the_models_on_the_hub_is_carried_over(
    send: Sender, hub: Hub, cache: Path
) -> None:
    card = "---\nlicense: other\nextra_gated_fields: {Country: country}\n---\n"
    hub.add("allenai/tulu-65b", {"README.md": card.encode()})
    hub.add("huggyllama/llama-65b", {"README.md": b"---\nlicense: other\n---\n"})
    send(diff_model="allenai/tulu-65b", base_model="huggyllama/llama-65b")
    tree = hub.repositories[NAME].tree("main")
    metadata = read_front_matter(tree["README.md"].decode())
    assert metadata["extra_gated_fields"] == {"Country": "country"}
    assert metadata["base_model"] == ["allenai/tulu-65b"]
    commit = hub.repositories["allenai/tulu-65b"].branches["main"]
    assert f"allenai/tulu-65b@{commit}" in tree["provenance.json"].decode()
