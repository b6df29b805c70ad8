"""What belongs to the weights: config, tokenizer, generation config, licences."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from camelpress.convert.pairs import GROWING
from camelpress.convert.rules import Plan
from camelpress.convert.settings import Recover
from camelpress.core.checkpoint import Checkpoint, companions
from camelpress.core.config import portable
from camelpress.core.json import write_json

LICENCES = ("license", "notice", "llama")


@dataclass(frozen=True)
class Belongings:
    """What stands beside the weights of an output, known before it is written."""

    config: Mapping[str, Any]
    files: Mapping[str, Path]
    facts: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Put it there."""
        for name, path in self.files.items():
            shutil.copyfile(path, folder / name)
        write_json(folder / "config.json", self.config)


def recovered(
    base: Checkpoint,
    diff: Checkpoint,
    chosen: Sequence[Plan],
    settings: Recover,
    dtype: torch.dtype,
) -> Belongings:
    """Those of a recovered model: the diff's, and what it lacks from the base."""
    return Belongings(config(diff, chosen, dtype), _collected(diff.folder, base.folder), {})


def copied(source: Checkpoint, chosen: Sequence[Plan], dtype: torch.dtype) -> Belongings:
    """Those of one checkpoint, as they are."""
    return Belongings(config(source, chosen, dtype), companions(source.folder), {})


def config(source: Checkpoint, chosen: Sequence[Plan], dtype: torch.dtype) -> dict[str, Any]:
    """A config with what is now true of dtype and vocabulary."""
    told = portable(source.config, dtype)
    rows = [each.rows for each in chosen if each.pair.base_name == GROWING[0]]
    return told | {"vocab_size": rows[0]} if "vocab_size" in told else told


def _collected(*folders: Path) -> dict[str, Path]:
    """What an earlier folder has is not taken from a later one."""
    found: dict[str, Path] = {}
    for folder in folders:
        has_tokenizer = any(name.startswith("tokenizer") for name in found)
        found = {
            name: path
            for name, path in companions(folder).items()
            if not has_tokenizer or name.lower().startswith(LICENCES)
        } | found
    return found
