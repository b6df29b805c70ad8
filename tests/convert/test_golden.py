"""Known completions cost what transformers says, token by token, and prompts cost nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pico
import weights
from camelpress.convert import golden
from camelpress.core import predictions
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.errors import NumericsProblem, Problem, RecipeProblem
from camelpress.core.provenance import sha256_file
from camelpress.core.tokens import Tokenizer
from refusal import refusal

BOS, EOS = 1, 2
HEADERS = len("<|user|>\n\n<|assistant|>\n")
PAIRS = (
    ("name the whale", "the white whale"),
    ("go", "a"),
    ("say: old man and the sea\n", " old man and the sea "),
    ("what is a ship", "a ship of the sea, " * 2),
    ("who", "see the old ship go"),
)
Pairs = Sequence[tuple[str, str]]


def write(path: Path, pairs: Pairs) -> Path:
    rows = [
        {"id": f"row {at}", "prompt": prompt, "completions": [{"model": "m", "completion": given}]}
        for at, (prompt, given) in enumerate(pairs)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scored(model: Path, prompts: Path) -> dict[str, Any]:
    return golden.score(Checkpoint.open(model), prompts, device="cpu")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("golden") / "prompts.jsonl", PAIRS)


class Told(NamedTuple):
    """What transformers says of the scored tokens of one completion."""

    nll: Tensor
    greedy: list[bool]


def slow(folder: Path, pairs: Pairs) -> list[Told]:
    """Each completion run alone through the whole model; a byte is a token."""
    model, tokenizer = pico.load_model(folder), Tokenizer.load(folder)
    told = []
    for prompt, completion in pairs:
        header = f"<|user|>\n{prompt.strip()}\n<|assistant|>\n"
        answer = [*tokenizer.encode(completion.strip()), EOS]
        ids = [BOS, *tokenizer.encode(header), *answer][: pico.PICO.positions]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0].double()
        places = range(1 + len(header.encode()), len(ids))
        costs = -logits.log_softmax(dim=-1)
        told.append(
            Told(
                torch.stack([costs[at - 1, ids[at]] for at in places]),
                [int(logits[at - 1].argmax()) == ids[at] for at in places],
            )
        )
    return told


@pytest.fixture(
    scope="module",
    params=[(False, torch.float16), (True, torch.float16), (False, torch.bfloat16)],
    ids=["untied", "tied", "bfloat16"],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tied, dtype = request.param
    return pico.write_model(tmp_path_factory.mktemp("golden") / "model", tied=tied, dtype=dtype)


# --- figures ------------------------------------------------------------------------------------


def test_costs_are_those_of_transformers(model: Path, prompts: Path) -> None:
    facts = scored(model, prompts)
    told = slow(model, PAIRS)
    every = torch.cat([each.nll for each in told])
    assert facts["tokens"] == len(every) == sum(len(given.strip()) + 1 for _, given in PAIRS)
    assert facts["perplexity"] == pytest.approx(exp(float(every.mean())), rel=1e-5)
    worst = {each["number"]: each["perplexity"] for each in facts["worst"]}
    expected = {at: exp(float(each.nll.mean())) for at, each in enumerate(told, start=1)}
    assert worst == pytest.approx(expected, rel=1e-5)


def test_what_is_greedy_is_that_of_transformers(chatty: Path, prompts: Path) -> None:
    pairs = [(prompt, given[:-3] + "q" + given[-2:]) for prompt, given in greedy_pairs(chatty)]
    facts = scored(chatty, write(prompts.with_name("greedy.jsonl"), pairs))
    every = [each.greedy for each in slow(chatty, pairs)]
    agreeing = sum(map(sum, every))
    assert 0 < agreeing < facts["tokens"]
    assert facts["greedy_agreement"] == pytest.approx(agreeing / sum(map(len, every)))
    prefixes = [(*each, False).index(False) for each in every]
    assert facts["greedy_prefix"] == pytest.approx(sum(prefixes) / len(every))
    assert facts["greedy_completions"] == sum(map(all, every)) / len(every)


def test_facts_say_what_was_scored_and_are_plain(base: Path, prompts: Path) -> None:
    facts = scored(base, prompts)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["file"] == "prompts.jsonl"
    assert facts["sha256"] == sha256_file(prompts)
    assert facts["protocol"] == (
        "Tulu format, completion and EOS scored, cut at 128 tokens; float32 on cpu"
    )
    assert (facts["completions"], facts["cut"], facts["left_out"]) == (5, 0, 0)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_the_size_of_chunks_changes_nothing(
    base: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    expected = scored(base, prompts)
    sizes = []
    whole = predictions.Predictions.log_probabilities

    def watched(self: predictions.Predictions, rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return whole(self, rows)

    monkeypatch.setattr(predictions.Predictions, "log_probabilities", watched)
    monkeypatch.setattr(predictions, "LOGITS", pico.PICO.vocab * rows)
    facts = scored(base, prompts)
    assert max(sizes) == max(1, rows)
    assert sum(sizes) == facts["tokens"]
    assert facts.pop("worst") == [
        {"number": each["number"], "perplexity": pytest.approx(each["perplexity"], rel=1e-5)}
        for each in expected.pop("worst")
    ]
    assert facts == pytest.approx(expected, rel=1e-5)


def test_the_least_likely_completions_are_named_in_their_order(base: Path, tmp_path: Path) -> None:
    pairs = [*PAIRS, ("x" * 128, "left out"), ("sea", "zzz"), ("sea", "the sea")]
    facts = scored(base, write(tmp_path / "p.jsonl", pairs))
    scores = {
        at: exp(float(each.nll.mean()))
        for at, each in enumerate(slow(base, pairs), start=1)
        if at != 6
    }
    expected = sorted(scores, key=lambda at: -scores[at])[: golden.WORST]
    assert [each["number"] for each in facts["worst"]] == expected


def test_an_overflowing_perplexity_is_still_a_number(base: Path, tmp_path: Path) -> None:
    loud = weights.changed(
        base,
        tmp_path / "loud",
        lambda all_: all_ | {"lm_head.weight": all_["lm_head.weight"].float() * 1e6},
    )
    facts = scored(loud, write(tmp_path / "p.jsonl", PAIRS))
    assert facts["perplexity"] == exp(golden.LARGEST_LOG)


# --- a model's own completions ------------------------------------------------------------------


@pytest.fixture(scope="module")
def chatty(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers in small letters and, now and then, ends.

    One feature of the embedding is large for every token; the head holds it against all others.
    """
    tokenizer = Tokenizer.load(base)
    letters = tokenizer.encode("abcdefghijklmnopqrstuvwxyz")

    def bend(tensors: weights.Tensors) -> weights.Tensors:
        tensors["model.embed_tokens.weight"][:, 0] = 2.0
        tensors["model.norm.weight"][0] = 1.0
        head = tensors["lm_head.weight"]
        head[:, 0] = -10.0
        head[letters, 0] = 0.0
        head[EOS, 0] = END
        return tensors

    return weights.changed(base, tmp_path_factory.mktemp("golden") / "chatty", bend)


