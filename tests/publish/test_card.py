from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from camelpress.core.errors import RecipeProblem
from camelpress.core.report import Report, Verdict
from camelpress.publish.card import read_front_matter
from camelpress.publish.markdown import inert
from camelpress.publish.verify import verify

Publisher = Callable[..., tuple[Path, Report]]
Judge = Callable[..., Path]
HOSTILE = (
    "x | y\n---\nlicense: mit\n---\n# Owned\r\n<script>alert(1)</script> [a](javascript:b) ![i](u) "
    "`code` {{ 7 * 7 }} {% raw %} \u202etxt"
)


def test_front_matter_is_what_the_hub_reads(publish: Publisher) -> None:
    out, _ = publish(base_model="huggyllama/llama-65b", diff_model="allenai/tulu-65b")
    metadata = read_front_matter((out / "README.md").read_text())
    claims = metadata.pop("camelpress")
    assert metadata == {
        "base_model": ["allenai/tulu-65b"],
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "license_name": "ai2-ai-model-license",
        "license_link": "LICENSE.txt",
        "extra_gated_prompt": metadata["extra_gated_prompt"],
        "tags": ["gptq", "4-bit", "llama", "camelpress", "tulu"],
    }
    assert "research only" in metadata["extra_gated_prompt"]
    assert claims["bits"] == 4
    assert claims["group_size"] == 32
    assert claims["verdict"] == "PASS"


def test_the_hub_client_reads_the_card(publish: Publisher) -> None:
    hub = pytest.importorskip("huggingface_hub")
    out, _ = publish(base_model="huggyllama/llama-65b")
    card = hub.ModelCard.load(out / "README.md")
    assert card.data.license == "other"
    assert card.data.base_model == ["huggyllama/llama-65b"]
    assert card.data.tags[0] == "gptq"
    assert card.text.lstrip().startswith("# Tulu 65B GPTQ")


def test_a_free_licence_needs_no_gate(publish: Publisher) -> None:
    out, _ = publish(license="mit")
    metadata = read_front_matter((out / "README.md").read_text())
    assert metadata["license"] == "mit"
    assert not {"license_name", "extra_gated_prompt", "base_model"} & metadata.keys()
    assert "private or\ngated" not in (out / "README.md").read_text()


def test_every_number_of_the_reports_is_quoted(publish: Publisher) -> None:
    out, _ = publish()
    card = (out / "README.md").read_text()
    for line in (
        "| `bits` | 4 |",
        "| `group_size` | 32 |",
        "| `sym` | yes |",
        "| `desc_act` | no |",
        "| `damp_percent` (a fraction) | 0.01 |",
        "| calibration tokens | 262,144 |",
        f"| calibration text | conversations.json, sha256 {'c' * 64} |",
        "| bits per weight | 4.156 |",
        "| perplexity ratio | 1.034 | 1.03 to 1.038 |",
        "| KL divergence, percentile 99 | 0.11 |  |",
        "| KL divergence, largest | 1.5 |  |",
        "| novel | 40 | 81,920 | not recorded | not recorded | not recorded | 0.0123 "
        "| not recorded |",
        "| perplexity\\_ratio | PASS | 1.034 | 1.03 to 1.038 | at most 1.05 |",
        f"| base | {'b' * 64} |",
        f"| text:novel | {'t' * 64} |",
        "Protocol: windows of 2048 tokens, BOS first.",
        "stored as bfloat16.",
        "- Tensor parallelism over 4 devices does not work",
        "- The context is 2,048 tokens",
    ):
        assert line in card
    assert "over 2 devices" not in card
    assert "None" not in card


def test_the_prompt_format_shows_the_newline(publish: Publisher) -> None:
    out, _ = publish()
    card = (out / "README.md").read_text()
    assert "<|user|>\nYour question\n<|assistant|>\n\n```" in card
    assert r'"<|user|>\nYour question\n<|assistant|>\n"' in card


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"chat_template": "{{ messages }}"}, "The chat template"), ({}, "has no chat template")],
)
def test_another_prompt_format_is_not_called_tulu(
    publish: Publisher, candidate: Path, judge: Judge, config: dict[str, str], expected: str
) -> None:
    (candidate / "tokenizer_config.json").write_text(json.dumps(config))
    judge()
    out, _ = publish()
    card = (out / "README.md").read_text()
    assert expected in card
    assert "<|assistant|>" not in card
    assert ("apply_chat_template" in card) == bool(config)


