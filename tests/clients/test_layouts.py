"""What was exported to other layouts, and what other tools wrote, in the loaders made for them."""

from __future__ import annotations

import json
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pico
from camelpress.convert.export.export_checkpoint import export
from camelpress.convert.settings import ExportSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from checkpoints import Kind, is_made, kinds, write_dense, write_models
from loaders import Client, judge, run
from wanted import wanted

ROOT = Path(__file__).resolve().parents[2]
GPTQMODEL = Client("GPTQModel", "gptqmodel", "gptqmodel:widened:gptq_torch")
COMPRESSED = Client("compressed-tensors", "llmcompressor", "transformers:float32:")
EXPORTED = [kind for kind in kinds() if kind.model in ("gqa", "tied") and not kind.engine]
WRITERS = (  # the tool and its environment, and who loads what it wrote
    ("gptqmodel", GPTQMODEL),
    ("autoround", GPTQMODEL),
    ("llmcompressor", COMPRESSED),
)
TOKENS = [np.random.default_rng(7).integers(3, 250, size=size).tolist() for size in (64, 1, 33)]
PROMPT = TOKENS[0][:7]

pytestmark = pytest.mark.client


def require(environment: str) -> None:
    if not is_made(environment):
        pytest.skip(f"run tests/clients/make_env.sh {environment}")


def assert_same_logits(client: Client, folders: dict[str, Path], root: Path) -> None:
    """A client gives of each checkpoint what transformers gives of our dense export of it."""
    job = {
        "tokens": TOKENS,
        "prompt": PROMPT,
        "folders": {name: str(folder) for name, folder in folders.items()},
    }
    told = run(client, job, root / "work")
    for name, folder in folders.items():
        dense = write_dense(folder, root / f"{name}-dense")
        logits = root / "work" / f"{name}.npy"
        outcome = judge(client, told[name], logits, wanted(dense, TOKENS, PROMPT))
        assert outcome.word == "ok", f"{name}: {outcome}"


@pytest.mark.parametrize(
    ("client", "to"), [(COMPRESSED, "compressed-tensors"), (GPTQMODEL, "gptq-v2")], ids=str
)
def test_a_client_gives_the_logits_of_what_was_exported(
    client: Client, to: str, tmp_path: Path
) -> None:
    require(client.environment)
    models, text = write_models(tmp_path), pico.write_chat(tmp_path / "chat.jsonl")

    def exported(kind: Kind) -> Path:
        folder = kind.write(tmp_path, models[kind.model], text)
        out = tmp_path / f"{kind.name}-exported"
        export(Checkpoint.open(folder), out, ExportSettings.parse({"to": to}, source="test"))
        return out

    assert_same_logits(client, {kind.name: exported(kind) for kind in EXPORTED}, tmp_path)


@pytest.mark.parametrize(("peer", "client"), WRITERS, ids=str)
def test_what_a_tool_wrote_has_the_logits_that_a_client_gives_it(
    peer: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(peer)
    monkeypatch.syspath_prepend(ROOT)
    tools: Any = import_module("benchmarks.quantize.tools")
    out = tmp_path / "turn" / "out"
    out.parent.mkdir()
    tokens = np.random.default_rng(7).integers(3, 250, size=(8, 64)).tolist()
    (tmp_path / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    work = tools.Work(pico.write_model(tmp_path / "model"), tmp_path, out, 32, *np.shape(tokens))
    subprocess.run(tools.quantizing(peer, work), capture_output=True, timeout=900, check=True)
    folder = min(out.rglob("config.json"), key=lambda path: len(path.parts)).parent
    assert_same_logits(client, {peer: folder}, tmp_path)
