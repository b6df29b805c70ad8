"""Our models answer as lm-evaluation-harness' own transformers backend does, item by item."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pico
from camelpress.core.blocks import StreamedModel
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.errors import NumericsProblem, RecipeProblem
from camelpress.core.tokens import Tokenizer
from camelpress.core.whole import load
from camelpress.validate.answers import Answers
from camelpress.validate.catalogue import Column
from camelpress.validate.completions import Decoding, Prompt, batches, complete
from camelpress.validate.likelihood import Pair, likelihoods
from camelpress.validate.speakers import Streamed, Whole, shared

CPU = torch.device("cpu")
WORDS = ("the whale", "a white ship", "go and see the old man", "sea")
lm_eval = pytest.importorskip("lm_eval", reason='tasks need: pip install "camelpress[tasks]"')


def streamed(folder: Path) -> StreamedModel:
    return StreamedModel(Checkpoint.open(folder), device=CPU, dtype=torch.float32)


def harness(folder: Path, bare: Sequence[str] = (), answers: Path | None = None) -> Any:
    from camelpress.validate.harness import Harness

    tokenizer = Tokenizer.load(folder)
    kept = Answers({"model": folder.name}, answers)
    columns = {name: Column(name, "acc", bos=False) for name in bare}
    return Harness(
        "reference", Checkpoint.open(folder), streamed(folder), tokenizer, [2], kept, columns
    )


def hf(folder: Path, **how: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=pico.load_model(folder),
        tokenizer=str(folder),
        device="cpu",
        batch_size=3,
        dtype="float32",
        **how,
    )


def requests(kind: str, arguments: Sequence[tuple[Any, ...]], task: str = "any") -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(kind, {}, each, 0, metadata=(task, number, 1))
        for number, each in enumerate(arguments)
    ]


def pairs() -> list[tuple[str, str]]:
    draw = random.Random(0)
    contexts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 4))) for _ in range(8)]
    told = [(context, f" {each}") for context in contexts for each in ("a", "the", "old man")]
    return [*told, ("", "the whale"), ("ends in blanks  ", "sea"), ("<s>the", " sea")]


@pytest.mark.parametrize("bos", [True, False])
def test_likelihoods_are_those_of_transformers(base: Path, bos: bool) -> None:
    asked = requests("loglikelihood", pairs())
    ours = harness(base, bare=() if bos else ("any",)).loglikelihood(asked)
    theirs = hf(base, add_bos_token=bos).loglikelihood(asked, disable_tqdm=True)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    for (found, _), (expected, _) in zip(ours, theirs, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_likelihoods_of_whole_texts_are_those_of_transformers(base: Path) -> None:
    texts = [(" ".join(WORDS * times),) for times in (1, 2, 5)]  # the last of several windows
    asked = requests("loglikelihood_rolling", texts)
    expected = hf(base).loglikelihood_rolling(asked, disable_tqdm=True)
    assert harness(base).loglikelihood_rolling(asked) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("tokens", [1, 30, 10_000])
def test_likelihoods_do_not_depend_on_the_walks(base: Path, tokens: int) -> None:
    draw = random.Random(1)
    asked = [
        Pair([draw.randrange(3, 200) for _ in range(draw.randint(1, 20))], [5, 6][: 1 + place % 2])
        for place in range(12)
    ]
    found = dict(likelihoods("model", streamed(base), asked, tokens=tokens))
    model = pico.load_model(base)
    for place, pair in enumerate(asked):
        with torch.inference_mode():
            logits = model(torch.tensor([[*pair.context, *pair.continuation]])).logits[0]
        log = logits.log_softmax(dim=-1)[len(pair.context) - 1 : -1]
        expected = sum(float(log[at, token]) for at, token in enumerate(pair.continuation))
        assert found[place].log == pytest.approx(expected, abs=1e-4)
        assert found[place].greedy == (log.argmax(dim=-1).tolist() == pair.continuation)


def test_shared_contexts_are_read_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    embed = StreamedModel.embed

    def counted(self: StreamedModel, sequences: Any) -> Any:
        read.append(len(sequences.tokens))
        return embed(self, sequences)

    monkeypatch.setattr(StreamedModel, "embed", counted)
    asked = [Pair([1, 5, 6], [token]) for token in (7, 8, 9)] + [Pair([1, 5], [6, 7])]
    dict(likelihoods("model", streamed(base), asked))
    assert read == [3]


GREEDY = Decoding(stops=(), most=12, temperature=0.0, top_p=1.0)
PROMPTS = [[1, 5, 6, 7], [9], [1, *range(20, 50)], [44, 45]]


def greedy(folder: Path, prompt: list[int], most: int) -> list[int]:
    model: Any = pico.load_model(folder)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=most,
            eos_token_id=2, pad_token_id=2,
        )  # fmt: skip
    return list(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("kind", ["whole", "streamed"])
def test_completions_are_those_of_transformers(base: Path, kind: str) -> None:
    tokenizer, checkpoint = Tokenizer.load(base), Checkpoint.open(base)
    engine = (
        Whole(load(checkpoint, device=CPU, dtype=torch.float32))
        if kind == "whole"
        else Streamed(streamed(base), "reference")
    )
    prompts = [Prompt(ids, "") for ids in PROMPTS]
    found = complete(engine, prompts, GREEDY, tokenizer, ends=frozenset([2]), positions=128)
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = [token for token in greedy(base, prompt, 12) if token != 2]
        before = tokenizer.words(prompt[-1:])
        assert text == tokenizer.words([*prompt[-1:], *ids])[len(before) :]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12))
def test_batches_hold_each_prompt_once(ids: list[list[int]]) -> None:
    prompts = [Prompt(each, "") for each in ids]
    found = batches(prompts, range(len(ids)), 4)
    assert sorted(place for batch in found for place in batch) == [*range(len(ids))]
    assert all(1 <= len(batch) <= 4 for batch in found)
    for batch in found:
        rows = [ids[place] for place in batch]
        same = shared(rows)
        assert all(row[:same] == rows[0][:same] and len(row) > same for row in rows)
        assert any(len(row) == same + 1 or row[same] != rows[0][same] for row in rows)


def test_examples_of_a_kind_are_one_batch_and_are_read_once(base: Path) -> None:
    """Rows with common examples come out as alone, whatever else is asked."""
    tokenizer = Tokenizer.load(base)
    examples = ([1, *range(10, 40)], [1, *range(60, 80)])
    ids = [[*begin, *end] for end in ([5], [6, 7], [8]) for begin in examples]
    prompts = [Prompt(each, "") for each in ids]
    found = batches(prompts, range(len(ids)), 4)
    assert sorted(map(sorted, found)) == [[0, 2, 4], [1, 3, 5]]
    engine = Whole(load(Checkpoint.open(base), device=CPU, dtype=torch.float32))
    for batch in found:
        some = [prompts[place] for place in batch]
        texts = complete(engine, some, GREEDY, tokenizer, ends=frozenset([2]), positions=128)
        for prompt, text in zip(some, texts, strict=True):
            said = [token for token in greedy(base, prompt.ids, 12) if token != 2]
            before = tokenizer.words(prompt.ids[-1:])
            assert text == tokenizer.words([*prompt.ids[-1:], *said])[len(before) :]


def test_a_completion_ends_before_its_stop_and_at_the_last_position(base: Path) -> None:
    tokenizer = Tokenizer.load(base)
    engine = Whole(load(Checkpoint.open(base), device=CPU, dtype=torch.float32))
    prompt = Prompt(PROMPTS[0], "")

    def told(**changes: Any) -> str:
        positions = changes.pop("positions", 128)
        decoding = Decoding(**{**vars(GREEDY), **changes})
        (text,) = complete(
            engine, [prompt], decoding, tokenizer, ends=frozenset([2]), positions=positions
        )
        return text

    whole = told()
    stop = whole[4:6]
    assert told(stops=(stop, "never")) == whole[: whole.index(stop)]
    assert whole.startswith(told(most=3)) and told(most=3) != whole
    assert told(positions=7) == told(most=3)


class Fixed:
    """An engine that gives the same logits for the first token, and has no second."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def begin(self, prompts: Sequence[Sequence[int]], most: int) -> torch.Tensor:
        return self.logits.expand(len(prompts), -1).contiguous()

    def go_on(self, tokens: Sequence[int]) -> torch.Tensor:
        raise AssertionError("one token is enough")

    def keep(self, rows: Sequence[int]) -> None:
        raise AssertionError("one token is enough")


