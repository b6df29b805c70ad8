"""Options are made of settings, those of a section too, and settings can be written as options."""

from __future__ import annotations

from pathlib import Path

from camelpress.cli.options import explicit_options, option_parameters
from camelpress.pipeline.option_flags import settings_arguments
from camelpress.pipeline.recipe import read_recipe
from camelpress.pipeline.run import quantize_and_validate
from camelpress.validate.judge.judge_settings import JudgeSettings
from camelpress.validate.settings import ValidateSettings


def test_a_sections_fields_are_options_with_its_name_before() -> None:
    names = [each.name for each in option_parameters(ValidateSettings)]
    assert {f"judge__{name}" for name in JudgeSettings.model_fields} - {*names} == {"judge__extra"}
    assert "judge" not in names and "gate" not in names
    told = explicit_options(
        {"tasks": ["tulu"], "judge__url": "http://here/v1", "judge__model": None}
    )
    assert told == {"tasks": ["tulu"], "judge": {"url": "http://here/v1"}}
    assert ValidateSettings.parse(told, source="test").judge.url == "http://here/v1"


def test_a_section_is_written_as_options() -> None:
    settings = ValidateSettings(
        tasks=("tulu",), judge=JudgeSettings(model="m", per_minute=3.0, extra={"seed": 1})
    )
    assert settings_arguments(settings) == (
        ["--tasks", "tulu", "--judge-model", "m", "--judge-per-minute", "3.0"],
        ("judge.extra",),
    )


def test_paths_of_a_judge_start_at_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    judge = "judge: {local: ../judge, annotations: kept.jsonl}"
    path.write_text(
        f"base: a\ndiff: b\nout: c\nvalidate:\n  tasks: [tulu]\n  {judge}\n", encoding="utf-8"
    )
    recipe = read_recipe(path)
    found = recipe.validation.judge
    assert (found.local, found.annotations) == (tmp_path / "../judge", tmp_path / "kept.jsonl")
    _, validate = quantize_and_validate(recipe, tmp_path / "recovered", tmp_path)
    assert validate.inputs[-1] == found.local  # another model there is another judge
