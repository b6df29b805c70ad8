"""What a validation page and its Markdown say, and what they must never do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from camelpress.reporting import number_format, sentences
from camelpress.reporting.facts.validation_facts import ModelFacts, TextFacts, ValidateFacts
from camelpress.reporting.plots import card_plots, validation_plots
from camelpress.reporting.plots.figure_style import axis_label
from camelpress.reporting.plots.text_ratios import text_ratios
from camelpress.reporting.rendering import html_page
from camelpress.reporting.report_classes import ValidationReport
from camelpress.reporting.tables.markdown_table import (
    LEFT,
    RIGHT,
    escape_markdown,
    markdown_table,
)
from camelpress.reporting.verdict import Check, Verdict

SHARES = (0.1, 0.4, 1.5, 6.0, 18.0, 31.0, 26.0, 12.0, 4.0, 0.9, 0.1)  # per cent, of each bin
NAMES = ("perplexity_ratio", "kl_mean", "top1_agreement")
HOSTILE = '<script>alert(1)</script>$x$ 数\x07 {{ 7 * 6 }} "quoted" | `code` [a](b)'


def text(name: str, ratio: float, spread: float) -> dict[str, Any]:
    return {
        "name": name,
        "sequences": 100,
        "tokens": 17_000,
        "reference_perplexity": 7.1,
        "candidate_perplexity": 7.1 * ratio,
        "perplexity_ratio": ratio,
        "perplexity_ratio_interval": [ratio - spread, ratio + spread],
        "kl_mean": 0.0121,
        "kl_mean_interval": [0.0113, 0.0130],
        "top1_agreement": 0.9532,
        "top1_agreement_interval": None,
    }


def facts(*texts: dict[str, Any]) -> dict[str, Any]:
    llama = {"architecture": "LlamaForCausalLM", "parameters": 459_000, "dtype": "bfloat16"}
    gptq = {"bits": 4, "group_size": 64, "sym": True, "bits_per_weight": 4.6}
    return {
        **text("", 1.0121, 0.0026),
        "protocol": "token-level, windows of 256 tokens, no overlap, BOS before each window.",
        "reference": {**llama, "path": "models/pico", "bytes": 920_000},
        "candidate": {**llama, **gptq, "path": "models/pico-gptq-4bit", "bytes": 281_000},
        "kl_percentiles": {"50": 0.0041, "90": 0.031, "99": 0.114, "99.9": 0.42, "max": 2.31},
        "top1_agreement_interval": [0.9508, 0.9555],
        "tokens": 51_000,
        "sequences": 300,
        "texts": list(texts),
        "early": {
            "context": 128,
            "first": text("", 1.0432, 0.0123),
            "rest": text("", 1.0098, 0.0021),
        },
        "kl_histogram": {
            "edges": [0.0, *(10 ** (-6 + place / 2) for place in range(1, 15))],
            "counts": [0, *(round(510 * share) for share in SHARES), 0, 0],
        },
        "by_position": {
            "edges": [0, 16, 32, 64, 128, 256],
            "kl_mean": [0.0202, 0.0155, 0.0131, 0.0112, 0.0108],
            "log_ratio": [0.021, 0.009, 0.014, 0.0125, -0.003],
            "tokens": [4_800, 4_800, 9_600, 12_800, 19_000],
        },
    }


def check(verdict: Verdict, name: str = "perplexity_ratio", **changes: Any) -> Check:
    content: dict[str, Any] = {
        "name": name,
        "verdict": verdict,
        "estimate": 1.0121,
        "interval": (1.0095, 1.0147),
        "threshold": 1.02,
        "direction": "max",
        "n": 51_000,
        "clusters": 300,
        "reason": f"the whole interval decided {name}",
    }
    return Check(**{**content, **changes})


TEXTS = (
    text("evaluation.jsonl", 1.0105, 0.0031),
    text("held-out-dialogues.jsonl", 1.0152, 0.0049),
    text("code.jsonl", 1.0089, 0.0066),
)
KL = {"estimate": 0.0121, "interval": (0.0113, 0.0130), "threshold": 0.02}
TOP1 = {"estimate": 0.9532, "interval": (0.9508, 0.9555), "threshold": 0.95, "direction": "min"}


def sample(verdict: Verdict | None = Verdict.PASS, **changes: Any) -> ValidationReport:
    checks = (
        check(verdict or Verdict.PASS),
        check(Verdict.PASS, "kl_mean", **KL),
        check(Verdict.PASS, "top1_agreement", **TOP1),
    )
    content: dict[str, Any] = {
        "stage": "validate",
        "inputs": {"reference": "a1" * 32, "candidate": "b2" * 32, "text:code.jsonl": "c3" * 32},
        "settings": {"sequence_length": 256, "text": ["code.jsonl"], "gate": {"kl_mean": 0.02}},
        "facts": facts(*TEXTS),
        "checks": checks if verdict else (),
        "verdict": verdict,
        "cost": {"seconds": 83.4, "peak_bytes": 1_240_000_000},
    }
    return ValidationReport(**{**content, **changes})


@cache
def sample_page() -> str:
    return html_page.render_html(sample())


class Reader(HTMLParser):
    """Counts elements, checks that they close, and keeps the words."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, page_text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page_text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data


