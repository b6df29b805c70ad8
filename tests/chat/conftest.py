"""The pico model with a chat template, in 16 bits and in 4."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import stages
from camelpress.core.text.tulu_format import TULU_CHAT_TEMPLATE


def with_template(folder: Path, template: str) -> Path:
    """Give the tokenizer of a checkpoint a chat template."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": template}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def dense(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with Tulu's template."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("generate") / "dense")
    return with_template(folder, TULU_CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def packed(dense: Path) -> Path:
    """The same in 4 bits."""
    stages.quantize(dense, dense.parent / "packed", method="rtn")
    return dense.parent / "packed"