def test_a_template_of_its_own_file_counts(
    publish: Publisher, candidate: Path, judge: Judge
) -> None:
    config = json.loads((candidate / "tokenizer_config.json").read_text())
    (candidate / "chat_template.jinja").write_text(config["chat_template"])
    (candidate / "tokenizer_config.json").write_text("{}")
    judge()
    out, _ = publish()
    assert "<|assistant|>" in (out / "README.md").read_text()


def test_what_no_report_says_is_not_invented(
    publish: Publisher, candidate: Path, judge: Judge
) -> None:
    (candidate / "quantize-report.json").unlink()
    (candidate / "recover-report.json").unlink()
    folder = judge()
    report = Report.read(folder / "report.json")
    report.model_copy(update={"facts": {}}).write(folder / "report.json")
    out, _ = publish()
    card = (out / "README.md").read_text()
    assert "| calibration text | not recorded |" in card
    assert "| perplexity ratio | not recorded | not recorded |" in card
    assert "| base | not recorded |" in card
    assert verify(out).verdict is Verdict.PASS


def test_an_unbounded_interval_is_called_so(publish: Publisher, judge: Judge) -> None:
    folder = judge()
    report = Report.read(folder / "report.json")
    bare = report.checks[0].model_copy(update={"interval": None, "part": "wiki.txt"})
    open_ended = bare.model_copy(update={"verdict": Verdict.INCONCLUSIVE})
    report.model_copy(update={"checks": (bare, open_ended)}).write(folder / "report.json")
    card = (publish()[0] / "README.md").read_text(encoding="utf-8")
    assert "perplexity\\_ratio, wiki.txt | PASS | 1.034 | none | at most 1.05 |" in card
    assert "| INCONCLUSIVE | 1.034 | unbounded | at most 1.05 |" in card


@pytest.mark.parametrize("odd", [None, "x", 7, [1, "x", None], {"name": ["x"]}, float("nan")])
def test_facts_of_another_shape_do_no_harm(
    publish: Publisher, candidate: Path, judge: Judge, odd: object
) -> None:
    path = candidate / "quantize-report.json"
    report = Report.read(path)
    report.model_copy(update={"facts": {"calibration": odd}}).write(path)
    names = ("reference", "candidate", "texts", "kl_percentiles", "perplexity_ratio_interval")
    judge(protocol=odd, tokens=odd, **dict.fromkeys(names, odd))
    out, _ = publish()
    assert verify(out).verdict is Verdict.PASS


def test_hostile_strings_are_inert(publish: Publisher, candidate: Path, judge: Judge) -> None:
    path = candidate / "quantize-report.json"
    report = Report.read(path)
    files = [{"name": HOSTILE, "sha256": HOSTILE}]
    facts = {"method": HOSTILE, "calibration": {"files": files}}
    report.model_copy(update={"facts": facts}).write(path)
    judge(protocol=HOSTILE, texts=[{"name": HOSTILE}], kl_percentiles={HOSTILE: HOSTILE})
    out, _ = publish(name=HOSTILE, allow_failed_gate=HOSTILE)
    card = (out / "README.md").read_text()
    assert read_front_matter(card)["license"] == "other"
    for raw in ("<script", "[a](", "`code`", "\u202e", "\n# Owned", "\nlicense: mit"):
        assert raw not in card
    assert r"{{ 7 \* 7 }} {% raw %}" in card
    assert card.count("\n---\n") == 1
    tables = [line for line in card.splitlines() if line.startswith("| calibration text |")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in tables)
    assert verify(out).verdict is Verdict.PASS


@given(st.text())
def test_inert_text_stays_on_its_line_and_starts_nothing(text: str) -> None:
    shown = inert(text)
    assert shown.isprintable()
    assert "<" not in shown
    assert ">" not in shown
    plain = shown.replace("\\\\", "")
    for mark in "|`*_[]":
        assert plain.count(mark) == plain.count(f"\\{mark}")
    assert yaml.safe_load(f"---\nx: 1\n---\n{shown}".split("\n---\n")[0]) == {"x": 1}


@pytest.mark.parametrize("field", ["base_model", "diff_model"])
@pytest.mark.parametrize("name", ["a/b/c", "https://example.org/a", "a b", "../a", "a\n---", ""])
def test_a_hub_name_is_one(publish: Publisher, field: str, name: str) -> None:
    with pytest.raises(RecipeProblem, match=field):
        publish(**{field: name})
