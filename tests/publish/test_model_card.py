from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from safetensors.torch import save_file

import hub_metadata
from camelpress.core.errors import RecipeProblem
from camelpress.publish.card.card_markdown import escape_card_text, read_front_matter
from camelpress.publish.card.card_tables import size_rows
from camelpress.publish.card.model_card import check_card, render_card
from camelpress.publish.card.release_quotes import read_release_facts
from camelpress.publish.license.license_profiles import LICENSE_PROFILES
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.facts_model import FactsModel
from camelpress.reporting.plots import card_plots
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict

DRAW = card_plots.draw_card_plots  # itself, not that of conftest
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
        "extra_gated_prompt": metadata["extra_gated_prompt"],
        "tags": ["gptq", "4-bit", "llama", "camelpress", "tulu"],
        "model-index": metadata["model-index"],
    }
    assert "research only" in metadata["extra_gated_prompt"]
    assert metadata["model-index"][0]["results"][0]["dataset"] == {"name": "novel", "type": "novel"}
    assert claims["bits"] == 4
    assert claims["group_size"] == 32
    assert claims["verdict"] == "PASS"


@pytest.mark.parametrize("license", LICENSE_PROFILES)
@pytest.mark.parametrize("to", [None, "hf:org/name@gptq-4bit-32g"])
def test_the_hub_would_take_the_metadata(
    publish: Publisher, judge: Judge, license: str, to: str | None
) -> None:
    judge(texts=[{"name": "Wiki 2", "candidate_perplexity": 3.65, "kl_mean": 0.0123}])
    facts = read_release_facts(publish(license=license, base_model="huggyllama/llama-65b")[0])
    settings = facts.settings.model_copy(update={"to": to})
    assert hub_metadata.faults(render_card(replace(facts, settings=settings))) == []


def test_what_the_hub_would_not_take_is_known() -> None:
    card = """---
license: other
license_link: LICENSE.txt
base_model: nothing
base_model_relation: copied
extra_gated_fields: {Country: cuneiform}
---
"""
    assert hub_metadata.faults(card) == [
        "license_name belongs to a licence that is other",
        "license_link 'LICENSE.txt' is neither LICENSE, LICENSE.md nor an address",
        "extra_gated_fields asks for 'cuneiform'",
        "base_model_relation 'copied' is not one of the list",
        "base_model 'nothing' is no repository",
    ]


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
    report = read_report(folder / "report.json")
    report.model_copy(update={"facts": FactsModel()}).write(folder / "report.json")
    out, _ = publish()
    card = (out / "README.md").read_text()
    assert "| calibration text | not recorded |" in card
    assert "| perplexity ratio | not recorded | not recorded |" in card
    assert "| base | not recorded |" in card
    assert verify_release(out).verdict is Verdict.PASS


def test_an_unbounded_interval_is_called_so(publish: Publisher, judge: Judge) -> None:
    folder = judge()
    report = read_report(folder / "report.json")
    bare = report.checks[0].model_copy(update={"interval": None, "part": "wiki.txt"})
    open_ended = bare.model_copy(update={"verdict": Verdict.INCONCLUSIVE})
    parts = {"checks": (bare, open_ended), "verdict": Verdict.INCONCLUSIVE}
    report.model_copy(update=parts).write(folder / "report.json")
    out, _ = publish(allow_failed_gate="a trial of cards")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "perplexity\\_ratio, wiki.txt | PASS | 1.034 | none | at most 1.05 |" in card
    assert "| INCONCLUSIVE | 1.034 | unbounded | at most 1.05 |" in card


@pytest.mark.parametrize("odd", [None, "x", 7, [1, "x", None], {"name": ["x"]}, float("nan")])
def test_facts_of_another_shape_do_no_harm(
    publish: Publisher, candidate: Path, judge: Judge, odd: object
) -> None:
    path = candidate / "quantize-report.json"
    report = read_report(path)
    report.model_copy(update={"facts": FactsModel.build({"calibration": odd})}).write(path)
    names = ("reference", "candidate", "texts", "kl_percentiles", "perplexity_ratio_interval")
    judge(protocol=odd, tokens=odd, **dict.fromkeys(names, odd))
    out, _ = publish()
    assert verify_release(out).verdict is Verdict.PASS


