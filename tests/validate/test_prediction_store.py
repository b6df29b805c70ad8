"""A store stands in the reference's place: the same figures without it, and nothing of another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pico
import stages
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_digest
from camelpress.core.progress import use_listener
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from camelpress.validate import run as validation
from camelpress.validate.settings import StoreSettings, ValidateSettings
from camelpress.validate.store import build_store, store_writer
from camelpress.validate.store.prediction_store import STORE_REPORT, PredictionStore
from notes import Notes
from refusal import refusal

EXACT = ("reference_perplexity", "candidate_perplexity", "top1_agreement", "top5_agreement")


def make(base: Path, out: Path, *texts: Path, **options: Any) -> Path:
    settings = StoreSettings.parse({"text": texts, "max_tokens": 300} | options, source="test")
    build_store.build_store(Checkpoint.open(base), out, settings)
    return out


def validated(store: Path, candidate: Path, out: Path, **options: Any) -> Report:
    settings = ValidateSettings.parse(options, source="test")
    return validation.run(PredictionStore.open(store), Checkpoint.open(candidate), out, settings)


@pytest.fixture(scope="module")
def noisy(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model near the base, with the same vocabulary."""
    folder = tmp_path_factory.mktemp("noisy") / "noisy"
    return pico.write_tuned(folder, base, extra_rows=0, dtype=torch.float16)


