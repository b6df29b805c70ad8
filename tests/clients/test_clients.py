"""Independent clients give the logits of our own dequantization, for our checkpoints and theirs.

Each client runs in a virtual environment of its own (`make_env.sh`), in a process that knows
nothing of this project. What it must agree with is the block walker, which `tests/quantize` in turn
holds against a reader of the format that shares no code with it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import pico
import stages
from camelpress import demo
from camelpress.convert.export import export
from camelpress.convert.settings import Export
from camelpress.core.blocks import StreamedModel
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.sequences import Sequences

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".venv-clients"
SMOLLM2 = Path(os.environ.get("CAMELPRESS_SMOLLM2", ROOT / ".models" / "SmolLM2-135M-Instruct"))
TOLERANCE = 1e-2  # largest logit difference over the largest logit
CLOSE = 1e-5  # where both compute in fp32, in the order of operations of transformers
LENGTHS = (64, 1, 33, 7)
LOGGER = logging.getLogger(__name__)

pytestmark = pytest.mark.client


@dataclass(frozen=True)
class Client:
    """One way to load a checkpoint: a virtual environment and a loader inside it."""

    environment: str
    loader: str

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.environment

    def __str__(self) -> str:
        return f"{self.environment}-{self.loader}"


GPTQMODEL = Client("gptqmodel", "gptqmodel")
AUTOGPTQ = Client("autogptq", "autogptq")
COMPRESSED_TENSORS = Client("llmcompressor", "transformers")
WRITERS = (  # the tool and its environment, and who loads what it wrote
    ("gptqmodel", GPTQMODEL),
    ("autoround", GPTQMODEL),
    ("llmcompressor", COMPRESSED_TENSORS),
)
CLIENTS = (
    GPTQMODEL,
    Client("gptqmodel", "transformers"),
    Client("autogptq", "transformers"),
    AUTOGPTQ,
)


@pytest.fixture(scope="module", params=["sym", "asym", "tied", "demo", "smollm2"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that quantize wrote."""
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    if kind == "demo":
        demo.run(folder)
        return folder / "quantized"
    if kind == "smollm2":
        if not SMOLLM2.is_dir():
            pytest.skip(f"{SMOLLM2} is absent; make it with tests/models/smollm2.py")
        stages.quantize(SMOLLM2, folder / "q", method="rtn", group_size=64)
    else:
        model = pico.write_model(folder / "model", tied=kind == "tied")
        text = pico.write_chat(folder / "chat.jsonl")
        stages.quantize(model, folder / "q", text, sym=kind != "asym")
    return folder / "q"


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_a_client_gives_our_logits(client: Client, quantized: Path, tmp_path: Path) -> None:
    config = json.loads((quantized / "config.json").read_text())
    if client == AUTOGPTQ and config["tie_word_embeddings"]:
        pytest.skip("AutoGPTQ's own loader leaves the head of a tied model uninitialised")
    draw = np.random.default_rng(7)
    tokens = [draw.integers(3, 250, size=length).tolist() for length in LENGTHS]
    ended = run(client, quantized, tokens, tmp_path)
    if client == GPTQMODEL and not config["quantization_config"]["sym"]:
        # It takes true zero points in v1 only from itself, by the name in the config.
        assert ended.returncode != 0, "it takes such checkpoints now: compare its logits"
        assert "sym=False model" in ended.stderr
        return
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    found: NDArray[np.float32] = np.load(tmp_path / "logits.npy")
    wanted = our_logits(quantized, tokens)
    assert found.shape == wanted.shape
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    LOGGER.info("%s, %s: relative difference %.3g", client, quantized.parent.name, difference)
    assert difference <= TOLERANCE


def exported(quantized: Path, out: Path, to: str) -> Path:
    """The same model in another layout."""
    settings = Export.parse({"to": to}, source="test")
    export(Checkpoint.open(quantized), out, settings)
    return out


@pytest.mark.parametrize(
    ("client", "to"), [(COMPRESSED_TENSORS, "compressed-tensors"), (GPTQMODEL, "gptq-v2")], ids=str
)
def test_a_client_gives_the_logits_of_what_was_exported(
    client: Client, to: str, quantized: Path, tmp_path: Path
) -> None:
    draw = np.random.default_rng(7)
    tokens = [draw.integers(3, 250, size=length).tolist() for length in LENGTHS]
    ended = run(client, exported(quantized, tmp_path / "out", to), tokens, tmp_path)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    found: NDArray[np.float32] = np.load(tmp_path / "logits.npy")
    wanted = our_logits(quantized, tokens)
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    LOGGER.info("%s, %s: relative difference %.3g", client, quantized.parent.name, difference)
    assert difference <= CLOSE


@pytest.mark.parametrize(("peer", "client"), WRITERS, ids=str)
def test_what_a_tool_wrote_has_the_logits_that_a_client_gives_it(
    peer: str, client: Client, tmp_path: Path
) -> None:
    pico.write_model(tmp_path / "model")
    draw = np.random.default_rng(7)
    tokens = draw.integers(3, 250, size=(8, 64)).tolist()
    (tmp_path / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    work = [str(tmp_path / name) for name in ("model", "tokens.json", "out")]
    writer = Client(peer, "writer").folder / "bin" / "python"
    if not writer.exists():
        pytest.skip(f"no client environment: run tests/clients/make_env.sh {peer}")
    settings = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    module = ["-m", f"benchmarks.peers.{peer}"]
    subprocess.run(
        [str(writer), *module, *work, "--group-size", "32"],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        timeout=900,
        check=True,
    )
    folder = min((tmp_path / "out").rglob("config.json"), key=lambda path: len(path.parts)).parent
    ended = run(client, folder, tokens[:2], tmp_path)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    found: NDArray[np.float32] = np.load(tmp_path / "logits.npy")
    wanted = our_logits(folder, tokens[:2])
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    LOGGER.info("%s, %s: relative difference %.3g", peer, client, difference)
    assert difference <= CLOSE


def our_logits(folder: Path, tokens: list[list[int]]) -> NDArray[np.float32]:
    """Logits of the streamed, dequantized model in fp32."""
    model = StreamedModel(Checkpoint.open(folder), device=torch.device("cpu"), dtype=torch.float32)
    sequences = Sequences(tokens, limit=model.positions)
    with torch.inference_mode():
        logits: NDArray[np.float32] = model.head()(model.hidden(sequences, "test")).numpy()
    return logits


def run(
    client: Client, folder: Path, tokens: list[list[int]], work: Path
) -> subprocess.CompletedProcess[str]:
    """Run `client_logits.py` in the client's environment; logits go to `work/logits.npy`."""
    if not (client.folder / "requirements.sha256").exists():
        pytest.skip(f"no client environment: run tests/clients/make_env.sh {client.environment}")
    (work / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    # Nothing of this process's Python setup may reach the client.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))}
    return subprocess.run(
        [
            str(client.folder / "bin" / "python"),
            str(HERE / "client_logits.py"),
            "--client",
            client.loader,
            str(folder.resolve()),
            str(work / "tokens.json"),
            str(work / "logits.npy"),
        ],
        cwd=work,
        env=inherited | {"OMP_NUM_THREADS": "1", "TMPDIR": str(work)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
