"""All that a card may quote, gathered from a model and its reports, or again from its release."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_hashes import PROVENANCE_FILE, REPORT_SUFFIX
from camelpress.core.files.json_files import read_json
from camelpress.core.hub.model_location import REPO_ID_PATTERN
from camelpress.core.packing.dynamic_config import dynamic_settings
from camelpress.core.settings import Settings
from camelpress.core.text.tulu_format import TULU_CHAT_TEMPLATE
from camelpress.publish.card.caveats import release_caveats
from camelpress.publish.license.license_profiles import LicenseProfile, license_profile
from camelpress.publish.release import model_files
from camelpress.publish.release.rebuild_recipe import portable_model_name
from camelpress.publish.settings import Publish
from camelpress.reporting.lineage import describes, foreign_report
from camelpress.reporting.model_precision import with_precision
from camelpress.reporting.quoted_values import value_at
from camelpress.reporting.stage_report import Report

TULU_PROMPT, OTHER_PROMPT, NO_PROMPT = "tulu", "other", "none"  # kinds of prompt
TENSOR_PARALLEL_SIZES = (2, 4, 8)
ROW_PARALLEL_SCALES = (
    ".mlp.down_proj.scales",
    ".self_attn.o_proj.scales",
)  # by input, where groups lie
SOURCE_STAGES = ("recover", "quantize")  # before, whose reports a model carries
QUANTIZED = f"quantize{REPORT_SUFFIX}"


class CardFields(Settings):
    """What a card quotes and no other file of a release says; it stands in the provenance."""

    name: str
    shape: Mapping[str, Any] = {}
    variants: Sequence[str] = ()
    gate: Mapping[str, Any] = {}
    cards: Mapping[str, str] = {}
    licenses: Sequence[str] = ()


@dataclass(frozen=True)
class ReleaseQuotes:
    """What a release says of itself.

    Args:
        name: its title.
        config: of the model.
        shape: what `shape` found in its files.
        validation: the gate's report, as the release ships it.
        quantize, recover: those of the stages, where the model carries them.
        settings: of this stage, with the place that the release is for.
        variants: other branches of that place.
        gate: front matter that asks something of readers.
        cards: hashes of the cards that it was taken from.
        licenses: names of the licence files.
    """

    name: str
    config: Mapping[str, Any]
    shape: Mapping[str, Any]
    validation: Report
    quantize: Report | None
    recover: Report | None
    settings: Publish
    variants: Sequence[str]
    gate: Mapping[str, Any]
    cards: Mapping[str, str]
    licenses: Sequence[str]

    @property
    def profile(self) -> LicenseProfile:
        """The row of the licence."""
        return license_profile(self.settings.license)

    @property
    def reference(self) -> str:
        """The model of the comparison by its precision, such as "16-bit reference"."""
        return with_precision(self.validation.facts.get("reference"), "reference")

    @property
    def caveats(self) -> list[str]:
        """What must be said before all else."""
        return release_caveats(self.validation, self.quantize)

    @property
    def quantization(self) -> Mapping[str, Any]:
        """How the weights are packed."""
        found = self.config.get("quantization_config")
        return found if isinstance(found, Mapping) else {}

    @property
    def attribution(self) -> str:
        """What the licence wants said with the weights, in one line."""
        return " ".join(self.profile.notice.format(name=self.name).split())

    @property
    def hub_home(self) -> tuple[str, str] | None:
        """Repository and branch on the hub, if the release is for there."""
        named = REPO_ID_PATTERN.fullmatch(self.settings.to or "")
        return (named["repository"], named["revision"]) if named else None

    def source_model(self, which: str) -> tuple[str, str | None] | None:
        """Repository of the raw model (`base`) or tuned one (`diff`), and its commit if known."""
        told = str(
            value_at(self.recover.facts if self.recover else None, f"sources.{which}.origin")
        )
        named = REPO_ID_PATTERN.fullmatch(portable_model_name(told))
        found = (named["repository"], named["revision"]) if named and named["prefix"] else None
        given = {"base": self.settings.base_model, "diff": self.settings.diff_model}[which]
        return found if given is None or (found and found[0] == given) else (given, None)

    def card_fields(self) -> dict[str, Any]:
        """What has to stand in the provenance for `of_release` to find all this again."""
        told = CardFields(**{key: getattr(self, key) for key in CardFields.model_fields})
        return told.model_dump(mode="json")


def read_release_facts(folder: Path) -> ReleaseQuotes:
    """The facts that the card of a release was written from.

    Raises:
        CheckpointProblem: a file of the release is missing or damaged, or the report of `quantize`
            is of other weights.
        RecipeProblem: its provenance is not of this version.
    """
    path = folder / PROVENANCE_FILE
    provenance = Report.read_report(path)
    known = {
        key: provenance.facts[key] for key in CardFields.model_fields if key in provenance.facts
    }
    quantize = model_files.read_stage_report(folder / QUANTIZED)
    if quantize is not None and not describes(quantize, folder, provenance.outputs):
        raise CheckpointProblem(foreign_report(folder / QUANTIZED), next_step="publish it again")
    return ReleaseQuotes(
        config=read_json(folder / "config.json"),
        validation=Report.read_report(folder / model_files.VALIDATION_FOLDER / "report.json"),
        quantize=quantize,
        recover=model_files.read_stage_report(folder / "recover-report.json"),
        settings=Publish.parse(provenance.settings, source=str(path)),
        **dict(CardFields.parse(known, source=str(path))),
    )


def release_shape(checkpoint: Checkpoint) -> dict[str, Any]:
    """What only the files tell: bytes of weights, devices they can be split over, the prompt."""
    template = _chat_template(checkpoint)
    return {
        "bytes": checkpoint.nbytes,
        "degrees": {str(size): fits for size, fits in _tensor_parallel_fit(checkpoint).items()},
        "prompt": TULU_PROMPT
        if template == TULU_CHAT_TEMPLATE
        else OTHER_PROMPT
        if template
        else NO_PROMPT,
    }


def _chat_template(checkpoint: Checkpoint) -> str | None:
    """The chat template beside the weights, from either place that transformers reads."""
    alone = checkpoint.folder / "chat_template.jinja"
    if alone.is_file():
        return alone.read_text(encoding="utf-8", errors="replace")
    config = checkpoint.folder / "tokenizer_config.json"
    found = read_json(config).get("chat_template") if config.is_file() else None
    return found if isinstance(found, str) else json.dumps(found) if found else None


def _tensor_parallel_fit(checkpoint: Checkpoint) -> dict[int, bool]:
    """Whether heads, and the groups of layers whose input is split, can be dealt out to devices."""
    packing = checkpoint.quantization or {}
    split = {
        name: info
        for name, info in checkpoint.tensors.items()
        if name.endswith(ROW_PARALLEL_SCALES)
    }
    if not split:
        return {}
    counts = {
        info.shape[0]
        for name, info in split.items()
        if _has_row_groups(packing, name.removesuffix(".scales"))
    }
    heads = checkpoint.config.get("num_attention_heads")
    counts |= {heads} if isinstance(heads, int) else set()
    return {
        degree: all(count % degree == 0 for count in counts) for degree in TENSOR_PARALLEL_SIZES
    }


def _has_row_groups(packing: Mapping[str, Any], layer: str) -> bool:
    """Whether a layer has scales for parts of a row, and not for all of it."""
    size = (dynamic_settings(packing, layer) or packing).get("group_size")
    return isinstance(size, int) and size > 0
