"""Our models answer as lm-evaluation-harness' own transformers backend does, item by item."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pico
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import NumericsProblem, RecipeProblem
from camelpress.core.text import text_bound
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation import decoding_loop, prefixes, token_chunks
from camelpress.inference.generation.decoder import StreamedDecoder
from camelpress.inference.generation.decoding_loop import generate_batch
from camelpress.inference.generation.generator import (
    UNLIMITED_TOKENS,
    GenerationModel,
    LocalGenerator,
)
from camelpress.inference.generation.likelihood import ContextContinuation, continuation_likelihoods
from camelpress.inference.generation.prefixes import (
    PrefixedText,
    common_prefix_length,
    group_by_prefix,
)
from camelpress.inference.generation.sampling import SamplingParams, TokenPrompt
from camelpress.inference.model import attention
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.validate.benchmarks.response_cache import ResponseCache
from camelpress.validate.benchmarks.task_catalogue import BenchmarkSpec

CPU = torch.device("cpu")
WORDS = ("the whale", "a white ship", "go and see the old man", "sea")
lm_eval = pytest.importorskip("lm_eval", reason='tasks need: pip install "camelpress[tasks]"')


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings and tiles are as short as the texts of these tests."""
    monkeypatch.setattr(prefixes, "MIN_PREFIX_TOKENS", 16)
    monkeypatch.setattr(attention, "TILE_SCORES", 64)
    monkeypatch.setattr(decoding_loop, "LONG_PROMPT_TOKENS", 24)


def streamed(folder: Path) -> StreamedModel:
    return StreamedModel(Checkpoint.open(folder), device=CPU, dtype=torch.float32)


def harness(folder: Path, bare: Sequence[str] = (), answers: Path | None = None) -> Any:
    from camelpress.validate.benchmarks.lm_eval_adapter import CamelpressLM

    checkpoint, tokenizer = Checkpoint.open(folder), Tokenizer.load(folder)
    asked = GenerationModel("reference", checkpoint, streamed(folder), tokenizer, [2])
    kept = ResponseCache({"model": folder.name}, answers)
    columns = {name: BenchmarkSpec(name, "acc", add_bos=False) for name in bare}
    return CamelpressLM(asked, kept, columns, LocalGenerator(asked))


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