def test_a_value_of_another_type_is_not_recorded(
    publish: Publisher, candidate: Path, judge: Judge
) -> None:
    path = candidate / "quantize-report.json"
    report = read_report(path)
    calibration = {"tokens": "many", "files": [{"name": 7, "sha256": "c" * 64}, "x"]}
    report.model_copy(update={"facts": report.facts.updated(calibration=calibration)}).write(path)
    task = {"name": "gsm", "n": "few", "reference_accuracy": "half", "candidate_accuracy": 0.25}
    judge(tokens="many", overlap={"checked": "x"}, tasks=[task, {"name": 7}])
    card = (publish()[0] / "README.md").read_text(encoding="utf-8")
    for line in (
        "| calibration tokens | not recorded |",
        f"| calibration text | not recorded, sha256 {'c' * 64} |",
        "| calibration text | not recorded, sha256 not recorded |",
        "| overlap with the texts checked | not recorded |",
        "| tokens scored | not recorded |  |",
        "|  | gsm |\n",
        "| 16-bit reference | not recorded |\n| this model | 25.00 % |\n",
        "| items | not recorded |",
    ):
        assert line in card


def test_hostile_strings_are_inert(publish: Publisher, candidate: Path, judge: Judge) -> None:
    path = candidate / "quantize-report.json"
    report = read_report(path)
    files = [{"name": HOSTILE, "sha256": HOSTILE}]
    facts = {"method": HOSTILE, "calibration": {"files": files}}
    report.model_copy(update={"facts": FactsModel.build(facts)}).write(path)
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
    assert verify_release(out).verdict is Verdict.PASS


def test_a_card_of_hostile_strings_is_the_same_page(
    publish: Publisher, candidate: Path, judge: Judge
) -> None:
    harmless = page(publish("harmless", name="x", allow_failed_gate="x")[0])
    path = candidate / "quantize-report.json"
    report = read_report(path)
    files = [{"name": HOSTILE, "sha256": HOSTILE}]
    report.model_copy(
        update={"facts": report.facts.updated(method=HOSTILE, calibration={"files": files})}
    ).write(path)
    task = {"name": HOSTILE, "title": HOSTILE, "n": HOSTILE}
    judge(protocol=HOSTILE, tasks=[task], tasks_missing={HOSTILE: HOSTILE})
    hostile = page(publish("hostile", name=HOSTILE, allow_failed_gate=HOSTILE)[0])
    kinds = ("script", "img", "a", "h1", "h2", "h3", "hr", "b", "svg", "iframe")
    assert [hostile.count(f"<{kind}") for kind in kinds] == [
        harmless.count(f"<{kind}") + (kind == "h2") for kind in kinds  # that of the benchmarks
    ]  # fmt: skip


def page(release: Path) -> str:
    """A card as HTML, the way a page shows it that lets HTML through."""
    text = (release / "README.md").read_text(encoding="utf-8").split("\n---\n", 1)[1]
    return str(MarkdownIt("gfm-like", {"linkify": False}).render(text))


@given(st.text())
def test_inert_text_stays_on_its_line_and_starts_nothing(text: str) -> None:
    shown = escape_card_text(text)
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


def test_the_card_can_be_checked_against_its_own_release(publish: Publisher) -> None:
    out, _ = publish(base_model="huggyllama/llama-65b")
    assert check_card(out).verdict is Verdict.PASS
    card = out / "README.md"
    text = card.read_text(encoding="utf-8")
    for old, new, said in (
        ("bits: 4", "bits: 8", "README.md says bits 8, the files say 4"),
        ("| `group_size` | 32 |", "| `group_size` | 128 |", "README.md line "),
        ("| perplexity ratio | 1.034 |", "| perplexity ratio | 1.001 |", "README.md line "),
        ("2,048 tokens", "4,096 tokens", "README.md line "),
    ):
        assert old in text
        card.write_text(text.replace(old, new), encoding="utf-8")
        report = check_card(out)
        assert report.verdict is Verdict.FAIL
        assert report.facts.record["problems"][0].startswith(said)


def test_a_config_that_changed_makes_the_card_wrong(publish: Publisher) -> None:
    out, _ = publish()
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["group_size"] = 64
    (out / "config.json").write_text(json.dumps(config))
    assert check_card(out).facts.record["problems"] == [
        "README.md says group_size 32, the files say 64"
    ]


