"""The commands that look at releases: what they print, and with which code they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from camelpress.reporting.stage_report import Report
from command import Run

Publisher = Callable[..., tuple[Path, Report]]
Judge = Callable[..., Path]


@pytest.fixture
def release(publish: Publisher) -> Path:
    return publish("one", name="Tulu")[0]


def test_publish_writes_a_folder_and_its_options_are_recorded(
    run: Run, candidate: Path, judge: Judge, tmp_path: Path
) -> None:
    out = tmp_path / "release"
    ended = run(
        "publish", candidate, "--report", judge(), "--to", out, "--license", "tulu",
        "--base-model", "huggyllama/llama-65b", "--calibration-license", "CC BY-SA 3.0", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["settings"]["base_model"] == "huggyllama/llama-65b"
    assert told["settings"]["to"] is None
    assert str(tmp_path) not in (out / "provenance.json").read_text()
    assert "| licence of the calibration | CC BY-SA 3.0 |" in (out / "README.md").read_text()


def test_publish_without_a_place_is_a_usage_error(run: Run, candidate: Path, judge: Judge) -> None:
    ended = run("publish", candidate, "--report", judge(), "--license", "tulu")
    assert ended.code == 2
    assert "a release needs a destination; give --to" in ended.err


@pytest.mark.parametrize("to", ["gs://bucket/x", "HF://org/name", "https://huggingface.co/a/b"])
def test_a_place_of_no_kind_that_is_known_makes_no_folder(
    run: Run, candidate: Path, judge: Judge, to: str
) -> None:
    ended = run("publish", candidate, "--report", judge(), "--license", "tulu", "--to", to)
    assert ended.code == 2
    assert f"nothing can be published to {to}; give a folder, hf:org/name, s3://" in ended.err


def test_verify_says_what_is_wrong(run: Run, release: Path) -> None:
    assert run("verify", release).code == 0
    (release / "NOTICE").write_text("another")
    ended = run("verify", release)
    assert ended.code == 1
    assert "'NOTICE' has changed" in ended.out
    assert run("verify", "hf:nobody").code == 3


def test_card_shows_the_card_and_checks_it(run: Run, release: Path) -> None:
    text = (release / "README.md").read_text(encoding="utf-8")
    assert run("card", release).out.startswith("---\nlibrary_name: transformers\n")
    assert json.loads(run("card", release, "--json").out) == {"card": text}
    assert run("card", release, "--check").code == 0
    (release / "README.md").write_text(text.replace("bits: 4", "bits: 3"), encoding="utf-8")
    ended = run("card", release, "--check")
    assert ended.code == 1
    assert "README.md says bits 3, the files say 4" in ended.out


def test_diff_ends_with_1_where_something_differs(
    run: Run, release: Path, publish: Publisher
) -> None:
    assert run("diff", release, publish("other", name="Tulu")[0]).code == 0
    ended = run("diff", release, publish("renamed", name="Renamed")[0], "--json")
    assert ended.code == 1
    assert json.loads(ended.out)["differences"]["files"][0] == "NOTICE: other bytes"


def test_rebuild_asks_for_a_recipe(run: Run, release: Path, tmp_path: Path) -> None:
    ended = run("rebuild", release, tmp_path / "again")
    assert ended.code == 2
    assert "has no recipe.yaml: its reports lack the facts for one" in ended.err
