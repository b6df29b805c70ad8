"""One thread, deterministic algorithms, no hub; and the pico model that most tests start from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from transformers.utils import logging  # noqa: E402

import pico  # noqa: E402
from command import Run, runner  # noqa: E402

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
logging.disable_progress_bar()
settings.register_profile("camelpress", deadline=None)  # a busy machine is no fault
settings.load_profile("camelpress")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw fp16 model."""
    return pico.write_model(tmp_path_factory.mktemp("pico") / "base")


@pytest.fixture(scope="session")
def tuned(base: Path) -> Path:
    """A bf16 model tuned from it, with one row more."""
    return pico.write_tuned(base.parent / "tuned", base)


@pytest.fixture(scope="session")
def chat(base: Path) -> Path:
    """Conversations."""
    return pico.write_chat(base.parent / "chat.jsonl")


@pytest.fixture(scope="session")
def prose(base: Path) -> Path:
    """A plain text."""
    return pico.write_text(base.parent / "prose.txt")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""
    return runner(monkeypatch, capsys)
