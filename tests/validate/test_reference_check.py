"""A reference is another model than the candidate, and quantized only where that was asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file

import pico
import stages
from camelpress.convert.export.export_checkpoint import export
from camelpress.convert.settings import ExportSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.reporting.facts.validation_facts import ModelFacts
from camelpress.reporting.facts_model import FactsModel
from camelpress.reporting.model_precision import model_precision, quantized_reference_caveat
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from camelpress.validate import run as validation
from camelpress.validate.settings import StoreSettings, ValidateSettings
from camelpress.validate.store import build_store
from camelpress.validate.store.prediction_store import STORE_REPORT, PredictionStore
from command import Run

ALLOWED = {"allow_quantized_reference": True}
SAME = "are the same model: no difference can be measured"


@pytest.fixture(scope="module")
def packed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base in 4 bits."""
    folder = tmp_path_factory.mktemp("packed") / "packed"
    stages.quantize(base, folder, method="rtn")
    return folder


@pytest.fixture(scope="module")
def exported(packed: Path) -> Callable[..., Path]:
    """Writes the quantized model in another layout, once each."""

    def exported(to: str) -> Path:
        out = packed.parent / to
        if not out.exists():
            export(Checkpoint.open(packed), out, ExportSettings.parse({"to": to}, source="test"))
        return out

    return exported


def held(reference: Path, candidate: Path, out: Path, text: Path, **options: Any) -> Report:
    """Validates without the help of `stages`, which never compares a model with itself."""
    values = {"text": [str(text)], "sequence_length": 64, "max_tokens": 200} | options
    settings = ValidateSettings.parse(values, source="test")
    opened = (
        PredictionStore.open(reference)
        if PredictionStore.exists_at(reference)
        else Checkpoint.open(reference)
    )
    return validation.run(opened, Checkpoint.open(candidate), out, settings)


def stored(model: Path, out: Path, text: Path, **options: Any) -> Path:
    values = {"text": [str(text)], "sequence_length": 64, "max_tokens": 200} | options
    build_store.build_store(Checkpoint.open(model), out, StoreSettings.parse(values, source="test"))
    return out


# --- the same model ------------------------------------------------------------------------------


def copied(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))


def linked(source: Path, folder: Path) -> Path:
    folder.symlink_to(source, target_is_directory=True)
    return folder


def hard_linked(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder, copy_function=lambda a, b: Path(b).hardlink_to(a)))


