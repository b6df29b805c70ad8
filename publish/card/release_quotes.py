"""Gathers the facts on a model card from a model and its reports, or from its release."""

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
from camelpress.core.hub.repo_id import REPO_ID_PATTERN
from camelpress.core.packing.dynamic_config import dynamic_settings
from camelpress.core.settings import Settings
from camelpress.core.text.tulu_format import TULU_CHAT_TEMPLATE
from camelpress.publish.card.caveats import release_caveats
from camelpress.publish.license.license_profiles import LicenseProfile, license_profile
from camelpress.publish.release import model_files
from camelpress.publish.release.rebuild_recipe import portable_model_name
from camelpress.publish.settings import PublishSettings
from camelpress.reporting.lineage import describe_foreign_report, matches_weights
from camelpress.reporting.model_precision import with_precision
from camelpress.reporting.report_classes import (
    PublishReport,
    QuantizeReport,
    RecoverReport,
    ValidationReport,
)

TULU_PROMPT, OTHER_PROMPT, NO_PROMPT = "tulu", "other", "none"  # prompt formats
TENSOR_PARALLEL_SIZES = (2, 4, 8)  # devices
ROW_PARALLEL_SCALES = (".mlp.down_proj.scales", ".self_attn.o_proj.scales")  # split by input
SOURCE_STAGES = ("recover", "quantize")  # stages with a report in the model folder
QUANTIZED = f"quantize{REPORT_SUFFIX}"


class CardFields(Settings):
    """Facts of a card without another home in the release; the provenance stores them."""

    name: str
    shape: Mapping[str, Any] = {}
    variants: Sequence[str] = ()
    gate: Mapping[str, Any] = {}
    cards: Mapping[str, str] = {}
    licenses: Sequence[str] = ()


@dataclass(frozen=True)
class ReleaseQuotes:
    """All facts on the card of a release.

    Args:
        name: title of the release.
        config: config of the model.
        shape: result of `release_shape`.
        validation: validation report in the release.
        quantize, recover: stage reports in the model folder, if present.
        settings: settings of the publish stage, with the destination.
        variants: other branches at the destination.
        gate: front matter of the access gate.
        cards: mapping of source models to the SHA-256 of their cards.
        licenses: names of the licence files.
    """

    name: str
    config: Mapping[str, Any]
    shape: Mapping[str, Any]
    validation: ValidationReport
    quantize: QuantizeReport | None
    recover: RecoverReport | None
    settings: PublishSettings
    variants: Sequence[str]
    gate: Mapping[str, Any]
    cards: Mapping[str, str]
    licenses: Sequence[str]

    @property
    def profile(self) -> LicenseProfile:
        """Licence profile of the release."""
        return license_profile(self.settings.license)

    @property
    def reference(self) -> str:
        """Reference model with its precision, such as "16-bit reference"."""
        return with_precision(self.validation.facts.reference, "reference")

    @property
    def caveats(self) -> list[str]:
        """Sentences at the top of the card."""
        return release_caveats(self.validation, self.quantize)

    @property
    def quantization(self) -> Mapping[str, Any]:
        """Quantization config of the model."""
        config = self.config.get("quantization_config")
        return config if isinstance(config, Mapping) else {}

    @property
    def attribution(self) -> str:
        """Attribution required by the licence, on one line."""
        return " ".join(self.profile.notice.format(name=self.name).split())

    @property
    def hub_home(self) -> tuple[str, str] | None:
        """Repository and branch of a release for the hub; None for another destination."""
        match = REPO_ID_PATTERN.fullmatch(self.settings.to or "")
        return (match["repository"], match["revision"]) if match else None

    def source_model(self, role: str) -> tuple[str, str | None] | None:
        """Returns hub repository and commit of the raw (`base`) or tuned model (`diff`)."""
        source = (self.recover.facts.sources or {}).get(role) if self.recover else None
        origin = str(source.origin if source else None)
        match = REPO_ID_PATTERN.fullmatch(portable_model_name(origin))
        hub_source = (match["repository"], match["revision"]) if match and match["prefix"] else None
        repository = {"base": self.settings.base_model, "diff": self.settings.diff_model}[role]
        if repository is None or (hub_source and hub_source[0] == repository):
            return hub_source
        return repository, None

    def card_fields(self) -> dict[str, Any]:
        """Returns the facts that `read_release_facts` reads from the provenance."""
        fields = CardFields(**{key: getattr(self, key) for key in CardFields.model_fields})
        return fields.model_dump(mode="json")


def read_release_facts(folder: Path) -> ReleaseQuotes:
    """Reads the facts of a card from its release.

    Raises:
        CheckpointProblem: a file of the release is missing or damaged, or the quantization report
            belongs to other weights.
        RecipeProblem: the provenance comes from an incompatible version.
    """
    path = folder / PROVENANCE_FILE
    provenance = PublishReport.read(path)
    fields = {
        key: provenance.facts.record[key]
        for key in CardFields.model_fields
        if key in provenance.facts.record
    }
    quantize = model_files.read_stage_report(folder / QUANTIZED, QuantizeReport)
    if quantize is not None and not matches_weights(quantize, folder, provenance.outputs):
        raise CheckpointProblem(
            describe_foreign_report(folder / QUANTIZED), next_step="publish it again"
        )
    return ReleaseQuotes(
        config=read_json(folder / "config.json"),
        validation=ValidationReport.read(folder / model_files.VALIDATION_FOLDER / "report.json"),
        quantize=quantize,
        recover=model_files.read_stage_report(folder / "recover-report.json", RecoverReport),
        settings=PublishSettings.parse(provenance.settings, source=str(path)),
        **dict(CardFields.parse(fields, source=str(path))),
    )


def release_shape(checkpoint: Checkpoint) -> dict[str, Any]:
    """Measures bytes of the weights, possible tensor parallelism and the prompt format."""
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
    """Reads the chat template from either of the two files that transformers supports."""
    template_path = checkpoint.folder / "chat_template.jinja"
    if template_path.is_file():
        return template_path.read_text(encoding="utf-8", errors="replace")
    config = checkpoint.folder / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    return template if isinstance(template, str) else json.dumps(template) if template else None


def _tensor_parallel_fit(checkpoint: Checkpoint) -> dict[int, bool]:
    """Maps device counts to True if attention heads and weight groups divide evenly."""
    quantization = checkpoint.quantization or {}
    split_scales = {
        name: info
        for name, info in checkpoint.tensors.items()
        if name.endswith(ROW_PARALLEL_SCALES)
    }
    if not split_scales:
        return {}
    counts = {
        info.shape[0]
        for name, info in split_scales.items()
        if _has_row_groups(quantization, name.removesuffix(".scales"))
    }
    heads = checkpoint.config.get("num_attention_heads")
    counts |= {heads} if isinstance(heads, int) else set()
    return {
        degree: all(count % degree == 0 for count in counts) for degree in TENSOR_PARALLEL_SIZES
    }


def _has_row_groups(quantization: Mapping[str, Any], layer: str) -> bool:
    """Returns True if a layer has several groups per row."""
    size = (dynamic_settings(quantization, layer) or quantization).get("group_size")
    return isinstance(size, int) and size > 0
