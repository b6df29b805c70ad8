"""A checkpoint as a judge: asked by its own chat template, and read when it is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pico
from camelpress.core.errors import CheckpointProblem, ToolProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.generator import LocalGenerator
from camelpress.validate.judge.judge_prompt import SYSTEM, OutputPair, prompts_in_both_orders
from camelpress.validate.judge.judge_settings import JudgeSettings
from camelpress.validate.judge.local_checkpoint import JudgeCheckpoint
from camelpress.validate.judge.local_judge import InProcessJudge
from camelpress.validate.judge.pairwise import judge_pairs
from camelpress.validate.settings import ValidateSettings
from refusal import refusal

PAIR = OutputPair("1", "Say.", "x", "y")
TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
SETTINGS = ValidateSettings(judge=JudgeSettings(max_tokens=3))


def model(folder: Path, template: str | None = TURNS, positions: int = 1600) -> Path:
    pico.write_model(folder, pico.Sizes(positions=positions))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    told = {} if template is None else {"chat_template": template}
    path.write_text(json.dumps(config | told), encoding="utf-8")
    return folder


def test_a_model_answers_in_this_process(tmp_path: Path) -> None:
    """A random one says nothing that could be read."""
    resident = JudgeCheckpoint(model(tmp_path / "judge"), SETTINGS)
    texts = dict(resident([question.messages() for question in prompts_in_both_orders(PAIR)]))
    assert {*texts} == {0, 1} and all(isinstance(text, str) for text in texts.values())
    with pytest.raises(ToolProblem, match="^judge [0-9a-f]{8} [0-9a-f]{8} gave no verdict"):
        judge_pairs([PAIR], InProcessJudge(resident.name, resident), JudgeSettings())


@pytest.mark.parametrize("template", [TURNS, NO_SYSTEM + TURNS])
def test_it_is_asked_by_its_own_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    folder, asked = model(tmp_path / "judge", template), []

    def complete(_: Any, wanted: Any) -> Iterator[tuple[int, str]]:
        for place in (1, 0):
            ids = wanted[place].prompt.ids
            asked.append(Tokenizer.load(folder).decode(ids))
            assert (wanted[place].sampling.max_tokens, wanted[place].sampling.temperature) == (
                3,
                0.0,
            )
            yield place, "Output (b)"

    monkeypatch.setattr(LocalGenerator, "generate", complete)
    resident = JudgeCheckpoint(folder, SETTINGS)
    verdicts = judge_pairs([PAIR], InProcessJudge(resident.name, resident), JudgeSettings())
    assert all(each.score == (not each.prompt.candidate_first) for each in verdicts)
    opening = f"[user]{SYSTEM}\n\n" if NO_SYSTEM in template else f"[system]{SYSTEM}[user]"
    told = [question.messages()[1]["content"] for question in prompts_in_both_orders(PAIR)]
    assert asked == [opening + each for each in reversed(told)]


def test_what_does_not_fit_has_no_answer(tmp_path: Path) -> None:
    resident = JudgeCheckpoint(model(tmp_path / "judge", positions=64), SETTINGS)
    assert dict(resident([prompts_in_both_orders(PAIR)[0].messages()])) == {0: ""}


def test_another_length_of_answers_is_another_judge(tmp_path: Path) -> None:
    folder = model(tmp_path / "judge")
    names = {
        JudgeCheckpoint(folder, each).name
        for each in (SETTINGS, ValidateSettings(), ValidateSettings())
    }
    assert len(names) == 2


@pytest.mark.parametrize(
    ("template", "what", "next_step"),
    [
        (None, "the judge in {folder} has no chat template",
         "use a judge model trained for conversations"),
        ("{{ raise_exception('never') }}",
         "the chat template of the judge in {folder} cannot be rendered (never)",
         "correct it, or use another judge model"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_asked_is_refused(
    tmp_path: Path, template: str | None, what: str, next_step: str
) -> None:
    folder = model(tmp_path / "judge", template)
    with refusal(CheckpointProblem, what.format(folder=folder), next_step=next_step, out=None):
        JudgeCheckpoint(folder, SETTINGS)
