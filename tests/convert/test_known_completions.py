"""Known completions cost what transformers says, token by token, and prompts cost nothing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import meta_layout
import pico
import stages
import weights
from camelpress.cli import entry_point
from camelpress.convert.recover import known_completions, run
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, NumericsProblem, RecipeProblem
from camelpress.core.files.file_hashes import sha256_file
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model import output_head
from camelpress.reporting.report_classes import read_report
from refusal import refusal, starting

BOS, EOS = 1, 2
ROOM = pico.PICO.positions - 1 - len("<|user|>\n\n<|assistant|>\n")  # for prompt and completion
PAIRS = (
    ("name the whale", "the white whale"),
    ("go", "a"),
    ("say: old man and the sea\n", " old man and the sea "),
    ("what is a ship", "a ship of the sea, " * 2),
    ("who", "see the old ship go"),
)
QUESTIONS = tuple(f"{first} {second}" for first in pico.WORDS[:4] for second in pico.WORDS[4:7])
Pairs = Sequence[tuple[str, str]]


def write(path: Path, pairs: Pairs) -> Path:
    rows = [
        {"id": f"row {at}", "prompt": prompt, "completions": [{"model": "m", "completion": given}]}
        for at, (prompt, given) in enumerate(pairs)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scored(model: Path, prompts: Path) -> dict[str, Any]:
    return known_completions.score_completions(Checkpoint.open(model), prompts, device="cpu")


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
    tokens = {each["number"]: each["tokens"] for each in facts["worst"]}
    assert tokens == {at: len(each.nll) for at, each in enumerate(told, start=1)}


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
    whole = output_head.OutputHead.log_probabilities

    def watched(self: output_head.OutputHead, hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return whole(self, hidden)

    monkeypatch.setattr(output_head.OutputHead, "log_probabilities", watched)
    monkeypatch.setattr(output_head, "MAX_LOGITS", pico.PICO.vocab * rows)
    facts = scored(base, prompts)
    assert max(sizes) == max(1, rows)
    assert sum(sizes) == facts["tokens"]
    for found, wanted in zip(
        [facts, *facts.pop("worst")], [expected, *expected.pop("worst")], strict=True
    ):
        assert found.pop("perplexity") == pytest.approx(wanted.pop("perplexity"), rel=1e-5)
        assert found == wanted


def test_the_least_likely_completions_are_named_in_their_order(base: Path, tmp_path: Path) -> None:
    pairs = [*PAIRS, ("sea", "zzz"), ("sea", "the sea")]
    facts = scored(base, write(tmp_path / "p.jsonl", pairs))
    costs = [float(each.nll.mean()) for each in slow(base, pairs)]
    order = sorted(range(len(pairs)), key=lambda at: -costs[at])
    assert [each["number"] - 1 for each in facts["worst"]] == order[
        : known_completions.WORST_COMPLETIONS
    ]


def test_an_overflowing_perplexity_is_still_a_number(base: Path, tmp_path: Path) -> None:
    loud = weights.changed(
        base,
        tmp_path / "loud",
        lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"].float() * 1e6},
    )
    facts = scored(loud, write(tmp_path / "p.jsonl", PAIRS))
    assert facts["perplexity"] == exp(known_completions.MAX_EXP_ARGUMENT)


# --- a model's own completions ------------------------------------------------------------------


@pytest.fixture(scope="module")
def chatty(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers in small letters and, now and then, ends.

    One feature of the embedding is large for every token; the head holds it against all others.
    """
    tokenizer = Tokenizer.load(base)
    letters = tokenizer.encode("abcdefghijklmnopqrstuvwxyz")

    def bend(tensors: weights.Tensors) -> weights.Tensors:
        tensors["model.embed_tokens.weight"][:, 0] = 0.5
        tensors["model.norm.weight"][0] = 1.0
        head = tensors["lm_head.weight"]
        head[:, 0] = -10.0
        head[letters, 0] = 0.0
        head[EOS, 0] = 0.05
        return tensors

    return weights.changed(base, tmp_path_factory.mktemp("golden") / "chatty", bend)


def generated(folder: Path) -> list[tuple[str, str]]:
    """What transformers decodes greedily, until EOS or until the positions are full."""
    model: Any = pico.load_model(folder)
    tokenizer = Tokenizer.load(folder)
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
def own(chatty: Path) -> list[tuple[str, str]]:
    return generated(chatty)


def test_a_model_agrees_with_its_own_completions(chatty: Path, own: Pairs, tmp_path: Path) -> None:
    facts = scored(chatty, write(tmp_path / "p.jsonl", own))
    assert 0 < facts["cut"] < facts["completions"] == len(QUESTIONS)
    assert facts["greedy_agreement"] == facts["greedy_completions"] == facts["eos_agreement"] == 1
    assert facts["greedy_prefix"] == facts["tokens"] / facts["completions"]


