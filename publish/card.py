"""The model card, written from nothing but the artifact's config and the stages' reports."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from camelpress.core.checkpoint import Checkpoint
from camelpress.core.dynamic import settings_of
from camelpress.core.json import read_json
from camelpress.core.prompt import CHAT_TEMPLATE
from camelpress.core.report import Report, Verdict
from camelpress.publish import tables
from camelpress.publish.license import Profile
from camelpress.publish.markdown import Ready, inert
from camelpress.publish.settings import Publish

CARD = "README.md"
CLAIMS = "camelpress"  # the key of the front matter that `verify` compares with the files
CLAIMED = ("bits", "group_size", "sym", "desc_act")


@dataclass(frozen=True)
class Facts:
    """All that a card may quote."""

    name: str
    checkpoint: Checkpoint
    validation: Report
    quantize: Report | None
    recover: Report | None
    settings: Publish
    profile: Profile
    licenses: Sequence[str]

    @property
    def attribution(self) -> str:
        """What the licence wants said with the weights, in one line."""
        return " ".join(self.profile.notice.format(name=self.name).split())


def claims(quantization: Any, validation: Report) -> dict[str, Any]:
    """What the front matter says of the files, so that a machine can check it."""
    verdict = validation.verdict or Verdict.ERROR
    return {key: tables.dig(quantization, key) for key in CLAIMED} | {
        "candidate": validation.inputs.get("candidate"),
        "verdict": verdict.value,
    }


def front_matter(facts: Facts) -> str:
    """The hub's metadata as YAML between two lines of dashes."""
    config = facts.checkpoint.config
    quantization = facts.checkpoint.quantization or {}
    base = facts.settings.diff_model or facts.settings.base_model
    content: dict[str, Any] = {}
    if base:
        content |= {"base_model": [base], "base_model_relation": "quantized"}
    content |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    content["license"] = facts.profile.hub
    if facts.profile.name:
        content |= {"license_name": facts.profile.name, "license_link": facts.licenses[0]}
    if facts.profile.restricted:
        content["extra_gated_prompt"] = f"{facts.profile.terms} See {facts.licenses[0]}."
    tags = ("gptq", f"{quantization.get('bits')}-bit", str(config.get("model_type")), "camelpress")
    content["tags"] = [*tags, *(["tulu"] if is_tulu(facts.checkpoint) else [])]
    content[CLAIMS] = claims(quantization, facts.validation)
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n"


def read_front_matter(text: str) -> Any:
    """What stands between the first two lines of dashes, as plain data; None without any.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    found = re.match(r"---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


def is_tulu(checkpoint: Checkpoint) -> bool:
    """Whether the tokenizer's chat template is the Tulu format of this project."""
    return chat_template(checkpoint) == CHAT_TEMPLATE


def chat_template(checkpoint: Checkpoint) -> str | None:
    """The chat template beside the weights, from either place that transformers reads."""
    alone = checkpoint.folder / "chat_template.jinja"
    if alone.is_file():
        return alone.read_text(encoding="utf-8", errors="replace")
    config = checkpoint.folder / "tokenizer_config.json"
    found = read_json(config).get("chat_template") if config.is_file() else None
    return found if isinstance(found, str) else json.dumps(found) if found else None


def parallel_degrees(checkpoint: Checkpoint) -> dict[int, bool]:
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
    return {degree: all(width % (step * degree) == 0 for step in steps) for degree in (2, 4, 8)}


def render(facts: Facts) -> str:
    """The whole card."""
    environment = SandboxedEnvironment(
        undefined=StrictUndefined,
        finalize=inert,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = files("camelpress.publish").joinpath("card.md.jinja").read_text(encoding="utf-8")
    reports = {
        "config": facts.checkpoint.quantization,
        "quantize": facts.quantize.model_dump(mode="json") if facts.quantize else None,
        "validate": facts.validation.model_dump(mode="json"),
    }
    inputs = tables.inputs(facts.validation, facts.quantize, facts.recover)
    return environment.from_string(source).render(
        facts=facts,
        front_matter=Ready(front_matter(facts)),
        bits=(facts.checkpoint.quantization or {}).get("bits"),
        quantization=tables.quantization_rows(reports, facts.checkpoint.nbytes),
        validation=list(tables.validation_rows(facts.validation.facts)),
        texts=tables.text_rows(facts.validation.facts),
        text_columns=[column for column, _ in tables.PER_TEXT],
        checks=tables.check_rows(facts.validation),
        protocol=tables.show(facts.validation.facts.get("protocol")),
        verdict=claims(None, facts.validation)["verdict"],
        inputs={"base": tables.NOT_RECORDED, "diff": tables.NOT_RECORDED} | inputs,
        recovered=facts.recover.facts if facts.recover else {},
        template=chat_template(facts.checkpoint),
        is_tulu=is_tulu(facts.checkpoint),
        positions=tables.show(facts.checkpoint.config.get("max_position_embeddings")),
        degrees=parallel_degrees(facts.checkpoint),
    )
