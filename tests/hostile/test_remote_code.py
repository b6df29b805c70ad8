"""Checkpoints that bring Python code of their own and ask to run it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import damage
from camelpress.core.errors import CheckpointProblem
from camelpress.reporting.stage_report import Report
from refusal import refusal, starting
from stages import quantize

Stage = Callable[[Path], Report]


@pytest.fixture(autouse=True)
def agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who says yes to whatever is asked."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """What the code would write if it ran."""
    return tmp_path / "it ran"


def write_code(folder: Path, proof: Path) -> None:
    code = f"open({str(proof)!r}, 'w').close()\nclass Own:\n    pass\n"
    (folder / "own.py").write_text(code, encoding="utf-8")


def test_a_config_with_code_is_refused(
    stage: Stage, base: Path, tmp_path: Path, out: Path, proof: Path
) -> None:
    auto_map = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    broken = damage.with_config(base, tmp_path / "broken", auto_map=auto_map)
    write_code(broken, proof)
    with refusal(
        CheckpointProblem,
        f"{broken / 'config.json'} asks to run code of its own (auto_map)",
        next_step="use a checkpoint of an architecture that transformers ships",
        out=out,
    ):
        stage(broken)
    assert not proof.exists()


def test_a_tokenizer_with_code_is_refused(
    base: Path, chat: Path, tmp_path: Path, out: Path, proof: Path
) -> None:
    broken = damage.copied(base, tmp_path / "broken")
    write_code(broken, proof)
    path = broken / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    path.write_text(json.dumps(config), encoding="utf-8")
    with refusal(
        CheckpointProblem,
        starting(f"{broken} has no tokenizer that can be read ("),
        next_step="copy tokenizer.json and tokenizer_config.json of the model there",
        out=out,
    ):
        quantize(broken, out, chat)
    assert not proof.exists()
