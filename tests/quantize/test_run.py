"""What is stored is what was solved, what loaders compute, and the same on every run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gptq_reader
import pico
import small_lanes
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import (
    CheckpointProblem,
    NotPositiveDefinite,
    NumericsProblem,
    OutputExists,
    RecipeProblem,
)
from camelpress.core.files.file_hashes import sha256_file
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import TokenBatches
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.token_shards import SHARDS_FOLDER
from camelpress.quantize import block_quantizer as stage
from camelpress.quantize import calibration_shards as in_lanes
from camelpress.quantize import run as whole
from camelpress.quantize.block_quantizer import BlockQuantizer
from camelpress.quantize.calibration.calibration import Calibration, draw_calibration
from camelpress.quantize.calibration_shards import CalibrationShard, calibration_shards
from camelpress.quantize.output_layout import Fp16View
from camelpress.quantize.run import REPORT, run
from camelpress.quantize.settings import CalibrationSource, QuantizeSettings
from camelpress.quantize.solver import layer as solver
from camelpress.quantize.solver.correction import correct_weight
from camelpress.quantize.solver.gptq import FALLBACK, HessianFactor
from camelpress.quantize.solver.hessian import HessianAccumulator
from camelpress.quantize.solver.layer import RoundedMatrix, round_layer
from camelpress.reporting.report_classes import read_report

CPU = torch.device("cpu")
SETTINGS = QuantizeSettings(
    group_size=32,
    samples=6,
    sequence_length=128,
    seed=3,
    dtype="float32",
    damp_percent=0.01,
    correction=0.5,
)
SHALLOW = pico.Sizes(layers=1)
EVERY_GRID = list(product([2, 3, 4, 8], [16, 32, -1], [True, False]))


def settings(chat: Path, **changes: Any) -> QuantizeSettings:
    return SETTINGS.model_copy(update={"calibration": (CalibrationSource(source=chat),), **changes})


def streamed(folder: Path) -> StreamedModel:
    return StreamedModel(Checkpoint.open(folder), device=CPU, dtype=torch.float32)


def as_in_the_run(folder: Path) -> StreamedModel:
    """The source as the stage runs it."""
    checkpoint = Fp16View.of(Checkpoint.open(folder))
    return StreamedModel(checkpoint, device=CPU, dtype=torch.float32)


def states(model: StreamedModel, sequences: TokenBatches) -> Iterator[Tensor]:
    """The hidden states that leave each block."""
    hidden = model.embed_sequences(sequences)
    for number in range(model.block_count):
        with torch.inference_mode():
            model.run_block(sequences, hidden, model.read_block(number), hidden)
        yield hidden.clone()


def logits(model: StreamedModel, ids: list[list[int]]) -> Tensor:
    *_, last = states(model, TokenBatches(ids, limit=model.max_positions))
    with torch.inference_mode():
        return model.read_head()(last)


def plain_logits(folder: Path, out: Path, ids: list[list[int]]) -> Tensor:
    """Of transformers' own model, with weights that were dequantized elsewhere."""
    model = pico.load_model(gptq_reader.write_plain(folder, out))
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([sequence])).logits[0] for sequence in ids])


def some_ids() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 272, (length,), generator=generator).tolist() for length in (5, 40, 128)
    ]


def drawn(folder: Path, wanted: QuantizeSettings) -> Calibration:
    return draw_calibration(
        wanted.calibration,
        Tokenizer.load(folder),
        samples=wanted.samples,
        sequence_length=wanted.sequence_length,
        mask=wanted.calibration_mask,
        seed=wanted.seed,
    )


def embedded(
    model: StreamedModel, calibration: Calibration, folder: Path
) -> list[CalibrationShard]:
    """Lanes with the states that enter the first block."""
    folder.mkdir()
    made = in_pairs(calibration, folder, model)
    for lane in made:
        for name in names(lane):
            lane.write_states(
                name, model.embed_ids(lane.sequences.tokens, model.read_embedding()).float()
            )
    return made


def in_pairs(
    calibration: Calibration, folder: Path, model: StreamedModel
) -> list[CalibrationShard]:
    """Lanes as a run cuts them."""
    widest = model.config.intermediate_size
    return calibration_shards(
        calibration.sequences,
        calibration.token_mask,
        folder,
        sizes=model.sizes,
        limit=model.max_positions,
        columns=widest,
    )