@pytest.mark.parametrize("verdict", [*Verdict, None])
def test_every_verdict_is_shown_in_words_first(verdict: Verdict | None) -> None:
    report = sample(verdict)
    shown = Reader(html_page.render_html(report))
    assert not shown.open
    words = " ".join(shown.words.split())
    big = verdict.value if verdict else "NOT JUDGED"
    assert words.index(f"{sentences.VERDICT_SYMBOLS[verdict]} {big}") < words.index(
        sentences.verdict_sentence(report)
    )
    assert words.index(sentences.verdict_sentence(report)) < words.index("Checks")
    assert (
        f"{sentences.VERDICT_SYMBOLS[verdict]} {big}"
        in html_page.render_markdown(report).splitlines()[0]
    )


def test_page_and_markdown_tell_why() -> None:
    report = sample()
    words = Reader(sample_page()).words
    for one in report.checks:
        assert one.reason in words, one.name
        assert one.reason in html_page.render_markdown(report)


def test_the_beginning_of_a_window_is_told_apart() -> None:
    shown = html_page.render_markdown(sample())
    assert "| first 128 tokens | 17,000 | 7.100 | 7.407 | 1.043 |" in shown
    assert "| the rest | 17,000 |" in shown
    assert "1.043" in sample_page() and "first 128 tokens" in sample_page()
    short = facts(*TEXTS)
    short["early"]["rest"] = None
    told = html_page.render_markdown(sample(facts=short)) + html_page.render_html(
        sample(facts=short)
    )
    assert "first 128 tokens" in told
    assert "the rest" not in told


def test_numbers_carry_units_and_sensible_digits() -> None:
    words = Reader(sample_page()).words.replace("\u00a0", " ")
    for expected in (
        *("1.0121", "1.0095 – 1.0147", "≤ 1.02", "0.01210 nats", "95.32 %", "95.08 – 95.55"),
        *("≥ 95 %", "281 kB", "30.5 % of the reference's 920 kB", "7.100 → 7.186", "51,000"),
        *("4 bits, groups of 64", "c3" * 32, "sequence_length: 256"),
    ):
        assert expected in words