def test_a_completion_may_end_with_its_first_paragraph(base: Path) -> None:
    """Blank lines before it do not count; nothing is cut."""
    tokenizer = Tokenizer.load(base)
    said = "\n\nsea\n\nship"

    class Said(Fixed):
        def __init__(self) -> None:
            super().__init__(torch.empty(0))
            self.left = tokenizer.encode(said)

        def go_on(self, tokens: Sequence[int]) -> torch.Tensor:
            logits = torch.zeros(len(tokens), pico.PICO.vocab)
            logits[:, self.left.pop(0)] = 1
            return logits

        def begin(self, prompts: Sequence[Sequence[int]], most: int) -> torch.Tensor:
            return self.go_on([0] * len(prompts))

    prompt = [Prompt(tokenizer.encode("x"), "")]
    ends = frozenset[int]()
    paragraph = Decoding((), len(tokenizer.encode(said)), 0.0, 1.0, paragraph=True)
    (found,) = complete(Said(), prompt, paragraph, tokenizer, ends=ends, positions=99)
    assert found == "\n\nsea\n\n"
    whole = Decoding((), len(tokenizer.encode(said)), 0.0, 1.0)
    (found,) = complete(Said(), prompt, whole, tokenizer, ends=ends, positions=99)
    assert found == said