def test_another_model_finds_them_less_likely(
    base: Path, chatty: Path, own: Pairs, tmp_path: Path
) -> None:
    prompts = write(tmp_path / "p.jsonl", own)
    other = scored(base, prompts)
    assert other["perplexity"] > 2 * scored(chatty, prompts)["perplexity"]
    assert other["greedy_agreement"] < 0.5
    assert other["greedy_completions"] == other["eos_agreement"] == 0


def test_completions_that_stop_too_early_miss_the_end_alone(
    chatty: Path, own: Pairs, tmp_path: Path
) -> None:
    early = [(prompt, given[:-1]) for prompt, given in own if len(given) > 1]
    facts = scored(chatty, write(tmp_path / "p.jsonl", early))
    mean = sum(len(given) for _, given in early) / len(early)
    assert (facts["cut"], facts["eos_agreement"], facts["greedy_completions"]) == (0, 0, 0)
    assert facts["greedy_prefix"] == pytest.approx(mean)
    assert facts["greedy_agreement"] == pytest.approx(mean / (mean + 1))


def test_what_is_greedy_is_that_of_transformers(chatty: Path, own: Pairs, tmp_path: Path) -> None:
    changed = [(prompt, given[:3] + "q" + given[4:]) for prompt, given in own]
    facts = scored(chatty, write(tmp_path / "p.jsonl", changed))
    every = [each.greedy for each in slow(chatty, changed)]
    prefixes = [[*each, False].index(False) for each in every]
    matches, tokens = sum(map(sum, every)), sum(map(len, every))
    assert sum(prefixes) < matches < tokens  # some agree after the first that does not
    assert facts["greedy_agreement"] == pytest.approx(matches / tokens)
    assert facts["greedy_prefix"] == pytest.approx(sum(prefixes) / len(every))
    assert facts["greedy_completions"] == pytest.approx(sum(map(all, every)) / len(every))


# --- what is scored -----------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=12)