def test_words_from_outside_stay_words() -> None:
    content = facts(text(HOSTILE, 1.01, 0.003), text("other", 1.01, 0.003))
    content["candidate"]["path"] = content["protocol"] = HOSTILE
    checks = (check(Verdict.PASS, reason=HOSTILE),)
    report = sample(
        facts=content, checks=checks, inputs={HOSTILE: HOSTILE}, settings={HOSTILE: [HOSTILE]}
    )
    shown = Reader(html_page.render_html(report))
    assert not any(tag in {"script", "a"} for tag, _ in shown.seen)
    assert "<script>alert(1)</script>$x$" in shown.words
    assert shown.words.count("{{ 7 * 6 }}") == shown.words.count("| `code` [a](b)") > 5
    assert "<script>" not in html_page.render_markdown(report).replace("\\<script\\>", "")
    tables = re.findall(r"(?:^\|.*\n)+", html_page.render_markdown(report), flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:  # each row has the cells of the head
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_nothing_is_loaded_from_elsewhere() -> None:
    text_of_page = sample_page()
    assert "http://" not in text_of_page and "https://" not in text_of_page
    assert "@import" not in text_of_page
    for tag, attributes in Reader(text_of_page).seen:
        assert tag not in {"script", "iframe", "img", "object", "image"}
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "default-src 'none'" in text_of_page


def test_figures_are_described_and_their_ids_are_their_own() -> None:
    seen = Reader(sample_page()).seen
    figures = [attributes for tag, attributes in seen if tag == "svg"]
    assert len(figures) == 4
    assert all(len(str(figure["aria-label"])) > 50 for figure in figures)
    ids = [attributes["id"] for _, attributes in seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"] for tag, attributes in seen if tag == "use"}
    assert targets and targets <= {f"#{name}" for name in ids}
    clips = {name for name in re.findall(r"url\(#([^)]+)\)", sample_page())}
    assert clips and clips <= set(ids)


def test_figures_take_their_colours_from_the_page() -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", sample_page(), flags=re.DOTALL))
    assert {"var(--accent)", "var(--fail)", "var(--ink)"} <= set(re.findall(r"var\(--\w+\)", drawn))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report = sample()
    report.write(tmp_path / "report.json")
    again = ValidationReport.read(tmp_path / "report.json")
    assert html_page.render_html(again) == sample_page()
    assert html_page.render_markdown(report) == html_page.render_markdown(again)


def test_markdown_is_short_however_many_texts_there_are() -> None:
    many = sample(facts=facts(*(text(f"text-{n}", 1.01, 0.002) for n in range(200))))
    lines = html_page.render_markdown(many).splitlines()
    assert len(lines) < 70
    assert "… and 181 more texts on the page." in lines
    assert lines[-1].startswith("Protocol: token-level")


@pytest.mark.parametrize(
    "counts", [[0, 0, 5, 3, 0, 0], [9, 0, 0, 0, 0, 0], [1, 0, 5000, 4000, 0, 2], [0, 0, 0, 0, 0, 7]]
)
def test_the_histogram_loses_no_token(counts: list[int]) -> None:
    edges, shares, _ = validation_plots._occupied_bins(
        [0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0], counts
    )
    assert sum(shares) == pytest.approx(100)
    assert len(edges) == len(shares) + 1
    assert edges[0] > 0


def more_facts(content: dict[str, Any]) -> None:
    content["noise_floor"] = {"kl_mean": 0.0004, "perplexity_ratio_interval": [0.9993, 1.0006]}
    content["kl_by_confidence"] = {
        "edges": [0, 0.25, 0.5, 0.75, 0.95, 1],
        "kl_mean": [0.021, 0.018, 0.012, 0.007, 0.0015],
        "tokens": [9_000, 12_000, 11_000, 10_000, 9_000],
    }
    content["blocks"] = [{"relative_error": 0.01 * (1 + block / 8)} for block in range(32)]
    content["blocks"][5]["relative_error"] = None


def test_what_a_report_has_is_drawn_and_what_it_lacks_is_not() -> None:
    titles = ("KL divergence by confidence", "Error by block", "rounding alone")
    assert not any(title in sample_page() for title in titles)
    content = facts(*TEXTS)
    more_facts(content)
    shown = html_page.render_html(sample(facts=content))
    assert all(title in shown for title in titles)
    assert shown.count("<svg") == 6


def test_markdown_names_what_does_not_pass_first_and_stays_short() -> None:
    checks = [check(Verdict.PASS, part=f"text-{n}") for n in range(60)]
    checks.insert(40, check(Verdict.FAIL, part="bad.txt"))
    lines = html_page.render_markdown(sample(Verdict.FAIL, checks=tuple(checks))).splitlines()
    assert len(lines) < 70
    assert "… and 41 more checks on the page." in lines
    first = next(line for line in lines if line.startswith("| Perplexity ratio"))
    assert first.startswith("| Perplexity ratio, bad.txt | FAIL |")


def test_many_failing_checks_are_still_one_sentence() -> None:
    checks = tuple(check(Verdict.FAIL, part=f"text-{n}") for n in range(50))
    told = sentences.verdict_sentence(sample(Verdict.FAIL, checks=(*checks, check(Verdict.PASS))))
    assert told.startswith("50 of 51 checks fail: perplexity ratio, text-0, ")
    assert told.endswith("perplexity ratio, text-5 and 44 more.")


def nothing_counted(content: dict[str, Any]) -> None:
    content["kl_histogram"]["counts"] = [0] * len(content["kl_histogram"]["counts"])


def identical(content: dict[str, Any]) -> None:
    counts = [content["tokens"], *[0] * 13]
    content["kl_histogram"] = {"edges": content["kl_histogram"]["edges"], "counts": counts}
    content["kl_percentiles"] = dict.fromkeys(content["kl_percentiles"], 0.0)
    for name, value in (("perplexity_ratio", 1.0), ("kl_mean", 0.0), ("top1_agreement", 1.0)):
        content |= {name: value, f"{name}_interval": [value, value]}


def unbounded(content: dict[str, Any]) -> None:
    for part in (content, *content["texts"]):
        part |= {"perplexity_ratio_interval": None, "kl_mean_interval": None}
    content["top1_agreement_interval"] = None


def runaway(content: dict[str, Any]) -> None:
    content["texts"][0] |= {"perplexity_ratio_interval": [1e-300, 1e300]}


def empty_stretch(content: dict[str, Any]) -> None:
    content["by_position"]["tokens"][-1] = 0
    content["by_position"]["kl_mean"][-1] = None
    content["by_position"]["log_ratio"][-1] = math.nan


def one_text(content: dict[str, Any]) -> None:
    del content["texts"][1:]


def both_in_16_bits(content: dict[str, Any]) -> None:
    content["candidate"] = {**content["reference"], "bits": None}


def without_numbers(content: dict[str, Any]) -> None:
    for name in ("perplexity_ratio", "kl_mean", "reference_perplexity"):
        content[name] = content["texts"][0][name] = None
    content["kl_percentiles"] = {"50": None, "99": None, "max": None}


@pytest.mark.parametrize(
    "change",
    [
        *(nothing_counted, identical, unbounded, runaway, empty_stretch, one_text),
        *(both_in_16_bits, more_facts, without_numbers),
    ],
)
def test_odd_reports_are_shown(change: Callable[[dict[str, Any]], None]) -> None:
    content = facts(*({**one} for one in TEXTS))
    change(content)
    report = sample(facts=content)
    assert not Reader(html_page.render_html(report)).open
    assert len(html_page.render_markdown(report).splitlines()) < 70


def test_a_check_that_could_not_be_evaluated_is_shown() -> None:
    checks = (check(Verdict.ERROR, estimate=None, interval=None, n=0, clusters=0),)
    words = Reader(html_page.render_html(sample(Verdict.ERROR, checks=checks))).words
    assert "! ERRORPerplexity ratio––≤" in words
    assert "The only check, perplexity ratio, could not be evaluated" in words


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        ("PASS PASS", "All 2 checks hold."),
        ("FAIL PASS", "1 of 2 checks fails: perplexity ratio."),
        ("FAIL FAIL PASS", "2 of 3 checks fail: perplexity ratio and mean KL divergence."),
        ("PASS", "The only check, perplexity ratio, holds."),
        ("", "No check was evaluated, which is not a pass."),
    ],
)
def test_the_verdict_as_a_sentence(verdicts: str, sentence: str) -> None:
    given = [Verdict(word) for word in verdicts.split()]
    checks = tuple(check(v, name) for v, name in zip(given, NAMES, strict=False))
    assert sentences.verdict_sentence(sample(Verdict.combine(given), checks=checks)) == sentence


