"""What belongs to the weights: config, tokenizer, generation config, licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from camelpress.convert.inputs.tensor_pairs import TOKEN_TENSORS
from camelpress.convert.recover.diff_rules import TensorPlan
from camelpress.convert.settings import RecoverSettings
from camelpress.convert.tokenizer import tokenizer_plan
from camelpress.convert.tokenizer.tokenizer_files import VOCABULARY_FILES
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint, copy_sidecars, require_valid_sidecars
from camelpress.core.checkpoint.portable_config import portable_config
from camelpress.core.files.json_files import read_json, write_json
from camelpress.core.hub.model_location import CHAT_TEMPLATES_FOLDER

GENERATION_CONFIG = "generation_config.json"
# of base and diff; anything else is the diff's
LICENCE_PREFIXES = ("license", "notice", "use_policy", "llama")


@dataclass(frozen=True)
class SidecarPlan:
    """What stands beside the weights of an output, known before it is written."""

    configs: Mapping[str, Mapping[str, Any]]
    source_files: Mapping[str, Path]
    file_contents: Mapping[str, bytes]
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        require_valid_sidecars(self.source_files)

    @property
    def names(self) -> list[str]:
        """The names of all its files."""
        return sorted({*self.source_files, *self.file_contents, *self.configs})

    def write(self, folder: Path) -> None:
        """Put it there."""
        copy_sidecars(self.source_files, folder)
        for name, content in self.file_contents.items():
            (folder / name).write_bytes(content)
        for name, config in self.configs.items():
            write_json(folder / name, config)


def plan_recovery_sidecars(
    base: Checkpoint,
    diff: Checkpoint,
    chosen: Sequence[TensorPlan],
    settings: RecoverSettings,
    dtype: torch.dtype,
) -> SidecarPlan:
    """Those of a recovered model: a tokenizer that works, configs that agree with it.

    Raises:
        CheckpointProblem: tokenizer and embedding do not belong together.
    """
    embedding = _embedding_plan(chosen)
    config = _output_config(diff, chosen, dtype)
    if llama.is_tied(diff.file_config):  # two differences may differ where two sums are one matrix
        config[llama.TIE_EMBEDDINGS_KEY] = True
    tokens = tokenizer_plan.plan_tokenizer(
        [diff.folder, *_tokenizer_folders(base)],
        embedding.pair.shape[0],
        embedding.pair.base_shape[0],
        drop="drop" in (settings.extra_rows, embedding.extra_rows),
        config=config,
        template=settings.chat_template,
    )
    there = diff.sidecar_files()
    configs = {"config.json": tokens.align_config(config)}
    if tokens.files or GENERATION_CONFIG in there:
        own = read_json(there[GENERATION_CONFIG]) if GENERATION_CONFIG in there else None
        configs[GENERATION_CONFIG] = tokens.generation_config(own)
    made = {*tokens.files, *configs, *tokenizer_plan.OUTPUT_FILES}
    if settings.chat_template == "none":
        made |= {name for name in there if name.startswith(CHAT_TEMPLATES_FOLDER)}
    licences = {
        name: path
        for name, path in base.sidecar_files().items()
        if name.lower().startswith(LICENCE_PREFIXES)
    }
    files = {name: path for name, path in (licences | there).items() if name not in made}
    return SidecarPlan(configs, files, tokens.files, {"tokenizer": tokens.facts})


def _tokenizer_folders(base: Checkpoint) -> list[Path]:
    """Where its tokenizer lies; Meta's is one folder above the weights."""
    there = base.sidecar_files()
    return [there[name].parent for name in VOCABULARY_FILES if name in there]


def plan_diff_sidecars(
    source: Checkpoint, chosen: Sequence[TensorPlan], dtype: torch.dtype
) -> SidecarPlan:
    """Those of one checkpoint, as they are."""
    return SidecarPlan(
        {"config.json": _output_config(source, chosen, dtype)}, source.sidecar_files(), {}, {}
    )


def _output_config(
    source: Checkpoint, chosen: Sequence[TensorPlan], dtype: torch.dtype
) -> dict[str, Any]:
    """A config with what is now true of dtype and vocabulary."""
    told = portable_config(source.config, dtype)
    return told | {"vocab_size": _embedding_plan(chosen).rows} if "vocab_size" in told else told


def _embedding_plan(chosen: Sequence[TensorPlan]) -> TensorPlan:
    return next(plan for plan in chosen if plan.pair.base_name == TOKEN_TENSORS[0])