def renamed(source: Path, folder: Path) -> Path:
    """One shard under another name, as an index lists it."""
    copied(source, folder)
    names = load_file(folder / "model.safetensors").keys()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    listed = {name: "model-00001-of-00001.safetensors" for name in names}
    index = {"metadata": {}, "weight_map": listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def sharded(source: Path, folder: Path) -> Path:
    """Every tensor in a file of its own."""
    copied(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    listed = {}
    for number, (name, tensor) in enumerate(tensors.items(), start=1):
        listed[name] = f"model-{number:05}-of-{len(tensors):05}.safetensors"
        save_file({name: tensor}, folder / listed[name], metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def pickled(source: Path, folder: Path) -> Path:
    copied(source, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def bare(source: Path, folder: Path) -> Path:
    """Without its tokenizer and reports."""
    copied(source, folder)
    for path in [*folder.glob("tokenizer*"), *folder.glob("*-report.json")]:
        path.unlink()
    return folder


def configured(source: Path, folder: Path) -> Path:
    """A config in other words, as another transformers writes it."""
    copied(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config |= {"_name_or_path": "elsewhere", "use_cache": False, "transformers_version": "4.28.1"}
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    return folder


def relabelled(source: Path, folder: Path) -> Path:
    """Other metadata in the header of the weights."""
    copied(source, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "by": "someone"})
    return folder


def with_buffers(source: Path, folder: Path) -> Path:
    """With buffers that old versions of transformers stored."""
    copied(source, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("inv_freq", "cos_cached"):
        tensors[f"model.layers.0.self_attn.rotary_emb.{name}"] = torch.ones(8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


COPIES = (
    with_buffers,
    copied,
    linked,
    hard_linked,
    renamed,
    sharded,
    pickled,
    bare,
    configured,
    relabelled,
)


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("allowed", [False, True])
def test_a_quantized_model_is_not_its_own_reference(
    packed: Path, prose: Path, tmp_path: Path, copy: Callable[..., Path], allowed: bool
) -> None:
    other = copy(packed, tmp_path / "other")
    pair = (packed, other) if other.joinpath("tokenizer.json").exists() else (other, packed)
    with pytest.raises(RecipeProblem, match=SAME) as refused:
        held(*pair, tmp_path / "out", prose, allow_quantized_reference=allowed)
    assert refused.value.exit_code == 2
    assert "quantized from as the reference" in refused.value.next_step
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("copy", COPIES)
def test_nor_is_a_plain_one(
    base: Path, prose: Path, tmp_path: Path, copy: Callable[..., Path]
) -> None:
    with pytest.raises(RecipeProblem, match=SAME) as refused:
        held(base, copy(base, tmp_path / "other"), tmp_path / "out", prose)
    assert refused.value.next_step == "give the quantized model as the candidate"


def test_a_tied_head_that_was_written_out_makes_no_other_model(prose: Path, tmp_path: Path) -> None:
    tied = pico.write_model(tmp_path / "tied", tied=True)
    whole = copied(tied, tmp_path / "whole")
    tensors = load_file(whole / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    store = stored(tied, tmp_path / "store", prose)
    for reference in (tied, store):
        with pytest.raises(RecipeProblem, match=SAME):
            held(reference, whole, tmp_path / "out", prose)


@pytest.mark.parametrize("copy", [copied, sharded, bare, configured])
def test_a_store_of_the_candidate_is_no_reference(
    packed: Path, base: Path, prose: Path, tmp_path: Path, copy: Callable[..., Path]
) -> None:
    for model in (packed, base):
        out = tmp_path / model.name
        store = stored(model, out / "store", prose, **ALLOWED)
        with pytest.raises(RecipeProblem, match=SAME):
            held(store, copy(model, out / "other"), out / "report", prose, **ALLOWED)


def test_a_store_of_an_earlier_version_knows_the_same_files(
    base: Path, prose: Path, tmp_path: Path
) -> None:
    store = stored(base, tmp_path / "store", prose)
    report = read_report(store / STORE_REPORT)
    old = {
        key: value
        for key, value in report.facts.record.items()
        if key not in ("headers", "weights")
    }
    old["reference"] = {k: v for k, v in old["reference"].items() if k != "dequantized"}
    report.model_copy(update={"facts": FactsModel.build(old)}).write(store / STORE_REPORT)
    with pytest.raises(RecipeProblem, match=SAME):
        held(store, copied(base, tmp_path / "copy"), tmp_path / "out", prose)
    wide = stages.widened(base)
    assert held(store, wide, tmp_path / "out", prose).facts.record["kl_mean"] == 0


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight"])
def test_one_bit_makes_another_model(base: Path, prose: Path, tmp_path: Path, name: str) -> None:
    other = copied(base, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors[name].view(torch.int16).flatten()[-1] ^= 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert held(base, other, tmp_path / "out", prose).facts.record["tokens"] > 0


def test_the_same_weights_computed_otherwise_are_another_model(
    base: Path, prose: Path, tmp_path: Path
) -> None:
    other = copied(base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 77.0
    (other / "config.json").write_text(json.dumps(config))
    assert held(base, other, tmp_path / "out", prose).facts.record["kl_mean"] > 0


# --- a quantized reference -----------------------------------------------------------------------


def test_swapped_models_are_refused(packed: Path, base: Path, prose: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeProblem, match=r"packed is itself quantized \(4-bit\)") as refused:
        held(packed, base, tmp_path / "out", prose)
    assert refused.value.next_step.startswith(f"swap them if {base} is the reference")
    assert "--allow-quantized-reference" in refused.value.next_step


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("compressed-tensors", "itself quantized (4-bit)"),
        ("gptq-v2", "itself quantized (4-bit)"),
        ("dense", "holds the weights of a quantized model"),
    ],
)
def test_a_quantized_reference_of_any_layout_is_refused(
    packed: Path, exported: Callable[..., Path], prose: Path, tmp_path: Path, to: str, words: str
) -> None:
    with pytest.raises(RecipeProblem) as refused:
        held(exported(to), packed, tmp_path / "out", prose)
    assert words in refused.value.message
    assert "before it was quantized" in refused.value.next_step


def test_a_dense_model_of_another_tool_is_known_by_its_history(
    packed: Path, exported: Callable[..., Path], prose: Path, tmp_path: Path
) -> None:
    dense = copied(exported("dense"), tmp_path / "dense")
    (dense / "export-report.json").unlink()
    with pytest.raises(RecipeProblem) as refused:
        held(dense, packed, tmp_path / "out", prose)
    assert refused.value.message == (
        "the reference may come from a quantized model: "
        f"{dense / 'quantize-report.json'} lists other weights than those beside it"
    )
    assert "remove that report if it belongs to another model" in refused.value.next_step


def test_a_report_without_hashes_tells_the_history(
    packed: Path, exported: Callable[..., Path], prose: Path, tmp_path: Path
) -> None:
    dense = copied(exported("dense"), tmp_path / "dense")
    (dense / "export-report.json").unlink()
    path = dense / "quantize-report.json"
    read_report(path).model_copy(update={"outputs": {}}).write(path)
    with pytest.raises(RecipeProblem, match=r"a quantized model \(quantize-report\.json\)"):
        held(dense, packed, tmp_path / "out", prose)


@pytest.mark.parametrize("to", ["packed", "compressed-tensors", "dense"])
def test_a_store_of_a_quantized_model_is_refused(
    packed: Path, exported: Callable[..., Path], base: Path, prose: Path, tmp_path: Path, to: str
) -> None:
    model = packed if to == "packed" else exported(to)
    with pytest.raises(RecipeProblem, match="quantized"):
        stored(model, tmp_path / "store", prose)
    assert not (tmp_path / "store").exists()
    store = stored(model, tmp_path / "store", prose, **ALLOWED)
    with pytest.raises(RecipeProblem, match="holds the predictions of a quantized model"):
        held(store, base, tmp_path / "out", prose)


def test_a_quantized_reference_that_was_asked_for_is_named_everywhere(
    run: Run, packed: Path, base: Path, prose: Path, tmp_path: Path
) -> None:
    near = pico.write_tuned(tmp_path / "near", base, extra_rows=0)
    out = tmp_path / "out"
    ended = run(
        "validate", packed, near, "--text", prose, "--out", out, "--allow-quantized-reference"
    )
    sentence = "The reference is itself quantized (4-bit)"
    assert sentence in ended.err
    assert sentence in " ".join(ended.out.split())
    assert "4-bit reference" in ended.out
    for name in ("report.md", "report.html"):
        assert sentence in (out / name).read_text(encoding="utf-8"), name
    suite = ElementTree.parse(out / "junit.xml")
    assert suite.find(".//property[@name='caveat']") is not None
    for case in suite.iter("testcase"):
        assert sentence in "".join(case.itertext())
    report = read_report(out / "report.json")
    assert report.settings["allow_quantized_reference"] is True
    assert report.facts.record["reference"]["bits"] == 4
    for path in out.iterdir():
        assert "16-bit" not in path.read_text(encoding="utf-8"), path.name


def test_layouts_of_one_model_may_be_compared_when_asked(
    packed: Path, exported: Callable[..., Path], prose: Path, tmp_path: Path
) -> None:
    report = held(packed, exported("compressed-tensors"), tmp_path / "out", prose, **ALLOWED)
    assert report.facts.record["kl_mean"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"dtype": "bfloat16", "bits": None}, "16-bit"),
        ({"dtype": "float16"}, "16-bit"),
        ({"dtype": "float32", "bits": None, "dequantized": False}, "32-bit"),
        ({"dtype": "float16", "bits": 3}, "3-bit"),
        ({"dtype": "float32", "bits": None, "dequantized": True}, "dequantized"),
        ({"dtype": "unknown"}, ""),
        (None, ""),
    ],
)
def test_a_precision_is_that_of_the_facts(facts: Any, word: str) -> None:
    model = None if facts is None else ModelFacts.read(facts)
    assert model_precision(model) == word
    assert bool(quantized_reference_caveat(model)) == (word in ("3-bit", "dequantized"))