def test_size_and_memory_come_from_the_config(
    publish: Publisher, candidate: Path, judge: Judge
) -> None:
    config = json.loads((candidate / "config.json").read_text())
    config |= {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    (candidate / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 2}))
    judge()
    card = (publish()[0] / "README.md").read_text(encoding="utf-8")
    # 2 tensors, 2 bytes, 2 layers, 2 heads of 32, 2048 tokens
    assert "| keys and values of a sequence of 2,048 tokens, 2 bytes a number | 1.0 MB |" in card
    assert "| devices that tensor parallelism can share it over | 1, 2 |" in card


@pytest.mark.parametrize(
    ("heads", "down", "out", "shared"),
    [(64, 172, 64, "1, 2, 4"), (52, 108, 40, "1, 2, 4"), (32, 88, 32, "1, 2, 4, 8"),
     (32, 88, 4, "1, 2, 4"), (4, 88, 32, "1, 2, 4")],
)  # fmt: skip
def test_devices_share_heads_and_the_groups_of_what_is_split_by_input(
    publish: Publisher, candidate: Path, judge: Judge, heads: int, down: int, out: int, shared: str
) -> None:
    names = {"mlp.down_proj": down, "self_attn.o_proj": out, "mlp.up_proj": 3}
    tensors = {
        f"model.layers.0.{name}.scales": torch.ones(groups, 4, dtype=torch.float16)
        for name, groups in names.items()
    }
    save_file(tensors, candidate / "model.safetensors", {"format": "pt"})
    config = json.loads((candidate / "config.json").read_text())
    (candidate / "config.json").write_text(json.dumps(config | {"num_attention_heads": heads}))
    judge()
    card = (publish()[0] / "README.md").read_text(encoding="utf-8")
    assert f"| devices that tensor parallelism can share it over | {shared} |" in card


def test_large_models_are_told_in_gigabytes() -> None:
    config = {"num_attention_heads": 64, "hidden_size": 8192, "num_hidden_layers": 80}
    rows = size_rows(config | {"max_position_embeddings": 2048}, {"bytes": 34_700_000_000})
    assert [value for _, value in rows[:3]] == ["34.7 GB", "5.4 GB", "40.1 GB"]


def test_the_licence_is_linked_as_the_hub_reads_it(publish: Publisher, candidate: Path) -> None:
    metadata = read_front_matter((publish()[0] / "README.md").read_text())
    assert "license_link" not in metadata
    facts = read_release_facts(publish("again")[0])
    home = facts.settings.model_copy(update={"to": "hf:org/name@gptq-4bit-32g"})
    there = read_front_matter(render_card(replace(facts, settings=home)))
    assert there["license_link"] == (
        "https://huggingface.co/org/name/blob/gptq-4bit-32g/LICENSE.txt"
    )
    named = read_front_matter(render_card(replace(facts, licenses=["LICENSE"])))
    assert named["license_link"] == "LICENSE"


def test_benchmarks_that_did_not_run_say_why(publish: Publisher, judge: Judge) -> None:
    task = {"name": "gsm", "n": 8, "reference_accuracy": 0.5, "candidate_accuracy": 0.25}
    judge(tasks=[task], tasks_missing={"codex": "no sandbox | <here>"})
    card = (publish()[0] / "README.md").read_text(encoding="utf-8")
    assert "- codex did not run: no sandbox \\| &lt;here&gt;\n" in card


@pytest.mark.parametrize("place", ["gsm8k", "openai/gsm8k:a:b", "openai/gsm8k:", "../a", "a/b\nc"])
def test_a_data_set_of_the_hub_is_named_as_one(publish: Publisher, place: str) -> None:
    with pytest.raises(RecipeProblem, match=r"benchmarks\.gsm8k"):
        publish(benchmarks={"gsm8k": place})