def test_a_markdown_table_escapes_the_cells_of_its_rows() -> None:
    table = markdown_table(["*a*", "b"], [["1 | 2\n<3>", "`4`"]], [LEFT, RIGHT], escape_markdown)
    assert table.splitlines() == [
        "| *a* | b |",
        "| :-- | --: |",
        r"| 1 \| 2 \<3\> | \`4\` |",
    ]
    assert markdown_table(["a"], [["*"]], [LEFT]).endswith("| * |")


@pytest.mark.parametrize(
    ("ratio", "interval", "expected"),
    [
        (1.02, [1.01, 1.03], (1.02, (1.01, 1.03))),
        (1.02, None, (1.02, None)),
        (1.02, [1.01, None], (None, None)),
        (math.inf, None, (None, None)),
        (True, None, (None, None)),
    ],
)
def test_page_and_card_draw_the_same_ratios(ratio: Any, interval: Any, expected: Any) -> None:
    row = {**TEXTS[0], "perplexity_ratio": ratio, "perplexity_ratio_interval": interval}
    damaged = ValidateFacts.read(facts(row) | {"kl_percentiles": {"max": 1.0}})
    assert text_ratios([TextFacts.read(row)]) == [("evaluation.jsonl", *expected)]
    assert card_plots.has_card_plots(damaged.updated(kl_percentiles={})) is (
        expected[0] is not None
    )
    (forest,) = [
        drawing.svg
        for drawing in validation_plots.validation_drawings(sample(facts=damaged))
        if "ratio by text" in drawing.title
    ]
    assert "evaluation.jsonl" in forest


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number_format.format_bytes(999), "999 B"),
        (number_format.format_bytes(999_600), "1 MB"),
        (number_format.format_bytes(130.4e9), "130 GB"),
        (number_format.format_release_bytes(130_449_000_000), "130.4 GB"),
        (number_format.format_release_bytes(999_960_000), "1,000.0 MB"),
        (number_format.format_release_bytes(None), "not recorded"),
        (number_format.format_count(10**400), f"{10**400:,}"),
        (number_format.format_count(-1234.4, sign=True), "-1,234"),
        (number_format.format_digits(0.020), "0.02"),
        (number_format.format_tick(0.01), "0.01"),
        (number_format.format_tick(1e-5), "1e-5"),
        (number_format.format_percent(0.3054, 1), "30.5 %"),
        (number_format.format_points(None), "–"),
        (number_format.format_points_interval([-0.01, 0.02], sign=True), "-1.00 to +2.00"),
        (number_format.format_limit(0.95, "min"), "at least 0.95"),
        (number_format.format_gate_interval([0.0123456, 1.0]), "0.012346 to 1"),
        (number_format.format_quoted(1.0234567), "1.02346"),
        (number_format.format_quoted(True), "yes"),
        (number_format.format_quoted_interval([1000, 1.5]), "1,000 to 1.5"),
        (number_format.format_quoted_interval("ab"), "not recorded"),
        (number_format.format_quoted_percent(0.5, sign=True), "+50.00 %"),
        (number_format.format_quoted_percent(None), "not recorded"),
        (number_format.format_quoted_percent_interval((-0.02, 0.0)), "-2.00 % to +0.00 %"),
        (number_format.format_significant(0.0), "0.000"),
        (number_format.format_significant(12345.6), "12,346"),
        (number_format.format_significant(3.2e-7), "3.200e-07"),
        (number_format.format_fixed(3e-6, 4), "3.0e-06"),
        (number_format.format_fixed(1e300, 4), "1.0e+300"),
        (number_format.format_estimate("kl_mean", 0.0121, None)[0], "0.01210 nats"),
        (number_format.format_estimate("non_finite", 0.0, None)[0], "0"),
        (number_format.format_estimate("non_finite", 1234567.0, None)[0], "1,234,567"),
        (number_format.format_estimate("tail_kl", 3.25, (3.0, 3.5))[1], "3.00 – 3.50"),
        (sentences.quantization_phrase(
            ModelFacts.read({"bits": 4, "group_size": -1, "sym": False})),
         "4 bits, one group per row, asymmetric"),
        (axis_label("a" * 20 + "-end.jsonl"), "aaaaaaaaaa…a-end.jsonl"),
        (axis_label("bell\x07"), "bell\ufffd"),
    ],
)  # fmt: skip
def test_how_things_are_written(shown: str, expected: str) -> None:
    assert shown.replace("\u00a0", " ") == expected
