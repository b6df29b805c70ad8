"""The stage says what transformers would, names it, and decides by it."""

from __future__ import annotations

import json
import random
from math import exp, isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pico
import stages
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.documents.document_reader import encode_document, read_documents
from camelpress.core.errors import CheckpointProblem, OutputExists, RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_digest, sha256_file
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from camelpress.reporting.validation_report import read_validation
from camelpress.reporting.verdict import Verdict
from camelpress.validate.gate.report_files import regate_report
from camelpress.validate.run import REPORT, run
from camelpress.validate.settings import (
    Gate,
    MaxLimit,
    MinLimit,
    StoreSettings,
    TextGate,
    ValidateSettings,
)
from camelpress.validate.store import build_store
from camelpress.validate.store.prediction_store import PredictionStore

OPEN = Gate(
    perplexity_ratio=MaxLimit(max=100.0),
    kl_mean=MaxLimit(max=100.0),
    top1_agreement=MinLimit(min=0.001),
)


def validated(reference: Path, candidate: Path, out: Path, *texts: Path, **changes: Any) -> Report:
    settings = ValidateSettings(text=texts, gate=OPEN).model_copy(update=changes)
    if reference == candidate:
        candidate = stages.widened(reference)
    return run(Checkpoint.open(reference), Checkpoint.open(candidate), out, settings)


def windows(folder: Path, text: Path, length: int = 128) -> list[list[int]]:
    """A plain text as it is scored; each conversation, cut."""
    tokenizer = Tokenizer.load(folder)
    told = []
    for document in read_documents(text):
        ids = encode_document(document, tokenizer)
        whole = ids if isinstance(document, str) else ids[:length]
        told += [whole[start : start + length] for start in range(0, len(whole), length)]
    return [ids for ids in told if len(ids) > 1]


def perplexity(folder: Path, sequences: list[list[int]]) -> float:
    """exp of transformers' own loss, averaged over the predicted tokens."""
    model = pico.load_model(folder)
    total = tokens = 0.0
    with torch.inference_mode():
        for ids in sequences:
            batch = torch.tensor([ids])
            total += float(model(batch, labels=batch).loss) * (len(ids) - 1)
            tokens += len(ids) - 1
    return exp(total / tokens)


