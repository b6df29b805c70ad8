"""Plans the sidecar files of an output: config, tokenizer, generation config, licences."""

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
from camelpress.core.file_names import CHAT_TEMPLATES_FOLDER
from camelpress.core.files.json_files import read_json, write_json

GENERATION_CONFIG = "generation_config.json"
# Files copied from base and diff; all other files come from the diff.
LICENCE_PREFIXES = ("license", "notice", "use_policy", "llama")


@dataclass(frozen=True)
class SidecarPlan:
    """Files beside the weights of an output, known before it is written."""

    configs: Mapping[str, Mapping[str, Any]]
    source_files: Mapping[str, Path]
    file_contents: Mapping[str, bytes]
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        require_valid_sidecars(self.source_files)

    @property
    def names(self) -> list[str]:
        """Names of all sidecar files."""
        return sorted({*self.source_files, *self.file_contents, *self.configs})

    def write(self, folder: Path) -> None:
        """Writes all sidecar files into a folder."""
        copy_sidecars(self.source_files, folder)
        for name, content in self.file_contents.items():
            (folder / name).write_bytes(content)
        for name, config in self.configs.items():
            write_json(folder / name, config)


def plan_recovery_sidecars(
    base: Checkpoint,
    diff: Checkpoint,
    plans: Sequence[TensorPlan],
    settings: RecoverSettings,
    dtype: torch.dtype,
) -> SidecarPlan:
    """Plans the sidecar files of a recovered model, with a working tokenizer and matching configs.

    Raises:
        CheckpointProblem: tokenizer and embedding do not belong together.
    """
    embedding = _embedding_plan(plans)
    config = _output_config(diff, plans, dtype)
    if llama.is_tied(diff.file_config):  # tied sums may have untied differences
        config[llama.TIE_EMBEDDINGS_KEY] = True
    tokenizer = tokenizer_plan.plan_tokenizer(
        [diff.folder, *_tokenizer_folders(base)],
        embedding.pair.shape[0],
        embedding.pair.base_shape[0],
        drop="drop" in (settings.extra_rows, embedding.extra_rows),
        config=config,
        template=settings.chat_template,
    )
    source_files = diff.sidecar_files()
    configs = {"config.json": tokenizer.align_config(config)}
    if tokenizer.files or GENERATION_CONFIG in source_files:
        generation_config = (
            read_json(source_files[GENERATION_CONFIG])
            if GENERATION_CONFIG in source_files
            else None
        )
        configs[GENERATION_CONFIG] = tokenizer.generation_config(generation_config)
    planned = {*tokenizer.files, *configs, *tokenizer_plan.OUTPUT_FILES}
    if settings.chat_template == "none":
        planned |= {name for name in source_files if name.startswith(CHAT_TEMPLATES_FOLDER)}
    licences = {
        name: path
        for name, path in base.sidecar_files().items()
        if name.lower().startswith(LICENCE_PREFIXES)
    }
    files = {name: path for name, path in (licences | source_files).items() if name not in planned}
    return SidecarPlan(configs, files, tokenizer.files, {"tokenizer": tokenizer.facts})


def _tokenizer_folders(base: Checkpoint) -> list[Path]:
    """Returns the folders of the base's tokenizer files; Meta's is the parent folder."""
    source_files = base.sidecar_files()
    return [source_files[name].parent for name in VOCABULARY_FILES if name in source_files]


def plan_diff_sidecars(
    source: Checkpoint, plans: Sequence[TensorPlan], dtype: torch.dtype
) -> SidecarPlan:
    """Plans the sidecar files of a diff: the tuned model's own, with a new config."""
    return SidecarPlan(
        {"config.json": _output_config(source, plans, dtype)}, source.sidecar_files(), {}, {}
    )


def _output_config(
    source: Checkpoint, plans: Sequence[TensorPlan], dtype: torch.dtype
) -> dict[str, Any]:
    """Returns the source's config with the output's dtype and vocabulary size."""
    config = portable_config(source.config, dtype)
    return (
        config | {"vocab_size": _embedding_plan(plans).rows} if "vocab_size" in config else config
    )


def _embedding_plan(plans: Sequence[TensorPlan]) -> TensorPlan:
    return next(plan for plan in plans if plan.pair.base_name == TOKEN_TENSORS[0])
