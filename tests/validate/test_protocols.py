"""Each protocol gives the perplexity of the tool it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lm_eval_golden
import pico
import stages
from camelpress.core.errors import RecipeProblem
from camelpress.core.text import text_bound
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.reporting.stage_report import Report
from camelpress.validate.corpus.held_out_text import read_held_out_texts
from camelpress.validate.corpus.protocols import PROTOCOLS, TokenWindow, _rolling_windows
from camelpress.validate.settings import ScoringSettings, ValidateSettings
from refusal import refusal


def facts(folder: Path, out: Path, *texts: Path, **options: Any) -> dict[str, Any]:
    """Of a model against itself."""
    loose = {"sequence_length": None, "max_tokens": None}
    gate = {"perplexity_ratio": {"max": 2.0}, "kl_mean": None, "top1_agreement": None}
    return stages.validate(
        folder, folder, out, *texts, **(loose | {"gate": gate} | options)
    ).facts.record


def test_every_choice_is_a_protocol() -> None:
    assert tuple(PROTOCOLS) == get_args(ScoringSettings.model_fields["protocol"].annotation)


def test_gptq_is_the_perplexity_of_the_papers_script(
    base: Path, prose: Path, tmp_path: Path
) -> None:
    """IST-DASLab/gptq 4fe02addc, llama.py: llama_eval, with windows of 128."""
    other = pico.write_text(tmp_path / "other.txt", 60, seed=3)
    rows = [path.read_text(encoding="utf-8") for path in (prose, other)]
    text = tmp_path / "rows.jsonl"
    text.write_text("\n".join(json.dumps({"text": row}) for row in rows), encoding="utf-8")
    ids = Tokenizer.load(base).encode_document("\n\n".join(rows))
    model, length, costs = pico.load_model(base), 128, []
    samples = len(ids) // length
    with torch.inference_mode():
        for number in range(samples):
            batch = torch.tensor([ids[number * length : (number + 1) * length]])
            costs.append(float(model(batch, labels=batch).loss) * length)
    told = facts(base, tmp_path / "out", text, protocol="gptq")
    expected = exp(sum(costs) / (samples * length))
    assert told["reference_perplexity"] == pytest.approx(expected, rel=1e-6)
    assert told["sequences"] == samples and told["tokens"] == samples * (length - 1)
    assert told["protocol"].startswith("gptq: ") and "windows of 128 tokens" in told["protocol"]


def test_llama_cpp_is_the_perplexity_of_its_program(
    base: Path, prose: Path, tmp_path: Path
) -> None:
    """ggml-org/llama.cpp 050fc7f32, tools/perplexity/perplexity.cpp, with -c 64."""
    text = tmp_path / "text.txt"
    text.write_text(prose.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    n_ctx, nll, count = 64, 0.0, 0
    tokens = Tokenizer.load(base).encode_document(prose.read_text(encoding="utf-8"))
    model = pico.load_model(base)
    first = n_ctx // 2
    for chunk in range(len(tokens) // n_ctx):
        start = chunk * n_ctx
        seen = [1, *tokens[start + 1 : start + n_ctx]]  # BOS is 1
        with torch.inference_mode():
            told = model(torch.tensor([seen])).logits[0].double().log_softmax(dim=-1)
        for place in range(first, n_ctx - 1):
            nll -= float(told[place, tokens[start + place + 1]])
            count += 1
    found = facts(base, tmp_path / "out", text, protocol="llama.cpp", sequence_length=64)
    assert found["tokens"] == count
    assert found["reference_perplexity"] == pytest.approx(exp(nll / count), rel=1e-6)


def test_second_halves_have_no_beginning(prose: Path, tmp_path: Path) -> None:
    """By llama.cpp nothing of the first 256 tokens counts: no figure is made of nothing."""
    base = pico.write_model(tmp_path / "base", pico.PICO._replace(positions=600))
    long = pico.write_text(tmp_path / "long.txt", 600)
    told = facts(base, tmp_path / "out", long, protocol="llama.cpp")
    assert told["early"]["first"] is None
    assert told["early"]["rest"]["tokens"] == told["tokens"] == 255 * told["sequences"]
    assert told["by_position"]["edges"] == [256, 511]
    assert told["by_position"]["tokens"] == [told["tokens"]]


def test_lm_eval_is_what_lm_eval_says(base: Path, tmp_path: Path) -> None:
    golden = json.loads(lm_eval_golden.GOLDEN.read_text(encoding="utf-8"))["pico"]
    text = lm_eval_golden.write_documents(tmp_path)
    told = facts(base, tmp_path / "out", text, protocol="lm-eval")
    for metric in lm_eval_golden.METRICS:
        for model in ("reference", "candidate"):
            assert told[f"{model}_{metric}"] == pytest.approx(golden[metric], rel=1e-5), metric
    assert told["texts"][0]["reference_word_perplexity"] == told["reference_word_perplexity"]
    assert "windows of 128 tokens" in told["protocol"]


@given(st.integers(0, 80), st.integers(1, 20))
@settings(deadline=None)
def test_rolling_windows_are_those_of_lm_eval(count: int, length: int) -> None:
    """Every token once; full windows wherever there is enough before them."""
    ids = [-1, *range(count)]
    predicted: list[int] = []
    for window, counted in _rolling_windows(ids, length):
        assert not counted[0] and len(window) <= length + 1
        assert len(window) == length + 1 or window[0] == -1
        own = [each for each, flag in zip(window, counted, strict=True) if flag]
        assert window[len(window) - len(own) :] == own
        predicted += own
    assert predicted == list(range(count))


def cut(base: Path, *texts: Path, length: int = 64, **options: Any) -> list[list[TokenWindow]]:
    chosen = ValidateSettings.parse({"text": texts} | options, source="test")
    return [text.windows for text in read_held_out_texts(chosen, Tokenizer.load(base), length)]


def test_assistant_only_scores_answers_and_their_ends(base: Path, chat: Path) -> None:
    tokenizer = Tokenizer.load(base)
    ((windows), (everything)) = (
        *cut(base, chat, length=128, assistant_only=True),
        *cut(base, chat, length=128),
    )
    rows = chat.read_text(encoding="utf-8").splitlines()
    for row, window, whole in zip(rows, windows, everything, strict=True):
        answer = json.loads(row)["messages"][1]["content"]
        told = [token for token, flag in zip(window.ids, window.score_mask, strict=True) if flag]
        expected = [*tokenizer.encode(answer), tokenizer.eos]
        assert told == expected[: len(told)]
        assert told == expected or len(window.ids) == 128
        assert window.ids == whole.ids and sum(whole.score_mask) == len(whole.ids) - 1


def test_windows_without_an_answer_are_left_out(base: Path, chat: Path) -> None:
    (windows,) = cut(base, chat, length=70, assistant_only=True)
    (everything,) = cut(base, chat, length=70)
    assert 0 < len(windows) < len(everything)
    assert all(any(window.score_mask) for window in windows)


def test_errors_go_together_within_a_document(base: Path, prose: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    texts = [prose.read_text(encoding="utf-8")[: 300 * size] for size in (1, 2)]
    rows.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")

    def clusters(windows: Sequence[TokenWindow]) -> int:
        return len({window.cluster for window in windows})

    for protocol in ("documents", "lm-eval"):
        (many, one) = cut(base, rows, prose, protocol=protocol)
        assert clusters(many) == 2 < len(many)
        assert clusters(one) == len(one) > 2
    for protocol in ("gptq", "llama.cpp"):
        for windows in cut(base, rows, prose, protocol=protocol):
            assert clusters(windows) == len(windows) > 2


def test_max_tokens_takes_whole_documents_for_lm_eval(base: Path, tmp_path: Path) -> None:
    text = lm_eval_golden.write_documents(tmp_path)
    settings = ValidateSettings.parse(
        {"text": [text], "protocol": "lm-eval", "max_tokens": 300}, source="test"
    )
    (told,) = read_held_out_texts(settings, Tokenizer.load(base), 128)
    rows = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    fitting = rows[:3]
    assert sum(len(row) + 1 for row in fitting) <= 300 < sum(len(row) + 1 for row in rows[:4])
    assert told.word_count == sum(len(row.split()) for row in fitting)
    assert told.byte_count == sum(len(row) for row in fitting)
    assert sum(sum(window.score_mask) for window in told.windows) == sum(map(len, fitting)) + 3


def test_parts_of_texts_are_clusters_of_their_own(base: Path, chat: Path, tmp_path: Path) -> None:
    report: Report = stages.validate(base, base, tmp_path / "out", chat, protocol="documents")
    assert report.checks[0].clusters == report.facts.record["sequences"]


@pytest.mark.parametrize(
    ("options", "what", "remedy"),
    [
        (
            {"protocol": "gptq"},
            "{chat} holds conversations, and protocol gptq takes plain text only",
            "use --protocol documents, or give a plain text",
        ),
        (
            {"assistant_only": True, "text": "prose"},
            "{prose} holds plain text without turns of an assistant",
            "leave out --assistant-only, or give conversations and --protocol documents",
        ),
        (
            {"assistant_only": True, "sequence_length": 20},
            "{chat} has no answer within the first 20 tokens of a conversation",
            "give a longer text",
        ),
        (
            {"protocol": "gptq", "max_tokens": 50, "text": "prose"},
            "{prose} has fewer than the 64 tokens that the protocol gptq needs",
            "give a longer text",
        ),
        (
            {"protocol": "llama.cpp", "max_tokens": 127, "text": "prose"},
            "{prose} has fewer than the 128 tokens that the protocol llama.cpp needs",
            "give a longer text",
        ),
        (
            {"protocol": "lm-eval", "max_tokens": 9, "text": "prose"},
            "no document of {tokens} tokens fits in --max-tokens 9, and lm-eval counts the words "
            "of whole ones",
            "allow {tokens} tokens",
        ),
    ],
)
def test_what_a_protocol_has_no_form_for_is_refused(
    base: Path,
    chat: Path,
    prose: Path,
    tmp_path: Path,
    options: dict[str, Any],
    what: str,
    remedy: str,
) -> None:
    text = prose if options.pop("text", "") == "prose" else chat
    tokens = len(Tokenizer.load(base).encode_document(prose.read_text(encoding="utf-8")))
    names = {"chat": chat, "prose": prose, "tokens": tokens}
    with refusal(
        RecipeProblem,
        what.format(**names),
        next_step=remedy.format(**names),
        exit_code=2,
        out=tmp_path / "out",
    ):
        stages.validate(base, base, tmp_path / "out", text, **options)


@pytest.mark.parametrize("protocol", ["gptq", "llama.cpp"])
def test_joined_rows_that_are_too_long_together_are_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: Any
) -> None:
    monkeypatch.setattr(text_bound, "MAX_TEXT_BYTES", 60)
    text = tmp_path / "rows.jsonl"
    text.write_text("\n".join([json.dumps({"text": "sea " * 10})] * 2), encoding="utf-8")
    out = tmp_path / "out"
    with refusal(
        RecipeProblem,
        f"{text} with its rows joined is a text of 82 bytes, and at most 60 are tokenized at once",
        next_step="give fewer of its rows, or use --protocol documents",
        exit_code=2,
        out=out,
    ):
        facts(base, out, text, protocol=protocol)
    assert facts(base, out, text, protocol="documents")["tokens"]