@pytest.mark.parametrize(("tokens", "piece"), [(1, 1024), (60, 7), (10_000, 1024)])
def test_likelihoods_do_not_depend_on_the_walks(
    base: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, piece: int
) -> None:
    monkeypatch.setattr(token_chunks, "CHUNK_TOKENS", piece)
    monkeypatch.setattr(token_chunks, "FULL_ATTENTION_TOKENS", piece + 2)
    draw = random.Random(1)
    asked = [
        ContextContinuation(
            [draw.randrange(3, 200) for _ in range(draw.randint(1, 20))], [5, 6][: 1 + place % 2]
        )
        for place in range(12)
    ]
    for length in (17, 40):  # those of a kind begin alike, and some go on alike
        begin = [draw.randrange(3, 200) for _ in range(length)]
        asked += [
            ContextContinuation([*begin, *end], [7, 8]) for end in ([9], [9, 9], [4, 3, 2], [])
        ]
        asked.append(ContextContinuation(begin[:-1], [begin[-1], 5]))
    found = dict(continuation_likelihoods("model", streamed(base), asked, tokens=tokens))
    model = pico.load_model(base)
    for place, pair in enumerate(asked):
        with torch.inference_mode():
            logits = model(torch.tensor([[*pair.context, *pair.continuation]])).logits[0]
        log = logits.log_softmax(dim=-1)[len(pair.context) - 1 : -1]
        expected = sum(float(log[at, token]) for at, token in enumerate(pair.continuation))
        assert found[place].log_prob == pytest.approx(expected, abs=1e-4)
        assert found[place].is_greedy == (log.argmax(dim=-1).tolist() == pair.continuation)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each walk takes in from here on."""
    counts: list[int] = []
    looked_up = StreamedModel.embed_ids

    def counted(self: StreamedModel, ids: Any, table: Any) -> Any:
        counts.append(ids.numel())
        return looked_up(self, ids, table)

    monkeypatch.setattr(StreamedModel, "embed_ids", counted)
    return counts


def test_shared_contexts_are_read_once(base: Path, read: list[int]) -> None:
    asked = [ContextContinuation([1, 5, 6], [token]) for token in (7, 8, 9)] + [
        ContextContinuation([1, 5], [6, 7])
    ]
    dict(continuation_likelihoods("model", streamed(base), asked))
    assert read == [3]
    examples = [*range(20, 60)]
    dict(
        continuation_likelihoods(
            "model",
            streamed(base),
            [ContextContinuation([*examples, each], [9]) for each in range(5)],
        )
    )
    assert read == [3, 40, 5]  # then a token of each of five


GREEDY = SamplingParams(stop=(), max_tokens=12, temperature=0.0, top_p=1.0)
PROMPTS = [[1, 5, 6, 7], [9], [1, *range(20, 50)], [44, 45]]


@cache
def loaded(folder: Path) -> Any:
    return pico.load_model(folder)


def greedy(folder: Path, prompt: list[int], most: int) -> list[int]:
    model = loaded(folder)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=most,
            eos_token_id=2, pad_token_id=2,
        )  # fmt: skip
    return list(out[0, len(prompt) :].tolist())


def completed(
    folder: Path,
    prompts: Sequence[TokenPrompt],
    decoding: SamplingParams,
    engine: Any = None,
    **how: Any,
) -> list[str]:
    """The completions in the order of the prompts."""
    engine = engine or StreamedDecoder(streamed(folder), "reference", in_memory=True)
    told: dict[str, Any] = {
        "ends": frozenset([2]),
        "positions": 128,
        "rows": 3,
        "tokens": UNLIMITED_TOKENS,
    } | how
    found = [*generate_batch(engine, prompts, decoding, tokenizer(folder), **told)]
    assert sorted(each.prompt_index for each in found) == [*range(len(prompts))]
    texts = {each.prompt_index: each.text for each in found}
    return [texts[place] for place in range(len(prompts))]


@cache
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def text(folder: Path, prompt: list[int], tokens: Sequence[int]) -> str:
    """What follows on a prompt, its first blank included."""
    words = tokenizer(folder).decode_text
    said = words([*prompt[-1:], *(token for token in tokens if token != 2)])
    return said[len(words(prompt[-1:])) :]


@pytest.mark.parametrize(("whole", "rows"), [(True, 1), (True, 3), (True, 99), (False, 4)])
def test_completions_are_those_of_transformers(base: Path, whole: bool, rows: int) -> None:
    """Whatever else is asked, and whether it begins alike: each as if it were alone."""
    examples = ([1, *range(10, 40)], [1, *range(60, 80)])
    alike = [[*begin, *end] for end in ([5], [6, 7], [8]) for begin in examples]
    prompts = [*PROMPTS, *alike, alike[0]]
    engine = StreamedDecoder(streamed(base), "reference", in_memory=whole)
    asked = [TokenPrompt(ids, "") for ids in prompts]
    found = completed(base, asked, GREEDY, engine, rows=rows)
    assert found == [text(base, ids, greedy(base, ids, 12)) for ids in prompts]


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_completions_of_other_families_are_those_of_transformers(
    tmp_path: Path, family: str
) -> None:
    folder = pico.write_model(tmp_path / family, family=family)
    found = completed(folder, [TokenPrompt(ids, "") for ids in PROMPTS], GREEDY)
    assert found == [text(folder, ids, greedy(folder, ids, 12)) for ids in PROMPTS]


def test_long_texts_are_read_piece_by_piece(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_chunks, "CHUNK_TOKENS", 7)
    monkeypatch.setattr(token_chunks, "FULL_ATTENTION_TOKENS", 9)
    prompts = [[*range(20, 60)], [*range(20, 49)], [*range(100, 121)], [9, 8, 7]]
    found = completed(base, [TokenPrompt(ids, "") for ids in prompts], GREEDY)
    assert found == [text(base, ids, greedy(base, ids, 12)) for ids in prompts]


def test_what_texts_begin_with_alike_is_read_once(base: Path, read: list[int]) -> None:
    prompts = [TokenPrompt([*range(20, 60), end], "") for end in (5, 6, 7, 8)]
    completed(base, prompts, replace(GREEDY, max_tokens=2), ends=frozenset())
    assert read == [40, 3, 3, 1, 1]  # the beginning, three rows and their second token, one more


TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12)


@given(TEXTS)
def test_families_hold_each_text_once(ids: list[list[int]]) -> None:
    found = prefixes.prefix_groups(ids)
    assert sorted(place for family in found for place in family) == [*range(len(ids))]
    for family in found:
        rows = [ids[place] for place in family]
        same = common_prefix_length(rows)
        assert all(row[:same] == rows[0][:same] and len(row) > same for row in rows)
        assert any(len(row) == same + 1 or row[same] != rows[0][same] for row in rows)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 1), (1, 4), (2, 1, 3), (5, 5)])
def test_families_are_those_that_share_examples(sizes: tuple[int, ...]) -> None:
    """A text with examples of its own does not keep those of its neighbours from being shared."""
    ids = [
        [0, *[1 + number] * 40, 9, member]
        for number, size in enumerate(sizes)
        for member in range(size)
    ]
    draw = random.Random(0)
    draw.shuffle(ids)
    told = {len(text.prefix) for _, text in group_by_prefix(ids)}
    assert told == ({42 if size > 1 else 0 for size in sizes})
    for place, text in group_by_prefix(ids):
        assert [*text.prefix, *text.suffix] == ids[place]


def test_a_completion_ends_before_its_stop_and_at_the_last_position(base: Path) -> None:
    def told(**changes: Any) -> str:
        positions = changes.pop("positions", 128)
        decoding = replace(GREEDY, **changes)
        return completed(base, [TokenPrompt(PROMPTS[0], "")], decoding, positions=positions)[0]

    whole = told()
    stop = whole[4:6]
    assert told(stop=(stop, "never")) == whole[: whole.index(stop)]
    assert whole.startswith(told(max_tokens=3)) and told(max_tokens=3) != whole
    assert told(positions=7) == told(max_tokens=3)


class Fixed:
    """An engine that gives the same logits for the first token, and has no second."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def reset(self, rows: int, room: int) -> None:
        pass

    def prefill(self, texts: Sequence[PrefixedText]) -> torch.Tensor:
        return self.logits.expand(len(texts), -1).contiguous()

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        raise AssertionError("one token is enough")

    def drop_row(self, row: int) -> None:
        pass