def test_draws_hang_on_their_seed_and_not_on_their_neighbours(base: Path) -> None:
    tokenizer = Tokenizer.load(base)
    engine = Whole(load(Checkpoint.open(base), device=CPU, dtype=torch.float32))
    decoding = Decoding(stops=(), most=10, temperature=1.0, top_p=0.95)

    def drawn(*seeds: str) -> list[str]:
        prompts = [Prompt(PROMPTS[0], seed) for seed in seeds]
        return complete(engine, prompts, decoding, tokenizer, ends=frozenset(), positions=128)

    first, second, again = drawn("a", "b", "a")
    assert first == again != second
    assert drawn("b") == [second]


def test_draws_come_as_often_as_they_are_probable(base: Path) -> None:
    """Shares of 4,000 draws; what is beyond top_p never comes."""
    tokenizer = Tokenizer.load(base)
    ids = tokenizer.encode("wxyz")
    logits = torch.full((pico.PICO.vocab,), -1e4)
    logits[ids] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    decoding = Decoding(stops=(), most=1, temperature=1.0, top_p=0.9)
    prompts = [Prompt(ids[:1], str(seed)) for seed in range(4000)]
    found = complete(Fixed(logits), prompts, decoding, tokenizer, ends=frozenset(), positions=9)
    for letter, share in (("w", 0.5 / 0.95), ("x", 0.3 / 0.95), ("y", 0.15 / 0.95), ("z", 0.0)):
        assert found.count(letter) / 4000 == pytest.approx(share, abs=0.025)


def test_what_is_not_done_is_refused() -> None:
    with pytest.raises(RecipeProblem, match="asks for completions with num_beams 4"):
        Decoding.of({"until": ["x"], "num_beams": 4}, "some")
    told = Decoding.of(
        {"until": "x", "max_tokens": 7, "do_sample": False, "temperature": 1}, "some"
    )
    assert told == Decoding(("x",), 7, 0.0, 1.0)
    assert Decoding.of({}, "some").most == 256


