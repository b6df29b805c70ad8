"""Writes and checks the model card, from the config and the stage reports only."""

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
from camelpress.core.file_names import CARD_FILE
from camelpress.core.files.file_hashes import PROVENANCE_FILE, sha256_file
from camelpress.core.hub.repo_id import HUB_URL, REPO_ID_PATTERN
from camelpress.core.progress import note
from camelpress.core.runtime.resource_usage import Stopwatch
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
from camelpress.publish.card.quantization_table import QuantizationSources, quantization_rows
from camelpress.publish.card.release_quotes import ReleaseQuotes, read_release_facts
from camelpress.publish.card.snippets import usage_snippets
from camelpress.publish.release import model_files
from camelpress.reporting.facts.release_facts import ProblemFacts
from camelpress.reporting.number_format import NOT_RECORDED, format_quoted
from camelpress.reporting.plots import card_plots
from camelpress.reporting.report_classes import ProblemReport, read_report
from camelpress.reporting.tables import benchmark_tables
from camelpress.reporting.verdict import Verdict

CARD_TEMPLATE = "card.md.jinja"


def render_card(facts: ReleaseQuotes) -> str:
    """Renders the whole card.

    Raises:
        OutputProblem: the template breaks the sandbox rules or cannot be rendered.
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
    except (TemplateError, OverflowError) as error:  # OverflowError: an endless range
        raise OutputProblem(
            f"the card template {CARD_TEMPLATE} cannot be rendered ({type(error).__name__})",
            next_step="install camelpress again; somebody changed that file",
        ) from error


def _template_context(facts: ReleaseQuotes) -> dict[str, Any]:
    """Builds the variables of the template."""
    sources = QuantizationSources(
        config=facts.quantization,
        quantize=facts.quantize,
        validation=facts.validation,
        calibration_license=facts.settings.calibration_license,
    )
    inputs = card_tables.input_hashes(facts.validation, facts.quantize, facts.recover)
    validation_facts = facts.validation.facts
    return {
        "facts": facts,
        "ready": SafeMarkdown,
        "front_matter": SafeMarkdown(render_front_matter(facts)),
        "bits": facts.quantization.get("bits"),
        "origins": [
            (label, *origin)
            for label, role in (("raw model", "base"), ("tuned model", "diff"))
            if (origin := facts.source_model(role))
        ],
        "variants": [_variant_link(facts, name) for name in facts.variants],
        "snippets": usage_snippets(facts),
        "sizes": card_tables.size_rows(facts.config, facts.shape),
        "degrees": degrees if isinstance(degrees := facts.shape.get("degrees"), Mapping) else {},
        "quantization": quantization_rows(sources),
        "validation": list(card_tables.validation_rows(validation_facts)),
        "texts": card_tables.card_text_rows(validation_facts),
        "text_columns": card_tables.card_text_columns(validation_facts),
        "checks": card_tables.card_check_rows(facts.validation),
        "tasks": benchmark_tables.card_benchmark_rows(validation_facts),
        "missing": benchmark_tables.skipped_benchmarks(validation_facts),
        "is_of_source": reference_is_source(facts.validation, facts.quantize),
        "needs_reason": needs_reason(facts.validation),
        "lacking": benchmark_tables.benchmarks_outside_mean(validation_facts),
        "plot": f"{model_files.VALIDATION_FOLDER}/{card_plots.PLOTS_FILE}"
        if card_plots.has_card_plots(validation_facts)
        else None,
        "protocol": format_quoted(validation_facts.protocol),
        "verdict": card_claims(facts.quantization, facts.validation)["verdict"],
        "inputs": {"base": NOT_RECORDED, "diff": NOT_RECORDED} | inputs,
        "recovered_dtype": facts.recover.facts.dtype if facts.recover else None,
        "positions": format_quoted(facts.config.get("max_position_embeddings")),
        "citations": citations(facts),
    }


def _variant_link(facts: ReleaseQuotes, variant: str) -> str:
    """Links a variant branch of the same repository; an invalid name stays plain text."""
    if facts.hub_home is None or not REPO_ID_PATTERN.fullmatch(f"{facts.hub_home[0]}@{variant}"):
        return variant
    return SafeMarkdown(f"[`{variant}`]({HUB_URL}/{facts.hub_home[0]}/tree/{variant})")


def check_card(folder: Path) -> ProblemReport:
    """Compares the card of a release with its config, reports and provenance, line by line.

    Returns:
        FAIL with the contradictions under `problems`, or PASS.
    Raises:
        CheckpointProblem: the card or a source file is missing or damaged.
    """
    watch = Stopwatch()
    text = read_release_card(folder)
    facts = read_release_facts(folder)
    problems = list(card_contradictions(text, facts))
    version = read_report(folder / PROVENANCE_FILE).version
    if version != __version__:
        note(f"made by camelpress {version}: only the claims of the front matter are compared")
    elif not problems:
        problems = list(_first_difference(text, render_card(facts)))
    return ProblemReport(
        stage="card",
        inputs={CARD_FILE: sha256_file(folder / CARD_FILE)},
        settings={},
        facts=ProblemFacts.build({"problems": problems}),
        verdict=Verdict.FAIL if problems else Verdict.PASS,
        cost=watch.cost(),
    )


def read_release_card(folder: Path) -> str:
    """Reads the card of a release.

    Raises:
        CheckpointProblem: the card is missing or not UTF-8.
    """
    return read_card_text(folder / CARD_FILE)


def card_contradictions(text: str, facts: ReleaseQuotes) -> Iterator[str]:
    """Yields claims of the front matter that contradict the files."""
    try:
        claims = read_front_matter(text, source=CARD_FILE).get(CLAIMS)
    except CheckpointProblem as error:
        yield error.message
        return
    for key, value in card_claims(facts.quantization, facts.validation).items():
        claim = claims.get(key) if isinstance(claims, Mapping) else None
        if claim != value:
            yield f"{CARD_FILE} says {key} {claim!r}, the files say {value!r}"


def _first_difference(text: str, expected: str) -> Iterator[str]:
    pairs = zip_longest(text.split("\n"), expected.split("\n"))
    for number, (line, expected_line) in enumerate(pairs, start=1):
        if line != expected_line:
            yield f"{CARD_FILE} line {number} is {line!r}, the files say {expected_line!r}"
            return