def test_a_completion_may_end_with_its_first_paragraph(base: Path) -> None:
    """Blank lines before it do not count; nothing is cut."""
    tokenizer = Tokenizer.load(base)
    said = "\n\nsea\n\nship"

    class Said(Fixed):
        def __init__(self) -> None:
            super().__init__(torch.empty(0))
            self.left = tokenizer.encode(said)

        def step(self, tokens: Sequence[int]) -> torch.Tensor:
            logits = torch.zeros(len(tokens), pico.PICO.vocab)
            logits[:, self.left.pop(0)] = 1
            return logits

        def prefill(self, texts: Sequence[PrefixedText]) -> torch.Tensor:
            return self.step([0] * len(texts))

    prompt = [TokenPrompt(tokenizer.encode("x"), "")]
    paragraph = SamplingParams((), len(tokenizer.encode(said)), 0.0, 1.0, stop_at_paragraph=True)
    (found,) = completed(base, prompt, paragraph, Said(), ends=frozenset())
    assert found == "\n\nsea\n\n"
    whole = SamplingParams((), len(tokenizer.encode(said)), 0.0, 1.0)
    (found,) = completed(base, prompt, whole, Said(), ends=frozenset())
    assert found == said


def test_draws_hang_on_their_seed_and_not_on_their_neighbours(base: Path) -> None:
    decoding = SamplingParams(stop=(), max_tokens=10, temperature=1.0, top_p=0.95)

    def drawn(*seeds: str) -> list[str]:
        prompts = [TokenPrompt(PROMPTS[0], seed) for seed in seeds]
        return completed(base, prompts, decoding, ends=frozenset())

    first, second, again = drawn("a", "b", "a")
    assert first == again != second
    assert drawn("b") == [second]


def test_draws_come_as_often_as_they_are_probable(base: Path) -> None:
    """Shares of 4,000 draws; what is beyond top_p never comes."""
    tokenizer = Tokenizer.load(base)
    ids = tokenizer.encode("wxyz")
    logits = torch.full((pico.PICO.vocab,), -1e4)
    logits[ids] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    decoding = SamplingParams(stop=(), max_tokens=1, temperature=1.0, top_p=0.9)
    prompts = [TokenPrompt(ids[:1], str(seed)) for seed in range(4000)]
    found = completed(base, prompts, decoding, Fixed(logits), rows=4000)
    for letter, share in (("w", 0.5 / 0.95), ("x", 0.3 / 0.95), ("y", 0.15 / 0.95), ("z", 0.0)):
        assert found.count(letter) / 4000 == pytest.approx(share, abs=0.025)


def test_what_is_not_done_is_refused() -> None:
    with pytest.raises(RecipeProblem, match="asks for completions with num_beams 4"):
        SamplingParams.of({"until": ["x"], "num_beams": 4}, "some")
    told = SamplingParams.of(
        {"until": "x", "max_tokens": 7, "do_sample": False, "temperature": 1}, "some"
    )
    assert told == SamplingParams(("x",), 7, 0.0, 1.0)
    assert SamplingParams.of({}, "some").max_tokens == 256