def names(lane: CalibrationShard) -> tuple[str, ...]:
    """Of the states that it has."""
    return ("hidden", "reference") if lane.has_reference else ("hidden",)


def pass_through(
    model: StreamedModel, number: int, own: list[CalibrationShard], wanted: QuantizeSettings
) -> None:
    """Quantize one block, and turn to the states that leave it."""
    with torch.inference_mode():
        weights = model.read_block_weights(number)
        list(BlockQuantizer(model, number, weights, own, ProcessGroup(), wanted).quantize_layers())
    for lane in own:
        lane.select_block(number + 1)


@pytest.fixture(scope="module")
def quantized(base: Path, chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pico model in 4 bits."""
    out = tmp_path_factory.mktemp("quantized") / "model"
    run(Checkpoint.open(base), out, settings(chat))
    return out


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one block."""
    return pico.write_model(tmp_path_factory.mktemp("shallow") / "model", SHALLOW)


def test_logits_are_those_of_transformers_on_independently_read_weights(
    quantized: Path, tmp_path: Path
) -> None:
    expected = plain_logits(quantized, tmp_path / "plain", some_ids())
    found = logits(streamed(quantized), some_ids())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "tied"),
    [("llama", True), ("mistral", False), ("qwen2", False), ("qwen2", True)],
)
def test_every_family_is_quantized_and_read_back(
    tmp_path: Path, chat: Path, family: str, tied: bool
) -> None:
    source = pico.write_model(tmp_path / "source", SHALLOW, family=family, tied=tied)
    run(Checkpoint.open(source), tmp_path / "out", settings(chat))
    expected = plain_logits(tmp_path / "out", tmp_path / "plain", some_ids())
    found = logits(streamed(tmp_path / "out"), some_ids())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    stored = gptq_reader.tensors(tmp_path / "out")
    assert ("lm_head.weight" in stored) is not tied
    for name, tensor in gptq_reader.tensors(source).items():
        if name.endswith("bias"):
            assert torch.equal(stored[name], tensor)


