"""The benchmark of validate: it counts operations as torch does, and insists on equal results."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pico
from benches import on_linux, part
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.validate.scoring.scored_positions import ScoredPositions

pytestmark = on_linux


def test_operations_are_those_that_torch_counts(base: Path) -> None:
    lengths = (9, 60, 31)
    places = ScoredPositions.from_sequences([[5] * length for length in lengths])
    cpu = torch.device("cpu")
    model = StreamedModel(Checkpoint.open(base), device=cpu, dtype=torch.float32)
    found = part("validate.prepare").count(model, places)
    assert found.tokens == sum(length - 1 for length in lengths)
    products = attention = 0
    whole = pico.load_model(base)
    whole.set_attn_implementation("eager")
    for length in lengths:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            whole(torch.full((1, length - 1), 5))  # the last is only predicted
        for name, flops in counter.get_flop_counts()["Global"].items():
            pairs = "bmm" in str(name)
            attention += flops * pairs * length // (2 * (length - 1))  # torch counts all of them
            products += flops * (not pairs)
    assert attention > 0
    assert found.flops == products + attention


def test_the_text_is_made_of_whole_articles(base: Path, tmp_path: Path) -> None:
    wiki = tmp_path / "wiki.utf8"
    wiki.write_text("".join(f'<doc id="{n}">\narticle {n}\n</doc>\n' for n in range(9)), "utf-8")
    tokenizer, out = Tokenizer.load(base), tmp_path / "documents.jsonl"
    part("validate.prepare").write_documents(
        wiki, tokenizer, out, tokens=25
    )  # an article has eleven
    texts = [json.loads(line)["text"] for line in out.read_text("utf-8").splitlines()]
    assert texts == ["article 0", "article 1", "article 2"]


def test_other_results_stop_the_benchmark(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    facts = {"reference_word_perplexity": 20.0, "candidate_word_perplexity": 21.0}
    (tmp_path / "ours" / "report.json").write_text(json.dumps({"facts": facts}), "utf-8")
    (tmp_path / "reference").write_text('{"word_perplexity": 20.000001}', "utf-8")
    (tmp_path / "candidate").write_text('{"word_perplexity": 21.000001}', "utf-8")
    whole = part("validate.__main__")
    whole.require_the_same(tmp_path)
    (tmp_path / "candidate").write_text('{"word_perplexity": 21.001}', "utf-8")
    with pytest.raises(SystemExit, match="^word_perplexity of the candidate: 21.0 here, 21.001 by"):
        whole.require_the_same(tmp_path)


def test_targets_are_counted_by_hand() -> None:
    whole, names = part("validate.__main__"), part("validate.contenders")
    run = import_module("benchmarks.measure").Run
    runs = {
        names.OURS: [run(10.0, 700_000_000, 18.0)],
        names.PEER["reference"]: [run(12.0, 0, 0.0)],
        names.PEER["candidate"]: [run(13.0, 0, 0.0)],
        names.IMPORTS[names.OURS]: [run(2.0, 400_000_000, 2.0)],
    }
    held = whole.targets(runs, [2e11], {"tokens": 1000, "flops": 7e11}, 60.0)
    assert [target.values[0] for target in held] == pytest.approx([2.5, 0.7, 0.875, 300.0])
    assert [target.met for target in held] == [True] * 4
    assert held[-1].bound == pytest.approx(60 + 2 * 67.108864 + 300)


def test_blocks_are_counted_as_they_are_read(base: Path) -> None:
    cpu = torch.device("cpu")
    model = StreamedModel(Checkpoint.open(base), device=cpu, dtype=torch.float32)
    block = sum(torch.Size(shape).numel() for shape in model.block_shapes(0).values())
    assert part("validate.__main__").block_megabytes(base) == pytest.approx(4 * 4 * block / 1e6)
