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
from camelpress.core.files.file_hashes import PROVENANCE, sha256_file
from camelpress.core.hub.model_location import CARD, HUB_ID, PAGES
from camelpress.core.progress import note
from camelpress.publish.card import card_tables
from camelpress.publish.card.card_markdown import Ready, inert, read_card_text, read_front_matter
from camelpress.publish.card.caveats import is_of_source, needs_reason
from camelpress.publish.card.citations import citations
from camelpress.publish.card.front_matter import CLAIMS, claims, front_matter
from camelpress.publish.card.release_quotes import Facts, of_release
from camelpress.publish.card.snippets import snippets
from camelpress.publish.release import model_files
from camelpress.reporting import quoted_values
from camelpress.reporting.plots import card_plots
from camelpress.reporting.stage_report import Report, Stopwatch, Verdict
from camelpress.reporting.tables import benchmark_tables

TEMPLATE = "card.md.jinja"


def render(facts: Facts) -> str:
    """The whole card.

    Raises:
        OutputProblem: the template does what no card may.
    """
    environment = SandboxedEnvironment(
        undefined=StrictUndefined,
        finalize=inert,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = files("camelpress.publish.card").joinpath(TEMPLATE).read_text(encoding="utf-8")
    try:
        return environment.from_string(source).render(_values(facts))
    except (TemplateError, OverflowError) as error:  # OverflowError: a range that never ends
        raise OutputProblem(
            f"the template of cards, {TEMPLATE}, does what no card may ({type(error).__name__})",
            next_step="install camelpress again; somebody changed that file",
        ) from error


def _values(facts: Facts) -> dict[str, Any]:
    """What the template quotes."""
    reports = {
        "config": facts.quantization,
        "quantize": facts.quantize.model_dump(mode="json") if facts.quantize else None,
        "validate": facts.validation.model_dump(mode="json"),
        "publish": facts.settings.model_dump(mode="json"),
    }
    inputs = card_tables.inputs(facts.validation, facts.quantize, facts.recover)
    found = facts.validation.facts
    return {
        "facts": facts,
        "ready": Ready,
        "front_matter": Ready(front_matter(facts)),
        "bits": facts.quantization.get("bits"),
        "origins": [
            (label, *origin)
            for label, which in (("raw model", "base"), ("tuned model", "diff"))
            if (origin := facts.origin(which))
        ],
        "variants": [_link(facts, name) for name in facts.variants],
        "snippets": snippets(facts),
        "sizes": card_tables.size_rows(facts.config, facts.shape),
        "degrees": degrees if isinstance(degrees := facts.shape.get("degrees"), Mapping) else {},
        "quantization": card_tables.quantization_rows(reports),
        "validation": list(card_tables.validation_rows(found)),
        "texts": card_tables.text_rows(found),
        "text_columns": card_tables.text_columns(found),
        "checks": card_tables.check_rows(facts.validation),
        "tasks": benchmark_tables.rows(found),
        "missing": benchmark_tables.missing(found),
        "is_of_source": is_of_source(facts.validation, facts.quantize),
        "needs_reason": needs_reason(facts.validation),
        "lacking": benchmark_tables.lacking(found),
        "plot": f"{model_files.VALIDATION}/{card_plots.PLOTS}"
        if card_plots.has_any(found)
        else None,
        "protocol": quoted_values.show(found.get("protocol")),
        "verdict": claims(None, facts.validation)["verdict"],
        "inputs": {"base": quoted_values.NOT_RECORDED, "diff": quoted_values.NOT_RECORDED} | inputs,
        "recovered": facts.recover.facts if facts.recover else {},
        "positions": quoted_values.show(facts.config.get("max_position_embeddings")),
        "citations": citations(facts),
    }


def _link(facts: Facts, variant: str) -> str:
    """A branch of the same repository; whoever may write there names branches."""
    if facts.home is None or not HUB_ID.fullmatch(f"{facts.home[0]}@{variant}"):
        return variant
    return Ready(f"[`{variant}`]({PAGES}/{facts.home[0]}/tree/{variant})")


def check(folder: Path) -> Report:
    """Hold the card of a release against its config, reports and provenance, line by line.

    Returns:
        FAIL with what the card says otherwise under `problems`, or PASS.
    Raises:
        CheckpointProblem: the card, or a file that it is made from, is missing or damaged.
    """
    watch = Stopwatch()
    text = read(folder)
    facts = of_release(folder)
    problems = list(contradictions(text, facts))
    made_by = Report.read(folder / PROVENANCE).version
    if made_by != __version__:
        note(f"made by camelpress {made_by}: only what the card claims of the files is compared")
    elif not problems:
        problems = list(_other_lines(text, render(facts)))
    return Report(
        stage="card",
        inputs={CARD: sha256_file(folder / CARD)},
        settings={},
        facts={"problems": problems},
        verdict=Verdict.FAIL if problems else Verdict.PASS,
        cost=watch.cost(),
    )


def read(folder: Path) -> str:
    """The card of a release.

    Raises:
        CheckpointProblem: it is not there, or not text.
    """
    return read_card_text(folder / CARD)


def contradictions(text: str, facts: Facts) -> Iterator[str]:
    """What a card's front matter claims of the files, and they do not say."""
    try:
        claimed = quoted_values.dig(read_front_matter(text, source=CARD), CLAIMS)
    except CheckpointProblem as error:
        yield error.what
        return
    for key, value in claims(facts.quantization, facts.validation).items():
        if (said := quoted_values.dig(claimed, key)) != value:
            yield f"{CARD} says {key} {said!r}, the files say {value!r}"


def _other_lines(text: str, expected: str) -> Iterator[str]:
    pairs = zip_longest(text.split("\n"), expected.split("\n"))
    for number, (line, wanted) in enumerate(pairs, start=1):
        if line != wanted:
            yield f"{CARD} line {number} is {line!r}, the files say {wanted!r}"
            return
