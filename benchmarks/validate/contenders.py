"""Who takes part: our validation of two models at once, and lm-eval's of one after the other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-clients" / "lmeval" / "bin" / "python"
MODELING = "transformers.models.llama.modeling_llama"  # which both import once they have a model
OURS = "camelpress: both models"
PEER = {"reference": "lm-eval: reference", "candidate": "lm-eval: candidate"}
IMPORTS = {OURS: "imports of camelpress", **dict.fromkeys(PEER.values(), "imports of lm-eval")}
MODULES = "camelpress.cli.commands, camelpress.validate.run"
THEIR_MODULES = "lm_eval, lm_eval.models.huggingface, lm_eval.tasks"
LIMIT = "fp32 products"


class Folders(NamedTuple):
    """Where everything lies."""

    reference: Path
    candidate: Path  # 4 bits
    dense: Path  # the same in fp32, which every weight is exact in
    text: Path  # folder of documents.jsonl and counts.json
    turn: Path  # for what a turn leaves

    @property
    def documents(self) -> Path:
        """The text."""
        return self.text / "documents.jsonl"


def commands(folders: Folders, window: int, batch: int) -> dict[str, list[str]]:
    """By contender."""
    ours = [sys.executable, "-m", "camelpress", "validate", folders.reference, folders.candidate]
    ours += ["--text", folders.documents, "--protocol", "lm-eval", "--sequence-length", window]
    ours += [
        "--device",
        "cpu",
        "--gate",
        folders.text / "open.yaml",
        "--out",
        folders.turn / "ours",
    ]
    python = _elsewhere(folders.turn)
    given = ["--window", window, "--batch", batch]

    def theirs(model: Path, out: str) -> list[object]:
        arguments = [model, folders.documents, folders.turn / out]
        return [*python, "-m", "benchmarks.peers.lmeval", *arguments, *given]

    found: dict[str, list[object]] = {
        OURS: ours,
        PEER["reference"]: theirs(folders.reference, "reference"),
        PEER["candidate"]: theirs(folders.dense, "candidate"),
        IMPORTS[OURS]: [sys.executable, "-c", f"import {MODULES}, {MODELING}"],
        IMPORTS[PEER["reference"]]: [*python, "-c", f"import {THEIR_MODULES}, {MODELING}"],
        LIMIT: [sys.executable, "-m", "benchmarks.validate.gemm", folders.turn / "gemm"],
    }
    return {name: [str(word) for word in words] for name, words in found.items()}


def _elsewhere(folder: Path) -> list[object]:
    """The interpreter that has lm-eval, offline."""
    return ["env", f"PYTHONPATH={ROOT}", "HF_HUB_OFFLINE=1", f"HF_HOME={folder / 'home'}", PYTHON]
