"""Models that are replaced or written to while a stage reads them give no output under its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import damage
import stages
from camelpress.convert.export.export_checkpoint import export
from camelpress.convert.recover import input_record
from camelpress.convert.settings import ExportSettings
from camelpress.core.checkpoint import checkpoint as reading
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem
from camelpress.validate.comparison import model_comparison
from camelpress.validate.scoring import token_scores
from camelpress.validate.settings import StoreSettings
from camelpress.validate.store import build_store
from refusal import refusal

WEIGHTS = "model.safetensors"
Change = Callable[[Path], None]


def renamed(folder: Path) -> None:
    """The same bytes with the same times, in another file."""
    shutil.copy2(folder / WEIGHTS, folder / "new.tmp")
    (folder / "new.tmp").rename(folder / WEIGHTS)


def written(folder: Path) -> None:
    """The same size, at another time."""
    os.utime(folder / WEIGHTS, ns=(1, 1))


def rewritten(folder: Path) -> None:
    """Other bytes in the same file, with the same size and the time set back."""
    path = folder / WEIGHTS
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(folder: Path) -> None:
    """The same bytes with another name beside theirs and other permissions."""
    (folder / "backup").hardlink_to(folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o600)
    (folder / "config.json").chmod(0o600)


def shortened_config(folder: Path) -> None:
    """The config of another model, after it was read."""
    (folder / "config.json").write_text("{}")


def another_shard(folder: Path) -> None:
    """A second set of weights, in the middle of a download."""
    shutil.copy2(folder / WEIGHTS, folder / "model-00001-of-00002.safetensors")


CHANGES: dict[str, tuple[Change, str]] = {
    "renamed": (renamed, WEIGHTS),
    "written": (written, WEIGHTS),
    "rewritten": (rewritten, WEIGHTS),
    "config": (shortened_config, "config.json"),
    "added": (another_shard, "model-00001-of-00002.safetensors"),
}


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Change], None]:
    """Makes the next read of a tensor of a folder change that folder, once."""

    def change_during(folder: Path, change: Change) -> None:
        whole, changes = reading._read_bytes, [change]

        def read(path: Path, *place: Any) -> Any:
            content = whole(path, *place)
            if path.parent == folder and changes:
                changes.pop()(folder)
            return content

        monkeypatch.setattr(reading, "_read_bytes", read)

    return change_during


def refused(model: Path, name: str) -> Any:
    return refusal(
        CheckpointProblem,
        f"{model / name} changed while it was read",
        next_step="let nothing write there, and run the same command again",
        out=None,
    )


@pytest.mark.parametrize("kind", CHANGES)
def test_a_source_that_is_replaced_is_not_quantized(
    base: Path, tmp_path: Path, out: Path, during: Callable[..., None], kind: str
) -> None:
    change, name = CHANGES[kind]
    model = damage.copied(base, tmp_path / "model")
    during(model, change)
    with refused(model, name):
        stages.quantize(model, out, method="rtn")
    assert not out.exists()


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("to", ["gptq-v2", "compressed-tensors", "dense"])
def test_a_packed_model_that_is_replaced_is_not_exported(
    packed: Path, tmp_path: Path, out: Path, during: Callable[..., None], kind: str, to: str
) -> None:
    change, name = CHANGES[kind]
    model = damage.copied(packed, tmp_path / "model")
    source = Checkpoint.open(model)
    during(model, change)
    with refused(model, name):
        export(source, out, ExportSettings.parse({"to": to}, source="test"))
    assert not out.exists()


@pytest.mark.parametrize("to", ["gptq-v2", "dense"])
def test_a_packed_model_that_is_touched_is_exported(
    packed: Path, tmp_path: Path, out: Path, during: Callable[..., None], to: str
) -> None:
    model = damage.copied(packed, tmp_path / "model")
    during(model, touched)
    export(Checkpoint.open(model), out, ExportSettings.parse({"to": to}, source="test"))
    assert (model / "backup").exists()
    assert out.is_dir()


@pytest.mark.parametrize("side", ["base", "diff"])
def test_an_input_that_is_rewritten_after_its_hash_is_not_recovered(
    base: Path, diff: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    inputs = {"base": base, "diff": diff}
    inputs[side] = damage.copied(inputs[side], tmp_path / "model")
    finish = input_record.input_digests

    def rewritten_before(*arguments: Any) -> dict[str, str]:
        rewritten(inputs[side])
        return finish(*arguments)

    monkeypatch.setattr(input_record, "input_digests", rewritten_before)
    with refused(inputs[side], WEIGHTS):
        stages.recover(inputs["base"], inputs["diff"], out)
    assert not out.exists()


@pytest.mark.parametrize("change", [rewritten, touched])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_model_that_is_rewritten_gets_no_verdict(
    base: Path, packed: Path, prose: Path, tmp_path: Path, out: Path,
    monkeypatch: pytest.MonkeyPatch, side: str, change: Change,
) -> None:  # fmt: skip
    models = {"reference": base, "candidate": packed}
    models[side] = damage.copied(models[side], tmp_path / "model")
    compute = token_scores.score_models

    def changed_before(*arguments: Any, **options: Any) -> Any:
        change(models[side])
        return compute(*arguments, **options)

    monkeypatch.setattr(model_comparison, "score_models", changed_before)
    if change is touched:
        stages.validate(*models.values(), out, prose)
        assert out.is_dir()
        return
    with refused(models[side], WEIGHTS):
        stages.validate(*models.values(), out, prose)
    assert not out.exists()


@pytest.mark.parametrize("side", ["base", "diff"])
def test_an_input_that_is_replaced_is_not_recovered(
    base: Path, diff: Path, tmp_path: Path, out: Path, during: Callable[..., None], side: str
) -> None:
    inputs = {"base": base, "diff": diff}
    inputs[side] = damage.copied(inputs[side], tmp_path / "model")
    during(inputs[side], renamed)
    with refused(inputs[side], WEIGHTS):
        stages.recover(inputs["base"], inputs["diff"], out)
    assert not out.exists()


def test_a_tuned_model_that_is_replaced_gives_no_diff(
    base: Path, tuned: Path, tmp_path: Path, out: Path, during: Callable[..., None]
) -> None:
    model = damage.copied(tuned, tmp_path / "model")
    during(model, renamed)
    with refused(model, WEIGHTS):
        stages.make_diff(base, model, out)
    assert not out.exists()


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_model_that_is_replaced_gets_no_verdict(
    base: Path, packed: Path, prose: Path, tmp_path: Path, out: Path,
    during: Callable[..., None], side: str,
) -> None:  # fmt: skip
    models = {"reference": base, "candidate": packed}
    models[side] = damage.copied(models[side], tmp_path / "model")
    during(models[side], renamed)
    with refused(models[side], WEIGHTS):
        stages.validate(*models.values(), out, prose)
    assert not out.exists()


def test_a_model_that_is_replaced_gives_no_store(
    base: Path, prose: Path, tmp_path: Path, out: Path, during: Callable[..., None]
) -> None:
    model = damage.copied(base, tmp_path / "model")
    during(model, renamed)
    settings = StoreSettings.parse(
        {"text": (prose,), "sequence_length": 64, "max_tokens": 200}, source="test"
    )
    with refused(model, WEIGHTS):
        build_store.build_store(Checkpoint.open(model), out, settings)
    assert not out.exists()


def test_a_model_that_was_replaced_before_it_was_read_is_not_quantized(
    base: Path, tmp_path: Path, out: Path
) -> None:
    from camelpress.quantize.run import run
    from camelpress.quantize.settings import QuantizeSettings

    model = damage.copied(base, tmp_path / "model")
    source = Checkpoint.open(model)
    renamed(model)
    with refused(model, WEIGHTS):
        run(source, out, QuantizeSettings.parse({"method": "rtn", "group_size": 32}, source="test"))
    assert not out.exists()


def test_a_source_that_is_touched_is_quantized(
    base: Path, tmp_path: Path, out: Path, during: Callable[..., None]
) -> None:
    model = damage.copied(base, tmp_path / "model")
    during(model, touched)
    stages.quantize(model, out, method="rtn")
    assert (model / "backup").exists()
    assert out.is_dir()


def test_a_model_that_is_rewritten_gives_no_store(
    base: Path, prose: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = damage.copied(base, tmp_path / "model")
    write = build_store._write_predictions

    def rewritten_before(*arguments: Any) -> Any:
        rewritten(model)
        return write(*arguments)

    monkeypatch.setattr(build_store, "_write_predictions", rewritten_before)
    settings = StoreSettings.parse(
        {"text": (prose,), "sequence_length": 64, "max_tokens": 200}, source="test"
    )
    with refused(model, WEIGHTS):
        build_store.build_store(Checkpoint.open(model), out, settings)
    assert not out.exists()


def test_a_card_or_a_report_that_is_written_meanwhile_is_no_change(
    base: Path, tmp_path: Path, out: Path, during: Callable[..., None]
) -> None:
    def notes(folder: Path) -> None:
        (folder / "README.md").write_text("a model")
        (folder / "quantize-report.json").write_text("{}")

    model = damage.copied(base, tmp_path / "model")
    during(model, notes)
    stages.quantize(model, out, method="rtn")
    assert out.is_dir()
