"""Other people's loaders give the logits and the words of our own dequantization.

Each client runs in a virtual environment of its own (`make_env.sh`), in one process for all
checkpoints, which knows nothing of this project. What it must agree with is transformers' own model
with the weights that `core.packed` makes of a checkpoint; `tests/quantize` in turn holds these
against a reader of the format that shares no code with it.

    pytest tests/clients -m client --compatibility docs/compatibility.md
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import compatibility
import pico
import stages
from camelpress.pipeline import demo
from checkpoints import (
    ENVIRONMENTS,
    Kind,
    is_made,
    kinds,
    write_dense,
    write_models,
)
from loaders import CLIENTS, Client, Outcome, judge, known, run
from wanted import Wanted, wanted

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = Path(os.environ.get("CAMELPRESS_SMOLLM2", ROOT / ".models" / "SmolLM2-135M-Instruct"))
LENGTHS = (64, 1, 33, 7)
KINDS = list(kinds())
DEMO = Kind("the demo's model, 4 bits, sym", "demo", {"bits": 4, "group_size": 32, "sym": True})
SMALL = Kind("SmolLM2-135M, 4 bits, sym", "smollm2", {"bits": 4, "group_size": 64, "sym": True})
ROWS = list(dict.fromkeys(kind.row for kind in [*KINDS, DEMO, SMALL]))

pytestmark = pytest.mark.client

Found = dict[tuple[Client, Kind], Outcome]


def draw(count: int, seed: int) -> list[int]:
    """Ids of the pico tokenizer, none special."""
    numbers: list[int] = np.random.default_rng(seed).integers(3, 250, size=count).tolist()
    return numbers


TOKENS = [draw(length, seed) for seed, length in enumerate(LENGTHS)]
PROMPT = [1, *draw(6, 9)]


class Made(NamedTuple):
    """A checkpoint, and what a client has to find in it."""

    folder: Path
    wanted: Wanted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Made]:
    """Every checkpoint, written by the real stage, with what the dense model says."""
    root = tmp_path_factory.mktemp("checkpoints")
    models = write_models(root)
    text = pico.write_chat(root / "chat.jsonl", conversations=40)
    folders = {kind: kind.write(root, models[kind.model], text) for kind in KINDS}
    demo.run_demo(root / "demo")
    folders[DEMO] = root / "demo" / "quantized"
    if SMOLLM2.is_dir():
        stages.quantize(SMOLLM2, root / "smollm2", method="rtn", **SMALL.options)
        folders[SMALL] = root / "smollm2"
    return {
        kind: Made(folder, wanted(write_dense(folder, root / f"{kind.name}-dense"), TOKENS, PROMPT))
        for kind, folder in folders.items()
    }


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Iterator[Found]:
    """What all clients made of them; written into the document at the end, if one is named."""
    told: Found = {}
    yield told
    document = request.config.getoption("--compatibility", default=None)
    if document:
        compatibility.write(document, told, [*KINDS, DEMO, SMALL])


@pytest.fixture(scope="module", params=CLIENTS, ids=str)
def client(
    request: pytest.FixtureRequest,
    made: dict[Kind, Made],
    found: Found,
    tmp_path_factory: pytest.TempPathFactory,
) -> Client:
    """A client that has run."""
    client: Client = request.param
    if not is_made(client.environment):
        pytest.skip(f"run tests/clients/make_env.sh {client.environment}")
    work = tmp_path_factory.mktemp("client") / "work"
    folders = {kind.name: str(each.folder) for kind, each in made.items()}
    told = run(client, {"tokens": TOKENS, "prompt": PROMPT, "folders": folders}, work)
    for kind, each in made.items():
        logits = work / f"{kind.name}.npy"
        found[client, kind] = judge(client, told[kind.name], logits, each.wanted)
    return client


@pytest.mark.parametrize("row", ROWS)
def test_a_client_agrees_with_us(client: Client, row: str, found: Found) -> None:
    outcomes = {
        kind: each for (of, kind), each in found.items() if of == client and kind.row == row
    }
    if not outcomes:
        pytest.skip("its model is absent; make it with tests/models/smollm2.py")
    for kind, outcome in outcomes.items():
        entry = known(client, kind)
        if entry is None:
            assert outcome.word == "ok", f"{kind.name}: {outcome}"
        elif entry.word != "any":
            assert re.fullmatch(entry.word, outcome.word), f"{kind.name}: {outcome}: {entry.reason}"
            assert re.search(entry.detail, outcome.detail), f"{kind.name}: {outcome}"


@pytest.mark.parametrize(
    ("engine", "environment"),
    [("gptqmodel", "gptqmodel"), ("optimum", "gptqmodel"), ("auto-gptq", "autogptq")],
)
def test_a_real_engine_makes_what_our_stages_take(
    engine: str, environment: str, tmp_path: Path
) -> None:
    if not is_made(environment):
        pytest.skip(f"run tests/clients/make_env.sh {environment}")
    model = pico.write_model(tmp_path / "model")
    text = pico.write_chat(tmp_path / "chat.jsonl", conversations=40)
    python = ENVIRONMENTS / environment / "bin" / "python"
    for bits in (2, 3, 4, 8):
        out = tmp_path / f"{bits} bits"
        report = stages.quantize(
            model, out, text, engine=engine, engine_python=python, bits=bits, samples=4
        )
        assert report.facts.record["engine"]["name"] == engine
        assert report.facts.record["device"] == "cpu"
        bound = {2: 0.9, 3: 0.4, 4: 0.2, 8: 0.02}[bits]
        errors = [layer["relative_weight_error"] for layer in report.facts.record["layers"]]
        assert 0 < max(errors) < bound
    told = stages.validate(model, out, tmp_path / "validation", text, allow_overlap=True)
    assert told.facts.record["kl_mean"] < 1e-3
