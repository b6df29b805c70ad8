"""All that a card may quote, gathered from a model and its reports, or again from its release."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camelpress.core.checkpoint import Checkpoint
from camelpress.core.dynamic import settings_of
from camelpress.core.errors import CheckpointProblem
from camelpress.core.json import read_json
from camelpress.core.origin import HUB_ID
from camelpress.core.prompt import CHAT_TEMPLATE
from camelpress.core.provenance import PROVENANCE
from camelpress.core.report import Report
from camelpress.publish import release
from camelpress.publish.license import Profile, profile
from camelpress.publish.rebuilding import model_name
from camelpress.publish.settings import Publish
from camelpress.publish.tables import dig

TULU, OTHER, NONE = "tulu", "other", "none"  # kinds of prompt
DEGREES = (2, 4, 8)
STAGES = ("recover", "quantize")  # before, whose reports a model carries


@dataclass(frozen=True)
class Facts:
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
    def profile(self) -> Profile:
        """The row of the licence."""
        return profile(self.settings.license)

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
    def home(self) -> tuple[str, str] | None:
        """Repository and branch on the hub, if the release is for there."""
        named = HUB_ID.fullmatch(self.settings.to or "")
        return (named["repository"], named["revision"]) if named else None

    def origin(self, which: str) -> tuple[str, str | None] | None:
        """Repository of the raw model (`base`) or tuned one (`diff`), and its commit if known."""
        told = str(dig(self.recover.facts if self.recover else None, f"sources.{which}.origin"))
        named = HUB_ID.fullmatch(model_name(told))
        found = (named["repository"], named["revision"]) if named and named["prefix"] else None
        given = {"base": self.settings.base_model, "diff": self.settings.diff_model}[which]
        return found if given is None or (found and found[0] == given) else (given, None)

    def told(self) -> dict[str, Any]:
        """What has to stand in the provenance for `of_release` to find all this again."""
        return {
            "name": self.name,
            "shape": dict(self.shape),
            "variants": list(self.variants),
            "gate": dict(self.gate),
            "cards": dict(self.cards),
            "licenses": list(self.licenses),
        }


def of_release(folder: Path) -> Facts:
    """The facts that the card of a release was written from.

    Raises:
        CheckpointProblem: a file of the release is missing or damaged.
        RecipeProblem: its settings are not of this version.
    """
    path = folder / PROVENANCE
    provenance = Report.read(path)
    told: dict[str, Any] = {"shape": {}, "variants": [], "gate": {}, "cards": {}, "licenses": []}
    for key, empty in told.items():
        told[key] = provenance.facts.get(key, empty)
        if not isinstance(told[key], type(empty)):
            raise CheckpointProblem(
                f"{path} has {key} in another form than publish writes",
                next_step="publish again, or download it again",
            )
    return Facts(
        name=str(provenance.facts.get("name")),
        config=read_json(folder / "config.json"),
        validation=Report.read(folder / release.VALIDATION / "report.json"),
        quantize=release.stage_report(folder / "quantize-report.json"),
        recover=release.stage_report(folder / "recover-report.json"),
        settings=Publish.parse(provenance.settings, source=str(path)),
        **told,
    )


def shape(checkpoint: Checkpoint) -> dict[str, Any]:
    """What only the files tell: bytes of weights, devices they can be split over, the prompt."""
    template = _chat_template(checkpoint)
    return {
        "bytes": checkpoint.nbytes,
        "degrees": {str(size): fits for size, fits in _degrees(checkpoint).items()},
        "prompt": TULU if template == CHAT_TEMPLATE else OTHER if template else NONE,
    }


def _chat_template(checkpoint: Checkpoint) -> str | None:
    """The chat template beside the weights, from either place that transformers reads."""
    alone = checkpoint.folder / "chat_template.jinja"
    if alone.is_file():
        return alone.read_text(encoding="utf-8", errors="replace")
    config = checkpoint.folder / "tokenizer_config.json"
    found = read_json(config).get("chat_template") if config.is_file() else None
    return found if isinstance(found, str) else json.dumps(found) if found else None


def _degrees(checkpoint: Checkpoint) -> dict[int, bool]:
    """Whether the groups of `down_proj` can be dealt out to 2, 4 and 8 devices."""
    width = checkpoint.config.get("intermediate_size")
    packing = checkpoint.quantization or {}
    sizes = {
        (settings_of(packing, name.removesuffix(".qweight")) or packing).get("group_size")
        for name in checkpoint.tensors
        if name.endswith(".mlp.down_proj.qweight")
    }
    steps = [size for size in sizes if isinstance(size, int) and size > 0]
    if not isinstance(width, int) or not sizes or len(steps) < len(sizes):
        return {}
    return {degree: all(width % (step * degree) == 0 for step in steps) for degree in DEGREES}
