"""What goes wrong with an upload, as who typed the command sees it: a line, a code, no release."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from huggingface_hub import constants

import hub_client
from camelpress.publish.card import model_card
from command import Run
from hub_client import Place
from hub_repositories import Fault

pytestmark = pytest.mark.filterwarnings(hub_client.OLD_WAY)
NAME = "pico/tulu"
HOSTILE = "{{ facts.__class__.__mro__[1].__subclasses__() }}"


def no_token(place: Place) -> None:
    place.patch.delenv("HF_TOKEN")
    place.patch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")


def no_right(place: Place) -> None:
    place.hub.writers.clear()


def other_files(place: Place) -> None:
    found = place.hub.add(NAME, {"pytorch_model.bin": b"years of work"})
    found.branches["gptq-4bit-32g"] = found.branches["main"]


def changed_candidate(place: Place) -> None:
    (place.candidate / "tokenizer.json").write_text('{"version": "2.0"}')


def another_model(place: Place) -> None:
    path = place.report / "report.json"
    path.write_text(path.read_text().replace('"candidate": "', '"candidate": "0'))


def hostile_template(place: Place) -> None:
    (place.report.parent / model_card.CARD_TEMPLATE).write_text(HOSTILE)
    place.patch.setattr(model_card, "files", lambda _package: place.report.parent)


def full(place: Place) -> None:
    place.hub.faults = [Fault("commit", 413)]


# fmt: off
CASES = (  # what is wrong      code  what is told, and what to do
    (no_token,                  3, f"the hub needs a login to publish to {NAME}; log in with `hf"),
    (no_right,                  3, f"the hub does not let this login write to {NAME}; use a tok"),
    (other_files,               3, "holds files other than a release, for example "
                                   "pytorch_model.bin; name another"),
    (changed_candidate,         1, "it changed after validation, or was never "
                                   "validated; validate it again"),
    (another_model,             1, "is not the model that"),
    (hostile_template,          3, f"{model_card.CARD_TEMPLATE} cannot be rendered "
                                   "(SecurityError); inst"),
    (full,                      3, f"the hub has no storage left for {NAME}; free some storage"),
)
# fmt: on


@pytest.mark.parametrize(("wrong", "code", "told"), CASES, ids=[each[0].__name__ for each in CASES])
def test_it_is_one_line_and_nothing_is_published(
    run: Run, place: Place, wrong: Callable[[Place], None], code: int, told: str
) -> None:
    wrong(place)
    before = {name: dict(each.branches) for name, each in place.hub.repositories.items()}
    command = ("publish", place.candidate, "--report", place.report, "--license", "tulu")
    ended = run(*command, "--to", f"hf:{NAME}", "--quiet")
    assert ended.code == code
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert ended.out == ""
    for name, found in place.hub.repositories.items():
        after = {name for name in found.branches if found.tree(name)}
        assert {each for each in after if not each.startswith("staging-")} <= {
            *before.get(name, ())
        }
    assert not list(place.candidate.parent.glob("candidate.uploading*"))
