"""A token is sent to the hub and shown to nobody, wherever one was planted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import hub_client
from camelpress.cli import entry_point
from command import Ended, Run
from hub_client import TOKEN, Place
from hub_repositories import Fault

pytestmark = pytest.mark.filterwarnings(hub_client.OLD_WAY)
NAME = "pico/tulu"


def in_the_login_store(place: Place) -> None:
    (place.candidate.parent / "token").write_text(TOKEN)
    place.patch.delenv("HF_TOKEN")
    place.patch.setattr(constants, "HF_TOKEN_PATH", str(place.candidate.parent / "token"))


def in_another_variable(place: Place) -> None:
    place.patch.setenv("AWS_SECRET_ACCESS_KEY", TOKEN[3:])
    place.patch.setenv("WANDB_API_KEY", TOKEN)


def in_the_name_of_a_file(place: Place) -> None:
    (place.candidate / f"{TOKEN}.txt").write_text("left out, and the report says so")


def in_an_answer(place: Place) -> None:
    place.hub.faults = [Fault("commit", 500, words=f"no: {TOKEN}")]


def in_the_address(place: Place) -> None:
    place.patch.setattr(constants, "ENDPOINT", f"http://me:{TOKEN}@127.0.0.1:9")


def in_a_name(place: Place) -> None:
    place.options.extend(["--name", f"see {TOKEN}"])


def in_the_reason(place: Place) -> None:
    place.judge(None)
    place.options.extend(["--allow-failed-gate", f"because {TOKEN}"])


def in_the_place(place: Place) -> None:
    place.options.extend(["--to", f"https://me:{TOKEN}@hub.example/{NAME}"])


def in_a_file(place: Place) -> None:
    (place.candidate / "tokenizer.json").write_text(json.dumps({"from": TOKEN}))
    place.judge()


def in_the_header_of_weights(place: Place) -> None:
    save_file({"x": torch.zeros(1)}, place.candidate / "model.safetensors", {"by": TOKEN})
    place.judge()


def in_the_page_of_the_report(place: Place) -> None:
    (place.report / "report.html").write_text(f"<p>{TOKEN}</p>")


def in_the_settings_of_a_stage(place: Place) -> None:
    path = place.candidate / "quantize-report.json"
    path.write_text(path.read_text().replace('"seed": 42', f'"seed": "{TOKEN}"'))


def in_the_card_of_an_input(place: Place) -> None:
    card = place.candidate.parent / "card.md"
    card.write_text(f"---\nextra_gated_prompt: {TOKEN}\n---\n")
    place.options.extend(["--gated-like", str(card)])


# fmt: off
PLANTED = (  # where                 code
    (in_the_login_store,             0),
    (in_another_variable,            0),
    (in_the_name_of_a_file,          0),
    (in_an_answer,                   3),
    (in_the_address,                 3),
    (in_a_name,                      3),
    (in_the_reason,                  3),
    (in_the_place,                   2),
    (in_a_file,                      3),
    (in_the_header_of_weights,       3),
    (in_the_page_of_the_report,      3),
    (in_the_settings_of_a_stage,     3),
    (in_the_card_of_an_input,        3),
)
# fmt: on


def published(run: Run, place: Place) -> Ended:
    """The command, asked for all that it can say."""
    command = ("publish", place.candidate, "--report", place.report, "--license", "tulu")
    to = () if "--to" in place.options else ("--to", f"hf:{NAME}")
    return run(*command, *to, *place.options, "--debug", "--json", "--verbose")


@pytest.mark.parametrize(("plant", "code"), PLANTED, ids=[each[0].__name__ for each in PLANTED])
def test_it_is_shown_to_nobody(
    run: Run, place: Place, plant: Callable[[Place], None], code: int
) -> None:
    plant(place)
    before = {path for path in place.candidate.parent.rglob("*")}
    started: list[str] = []
    start = subprocess.Popen.__init__

    def noted(self: Any, command: Any, *arguments: Any, **options: Any) -> None:
        started.append(str(command))
        start(self, command, *arguments, **options)

    place.patch.setattr(subprocess.Popen, "__init__", noted)
    ended = published(run, place)
    assert ended.code == code, ended.err
    kept = [
        content for each in place.hub.repositories.values() for content in each.commits.values()
    ]
    made = [path for path in place.candidate.parent.rglob("*") if path not in before]
    for text in (ended.out, ended.err, *map(str, [*kept, started, made])):
        assert TOKEN not in text
        assert TOKEN[3:] not in text
    assert not [path for path in made if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert place.hub.tokens - {None} <= {f"Bearer {TOKEN}"}


def test_a_traceback_has_the_kind_of_what_it_does_not_show(run: Run, place: Place) -> None:
    in_an_answer(place)
    assert "no: [the value of HF_TOKEN]" in published(run, place).err


def test_a_bug_does_not_show_a_token(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise KeyError(f"a bug with {TOKEN} in it, and with the secret-of-s3")

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-s3")
    monkeypatch.setattr(entry_point, "app", fail)
    with pytest.raises(SystemExit) as end:
        entry_point.main()
    assert end.value.code == 3
    shown = capfd.readouterr().err
    assert "a bug with [a Hugging Face token] in it" in shown
    assert "secret-of-s3" not in shown


def test_a_token_of_an_odd_form_in_a_file_stops_the_release(run: Run, place: Place) -> None:
    place.patch.setenv("HF_TOKEN", "a-token-of-no-form")
    (place.candidate / "tokenizer.json").write_text('{"from": "a-token-of-no-form"}')
    place.judge()
    ended = published(run, place)
    assert ended.code == 3
    assert "would publish the value of HF_TOKEN" in ended.err
    assert "a-token-of-no-form" not in ended.err + ended.out
    assert not place.hub.repositories