@pytest.fixture(scope="module")
def noisy(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model near the base, with the same vocabulary."""
    folder = tmp_path_factory.mktemp("noisy") / "noisy"
    return pico.write_tuned(folder, base, extra_rows=0, dtype=torch.float16)


@pytest.fixture(scope="module")
def report(
    base: Path, noisy: Path, chat: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory
) -> Report:
    out = tmp_path_factory.mktemp("report") / "out"
    validated(base, noisy, out, chat, prose)
    return read_report(out / REPORT)


def test_perplexities_are_those_of_transformers(
    base: Path, noisy: Path, chat: Path, prose: Path, report: Report
) -> None:
    sequences = windows(base, chat) + windows(base, prose)
    for folder, key in ((base, "reference_perplexity"), (noisy, "candidate_perplexity")):
        assert report.facts.record[key] == pytest.approx(perplexity(folder, sequences), rel=1e-5)


def test_perplexities_of_each_text_are_those_of_transformers(
    base: Path, noisy: Path, chat: Path, prose: Path, report: Report
) -> None:
    for text, told in zip((chat, prose), report.facts.record["texts"], strict=True):
        sequences = windows(base, text)
        assert told["name"] == text.name
        assert told["sequences"] == len(sequences)
        assert told["tokens"] == sum(len(ids) - 1 for ids in sequences)
        assert told["candidate_perplexity"] == pytest.approx(perplexity(noisy, sequences), rel=1e-5)


def test_early_tokens_are_told_apart(prose: Path, tmp_path: Path) -> None:
    sizes = pico.Sizes(positions=300)
    base = pico.write_model(tmp_path / "base", sizes)
    noisy = pico.write_tuned(tmp_path / "noisy", base, extra_rows=0, dtype=torch.float16)
    facts = validated(base, noisy, tmp_path / "out", prose, sequence_length=300).facts.record
    sequences = windows(base, prose, 300)
    early, first, rest = (facts["early"], *(facts["early"][key] for key in ("first", "rest")))
    assert early["context"] == 128
    assert first["tokens"] == sum(min(len(ids) - 1, 128) for ids in sequences)
    assert rest["tokens"] == facts["tokens"] - first["tokens"] > 0
    begun = [ids[:129] for ids in sequences]
    for folder, key in ((base, "reference_perplexity"), (noisy, "candidate_perplexity")):
        assert first[key] == pytest.approx(perplexity(folder, begun), rel=1e-5)
    assert first["perplexity_ratio_interval"] is not None


def test_a_text_that_scores_no_early_token_is_judged_without_a_crash(tmp_path: Path) -> None:
    """Each answer begins beyond the first 128 tokens of its window."""
    sizes = pico.Sizes(positions=300)
    base = pico.write_model(tmp_path / "base", sizes)
    noisy = pico.write_tuned(tmp_path / "noisy", base, extra_rows=0, dtype=torch.float16)
    question = " ".join(f"word {number}" for number in range(30))
    lines = [
        {"messages": [
            {"role": "user", "content": f"{question} {number}"},
            {"role": "assistant", "content": f"answer {number} " * 5},
        ]}
        for number in range(12)
    ]  # fmt: skip
    text = tmp_path / "chat.jsonl"
    text.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    gate = OPEN.model_copy(update={"early": TextGate(kl_mean=MaxLimit(max=1.0))})
    options: dict[str, Any] = {"assistant_only": True, "sequence_length": 300, "gate": gate}
    validated(base, noisy, tmp_path / "out", text, **options)
    report = read_validation(tmp_path / "out")
    assert report.facts.early is not None and report.facts.early.first is None
    assert report.facts.tokens > 0
    reasons = {check.part: check.reason for check in report.checks}
    assert reasons["first 128 tokens"] == "no tokens were scored"
    assert regate_report(tmp_path / "out", None).checks == report.checks


def test_short_windows_are_all_beginning(report: Report) -> None:
    early = report.facts.record["early"]
    assert early["rest"] is None
    assert early["first"]["perplexity_ratio"] == report.facts.record["perplexity_ratio"]


def test_the_ratio_is_that_of_the_perplexities(report: Report) -> None:
    facts = report.facts.record
    ratio = facts["candidate_perplexity"] / facts["reference_perplexity"]
    assert facts["perplexity_ratio"] == pytest.approx(ratio, rel=1e-6)
    low, high = facts["perplexity_ratio_interval"]
    assert low < facts["perplexity_ratio"] < high


def test_the_report_names_everything_it_measured(
    base: Path, noisy: Path, chat: Path, prose: Path, report: Report
) -> None:
    assert report.stage == "validate"
    assert report.inputs == {
        "reference": checkpoint_digest(base),
        "candidate": checkpoint_digest(noisy),
        f"text:{chat.name}": sha256_file(chat),
        f"text:{prose.name}": sha256_file(prose),
    }
    assert report.settings["text"] == [chat.name, prose.name]
    assert report.verdict is Verdict.PASS
    assert [check.name for check in report.checks] == [
        "perplexity_ratio",
        "kl_mean",
        "top1_agreement",
        "non_finite",
    ]
    assert report.facts.record["non_finite"] == {"reference": 0, "candidate": 0}
    for check in report.checks:
        assert check.estimate == report.facts.record.get(check.name) or check.name == "non_finite"
        assert (check.n, check.clusters) == (
            report.facts.record["tokens"],
            report.facts.record["sequences"],
        )
    assert report.facts.record["kl_mean"] > 0
    assert 0 < report.facts.record["top1_agreement"] < 1
    assert report.facts.record["vocabulary"] == 272
    assert "windows of 128 tokens" in report.facts.record["protocol"]


def test_the_parts_add_up_to_the_whole(report: Report) -> None:
    facts = report.facts.record
    assert sum(facts["kl_histogram"]["counts"]) == facts["tokens"]
    assert sum(facts["by_position"]["tokens"]) == facts["tokens"]
    assert sum(text["tokens"] for text in facts["texts"]) == facts["tokens"]
    weighted = zip(facts["by_position"]["kl_mean"], facts["by_position"]["tokens"], strict=True)
    mean = sum(kl * tokens for kl, tokens in weighted) / facts["tokens"]
    assert mean == pytest.approx(facts["kl_mean"], rel=1e-4)
    spread = list(facts["kl_percentiles"].values())
    assert spread == sorted(spread)


def test_a_model_passes_against_itself_where_the_text_is_enough_for_the_gate(
    base: Path, prose: Path, tmp_path: Path
) -> None:
    """That none of so many windows differs leaves room for some that do, which is told."""
    told = validated(base, base, tmp_path / "out", prose, gate=OPEN)
    assert told.verdict is Verdict.PASS
    strict = validated(base, base, tmp_path / "strict", prose, gate=Gate())
    assert strict.verdict is Verdict.INCONCLUSIVE
    kl = next(check for check in strict.checks if check.name == "kl_mean")
    assert kl.interval is not None and kl.interval[0] == 0 < 0.03 < kl.interval[1]
    assert "about 140 pieces like these" in kl.reason
    assert told.facts.record["kl_mean"] == 0
    assert told.facts.record["perplexity_ratio"] == 1
    assert told.facts.record["top1_agreement"] == 1
    assert sum(told.facts.record["kl_histogram"]["counts"]) == told.facts.record["tokens"]


def test_another_model_fails(base: Path, prose: Path, tmp_path: Path) -> None:
    other = pico.write_model(tmp_path / "other", seed=5)
    told = validated(base, other, tmp_path / "out", prose, gate=Gate())
    assert told.verdict is Verdict.FAIL


def test_one_window_is_inconclusive(base: Path, prose: Path, tmp_path: Path) -> None:
    told = validated(base, base, tmp_path / "out", prose, max_tokens=100, gate=Gate())
    assert told.verdict is Verdict.INCONCLUSIVE
    assert told.facts.record["sequences"] == 1
    assert told.facts.record["perplexity_ratio_interval"] is None
    kept = read_report(tmp_path / "out" / REPORT)
    assert kept.model_dump(mode="json", exclude={"files"}) == told.model_dump(
        mode="json", exclude={"files"}
    )


def test_a_candidate_that_is_far_beyond_any_scale_fails(
    base: Path, prose: Path, tmp_path: Path
) -> None:
    broken = pico.write_model(tmp_path / "broken", dtype=torch.float32)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"] *= 1e5
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    for pair, name in (((base, broken), "worse"), ((broken, base), "better")):
        told = validated(*pair, tmp_path / name, prose, gate=Gate())
        assert told.verdict is Verdict.FAIL
        assert isfinite(told.facts.record["candidate_perplexity"])
        assert isfinite(told.facts.record["perplexity_ratio"])


def test_the_candidate_is_scored_by_the_references_tokenizer(
    base: Path, prose: Path, tmp_path: Path
) -> None:
    bare = pico.write_widened(tmp_path / "bare", base)
    for path in bare.glob("tokenizer*"):
        path.unlink()
    assert validated(base, bare, tmp_path / "out", prose).facts.record["kl_mean"] == 0


def test_max_tokens_takes_the_first_of_each_text(
    base: Path, noisy: Path, chat: Path, prose: Path, tmp_path: Path
) -> None:
    told = validated(base, noisy, tmp_path / "out", chat, prose, max_tokens=300).facts.record
    for text, facts in zip((chat, prose), told["texts"], strict=True):
        left, taken = 300, []
        for ids in windows(base, text):
            if left > 1:
                taken.append(ids[:left])
                left -= len(taken[-1])
        assert sum(map(len, taken)) == 300
        assert facts["tokens"] == 300 - len(taken)
        assert facts["reference_perplexity"] == pytest.approx(perplexity(base, taken), rel=1e-5)


def test_windows_are_as_long_as_asked(base: Path, prose: Path, tmp_path: Path) -> None:
    told = validated(base, base, tmp_path / "out", prose, sequence_length=50).facts.record
    sequences = windows(base, prose, 50)
    assert told["sequences"] == len(sequences)
    assert "windows of 50 tokens" in told["protocol"]
    assert told["reference_perplexity"] == pytest.approx(perplexity(base, sequences), rel=1e-5)


def test_figures_repeat_themselves(
    base: Path, noisy: Path, chat: Path, prose: Path, report: Report, tmp_path: Path
) -> None:
    validated(base, noisy, tmp_path / "out", chat, prose)
    again = read_report(tmp_path / "out" / REPORT)
    assert again.model_dump(exclude={"cost"}) == report.model_dump(exclude={"cost"})


def test_json_markdown_and_page_stand_side_by_side(base: Path, prose: Path, tmp_path: Path) -> None:
    validated(base, base, tmp_path / "out", prose)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.json", "report.md", "report.html", "junit.xml"}
    told = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert told["verdict"] == "PASS"


def test_different_vocabularies_are_compared_over_what_they_share(
    base: Path, tuned: Path, prose: Path, tmp_path: Path
) -> None:
    cut = pico.write_model(tmp_path / "cut", pico.PICO._replace(vocab=273))
    tensors = load_file(tuned / "model.safetensors")
    tensors["lm_head.weight"][272] -= 100 * tensors["lm_head.weight"][272]  # must not matter
    save_file(tensors, cut / "model.safetensors", metadata={"format": "pt"})
    narrow = pico.write_model(tmp_path / "narrow")
    rows = {name: tensor[:272].clone() for name, tensor in tensors.items() if "embed" in name}
    head = {"lm_head.weight": tensors["lm_head.weight"][:272].clone()}
    save_file(tensors | rows | head, narrow / "model.safetensors", metadata={"format": "pt"})
    for name, pair in (("wide", (cut, narrow)), ("less", (narrow, cut))):
        facts = validated(*pair, tmp_path / name, prose).facts.record
        assert facts["vocabulary"] == 272
        assert sorted(facts["vocabularies"].values()) == [272, 273]
        assert facts["kl_mean"] < 1e-9
        assert facts["perplexity_ratio"] == pytest.approx(1, abs=1e-6)


def test_a_text_with_ids_that_one_model_lacks_is_refused(
    base: Path, prose: Path, tmp_path: Path
) -> None:
    small = pico.write_model(tmp_path / "small", pico.PICO._replace(vocab=60))
    with pytest.raises(CheckpointProblem, match="both models share only 60 ids") as told:
        validated(base, small, tmp_path / "out", prose)
    assert told.value.next_step == "compare models with the same vocabulary"
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused(base: Path, prose: Path, tmp_path: Path) -> None:
    other = pico.write_model(tmp_path / "other", seed=3)
    path = other / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointProblem, match="has another tokenizer than") as told:
        validated(base, other, tmp_path / "out", prose)
    assert told.value.next_step == "compare models with the same tokenizer"


def test_no_text_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeProblem, match="there is no text to score") as told:
        validated(base, base, tmp_path / "out")
    assert told.value.next_step == "give --text FILE"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.txt", "  \n", "holds no text"),
        ("a.jsonl", "", "is empty"),
        (
            "a.jsonl",
            '{"text": ""}\n',
            "has no row that can be used: .* is left out because text is blank",
        ),
    ],
)
def test_an_empty_text_is_refused(
    base: Path, tmp_path: Path, name: str, content: str, what: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(RecipeProblem, match=f"{name} {what}"):
        validated(base, base, tmp_path / "out", tmp_path / name)


def test_a_text_of_one_token_is_refused(base: Path, prose: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeProblem, match=f"{prose.name} has no two tokens in a row"):
        validated(base, base, tmp_path / "out", prose, max_tokens=1)


def test_an_existing_report_is_kept_unless_forced(base: Path, prose: Path, tmp_path: Path) -> None:
    validated(base, base, tmp_path / "out", prose)
    with pytest.raises(OutputExists):
        validated(base, base, tmp_path / "out", prose)


def rows(path: Path, *texts: str) -> Path:
    """Plain documents as JSON lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def sentence(seed: int) -> str:
    draw = random.Random(seed)  # noqa: S311
    return " ".join(draw.choice(pico.WORDS) for _ in range(20))


def test_one_row_three_hundred_times_is_one_piece_of_text(
    base: Path, noisy: Path, tmp_path: Path
) -> None:
    """In all of it, in its beginnings, in the text by itself, in words, and from a store."""
    copies = rows(tmp_path / "copies.jsonl", *[sentence(1)] * 300)
    told = validated(base, noisy, tmp_path / "out", copies, gate=OPEN)
    parts = (told.facts.record, told.facts.record["early"]["first"], told.facts.record["texts"][0])
    assert [part["sequences"] for part in parts] == [1, 1, 1]
    assert told.facts.record["repeats"] == told.facts.record["texts"][0]["repeats"] == 299
    assert told.facts.record["top1_agreement_interval"] is None
    assert told.verdict is Verdict.INCONCLUSIVE
    assert "(299 of 300 repeat another)" in told.checks[0].reason
    for name in ("report.md", "report.html"):
        page = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "299 of 300 pieces of text repeat another" in page
    kept = build_store.build_store(
        Checkpoint.open(base), tmp_path / "store", StoreSettings(text=(copies,))
    )
    assert (kept.facts.record["sequences"], kept.facts.record["repeats"]) == (1, 299)
    store = PredictionStore.open(tmp_path / "store")
    again = run(store, Checkpoint.open(noisy), tmp_path / "from-store", ValidateSettings(gate=OPEN))
    assert (again.facts.record["sequences"], again.facts.record["repeats"]) == (1, 299)
    assert again.verdict is Verdict.INCONCLUSIVE


def test_copies_beside_other_rows_weigh_in_figures_and_not_in_evidence(
    base: Path, noisy: Path, tmp_path: Path
) -> None:
    texts = [sentence(seed) for seed in range(12)]
    once = rows(tmp_path / "once.jsonl", *texts)
    often = rows(tmp_path / "often.jsonl", *texts, *[texts[0]] * 200)
    few, many = (
        validated(base, noisy, tmp_path / path.stem, path, gate=OPEN).facts.record
        for path in (once, often)
    )
    assert (few["sequences"], few["repeats"]) == (12, 0)
    assert (many["sequences"], many["repeats"]) == (12, 200)
    assert many["effective_sequences"] < 1.2 < 11 < few["effective_sequences"]
    wide, narrow = (each["top1_agreement_interval"] for each in (many, few))
    assert 0 <= wide[0] < narrow[0] and wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])


def test_a_text_in_two_files_is_one_piece(base: Path, noisy: Path, tmp_path: Path) -> None:
    first = rows(tmp_path / "first.jsonl", *map(sentence, range(12)))
    second = rows(tmp_path / "second.jsonl", *map(sentence, range(6, 14)))
    told = validated(base, noisy, tmp_path / "out", first, second).facts.record
    assert (told["sequences"], told["repeats"]) == (14, 6)
    assert [(text["sequences"], text["repeats"]) for text in told["texts"]] == [(12, 0), (8, 0)]