@pytest.fixture(scope="module")
def whole(
    base: Path, noisy: Path, chat: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The figures with the reference at hand."""
    out = tmp_path_factory.mktemp("whole") / "out"
    options: dict[str, Any] = {"max_tokens": 300, "sequence_length": None}
    return stages.validate(base, noisy, out, chat, prose, **options).facts.record


@pytest.fixture(scope="module")
def store(base: Path, chat: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the base, of both texts."""
    return make(base, tmp_path_factory.mktemp("store") / "store", chat, prose, top_k=40)


def test_a_store_gives_the_figures_of_the_reference(
    store: Path, noisy: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    told = validated(store, noisy, tmp_path / "out").facts.record
    for name in EXACT:
        assert told[name] == pytest.approx(whole[name], rel=1e-6), name
    assert told["probability_change"]["rms"] == pytest.approx(whole["probability_change"]["rms"])
    assert told["kl_mean"] == pytest.approx(whole["kl_mean"], rel=0.02)
    assert told["kl_reverse_mean"] == pytest.approx(whole["kl_reverse_mean"], rel=0.02)
    lower, upper = told["store"]["kl_bounds"]
    assert lower <= whole["kl_mean"] <= upper
    assert (told["tokens"], told["sequences"]) == (whole["tokens"], whole["sequences"])
    assert told["protocol"] == whole["protocol"]
    assert 0 < told["store"]["remainder_mass"] < 1


def test_a_store_of_everything_gives_every_figure(
    base: Path, noisy: Path, chat: Path, prose: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    everything = make(base, tmp_path / "store", chat, prose, top_k=0)
    told = validated(everything, noisy, tmp_path / "out").facts.record
    assert told["store"]["remainder_mass"] == 0
    figures = told.keys() - {"blocks", "store", "reference", "candidate"}
    for name in sorted(figures):
        assert_alike(told[name], whole[name], name)
    for bound in told["store"]["kl_bounds"]:
        assert bound == pytest.approx(whole["kl_mean"], rel=1e-5)


def assert_alike(found: Any, expected: Any, name: str) -> None:
    """Equal, but for the last digits of sums that come in another order."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key, each in expected.items():
            assert_alike(found[key], each, f"{name}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), name
        for number, each in enumerate(expected):
            assert_alike(found[number], each, f"{name}[{number}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-7), name
    else:
        assert found == expected, name


def test_the_size_of_parts_changes_nothing(
    base: Path,
    noisy: Path,
    store: Path,
    chat: Path,
    prose: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_writer, "SHARD_BYTES", 1)
    monkeypatch.setattr("camelpress.inference.model.output_head.MAX_LOGITS", 272 * 100)
    many = make(base, tmp_path / "many", chat, prose, top_k=40)
    assert len(PredictionStore.open(many).shards) > 1 == len(PredictionStore.open(store).shards)
    once = validated(store, noisy, tmp_path / "once").facts.record
    again = validated(many, noisy, tmp_path / "again").facts.record
    assert again["kl_mean"] == pytest.approx(once["kl_mean"], rel=1e-4)
    assert again["candidate_perplexity"] == pytest.approx(once["candidate_perplexity"], rel=1e-6)


def test_the_same_store_has_the_same_bytes(
    base: Path, store: Path, chat: Path, prose: Path, tmp_path: Path
) -> None:
    again = make(base, tmp_path / "again", chat, prose, top_k=40)
    assert read_report(again / STORE_REPORT).outputs == read_report(store / STORE_REPORT).outputs


def test_the_report_says_what_the_store_was_made_from(
    base: Path, noisy: Path, store: Path, tmp_path: Path
) -> None:
    report = validated(store, noisy, tmp_path / "out")
    assert report.inputs["reference"] == checkpoint_digest(base)
    assert report.inputs["store"]
    assert report.settings["protocol"] == "documents"
    assert report.settings["max_tokens"] == 300
    assert report.facts.record["reference"]["parameters"] > 0


def test_the_noise_floor_comes_with_the_store(
    base: Path, noisy: Path, prose: Path, tmp_path: Path
) -> None:
    floor = make(base, tmp_path / "store", prose, noise_floor="bfloat16")
    told = validated(floor, noisy, tmp_path / "out", noise_floor="bfloat16").facts.record[
        "noise_floor"
    ]
    assert told["kind"] == "bfloat16"
    live = stages.validate(
        base, noisy, tmp_path / "live", prose,
        max_tokens=300, sequence_length=None, noise_floor="bfloat16",
    ).facts.record["noise_floor"]  # fmt: skip
    assert told["kl_mean"] == pytest.approx(live["kl_mean"], rel=1e-4)


def test_added_rows_are_left_out_where_the_store_was_told_so(
    base: Path, tuned: Path, prose: Path, tmp_path: Path
) -> None:
    wide = make(tuned, tmp_path / "wide", prose)
    with refusal(
        CheckpointProblem,
        f"{wide} has predictions over 273 tokens, the candidate has 272",
        next_step="make it with --vocabulary 272",
        out=tmp_path / "out",
    ):
        validated(wide, base, tmp_path / "out")
    narrow = make(tuned, tmp_path / "narrow", prose, vocabulary=272, top_k=0)
    told = validated(narrow, base, tmp_path / "out").facts.record
    live = stages.validate(
        tuned, base, tmp_path / "live", prose, max_tokens=300, sequence_length=None
    ).facts.record
    assert told["kl_mean"] == pytest.approx(live["kl_mean"], rel=1e-4)
    assert told["vocabularies"] == live["vocabularies"]


FIRST = "predictions-00001-001.safetensors"
REMEDY = "make a store for this with camelpress store"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"protocol": "gptq"}, "protocol documents, not gptq"),
        ({"sequence_length": 64}, "sequence_length None, not 64"),
        ({"max_tokens": 200}, "max_tokens 300, not 200"),
        ({"assistant_only": True}, "assistant_only False, not True"),
    ],
)
def test_a_store_of_another_protocol_is_refused(
    store: Path, noisy: Path, tmp_path: Path, options: dict[str, Any], what: str
) -> None:
    with refusal(
        CheckpointProblem,
        f"{store} was made from {what}",
        next_step=REMEDY,
        out=tmp_path / "out",
    ):
        validated(store, noisy, tmp_path / "out", **options)


def test_what_a_store_was_made_from_may_be_said_again(
    store: Path, noisy: Path, chat: Path, prose: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere.txt"  # known by its bytes, not by its name
    shutil.copyfile(prose, moved)
    options = {"protocol": "documents", "max_tokens": 300, "sequence_length": 128}
    validated(store, noisy, tmp_path / "out", text=[chat, moved], **options)


def test_a_store_of_another_text_is_refused(
    store: Path, noisy: Path, chat: Path, prose: Path, tmp_path: Path
) -> None:
    other = pico.write_text(tmp_path / "other.txt", seed=9)
    for texts, what in (
        ([chat, other], f"different texts, {other} is not among them"),
        ([chat], "more texts than the settings name"),
    ):
        with refusal(
            CheckpointProblem,
            f"{store} was made from {what}",
            next_step=REMEDY,
            out=tmp_path / "out",
        ):
            validated(store, noisy, tmp_path / "out", text=texts)


def test_a_store_of_another_model_is_refused(
    base: Path, store: Path, chat: Path, tmp_path: Path
) -> None:
    other = pico.write_model(tmp_path / "other", seed=4)
    for source, refused in ((other, True), (base, False)):
        candidate = tmp_path / f"{source.name}-4bit"
        stages.quantize(source, candidate, pico.write_text(tmp_path / f"{source.name}.txt", seed=8))
        own = [checkpoint_digest(folder)[:12] for folder in (base, other)]
        if refused:
            with refusal(
                CheckpointProblem,
                f"{store} was made from another model ({own[0]}...) than {candidate} ({own[1]}...)",
                next_step=REMEDY,
                out=tmp_path / "out",
            ):
                validated(store, candidate, tmp_path / "out", allow_overlap=True)
        else:
            validated(store, candidate, tmp_path / "out", allow_overlap=True)


def test_a_report_of_another_candidate_names_no_source(
    base: Path, noisy: Path, store: Path, chat: Path, tmp_path: Path
) -> None:
    other = pico.write_model(tmp_path / "other", seed=4)
    stages.quantize(other, tmp_path / "other-4bit", method="rtn")
    candidate = shutil.copytree(noisy, tmp_path / "candidate")
    report = candidate / "quantize-report.json"
    shutil.copyfile(tmp_path / "other-4bit" / report.name, report)
    notes = Notes()
    with use_listener(notes):
        validated(store, candidate, tmp_path / "out")
    sentence = f"{report} lists other weights than those beside it: its source is"
    assert [line for line in notes.heard if line.startswith(sentence)]


def test_a_floor_that_a_store_does_not_have_is_refused(
    store: Path, noisy: Path, tmp_path: Path
) -> None:
    with refusal(
        RecipeProblem,
        f"{store} has no noise floor by batch",
        next_step="make it with --noise-floor batch",
        exit_code=2,
        out=tmp_path / "out",
    ):
        validated(store, noisy, tmp_path / "out", noise_floor="batch")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _other_facts(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["facts"]["window"]
    path.write_text(json.dumps(content), encoding="utf-8")


def _long_name(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["outputs"] = {"x" * 300: "0" * 64}
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "harm", "what"),
    [
        (STORE_REPORT, _long_name, f"{'x' * 300} cannot be read (OSError)"),
        (FIRST, Path.unlink, f"{FIRST} is missing"),
        (FIRST, _cut, f"{FIRST} is not what {STORE_REPORT} says"),
        ("windows.safetensors", _cut, f"windows.safetensors is not what {STORE_REPORT} says"),
        (STORE_REPORT, _other_facts, f"{STORE_REPORT}: window: Field required"),
    ],
)
def test_a_damaged_store_is_refused(
    store: Path, tmp_path: Path, name: str, harm: Callable[[Path], None], what: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(store, broken)
    harm(broken / name)
    with refusal(
        CheckpointProblem,
        f"{broken} is not a whole store ({what})",
        next_step="make it again with camelpress store",
        out=None,
    ):
        PredictionStore.open(broken)


def test_more_than_there_is_cannot_be_kept(base: Path, prose: Path, tmp_path: Path) -> None:
    with refusal(
        RecipeProblem,
        "--top-k 273 exceeds the 272 tokens of the vocabulary",
        next_step="use --top-k 0 to keep all",
        exit_code=2,
        out=tmp_path / "store",
    ):
        make(base, tmp_path / "store", prose, top_k=273)


def test_nothing_is_left_of_a_store_that_fails(base: Path, prose: Path, tmp_path: Path) -> None:
    broken = pico.write_model(tmp_path / "broken", dtype=torch.float32)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"] *= 8e38
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="not finite"):
        make(broken, tmp_path / "store", prose)
    assert not list(tmp_path.glob("store*"))