@pytest.fixture(scope="module")
def bigram(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that looks one token back: no block adds anything."""

    def silence(tensors: weights.Tensors) -> weights.Tensors:
        mute = ("o_proj.weight", "down_proj.weight")
        return {
            name: torch.zeros_like(tensor) if name.endswith(mute) else tensor
            for name, tensor in tensors.items()
        }

    return weights.changed(base, tmp_path_factory.mktemp("golden") / "bigram", silence)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(texts, texts.filter(str.strip)), min_size=1, max_size=4))
def test_no_token_of_a_prompt_is_scored(
    bigram: Path, tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    facts = scored(bigram, write(tmp_path / "p.jsonl", pairs))
    without = scored(bigram, write(tmp_path / "p.jsonl", [("", given) for _, given in pairs]))
    assert facts["tokens"] == sum(len(given.strip().encode()) + 1 for _, given in pairs)
    assert facts["perplexity"] == pytest.approx(without["perplexity"], rel=1e-5)


def test_a_header_whose_end_is_one_token_with_the_answer_is_scored_from_there(
    base: Path, tmp_path: Path
) -> None:
    content = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"]["use_regex"] = False
    content["model"]["vocab"]["\u010aa"] = merged = 259
    content["model"]["merges"] = [["\u010a", "a"]]
    folder = weights.changed(base, tmp_path / "merging", dict)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = Tokenizer.load(folder)
    prompts = write(tmp_path / "p.jsonl", [("a", "ab"), ("a", "bb")])
    joined, apart = known_completions.read_completions(prompts, tokenizer)
    assert joined.ids[joined.first_scored :] == [merged, *tokenizer.encode("b"), EOS]
    assert apart.ids[apart.first_scored :] == [*tokenizer.encode("bb"), EOS]
    assert scored(folder, prompts)["tokens"] == 6


@pytest.mark.parametrize(
    ("prompt", "completion", "tokens", "cut"),
    [
        (50, ROOM - 51, ROOM - 50, 0),  # fits to the token
        (50, ROOM - 50, ROOM - 50, 1),  # all but EOS
        (50, 500, ROOM - 50, 1),
        (ROOM - 1, 9, 1, 1),  # room for one token
    ],
)
def test_what_is_longer_than_the_positions_is_cut(
    base: Path, tmp_path: Path, prompt: int, completion: int, tokens: int, cut: int
) -> None:
    facts = scored(base, write(tmp_path / "p.jsonl", [("p" * prompt, "c" * completion)]))
    assert (facts["completions"], facts["left_out"]) == (1, 0)
    assert (facts["tokens"], facts["cut"]) == (tokens, cut)
    assert (facts["eos_agreement"] is None) == bool(cut)


def test_a_cut_completion_costs_what_its_beginning_costs(base: Path, tmp_path: Path) -> None:
    pairs = [*PAIRS, ("name", "whale " * 40)]
    told = torch.cat([each.nll for each in slow(base, pairs)])
    facts = scored(base, write(tmp_path / "p.jsonl", pairs))
    assert facts["tokens"] == len(told)
    assert facts["perplexity"] == pytest.approx(exp(float(told.mean())), rel=1e-5)


@pytest.mark.parametrize("length", [ROOM, 500])
def test_a_prompt_without_room_for_a_completion_is_left_out(
    base: Path, prompts: Path, tmp_path: Path, length: int
) -> None:
    facts = scored(base, write(tmp_path / "p.jsonl", [("p" * length, "lost"), *PAIRS]))
    expected = scored(base, prompts)
    assert (facts["completions"], facts["left_out"], facts["cut"]) == (5, 1, 0)
    assert facts["perplexity"] == expected["perplexity"]
    assert [each["number"] - 1 for each in facts["worst"]] == [
        each["number"] for each in expected["worst"]
    ]


def test_the_last_answer_of_a_conversation_is_its_completion(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    turns = [("user", "go"), ("assistant", "see"), ("user", "sea"), ("assistant", "whale")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path.write_text(json.dumps({"messages": messages}), encoding="utf-8")
    tokenizer = Tokenizer.load(base)
    (only,) = known_completions.read_completions(path, tokenizer)
    text = "<|user|>\nsea\n<|assistant|>\nwhale"
    assert only.ids[only.first_scored :] == [*tokenizer.encode("whale"), EOS]
    assert only.ids[-len(text) - 2 :] == [EOS, *tokenizer.encode(text), EOS]


# --- what is refused ----------------------------------------------------------------------------


def line(**row: Any) -> str:
    return json.dumps(row) + "\n"


GOOD = line(prompt="Q", completions=[{"completion": "A"}])
NO_PAIR = ("is not a prompt and an answer", "give prompts with their completions")


@pytest.mark.parametrize(
    ("name", "content", "what", "next_step"),
    [
        ("p.jsonl", "", "{} is empty", "give a file with text"),
        (
            "p.jsonl",
            GOOD + line(prompt="Q", completions=[]),
            "{}:2 cannot be scored because it has not exactly one completion",
            "mend or remove that row",
        ),
        (
            "p.jsonl",
            GOOD + line(prompt="Q", completions=[{"completion": " \n"}]),
            "{}: conversation 2 has an empty completion",
            "leave it out",
        ),
        ("p.txt", "Call me Ishmael.", f"{{}}: conversation 1 {NO_PAIR[0]}", NO_PAIR[1]),
        (
            "p.jsonl",
            GOOD + line(messages=[{"role": "user", "content": "Q"}] * 2),
            f"{{}}: conversation 2 {NO_PAIR[0]}",
            NO_PAIR[1],
        ),
        (
            "p.jsonl",
            line(messages=[{"role": "assistant", "content": "A"}]),
            f"{{}}: conversation 1 {NO_PAIR[0]}",
            NO_PAIR[1],
        ),
    ],
)
def test_prompts_that_cannot_be_scored_are_named(
    base: Path, tmp_path: Path, name: str, content: str, what: str, next_step: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with refusal(RecipeProblem, what.format(path), next_step=next_step, out=None, exit_code=2):
        scored(base, path)


def test_a_missing_file_is_named(base: Path, tmp_path: Path) -> None:
    with refusal(
        RecipeProblem,
        f"{tmp_path / 'no.jsonl'} does not exist",
        next_step="check its name",
        out=None,
        exit_code=2,
    ):
        scored(base, tmp_path / "no.jsonl")


def test_prompts_that_all_fill_the_positions_are_refused(base: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [("p" * 128, "lost")] * 2)
    with refusal(
        RecipeProblem,
        f"{path}: every prompt fills the 128 positions of {base}",
        next_step="give shorter prompts",
        out=None,
        exit_code=2,
    ):
        scored(base, path)


def test_an_unknown_device_is_refused(base: Path, prompts: Path) -> None:
    with refusal(
        RecipeProblem,
        "'camel' is not a device",
        next_step="use auto, cpu or cuda:0",
        out=None,
        exit_code=2,
    ):
        known_completions.score_completions(Checkpoint.open(base), prompts, device="camel")


def test_logits_that_are_not_finite_are_refused(base: Path, prompts: Path, tmp_path: Path) -> None:
    broken = weights.changed(
        base,
        tmp_path / "broken",
        lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"].float() * 1e38 * 8},
    )
    with refusal(
        NumericsProblem,
        "the model gives logits that are not finite",
        next_step="inspect its weights, or compute in a wider dtype",
        out=None,
    ):
        scored(broken, prompts)


# --- in a recovery ------------------------------------------------------------------------------


class Published(NamedTuple):
    """A chatty raw model, the diff of a model tuned from it, and what that one answers."""

    base: Path
    diff: Path
    prompts: Path


@pytest.fixture(scope="module")
def published(chatty: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    tuned = pico.write_tuned(folder / "tuned", chatty)
    stages.make_diff(chatty, tuned, folder / "diff")
    answers = [(prompt, given) for prompt, given in generated(tuned) if given]
    return Published(chatty, folder / "diff", write(folder / "p.jsonl", answers))


def in_metas_layout(folder: Path, out: Path) -> Path:
    sizes = meta_layout.Sizes(*pico.PICO[:6])
    params = sizes.params(norm_eps=1e-6, rope_theta=5000.0, multiple_of=32)
    return meta_layout.save(out, meta_layout.split(weights.read(folder), sizes, ranks=2), params)


@pytest.mark.parametrize("layout", ["transformers", "meta"])
@pytest.mark.parametrize("options", [{}, {"extra_rows": "drop"}, {"rule": ["drop"]}], ids=str)
def test_a_recovered_model_agrees_with_the_completions_of_the_tuned_one(
    published: Published, tmp_path: Path, layout: str, options: dict[str, Any]
) -> None:
    base, diff, prompts = published
    if layout == "meta":
        base = in_metas_layout(base, tmp_path / "meta")
    report = stages.recover(base, diff, tmp_path / "out", verify=prompts, **options)
    found = report.facts.record["golden"]
    assert found["greedy_agreement"] == found["greedy_completions"] == 1
    assert found["sha256"] == sha256_file(prompts)
    assert found == scored(tmp_path / "out", prompts)
    stages.recover(base, diff, tmp_path / "not scored", **options)
    assert weights.same(weights.read(tmp_path / "out"), weights.read(tmp_path / "not scored"))


def test_the_command_line_shows_both_figures(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = ["recover", published.base, published.diff, "out", "--verify", published.prompts]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["camelpress", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        entry_point.main()
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    found = read_report(tmp_path / "out" / "recover-report.json").facts.record["golden"]
    assert f"perplexity {found['perplexity']:.3f}, 100.0% of {found['tokens']} tokens" in shown


@pytest.mark.parametrize(
    ("prompts", "device", "what", "next_step"),
    [
        ("missing", "cpu", "{} does not exist", "check its name"),
        ("Call me Ishmael.", "cpu", f"{{}}: conversation 1 {NO_PAIR[0]}", NO_PAIR[1]),
        (GOOD, "camel", "'camel' is not a device", "use auto, cpu or cuda:0"),
        (
            line(prompt="p" * 128, completions=[{"completion": "lost"}]),
            "cpu",
            "{}: every prompt fills the 128 positions of {out}",
            "give shorter prompts",
        ),
    ],
)
def test_what_cannot_be_scored_is_told_before_a_weight_is_added(
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompts: str,
    device: str,
    what: str,
    next_step: str,
) -> None:
    path, out = tmp_path / ("p.jsonl" if prompts.startswith("{") else "p.txt"), tmp_path / "out"
    if prompts != "missing":
        path.write_text(prompts, encoding="utf-8")
    monkeypatch.delattr(run, "add_diff")
    with refusal(
        RecipeProblem, what.format(path, out=out), next_step=next_step, out=out, exit_code=2
    ):
        stages.recover(published.base, published.diff, out, verify=path, device=device)


def test_a_model_without_a_tokenizer_is_told_before_a_weight_is_added(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, diff = tmp_path / "base", tmp_path / "diff"
    for folder, source in ((base, published.base), (diff, published.diff)):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    monkeypatch.delattr(run, "add_diff")
    with refusal(
        CheckpointProblem,
        starting(f"{tmp_path / 'out'} has no tokenizer that can be read"),
        next_step="copy tokenizer.json and tokenizer_config.json of the model there",
        out=tmp_path / "out",
    ):
        stages.recover(base, diff, tmp_path / "out", verify=published.prompts)


@pytest.mark.parametrize("content", ["Call me Ishmael.", None])
def test_known_completions_are_read_before_any_weights(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    monkeypatch.delattr(run, "plan_recovery")
    with pytest.raises(RecipeProblem, match="is not a prompt and an answer|does not exist"):
        stages.recover(published.base, published.diff, tmp_path / "out", verify=path)


def test_a_later_change_of_known_completions_is_no_harm(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copyfile(published.prompts, tmp_path / "p.jsonl"))
    begin = run._plan

    def removed_before(*arguments: Any) -> Any:
        path.unlink()
        return begin(*arguments)

    monkeypatch.setattr(run, "_plan", removed_before)
    report = stages.recover(published.base, published.diff, tmp_path / "out", verify=path)
    assert report.facts.record["golden"] == scored(tmp_path / "out", published.prompts) | {
        "file": path.name
    }