def test_answers_are_kept_by_model_task_and_request(
    base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from camelpress.validate import harness as module

    asked = requests("loglikelihood", pairs()[:3], task="one")
    first = harness(base, answers=tmp_path).loglikelihood(asked)
    assert harness(tuned, answers=tmp_path).loglikelihood(asked) != first
    monkeypatch.setattr(module, "likelihoods", None)  # what is known is not asked again
    again = harness(base, answers=tmp_path)
    assert again.loglikelihood(asked) == first
    with pytest.raises(TypeError):
        again.loglikelihood(requests("loglikelihood", pairs()[:3], task="another"))


def test_a_line_that_was_cut_short_costs_one_answer(tmp_path: Path) -> None:
    answers = Answers({"model": "m"}, tmp_path)
    answers.add("a", "first")
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text(path.read_text() + '{"b": "sec', encoding="utf-8")
    again = Answers({"model": "m"}, tmp_path)
    assert again["a"] == "first" and "b" not in again
    again.add("c", "third")
    assert Answers({"model": "m"}, tmp_path)["c"] == "third"
    assert "a" not in Answers({"model": "other"}, tmp_path)


def test_repeated_requests_are_drawn_anew_and_remembered_each(base: Path, tmp_path: Path) -> None:
    how = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}
    asked = requests("generate_until", [("the whale", how)] * 4)
    found = harness(base, answers=tmp_path).generate_until(asked)
    assert len(set(found)) > 1
    assert harness(base, answers=tmp_path).generate_until(asked) == found
    assert harness(base).generate_until(asked) == found
    (kept,) = tmp_path.glob("*.jsonl")
    assert len([line for line in kept.read_text().splitlines() if line]) == 4


def test_a_prompt_without_room_is_refused(base: Path) -> None:
    long = " ".join(WORDS * 9)
    asked = requests("generate_until", [(long, {"until": []})], task="long")
    with pytest.raises(RecipeProblem) as caught:
        harness(base).require_room(asked)
    assert re_matches(caught.value.what)
    harness(base).require_room(requests("loglikelihood", pairs()))


def test_a_protocol_may_go_beyond_the_positions_that_it_was_made_for(base: Path) -> None:
    """As the models of 2023 did: rotary positions have no end."""
    long = " ".join(WORDS * 9)
    asked = requests("generate_until", [(long, {"until": [], "max_gen_toks": 8})], task="long")
    model = harness(base)
    model._columns = {"long": Column("long", "acc", context=128)}
    model.require_room(asked)
    ids = Tokenizer.load(base).encode_document(long)
    assert len(ids) > 128
    (text,) = model.generate_until(asked)
    words = Tokenizer.load(base).words
    said = [*ids[-1:], *(token for token in greedy(base, ids, 8) if token != 2)]
    assert text == words(said)[len(words(ids[-1:])) :]
    scored = requests("loglikelihood", [(long, " sea")], task="long")
    ((log, _),) = model.loglikelihood(scored)
    pair = model._pair(scored[0])
    with torch.inference_mode():
        logits = pico.load_model(base)(torch.tensor([[*pair.context, *pair.continuation]])).logits[
            0
        ]
    at = logits.log_softmax(dim=-1)[len(pair.context) - 1 : -1]
    expected = sum(float(at[place, token]) for place, token in enumerate(pair.continuation))
    assert log == pytest.approx(expected, abs=1e-4)
    model._columns = {"long": Column("long", "acc", context=256)}
    with pytest.raises(RecipeProblem, match="has 128 positions"):
        model.require_room(asked)


def re_matches(text: str) -> bool:
    begins = "the reference has 128 positions, and the task long asks for "
    return text.startswith(begins) and text.endswith(" with its item 0")


def test_logits_that_are_not_finite_are_refused(base: Path) -> None:
    broken = Fixed(torch.full((4,), float("nan")))
    with pytest.raises(NumericsProblem, match="logits that are not finite"):
        complete(
            broken, [Prompt([1], "")], GREEDY, Tokenizer.load(base), ends=frozenset(), positions=9
        )


def test_answers_are_plain_json(tmp_path: Path) -> None:
    answers = Answers({"model": "m"}, tmp_path)
    answers.add(answers.key("task", ["x", 1]), [-1.5, True])
    (path,) = tmp_path.glob("*.jsonl")
    (line,) = [line for line in path.read_text().splitlines() if line]
    assert [*json.loads(line).values()] == [[-1.5, True]]