END = 0.1
QUESTIONS = tuple(f"{first} {second}" for first in pico.WORDS[:4] for second in pico.WORDS[4:7])


def greedy_pairs(folder: Path) -> list[tuple[str, str]]:
    """What transformers generates greedily, until EOS or until the positions are full."""
    model, tokenizer = pico.load_model(folder), Tokenizer.load(folder)
    pairs = []
    for prompt in QUESTIONS:
        ids = torch.tensor([[BOS, *tokenizer.encode(f"<|user|>\n{prompt}\n<|assistant|>\n")]])
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_length=pico.PICO.positions,
            pad_token_id=0,
        )[0, ids.shape[1] :].tolist()
        pairs.append((prompt, tokenizer.decode([each for each in found if each != EOS])))
    return pairs


@pytest.fixture(scope="module")
def own(chatty: Path) -> Path:
    return write(chatty.parent / "own.jsonl", greedy_pairs(chatty))


def test_a_model_agrees_with_its_own_completions(chatty: Path, own: Path) -> None:
    facts = scored(chatty, own)
    assert 0 < facts["cut"] < facts["completions"] == len(QUESTIONS)
    assert facts["greedy_agreement"] == facts["greedy_completions"] == facts["eos_agreement"] == 1
    assert facts["greedy_prefix"] == facts["tokens"] / facts["completions"]
