"""The model card, written from nothing but the artifact's config and the stages' reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from camelpress import __version__
from camelpress.core.errors import CheckpointProblem, OutputProblem
from camelpress.core.files.file_hashes import PROVENANCE_FILE, sha256_file
from camelpress.core.hub.model_location import CARD_FILE, HUB_URL, REPO_ID_PATTERN
from camelpress.core.progress import note
from camelpress.publish.card import card_tables
from camelpress.publish.card.card_markdown import (
    SafeMarkdown,
    escape_card_text,
    read_card_text,
    read_front_matter,
)
from camelpress.publish.card.caveats import needs_reason, reference_is_source
from camelpress.publish.card.citations import citations
from camelpress.publish.card.front_matter import CLAIMS, card_claims, render_front_matter
from camelpress.publish.card.release_quotes import ReleaseQuotes, read_release_facts
from camelpress.publish.card.snippets import usage_snippets
from camelpress.publish.release import model_files
from camelpress.reporting import quoted_values
from camelpress.reporting.plots import card_plots
from camelpress.reporting.stage_report import Report, Stopwatch, Verdict
from camelpress.reporting.tables import benchmark_tables

CARD_TEMPLATE = "card.md.jinja"


def render_card(facts: ReleaseQuotes) -> str:
    """The whole card.

    Raises:
        OutputProblem: the template does what no card may.
    """
    environment = SandboxedEnvironment(
        undefined=StrictUndefined,
        finalize=escape_card_text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = files("camelpress.publish.card").joinpath(CARD_TEMPLATE).read_text(encoding="utf-8")
    try:
        return environment.from_string(source).render(_template_context(facts))
    except (TemplateError, OverflowError) as error:  # OverflowError: a range that never ends
        raise OutputProblem(
            f"the template of cards, {CARD_TEMPLATE}, does what no card may "
            f"({type(error).__name__})",
            next_step="install camelpress again; somebody changed that file",
        ) from error


def _template_context(facts: ReleaseQuotes) -> dict[str, Any]:
    """What the template quotes."""
    reports = {
        "config": facts.quantization,
        "quantize": facts.quantize.model_dump(mode="json") if facts.quantize else None,
        "validate": facts.validation.model_dump(mode="json"),
        "publish": facts.settings.model_dump(mode="json"),
    }
    inputs = card_tables.input_hashes(facts.validation, facts.quantize, facts.recover)
    found = facts.validation.facts
    return {
        "facts": facts,
        "ready": SafeMarkdown,
        "front_matter": SafeMarkdown(render_front_matter(facts)),
        "bits": facts.quantization.get("bits"),
        "origins": [
            (label, *origin)
            for label, which in (("raw model", "base"), ("tuned model", "diff"))
            if (origin := facts.source_model(which))
        ],
        "variants": [_variant_link(facts, name) for name in facts.variants],
        "snippets": usage_snippets(facts),
        "sizes": card_tables.size_rows(facts.config, facts.shape),
        "degrees": degrees if isinstance(degrees := facts.shape.get("degrees"), Mapping) else {},
        "quantization": card_tables.quantization_rows(reports),
        "validation": list(card_tables.validation_rows(found)),
        "texts": card_tables.card_text_rows(found),
        "text_columns": card_tables.card_text_columns(found),
        "checks": card_tables.card_check_rows(facts.validation),
        "tasks": benchmark_tables.card_benchmark_rows(found),
        "missing": benchmark_tables.skipped_benchmarks(found),
        "is_of_source": reference_is_source(facts.validation, facts.quantize),
        "needs_reason": needs_reason(facts.validation),
        "lacking": benchmark_tables.benchmarks_outside_mean(found),
        "plot": f"{model_files.VALIDATION_FOLDER}/{card_plots.PLOTS_FILE}"
        if card_plots.has_card_plots(found)
        else None,
        "protocol": quoted_values.format_quoted(found.get("protocol")),
        "verdict": card_claims(None, facts.validation)["verdict"],
        "inputs": {"base": quoted_values.NOT_RECORDED, "diff": quoted_values.NOT_RECORDED} | inputs,
        "recovered": facts.recover.facts if facts.recover else {},
        "positions": quoted_values.format_quoted(facts.config.get("max_position_embeddings")),
        "citations": citations(facts),
    }


def _variant_link(facts: ReleaseQuotes, variant: str) -> str:
    """A branch of the same repository; whoever may write there names branches."""
    if facts.hub_home is None or not REPO_ID_PATTERN.fullmatch(f"{facts.hub_home[0]}@{variant}"):
        return variant
    return SafeMarkdown(f"[`{variant}`]({HUB_URL}/{facts.hub_home[0]}/tree/{variant})")


def check_card(folder: Path) -> Report:
    """Hold the card of a release against its config, reports and provenance, line by line.

    Returns:
        FAIL with what the card says otherwise under `problems`, or PASS.
    Raises:
        CheckpointProblem: the card, or a file that it is made from, is missing or damaged.
    """
    watch = Stopwatch()
    text = read_release_card(folder)
    facts = read_release_facts(folder)
    problems = list(card_contradictions(text, facts))
    made_by = Report.read_report(folder / PROVENANCE_FILE).version
    if made_by != __version__:
        note(f"made by camelpress {made_by}: only what the card claims of the files is compared")
    elif not problems:
        problems = list(_first_difference(text, render_card(facts)))
    return Report(
        stage="card",
        inputs={CARD_FILE: sha256_file(folder / CARD_FILE)},
        settings={},
        facts={"problems": problems},
        verdict=Verdict.FAIL if problems else Verdict.PASS,
        cost=watch.cost(),
    )


def read_release_card(folder: Path) -> str:
    """The card of a release.

    Raises:
        CheckpointProblem: it is not there, or not text.
    """
    return read_card_text(folder / CARD_FILE)


def card_contradictions(text: str, facts: ReleaseQuotes) -> Iterator[str]:
    """What a card's front matter claims of the files, and they do not say."""
    try:
        claimed = quoted_values.value_at(read_front_matter(text, source=CARD_FILE), CLAIMS)
    except CheckpointProblem as error:
        yield error.message
        return
    for key, value in card_claims(facts.quantization, facts.validation).items():
        if (said := quoted_values.value_at(claimed, key)) != value:
            yield f"{CARD_FILE} says {key} {said!r}, the files say {value!r}"


def _first_difference(text: str, expected: str) -> Iterator[str]:
    pairs = zip_longest(text.split("\n"), expected.split("\n"))
    for number, (line, wanted) in enumerate(pairs, start=1):
        if line != wanted:
            yield f"{CARD_FILE} line {number} is {line!r}, the files say {wanted!r}"
            return