@pytest.mark.parametrize(("bits", "group_size", "sym"), EVERY_GRID)
def test_every_grid_is_read_back_by_an_independent_reader(
    shallow: Path, chat: Path, tmp_path: Path, bits: int, group_size: int, sym: bool
) -> None:
    wanted = settings(chat, bits=bits, group_size=group_size, sym=sym, samples=4)
    run(Checkpoint.open(shallow), tmp_path / "out", wanted)
    ours = streamed(tmp_path / "out").read_block(0)
    stored = gptq_reader.tensors(tmp_path / "out")
    source = gptq_reader.tensors(shallow)
    for linear in llama.LINEARS:
        name = f"model.layers.0.{linear.name}"
        weight = source[f"{name}.weight"].float()
        found = torch.from_numpy(gptq_reader.dequantize(stored, name, bits).copy())
        assert torch.equal(ours.weight(linear.name), found)
        size = weight.shape[1] if group_size == -1 else group_size
        assert stored[f"{name}.g_idx"].tolist() == [col // size for col in range(weight.shape[1])]
        assert float((found - weight).norm() / weight.norm()) < 2.0 ** (2 - bits)


@pytest.mark.parametrize("pairs", [10, 1])  # for all lanes, and for some
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sym", [True, False])
def test_states_while_quantizing_are_those_of_the_stored_checkpoint_and_of_the_16_bit_one(
    chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype, sym: bool, pairs: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(in_lanes, "REFERENCE_TOKENS_PER_COLUMN", pairs)
    monkeypatch.setattr(in_lanes, "MIN_REFERENCE_TOKENS", 0)
    small = small_lanes.resized(batch=300, shard=400)  # several batches, some of them ragged
    monkeypatch.setattr(small_lanes.TABLE, small)
    source = pico.write_model(tmp_path / "source", dtype=dtype)
    wanted = settings(chat, sym=sym)
    run(Checkpoint.open(source), tmp_path / "out", wanted)
    model = as_in_the_run(source)
    own = embedded(model, drawn(source, wanted), tmp_path / "lanes")
    assert 0 < sum(lane.has_reference for lane in own) <= len(own) > 1
    assert all(lane.has_reference for lane in own) is (pairs == 10)
    stored = {"hidden": streamed(tmp_path / "out"), "reference": model}
    streams = [
        (lane, name, states(stored[name], lane.sequences)) for lane in own for name in names(lane)
    ]
    for number in range(model.block_count):
        pass_through(model, number, own, wanted)
        for lane, name, expected in streams:
            assert torch.equal(lane.read_states(name, 64, torch.float32), next(expected))


@pytest.mark.parametrize("pairs", [10, 1])
@pytest.mark.parametrize("mask", ["all", "assistant"])
def test_moments_are_sums_over_what_each_layer_of_the_finished_block_sees_and_should_see(
    base: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str, pairs: int
) -> None:
    monkeypatch.setattr(in_lanes, "REFERENCE_TOKENS_PER_COLUMN", pairs)
    monkeypatch.setattr(in_lanes, "MIN_REFERENCE_TOKENS", 0)
    small = small_lanes.resized(batch=300, shard=400)
    monkeypatch.setattr(small_lanes.TABLE, small)
    wanted = settings(chat, calibration_mask=mask)
    aimed: list[tuple[Tensor, Tensor]] = []
    solved: list[Tensor] = []

    def watched_aim(weight: Tensor, moments: HessianAccumulator, **options: Any) -> None:
        correct_weight(weight, moments, **options)
        aimed.append((moments.hessian.clone(), moments.cross_moment.clone()))

    def watched(
        weight: Tensor, hessian: Tensor, team: ProcessGroup, settings: QuantizeSettings
    ) -> tuple[RoundedMatrix, HessianFactor]:
        solved.append(hessian.clone())
        return round_layer(weight, hessian, team, settings)

    monkeypatch.setattr(stage, "correct_weight", watched_aim)
    monkeypatch.setattr(stage, "round_layer", watched)
    run(Checkpoint.open(base), tmp_path / "out", wanted)
    calibration = drawn(base, wanted)
    assert len({*map(len, calibration.sequences)}) > 3  # ragged: some batches are filled up
    assert bool(calibration.token_mask.all()) is (mask == "all")
    plain = gptq_reader.write_plain(tmp_path / "out", tmp_path / "plain")
    ours, theirs = (seen(folder, calibration.sequences) for folder in (plain, base))
    paired = calibration.token_mask & in_paired_lanes(
        calibration, in_pairs(calibration, tmp_path, streamed(base))
    )
    assert torch.equal(paired, calibration.token_mask) is (pairs == 10)
    places = [place for number in range(2) for place in watched_places(number)]
    for number, (inputs, want, have) in enumerate(places):
        missing = theirs[want] - ours[have]
        assert_near(aimed[number][0], products(ours[inputs], ours[inputs], paired))
        assert_near(aimed[number][1], products(missing, ours[inputs], paired))
        assert_near(solved[number], products(ours[inputs], ours[inputs], calibration.token_mask))


def in_paired_lanes(calibration: Calibration, own: list[CalibrationShard]) -> Tensor:
    """Which tokens are; the lanes are cut from the text one after the other."""
    paired = {tuple(lane.sequences.tokens.tolist()): lane.has_reference for lane in own}
    assert len(paired) == len(own)
    left = [each for ids in calibration.sequences for each in ids]
    found: list[bool] = []
    while left:
        (lane,) = (each for each in paired if list(each) == left[: len(each)])
        found += [paired[lane]] * len(lane)
        left = left[len(lane) :]
    return torch.tensor(found)


def assert_near(fast: Tensor, slow: Tensor) -> None:
    torch.testing.assert_close(fast.double(), slow, rtol=1e-3, atol=1e-4 * float(slow.abs().max()))


def products(these: Tensor, those: Tensor, counted: Tensor) -> Tensor:
    return these[counted].double().T @ those[counted].double()


def watched_places(number: int) -> list[tuple[str, str, str]]:
    """Per input of a block: where it is, where what is wanted is, and where what is there is."""
    here = f"model.layers.{number}"
    following = "model.norm" if number == 1 else f"model.layers.{number + 1}.input_layernorm"
    q_proj, gate_proj = f"{here}.self_attn.q_proj", f"{here}.mlp.gate_proj"
    middle = f"{here}.post_attention_layernorm"
    return [
        (q_proj, q_proj, q_proj),
        (f"{here}.self_attn.o_proj", middle, f"{here}.input_layernorm"),
        (gate_proj, gate_proj, gate_proj),
        (f"{here}.mlp.down_proj", following, middle),
    ]


def seen(folder: Path, sequences: list[list[int]]) -> dict[str, Tensor]:
    """What enters each part of transformers' model, run sequence by sequence, token by token."""
    model = pico.load_model(folder)
    inputs: dict[str, list[Tensor]] = {}
    places = {each for number in range(2) for three in watched_places(number) for each in three}
    for place in places:

        def add(_: nn.Module, given: tuple[Tensor], name: str = place) -> None:
            inputs.setdefault(name, []).append(given[0][0])

        model.get_submodule(place).register_forward_pre_hook(add)
    with torch.inference_mode():
        for sequence in sequences:
            model(torch.tensor([sequence]))
    return {name: torch.cat(parts) for name, parts in inputs.items()}


@pytest.mark.parametrize(("fast", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_the_forward_pass_takes_16_bits_where_the_processor_does(
    shallow: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fast: bool, expected: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(whole, "has_fast_bfloat16", lambda: fast)
    report = run(Checkpoint.open(shallow), tmp_path / "out", settings(chat, dtype="auto"))
    assert report.facts.record["dtype"] == expected
    assert all(0 < layer["relative_error"] < 0.1 for layer in report.facts.record["layers"])


def test_only_tokens_that_count_decide(shallow: Path, chat: Path, tmp_path: Path) -> None:
    reports = [
        run(Checkpoint.open(shallow), tmp_path / mask, settings(chat, calibration_mask=mask))
        for mask in ("all", "assistant")
    ]
    errors = [
        [layer["relative_error"] for layer in each.facts.record["layers"]] for each in reports
    ]
    assert errors[0] != errors[1]


def test_two_runs_give_the_same_bytes(
    base: Path, chat: Path, quantized: Path, tmp_path: Path
) -> None:
    run(Checkpoint.open(base), tmp_path / "again", settings(chat))
    names = sorted(path.name for path in quantized.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        if name != REPORT:
            assert sha256_file(quantized / name) == sha256_file(tmp_path / "again" / name), name
    first, second = (read_report(folder / REPORT) for folder in (quantized, tmp_path / "again"))
    assert first.model_dump(exclude={"cost"}) == second.model_dump(exclude={"cost"})


def test_what_is_not_a_linear_layer_of_a_block_is_only_stored_in_fp16(
    base: Path, quantized: Path
) -> None:
    stored = gptq_reader.tensors(quantized)
    packed = {f"{name}.weight" for name in layer_names()}
    for name, tensor in gptq_reader.tensors(base).items():
        assert (name in stored) is (name not in packed)
        if name in stored:
            assert torch.equal(stored[name], tensor.half())
    assert {name.rsplit(".", 1)[0] for name in stored if name.endswith(".qweight")} == {
        *layer_names()
    }


def layer_names() -> list[str]:
    return [
        f"model.layers.{number}.{linear.name}" for number in range(2) for linear in llama.LINEARS
    ]


def test_stored_rotary_frequencies_are_left_out(base: Path, chat: Path, tmp_path: Path) -> None:
    source = pico.write_model(tmp_path / "source", SHALLOW)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    run(Checkpoint.open(source), tmp_path / "out", settings(chat))
    assert not [name for name in gptq_reader.tensors(tmp_path / "out") if "inv_freq" in name]


def test_the_config_says_what_loaders_ask_for(base: Path, quantized: Path) -> None:
    config = json.loads((quantized / "config.json").read_text(encoding="utf-8"))
    told = config["quantization_config"]
    wanted = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
    }
    assert {key: told[key] for key in wanted} == wanted
    assert config["torch_dtype"] == config["dtype"] == "float16"
    source = json.loads((base / "config.json").read_text(encoding="utf-8"))
    assert {key: config[key] for key in ("rope_theta", "vocab_size", "architectures")} == {
        key: source[key] for key in ("rope_theta", "vocab_size", "architectures")
    }


def test_quantize_config_repeats_the_config(quantized: Path) -> None:
    config = json.loads((quantized / "config.json").read_text(encoding="utf-8"))
    beside = json.loads((quantized / "quantize_config.json").read_text(encoding="utf-8"))
    assert beside == config["quantization_config"]


def test_the_tokenizer_comes_along(base: Path, quantized: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (quantized / name).read_bytes() == (base / name).read_bytes()


def test_the_report_tells_every_layer_and_the_calibration(
    base: Path, chat: Path, quantized: Path
) -> None:
    report = read_report(quantized / REPORT)
    assert report.stage == "quantize"
    assert {*report.inputs} == {"source", f"calibration:{chat.name}"}
    assert [layer["name"] for layer in report.facts.record["layers"]] == layer_names()
    assert all(0 < layer["relative_error"] < 0.1 for layer in report.facts.record["layers"])
    assert all(layer["damp_percent"] == 0.01 for layer in report.facts.record["layers"])
    assert report.facts.record["rescues"] == 0
    told = report.facts.record["calibration"]
    assert told["tokens"] == 6 * 128
    assert told["samples"] == len(drawn(base, settings(chat)).sequences)
    (file,) = told["files"]
    assert (file["name"], file["sha256"]) == (chat.name, sha256_file(chat))
    assert told["fingerprint"]["sha256"] == sha256_file(quantized / told["fingerprint"]["name"])


def test_the_report_tells_of_the_scales(quantized: Path) -> None:
    stored = gptq_reader.tensors(quantized)
    negative = []
    for layer in read_report(quantized / REPORT).facts.record["layers"]:
        scales = stored[f"{layer['name']}.scales"].float()
        assert layer["scales"] == {
            "least": float(scales.abs().min()),
            "largest": float(scales.abs().max()),
            "negative": pytest.approx(float((scales < 0).float().mean())),
        }
        negative.append(layer["scales"]["negative"])
    assert 0 < max(negative) < 1  # either sign is used


def test_nothing_of_the_work_is_left(quantized: Path) -> None:
    names = {path.name for path in quantized.iterdir()}
    assert not names & {SHARDS_FOLDER, "journal.jsonl", "fingerprint"}
    assert [path.name for path in quantized.parent.iterdir()] == [quantized.name]


def test_gptq_loses_less_than_rounding_to_nearest(
    base: Path, chat: Path, quantized: Path, tmp_path: Path
) -> None:
    rounded = run(
        Checkpoint.open(base), tmp_path / "rtn", SETTINGS.model_copy(update={"method": "rtn"})
    )
    sequences = TokenBatches(drawn(base, settings(chat)).sequences, limit=128)
    *_, true = states(streamed(base), sequences)
    *_, solved = states(streamed(quantized), sequences)
    *_, plain = states(streamed(tmp_path / "rtn"), sequences)
    assert float((solved - true).norm()) < 0.9 * float((plain - true).norm())
    assert rounded.facts.record["calibration"] is None
    assert {layer["relative_error"] for layer in rounded.facts.record["layers"]} == {None}


def test_rescues_are_counted(shallow: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a" * 200, encoding="utf-8")  # 1 direction, 64 columns
    wanted = settings(tmp_path / "one.txt", samples=1, damp_percent=1e-6)
    report = run(Checkpoint.open(shallow), tmp_path / "out", wanted)
    rescued = [layer["rescue"] for layer in report.facts.record["layers"] if layer["rescue"]]
    assert report.facts.record["rescues"] == len(rescued) > 0
    assert report.facts.record["fallbacks"] == 0


def hopeless(hessian: Tensor, order: Tensor, *, damp_percent: float) -> HessianFactor:
    raise NotPositiveDefinite("hopeless", next_step="despair")


def test_a_hopeless_hessian_is_refused_by_the_names_of_its_layers(
    base: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "factorize_hessian", hopeless)
    with pytest.raises(NotPositiveDefinite, match="hopeless") as told:
        run(Checkpoint.open(base), tmp_path / "out", settings(chat))
    for name in ("model.layers.0", "self_attn.q_proj, self_attn.k_proj, self_attn.v_proj"):
        assert name in told.value.message
    assert told.value.exit_code == 3
    assert not list(tmp_path.iterdir())


def test_as_many_layers_as_allowed_fall_back_to_rounding_to_nearest(
    base: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "factorize_hessian", hopeless)
    report = run(Checkpoint.open(base), tmp_path / "out", settings(chat, max_fallbacks=14))
    assert report.facts.record["fallbacks"] == 14
    assert {layer["rescue"] for layer in report.facts.record["layers"]} == {FALLBACK}
    again = tmp_path / "again"
    for _ in range(2):  # the second run finds all blocks finished
        with pytest.raises(NotPositiveDefinite, match="could only be rounded to nearest") as told:
            run(Checkpoint.open(base), again, settings(chat, max_fallbacks=13))
        assert "--max-fallbacks" in told.value.next_step
        assert not again.exists()
    monkeypatch.undo()  # nothing is solved again where more fallbacks are allowed
    resumed = run(Checkpoint.open(base), again, settings(chat, max_fallbacks=14))
    assert resumed.facts.record["layers"] == report.facts.record["layers"]


@pytest.mark.parametrize(
    ("group_size", "cols", "fitting"), [(128, 64, "32 or 16 or -1"), (64, 96, "32 or 16 or -1")]
)
def test_a_group_size_that_does_not_divide_is_refused_with_those_that_do(
    base: Path, chat: Path, tmp_path: Path, group_size: int, cols: int, fitting: str
) -> None:
    with pytest.raises(RecipeProblem, match=f"group size {group_size} does not") as told:
        run(Checkpoint.open(base), tmp_path / "out", settings(chat, group_size=group_size))
    assert f"does not divide the {cols} columns of model.layers.0." in told.value.message
    assert told.value.next_step == f"use --group-size {fitting}"
    assert not list(tmp_path.iterdir())


def test_widths_that_fill_no_whole_words_are_refused(chat: Path, tmp_path: Path) -> None:
    source = pico.write_model(tmp_path / "source", pico.Sizes(ffn=80, layers=1))
    with pytest.raises(RecipeProblem, match="is 80 x 64; packed words need multiples of 32"):
        run(Checkpoint.open(source), tmp_path / "out", settings(chat, group_size=16))


def test_a_quantized_source_is_refused(quantized: Path, chat: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointProblem, match="is already quantized") as told:
        run(Checkpoint.open(quantized), tmp_path / "out", settings(chat))
    assert told.value.next_step == "give the 16-bit checkpoint"


def test_no_calibration_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeProblem, match="there is no calibration text") as told:
        run(Checkpoint.open(base), tmp_path / "out", SETTINGS)
    assert "--method rtn" in told.value.next_step
    assert not list(tmp_path.iterdir())


def test_sequences_longer_than_the_positions_are_refused(
    base: Path, chat: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeProblem, match="sequence_length 129 exceeds the 128 positions") as e:
        run(Checkpoint.open(base), tmp_path / "out", settings(chat, sequence_length=129))
    assert e.value.next_step == "use --sequence-length 128 or less"


def test_the_input_is_not_written_over(base: Path, chat: Path) -> None:
    with pytest.raises(RecipeProblem, match="is, holds or lies in the input"):
        run(Checkpoint.open(base), base, settings(chat), force=True)


def test_an_existing_output_is_kept_unless_forced(
    shallow: Path, chat: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(Checkpoint.open(shallow), out, settings(chat))
    with pytest.raises(OutputExists, match="out exists"):
        run(Checkpoint.open(shallow), out, settings(chat, bits=8))
    assert Checkpoint.open(out).config["quantization_config"]["bits"] == 4
    run(Checkpoint.open(shallow), out, settings(chat, bits=8), force=True)
    assert Checkpoint.open(out).config["quantization_config"]["bits"] == 8


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_values_beyond_fp16_are_refused(chat: Path, tmp_path: Path, name: str) -> None:
    source = pico.write_model(tmp_path / "source", SHALLOW, dtype=torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    tensors[name].view(-1)[5] = 1e5
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsProblem, match="not finite in torch.float16") as told:
        run(Checkpoint.open(source), tmp_path / "out", settings(chat))
    assert name in told.value.message
    assert not (tmp_path / "out").exists()
