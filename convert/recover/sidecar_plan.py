"""What belongs to the weights: config, tokenizer, generation config, licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from camelpress.convert.inputs.tensor_pairs import GROWING
from camelpress.convert.recover.diff_rules import Plan
from camelpress.convert.settings import Recover
from camelpress.convert.tokenizer import tokenizer_plan
from camelpress.convert.tokenizer.tokenizer_files import VOCABULARIES
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint, copy_companions, require_companions
from camelpress.core.checkpoint.portable_config import portable
from camelpress.core.files.json_files import read_json, write_json
from camelpress.core.hub.model_location import TEMPLATES

GENERATION = "generation_config.json"
# of base and diff; anything else is the diff's
LICENCES = ("license", "notice", "use_policy", "llama")


@dataclass(frozen=True)
class Belongings:
    """What stands beside the weights of an output, known before it is written."""

    configs: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Path]
    contents: Mapping[str, bytes]
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        require_companions(self.files)

    @property
    def names(self) -> list[str]:
        """The names of all its files."""
        return sorted({*self.files, *self.contents, *self.configs})

    def write(self, folder: Path) -> None:
        """Put it there."""
        copy_companions(self.files, folder)
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)
        for name, config in self.configs.items():
            write_json(folder / name, config)


def recovered(
    base: Checkpoint,
    diff: Checkpoint,
    chosen: Sequence[Plan],
    settings: Recover,
    dtype: torch.dtype,
) -> Belongings:
    """Those of a recovered model: a tokenizer that works, configs that agree with it.

    Raises:
        CheckpointProblem: tokenizer and embedding do not belong together.
    """
    embedding = _embedding(chosen)
    config = _config(diff, chosen, dtype)
    if llama.is_tied(diff.stated):  # two differences may differ where two sums are one matrix
        config[llama.TIED] = True
    tokens = tokenizer_plan.plan(
        [diff.folder, *_homes(base)],
        embedding.pair.shape[0],
        embedding.pair.base_shape[0],
        drop="drop" in (settings.extra_rows, embedding.extra),
        config=config,
        template=settings.chat_template,
    )
    there = diff.companions()
    configs = {"config.json": tokens.agreeing(config)}
    if tokens.files or GENERATION in there:
        own = read_json(there[GENERATION]) if GENERATION in there else None
        configs[GENERATION] = tokens.generation_config(own)
    made = {*tokens.files, *configs, *tokenizer_plan.KEPT}
    if settings.chat_template == "none":
        made |= {name for name in there if name.startswith(TEMPLATES)}
    licences = {
        name: path for name, path in base.companions().items() if name.lower().startswith(LICENCES)
    }
    files = {name: path for name, path in (licences | there).items() if name not in made}
    return Belongings(configs, files, tokens.files, {"tokenizer": tokens.facts})


def _homes(base: Checkpoint) -> list[Path]:
    """Where its tokenizer lies; Meta's is one folder above the weights."""
    there = base.companions()
    return [there[name].parent for name in VOCABULARIES if name in there]


def copied(source: Checkpoint, chosen: Sequence[Plan], dtype: torch.dtype) -> Belongings:
    """Those of one checkpoint, as they are."""
    return Belongings({"config.json": _config(source, chosen, dtype)}, source.companions(), {}, {})


def _config(source: Checkpoint, chosen: Sequence[Plan], dtype: torch.dtype) -> dict[str, Any]:
    """A config with what is now true of dtype and vocabulary."""
    told = portable(source.config, dtype)
    return told | {"vocab_size": _embedding(chosen).rows} if "vocab_size" in told else told


def _embedding(chosen: Sequence[Plan]) -> Plan:
    return next(plan for plan in chosen if plan.pair.base_name == GROWING[0])