def test_answers_are_kept_by_model_task_and_request(
    base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from camelpress.validate.benchmarks import lm_eval_adapter as module

    asked = requests("loglikelihood", pairs()[:3], task="one")
    first = harness(base, answers=tmp_path).loglikelihood(asked)
    assert harness(tuned, answers=tmp_path).loglikelihood(asked) != first
    monkeypatch.setattr(
        module, "continuation_likelihoods", None
    )  # what is known is not asked again
    again = harness(base, answers=tmp_path)
    assert again.loglikelihood(asked) == first
    with pytest.raises(TypeError):
        again.loglikelihood(requests("loglikelihood", pairs()[:3], task="another"))


def test_a_line_that_was_cut_short_costs_one_answer(tmp_path: Path) -> None:
    answers = ResponseCache({"model": "m"}, tmp_path)
    answers.add("a", "first")
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text(path.read_text() + '{"b": "sec', encoding="utf-8")
    again = ResponseCache({"model": "m"}, tmp_path)
    assert again["a"] == "first" and not again.has("b", "generate_until")
    again.add("c", "third")
    assert ResponseCache({"model": "m"}, tmp_path)["c"] == "third"
    assert not ResponseCache({"model": "other"}, tmp_path).has("a", "generate_until")


@pytest.mark.parametrize(
    ("request_type", "good", "bad"),
    [
        ("loglikelihood", [-1.5, True], [[-1.5], [-1.5, 1], ["-1.5", True], None, "text"]),
        ("loglikelihood_rolling", -1.5, [True, "text", None, [-1.5]]),
        ("generate_until", "text", [-1.5, None, ["text"], {"text": 1}]),
    ],
)
def test_an_answer_of_another_form_is_asked_again(
    tmp_path: Path, request_type: str, good: object, bad: list[object]
) -> None:
    answers = ResponseCache({"model": "m"}, tmp_path)
    answers.add("good", good)
    for number, answer in enumerate(bad):
        answers.add(str(number), answer)
    again = ResponseCache({"model": "m"}, tmp_path)
    assert again.has("good", request_type)
    assert not any(again.has(str(number), request_type) for number in range(len(bad)))


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
        harness(base).require_positions(asked)
    assert re_matches(caught.value.message)
    harness(base).require_positions(requests("loglikelihood", pairs()))


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood", "loglikelihood_rolling"])
def test_an_item_longer_than_a_tokenizer_may_read_is_named(
    base: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(text_bound, "MAX_TEXT_BYTES", 7)
    rest = {"generate_until": ({"until": []},), "loglikelihood": ("s",)}.get(kind, ("",))
    model = harness(base)
    with pytest.raises(RecipeProblem) as caught:
        model.require_positions(requests(kind, [("the seas", *rest)], task="long"))
    assert caught.value.message.startswith("the item 0 of the task long is a text of ")
    assert caught.value.next_step == "leave that task out, or shorten its item"
    model.require_positions(requests("loglikelihood", [("the", " sea")]))


def test_a_protocol_may_go_beyond_the_positions_that_it_was_made_for(base: Path) -> None:
    """As the models of 2023 did: rotary positions have no end."""
    long = " ".join(WORDS * 9)
    asked = requests("generate_until", [(long, {"until": [], "max_gen_toks": 8})], task="long")
    model = harness(base)
    model._specs = {"long": BenchmarkSpec("long", "acc", protocol_context=128)}
    model.require_positions(asked)
    ids = Tokenizer.load(base).encode_document(long)
    assert len(ids) > 128
    assert model.generate_until(asked) == [text(base, ids, greedy(base, ids, 8))]
    scored = requests("loglikelihood", [(long, " sea")], task="long")
    ((log, _),) = model.loglikelihood(scored)
    pair = model._encode_request(scored[0])
    with torch.inference_mode():
        logits = pico.load_model(base)(torch.tensor([[*pair.context, *pair.continuation]])).logits[
            0
        ]
    at = logits.log_softmax(dim=-1)[len(pair.context) - 1 : -1]
    expected = sum(float(at[place, token]) for place, token in enumerate(pair.continuation))
    assert log == pytest.approx(expected, abs=1e-4)
    model._specs = {"long": BenchmarkSpec("long", "acc", protocol_context=256)}
    with pytest.raises(RecipeProblem, match="has 128 positions"):
        model.require_positions(asked)


def re_matches(text: str) -> bool:
    begins = "the reference has 128 positions, and the task long asks for "
    return text.startswith(begins) and text.endswith(" with its item 0")


def test_logits_that_are_not_finite_are_refused(base: Path) -> None:
    broken = Fixed(torch.full((4,), float("nan")))
    with pytest.raises(NumericsProblem, match="logits that are not finite"):
        completed(base, [TokenPrompt([1], "")], GREEDY, broken)


def test_answers_are_plain_json(tmp_path: Path) -> None:
    answers = ResponseCache({"model": "m"}, tmp_path)
    answers.add(answers.key("task", ["x", 1]), [-1.5, True])
    (path,) = tmp_path.glob("*.jsonl")
    (line,) = [line for line in path.read_text().splitlines() if line]
    assert [*json.loads(line).values()] == [[-1.5, True]]
