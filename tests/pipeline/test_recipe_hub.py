"""A recipe whose models lie on the hub: how they are named, and what a second run leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pico
import stages
from camelpress.core.hub import hub_download
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.recipe import Recipe, read_recipe


class Snapshots:
    """Folders that have the names of commits; `main` is one of them at a time."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.main = {"org/base": "1" * 40, "org/diff": "2" * 40}
        self.asked: list[str | None] = []

    def download(self, repository: str, *, revision: str | None, **_: object) -> str:
        """As `snapshot_download`, for what is in the cache."""
        self.asked.append(revision)
        return str(self.cache / (revision or self.main[repository]))


@pytest.fixture
def snapshots(
    base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Snapshots:
    (tmp_path / ("1" * 40)).symlink_to(base)
    stages.make_diff(base, tuned, tmp_path / ("2" * 40))
    stages.make_diff(base, pico.write_tuned(tmp_path / "other", base, extra_rows=0),
                     tmp_path / ("3" * 40))  # fmt: skip
    found = Snapshots(tmp_path)
    monkeypatch.setattr(hub_download, "snapshot_download", found.download)
    return found


def recipe(folder: Path, base: str, diff: str = "hf:org/diff") -> Recipe:
    """A recipe with these models."""
    calibration = "quantize: {calibration: [org/chat.jsonl]}"
    text = f"base: {base}\ndiff: {diff}\nout: out\n{calibration}\n"
    (folder / "recipe.yaml").write_text(text)
    return read_recipe(folder / "recipe.yaml")


def recover(recipe: Recipe) -> bool:
    """Run the first stage; whether there was something to do."""
    recipe.out.mkdir(exist_ok=True)
    first, *_ = pipeline.recipe_stages(recipe)
    return not pipeline.run_stages(
        [first], pipeline.PipelineLock(recipe.out / pipeline.LOCK_FILE)
    ).skipped


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("hf:org/name", "hf:org/name"),
        ("hf:org/name@v1", "hf:org/name@v1"),
        ("hf:here/model", "hf:here/model"),
        ("org/name", "hf:org/name"),
        ("org/name@v1", "hf:org/name@v1"),
        ("here/model", "{folder}/here/model"),
        ("name", "{folder}/name"),
        ("../org/name", "{folder}/../org/name"),
        ("/org/name", "/org/name"),
    ],
)
def test_a_model_is_on_the_hub_where_no_folder_is_beside_the_recipe(
    tmp_path: Path, written: str, meant: str
) -> None:
    (tmp_path / "here" / "model").mkdir(parents=True)
    told = recipe(tmp_path, written, written)
    assert told.base == told.diff == Path(meant.format(folder=tmp_path))
    assert [each.source for each in told.quantize.calibration] == [tmp_path / "org" / "chat.jsonl"]


def test_a_folder_elsewhere_is_not_taken_for_the_hub_s(
    snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere" / "org" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert recover(recipe(tmp_path, "org/base"))


def test_a_second_run_does_nothing_until_the_hub_has_another_commit(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    assert recover(recipe(tmp_path, "org/base"))
    assert snapshots.asked == [None, None, "1" * 40, "2" * 40]  # a stage opens what was hashed
    assert not recover(recipe(tmp_path, "org/base"))
    snapshots.main["org/diff"] = "3" * 40
    assert recover(recipe(tmp_path, "org/base"))
    made_from = json.loads((tmp_path / "out" / pipeline.LOCK_FILE).read_text())["stages"]["recover"]
    assert set(made_from["made_from"]["inputs"]) == {
        str(tmp_path / ("1" * 40)),
        str(tmp_path / ("3" * 40)),
    }


def test_a_calibration_of_the_hub_is_pinned_to_its_commit(
    snapshots: Snapshots, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def download(repository: str, file: str, *, revision: str | None, **_: object) -> str:
        asked.append(revision)
        path = tmp_path / "data" / (revision or "4" * 40) / file
        if not path.exists():
            path.parent.mkdir(parents=True)
            pico.write_chat(path)
        return str(path)

    monkeypatch.setattr(hub_download, "hf_hub_download", download)
    text = "quantize: {calibration: ['hf:org/data:raw/chat.jsonl=2'], group_size: 32, samples: 2,"
    (tmp_path / "recipe.yaml").write_text(
        f"base: {base}\ndiff: hf:org/diff\nout: out\n{text} sequence_length: 64}}\n"
    )
    told = read_recipe(tmp_path / "recipe.yaml")
    _, quantizing, *_ = pipeline.recipe_stages(told)
    assert quantizing.inputs[1:] == (tmp_path / "data" / ("4" * 40) / "raw" / "chat.jsonl",)
    recover(told)
    report = quantizing.run_stage()
    assert set(asked) == {None, "4" * 40}
    (file,) = report.facts.record["calibration"]["files"]
    assert (file["name"], file["weight"]) == (f"org/data@{'4' * 40}:raw/chat.jsonl", 2.0)


def test_a_section_may_leave_its_paths_out(tmp_path: Path) -> None:
    sections = "recover: {}\nquantize: {group_size: 64}\nvalidate: {}\n"
    (tmp_path / "recipe.yaml").write_text(f"base: a\ndiff: b\nout: c\n{sections}")
    found = read_recipe(tmp_path / "recipe.yaml")
    assert (found.quantize.group_size, found.quantize.calibration) == (64, ())