def test_benchmarks_stand_side_by_side_with_their_difference(
    publish: Publisher, judge: Judge
) -> None:
    task = {"n": 100, "lost": 4, "won": 1, "reference_accuracy": 0.5, "candidate_accuracy": 0.47}
    mmlu = {"name": "mmlu", "title": "MMLU 0-shot", "delta": -0.03, "delta_interval": [-0.06, 0.0]}
    average: dict[str, object] = {"reference": 0.5, "candidate": 0.48}
    average |= {"name": "Mean of 5 of 6 benchmarks", "missing": ["AlpacaFarm"]}
    average["delta_interval"] = [-0.05, 0.01]
    judge(tasks=[mmlu | task, {"name": "gsm8k", **task}], averages=average)
    out, _ = publish(benchmarks={"gsm8k": "openai/gsm8k:gsm8k"})
    card = (out / "README.md").read_text(encoding="utf-8")
    table = """
|  | MMLU 0-shot | gsm8k | Mean of 5 of 6 benchmarks |
|---|---|---|---|
| 16-bit reference | 50.00 % | 50.00 % | 50.00 % |
| this model | 47.00 % | 47.00 % | 48.00 % |
| difference | -3.00 % | -3.00 % | -2.00 % |
| 95 % | -6.00 % to +0.00 % | not recorded | -5.00 % to +1.00 % |
| items | 100 | 100 |  |
"""
    assert table in card
    assert "Not in the mean: AlpacaFarm." in card
    hub = pytest.importorskip("huggingface_hub")
    told = yaml.safe_load((out / ".eval_results" / "camelpress.yaml").read_text())
    (entry,) = hub.parse_eval_result_entries(told)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 47.0)
    assert entry.notes == "gsm8k, 100 items"
    assert verify_release(out).verdict is Verdict.PASS


COLUMNS = (
    "MMLU 0-shot", "MMLU 5-shot", "GSM Direct", "GSM CoT", "BBH Direct", "BBH CoT",
    "TydiQA Gold-Passage", "TydiQA Closed-book", "Codex-Eval Pass@1", "Codex-Eval Pass@10",
    "AlpacaFarm",
)  # fmt: skip


def test_eleven_columns_and_their_average_stand_in_one_table(
    publish: Publisher, judge: Judge
) -> None:
    tasks = [
        {"name": title.lower(), "title": title, "n": 100, "lost": at, "won": 0,
         "reference_accuracy": 0.5, "candidate_accuracy": 0.5 - at / 100, "delta": -at / 100,
         "delta_interval": [-at / 50, 0.0]}
        for at, title in enumerate(COLUMNS)
    ]  # fmt: skip
    judge(tasks=tasks, averages={"name": "Average", "reference": 0.5, "candidate": 0.45})
    card = (publish()[0] / "README.md").read_text(encoding="utf-8")
    assert f"\n|  | {' | '.join(COLUMNS)} | Average |\n|{'---|' * 13}\n" in card
    lost = " | ".join(f"{-at:+.2f} %" for at in range(1, 11))
    assert f"\n| difference | +0.00 % | {lost} | -5.00 % |\n" in card


def test_older_readers_find_the_figures_of_each_text(publish: Publisher, judge: Judge) -> None:
    hub = pytest.importorskip("huggingface_hub")
    judge(texts=[{"name": "Wiki 2", "candidate_perplexity": 3.65, "kl_mean": 0.0123}])
    out, _ = publish()
    found = hub.ModelCard.load(out / "README.md").data.eval_results
    assert [(each.dataset_type, each.metric_type, each.metric_value) for each in found] == [
        ("wiki-2", "perplexity", 3.65),
        ("wiki-2", "kl", 0.0123),
    ]
    assert found[0].metric_name == "perplexity, windows of 2048 tokens, BOS first"


def test_the_plots_are_a_picture_of_the_same_bytes(
    publish: Publisher, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_plots, "draw_card_plots", DRAW)
    text = {"name": "a $\\alpha$", "perplexity_ratio": 1.02}
    judge(texts=[text, text | {"name": "b", "perplexity_ratio_interval": [1.01, 1.03]}])
    one, other = publish("one")[0], publish("other")[0]
    picture = (one / "validation" / "plots.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == (other / "validation" / "plots.png").read_bytes()
    assert "![Divergence and perplexity](validation/plots.png)" in (one / "README.md").read_text()


def test_the_papers_are_those_of_the_licence_and_the_method(publish: Publisher) -> None:
    card = (publish()[0] / "README.md").read_text(encoding="utf-8")
    assert [
        card.count(f"arXiv:{paper}") for paper in ("2302.13971", "2306.04751", "2210.17323")
    ] == [1, 1, 1]
    card = (publish("free", license="mit")[0] / "README.md").read_text(encoding="utf-8")
    assert "arXiv:2302.13971" not in card
