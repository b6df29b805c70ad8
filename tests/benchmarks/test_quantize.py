"""The benchmark of quantize: the texts are fair, foreign layouts are read, and it counts right."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pico
from benches import ROOT, on_linux, part
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import Message
from camelpress.quantize.backends.drivers import backend_job
from camelpress.quantize.calibration.calibration import draw_calibration
from camelpress.quantize.settings import CalibrationSource
from camelpress.validate.statistics.clustered import clustered_mean

pytestmark = on_linux


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return pico.write_model(tmp_path / "pico")


def chat(user: str, answer: str) -> tuple[Message, ...]:
    return (Message(role="user", content=user), Message(role="assistant", content=answer))


CHATS = [chat("the whale " * (3 + number % 5), "a white sea " * 4) for number in range(40)]


def test_camelpress_draws_the_ids_that_the_others_are_given(model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(model)
    text, windows = part("quantize.texts").packed(CHATS, tokenizer, 4, 64)
    assert [len(window) for window in windows] == [64] * 4
    assert windows[0][:2] == [tokenizer.bos, *tokenizer.encode("<")]
    (tmp_path / "calibration.txt").write_text(text, encoding="utf-8")
    source = CalibrationSource(source=tmp_path / "calibration.txt")
    drawn = draw_calibration(
        [source], tokenizer, samples=4, sequence_length=64, mask="all", seed=42
    )
    assert sorted(drawn.sequences) == sorted(windows)


def test_a_special_token_in_a_chat_or_a_chat_too_long_is_passed_over(model: Path) -> None:
    tokenizer = Tokenizer.load(model)
    packed = part("quantize.texts").packed
    plain = packed(CHATS, tokenizer, 4, 64)
    assert packed([chat("</s>", "a"), chat("a", "sea" * 400), *CHATS], tokenizer, 4, 64) == plain
    with pytest.raises(SystemExit, match=r"^calibration holds \d+ tokens, fewer than 400 x 64$"):
        packed(CHATS, tokenizer, 400, 64)


def test_a_document_that_calibration_holds_is_not_held_out(model: Path) -> None:
    texts = part("quantize.texts")
    tokenizer = Tokenizer.load(model)
    words = [str(number) for number in range(20)]
    seen = set(texts.runs(" ".join(words)))
    assert len(seen) == 8
    apart, shared = " ".join(words[:12]), "See: " + ", ".join(words[3:16])
    options = {"tokens": 70, "length": 20}
    found = texts.held_out([shared, apart, apart, chat("a", shared)], tokenizer, seen, **options)
    assert [len(ids) for ids in found] == [20, 20]
    found = texts.held_out([apart] * 9, tokenizer, seen, **options)
    assert [len(ids) for ids in found] == [20, 20, 20, 10]


def test_articles_are_what_stands_between_the_tags() -> None:
    text = '<doc id="1" url="u" title="t">\nOne\n\nof two.\n</doc>\n<doc id="2">\nTwo.\n</doc>\n'
    assert part("quantize.texts").articles(text) == ["One\n\nof two.", "Two."]


def test_sums_by_document_are_those_of_the_scores(model: Path, tmp_path: Path) -> None:
    evaluate = part("quantize.evaluate")
    other = Checkpoint.open(pico.write_model(tmp_path / "other", seed=1))
    texts = {"text": [[1, 5, 6, 7], [1, 8, 9]]}
    fresh = evaluate.evaluate(Checkpoint.open(model), other, texts, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # what the reference made of the text
    assert evaluate.evaluate(Checkpoint.open(model), other, texts, tmp_path) == fresh
    assert fresh["text"]["tokens"] == [3, 2]
    alone = evaluate.evaluate(Checkpoint.open(model), other, {"text": texts["text"][1:]}, tmp_path)
    assert alone["text"]["kl"][0] == pytest.approx(fresh["text"]["kl"][1], rel=1e-4)
    same = evaluate.evaluate(Checkpoint.open(model), Checkpoint.open(model), texts, tmp_path)
    assert same["text"]["worse"] == [0, 0]


def test_the_bootstrap_agrees_with_the_clustered_standard_error() -> None:
    chance = np.random.default_rng(1)
    tokens = chance.integers(50, 400, size=60)
    levels = chance.gamma(2.0, 0.1, size=60)
    values = [
        chance.exponential(level, size=count) for level, count in zip(levels, tokens, strict=True)
    ]
    cluster = torch.arange(60).repeat_interleave(torch.from_numpy(tokens))
    wanted = clustered_mean(torch.from_numpy(np.concatenate(values)), cluster)
    found = part("quantize.bootstrap").ratio([value.sum() for value in values], tokens)
    assert found.value == pytest.approx(wanted.mean)
    assert found.low == pytest.approx(wanted.low, rel=0.03)
    assert found.high == pytest.approx(wanted.high, rel=0.03)


def test_a_paired_ratio_leaves_out_what_documents_do_to_both() -> None:
    ratio = part("quantize.bootstrap").ratio
    hard = [1.0, 9.0, 4.0, 25.0]
    assert ratio([value / 2 for value in hard], hard) == pytest.approx((0.5, 0.5, 0.5))
    assert ratio(hard, [1.0] * 4).high > 2 * ratio(hard, [1.0] * 4).low


def figures(kl: float, worse: float = 0.1, spread: float = 0.01) -> dict[str, list[float]]:
    """Ten documents of 100 tokens."""
    steps = [(-1) ** number * spread for number in range(10)]
    return {
        "tokens": [100.0] * 10,
        "kl": [100 * kl * (1 + step) for step in steps],
        "worse": [100 * worse] * 10,
    }


def test_ours_is_held_against_the_best_peer_that_writes_gptq() -> None:
    quality = part("quantize.quality")
    tools = ("camelpress", "gptqmodel", "autoround", "llmcompressor")
    by_text = {"page": (0.08, 0.2, 0.1, 0.01), "chat": (0.09, 0.1, 0.3, 0.01)}
    found = quality.targets(
        {
            tool: {text: figures(kls[number]) for text, kls in by_text.items()}
            for number, tool in enumerate(tools)
        }
    )
    assert [(target.name, target.measured, target.met) for target in found] == [
        ("KL on page: camelpress / auto-round 0.16.1, light", "0.800 (0.800 - 0.800), apart", True),
        ("KL on chat: camelpress / GPTQModel 7.7.0, fp32", "0.900 (0.900 - 0.900), apart", False),
    ]
    wide = {"camelpress": {"page": figures(0.08, spread=0.9)}, "gptqmodel": {"page": figures(0.1)}}
    (target,) = quality.targets(wide)
    assert target.measure.value == pytest.approx(0.8)
    assert not target.met


def test_quality_is_told_text_by_text() -> None:
    quality = {"camelpress": {"page": figures(0.08)}, "gptqmodel": {"page": figures(0.1, 0.2)}}
    assert part("quantize.quality").tables(quality).splitlines() == [
        "| page: 1,000 tokens, 10 documents | perplexity ratio | mean KL, nats "
        "| KL of camelpress over it |",
        "| :-- | --: | --: | --: |",
        "| camelpress | 1.105 (1.105 - 1.105) | 0.0800 (0.0795 - 0.0805) |  |",
        "| GPTQModel 7.7.0, fp32 | 1.221 (1.221 - 1.221) | 0.1000 (0.0994 - 0.1006) "
        "| 0.800 (0.800 - 0.800) |",
    ]
    assert math.exp(0.1) == pytest.approx(1.105, abs=1e-3)


def run(seconds: float, megabytes: float = 0) -> Any:
    return part("measure").Run(seconds, int(megabytes * 1e6), cpu=2 * seconds)


def test_ours_is_held_against_the_fastest_and_the_leanest() -> None:
    tools = ["camelpress", "gptqmodel", "optimum"]
    runs = {
        "camelpress": [run(10, 500), run(20, 500), run(10, 600)],
        "gptqmodel": [run(40, 900), run(100, 900), run(80, 900)],
        "optimum": [run(90, 800), run(90, 800), run(90, 800)],
        "imports of camelpress": [run(1, 400)] * 3,
        "imports of gptqmodel": [run(1, 600)] * 3,
        "imports of optimum": [run(1, 400)] * 3,
    }
    costs = part("quantize.costs")
    table = part("tables").targets_table(costs.targets(tools, runs))
    assert table.splitlines()[2:] == [
        "| seconds: camelpress / GPTQModel 7.7.0, fp32 | 0.20 (0.12 - 0.25) | at most 0.2 | met |",
        "| peak above imports: camelpress / GPTQModel 7.7.0, fp32 "
        "| 0.33 (0.33 - 0.67) | at most 0.5 | met |",
    ]
    assert costs.costs_table(tools, runs).splitlines()[3] == (
        "| GPTQModel 7.7.0, fp32 | 80.0 (40.0 - 100.0) | 5.00 (4.00 - 8.00) "
        "| 160.0 (80.0 - 200.0) | 900 (900 - 900) | 300 (300 - 300) | 1.0 (1.0 - 1.0) |"
    )
    assert costs.targets(["camelpress"], runs) == costs.targets(tools[1:], runs) == []


def test_growth_is_held_per_layer_and_sample_and_against_the_forecast() -> None:
    growth = part("quantize.growth")
    size = growth.Size
    runs = {
        "imports": [run(1, 400)],
        size(4, 32): [run(5, 500)],
        size(8, 32): [run(9, 505)],
        size(32, 32): [run(33, 510)],
        size(8, 256): [run(65, 857)],
    }
    forecasts = {name: 10**6 * 600 for name in runs if name != "imports"}
    found = growth.targets(runs, forecasts)
    assert [(target.values, target.met) for target in found] == [
        ([1.0], True),
        ([1.02], True),
        ([1.0], True),
        (pytest.approx([857 / 505]), False),
        (pytest.approx([857 / 600]), False),
    ]
    told = growth.figures_table(runs, forecasts)
    assert "| 8 layers, 256 samples | 65.0 | 130.0 | 857 | 457 | 600 |" in told


def test_every_environment_has_its_requirements_with_torch_pinned() -> None:
    places = (ROOT / "tests" / "clients", ROOT / "benchmarks" / "peers")
    for peer in part("quantize.tools").PEERS.values():
        (file,) = (path for place in places for path in place.glob(f"{peer.environment}.txt"))
        assert re.search("^torch==[0-9.]+$", file.read_text(encoding="utf-8"), re.MULTILINE)
        path = f"{peer.driver.replace('.', '/')}.py"
        assert (ROOT / path).exists() or (ROOT / "src" / path).exists()


def test_a_driver_is_given_the_same_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = part("quantize.tools")
    (tmp_path / "tokens.json").write_text("[[1, 2, 3], [4, 5, 6]]", encoding="utf-8")
    work = tools.Work(tmp_path / "model", tmp_path, tmp_path / "turn" / "out", 64, 2, 3)
    command = tools.quantizing("gptqmodel-bf16", work)
    place = command.index("camelpress.quantize.backends.drivers.gptqmodel")
    monkeypatch.setattr(sys, "argv", command[place:])
    given = backend_job.read_job()
    assert given.model == str(tmp_path / "model")
    assert (given.out, given.group_size, given.dtype) == (str(work.out), 64, "bfloat16")
    assert (given.tokens, given.max_length) == ([[1, 2, 3], [4, 5, 6]], 3)
    assert given.examples[1] == {"input_ids": [4, 5, 6], "attention_mask": [1, 1, 1]}


def test_it_runs_ours_and_tells_what_became_of_it(tmp_path: Path, model: Path) -> None:
    data = tmp_path / "data"
    texts, bench = part("quantize.texts"), part("quantize.__main__")
    for number, name in enumerate((*texts.CALIBRATION, texts.PAGES, texts.CHAT)):
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written = pico.write_chat(tmp_path / "chat.jsonl", seed=number).read_text(encoding="utf-8")
        rows = [json.loads(line) for line in written.splitlines()]
        lines = "\n".join(map(json.dumps, rows))
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines, encoding="utf-8")
    (data / texts.ARTICLES).write_text("".join(f"<doc id=1>\nsee {n}\n</doc>\n" for n in "abcd"))
    pico_model = part("quantize.models").Model("pico", 32, folder=model)
    options = {"samples": 4, "length": 64, "held_out": 200}
    work = bench.prepared(pico_model, tmp_path / "work", data, **options)
    runs, quality = bench.rounds(["camelpress"], work, 1, evaluate=True)
    assert [len(own) for own in runs.values()] == [1, 1]
    assert min(runs["camelpress"][0]) > 0
    table = part("quantize.quality").tables(quality)
    assert re.findall(r"^\| (\S.*): [\d,]+ tokens", table, re.MULTILINE) == [
        "articles", "web pages", "Tulu chat",
    ]  # fmt: skip
    assert len(re.findall(r"^\| camelpress \| [\d.]+ \(", table, re.MULTILINE)) == 3
