"""Who takes part: each tool with its environment, its command and what it does by default."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
OURS = "camelpress"
ENGINES = "camelpress.quantize.backends.drivers"
LLAMA = "transformers.models.llama.modeling_llama"  # which every tool imports once it has a model


class Peer(NamedTuple):
    """Another tool, run by one of our engines' drivers or one of `benchmarks.peers`."""

    title: str
    environment: str  # as tests/clients/make_env.sh calls it
    driver: str  # a module
    differs: str  # from the others, by its own defaults
    options: tuple[str, ...] = ()
    gptq: bool = True  # whether it writes the GPTQ format


# fmt: off
PEERS = {
    "gptqmodel": Peer(
        "GPTQModel 7.7.0, fp32", "gptqmodel", f"{ENGINES}.gptqmodel",
        "damping 0.05, activation order within groups",
    ),
    "gptqmodel-bf16": Peer(
        "GPTQModel 7.7.0, bf16", "gptqmodel", f"{ENGINES}.gptqmodel",
        "its own choice of type on a CPU; embeddings become bf16",
        ("--dtype", "bfloat16"),
    ),
    "optimum": Peer(
        "optimum 2.3.0 on GPTQModel", "gptqmodel", f"{ENGINES}.optimum",
        "fp32, damping 0.1, activation order within groups",
    ),
    "autoround": Peer(
        "auto-round 0.16.1, light", "autoround", "benchmarks.peers.autoround",
        "50 steps for each block in bf16, no Hessian; embeddings become bf16",
    ),
    "llmcompressor": Peer(
        "llm-compressor 0.14.0.1", "llmcompressor", "benchmarks.peers.llmcompressor",
        "fp32, damping 0.01, static activation order; not the GPTQ format, scales in fp32",
        gptq=False,
    ),
}
# fmt: on
TOOLS = (OURS, *PEERS)


class Work(NamedTuple):
    """What a tool is given."""

    model: Path
    texts: Path  # folder of calibration.txt and tokens.json
    out: Path
    group_size: int
    samples: int
    length: int


def title(tool: str) -> str:
    """What a table calls it."""
    return OURS if tool == OURS else PEERS[tool].title


def differs(tool: str) -> str:
    """What its own defaults make of it."""
    return "those of `camelpress quantize`" if tool == OURS else PEERS[tool].differs


def quantizing(tool: str, work: Work) -> list[str]:
    """The command that quantizes; what it leaves in its current folder lies beside the output."""
    group = ["--group-size", str(work.group_size)]
    if tool == OURS:
        options = ["--samples", str(work.samples), "--sequence-length", str(work.length)]
        options += ["--calibration-mask", "all", "--device", "cpu"]
        files = ["--calibration", str(work.texts / "calibration.txt")]
        command = ["-m", "camelpress", "quantize", str(work.model), str(work.out)]
        return [sys.executable, *command, *group, *options, *files]
    peer = PEERS[tool]
    command = ["-m", peer.driver]
    files = [str(work.model), str(work.texts / "tokens.json"), str(work.out)]
    return [*_interpreter(peer, work.out.parent), *command, *files, *group, *peer.options]


def importing(tool: str, folder: Path) -> list[str]:
    """The command that imports what the tool imports, and does nothing."""
    if tool == OURS:
        kernel = "camelpress.quantize.kernels.cpu_kernel"
        modules = f"camelpress.cli.commands, camelpress.quantize.run, {kernel}, {LLAMA}"
        return [sys.executable, "-c", f"import {modules}"]
    peer = PEERS[tool]
    modules = f"{peer.driver}, {LLAMA}"
    return [*_interpreter(peer, folder), "-c", f"import {modules}"]


def missing(tools: list[str]) -> list[str]:
    """The environments that are not there."""
    needed = {PEERS[tool].environment for tool in tools if tool != OURS}
    return sorted(name for name in needed if not (_environment(name) / "bin" / "python").exists())


def _interpreter(peer: Peer, folder: Path) -> list[str]:
    """In a folder of its own, offline, compiling kernels anew as a first user does."""
    settings = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
        "HF_HUB_OFFLINE": 1,
        "TORCHINDUCTOR_CACHE_DIR": folder / "inductor",
    }
    words = [f"{name}={value}" for name, value in settings.items()]
    python = _environment(peer.environment) / "bin" / "python"
    return ["env", "-C", str(folder), *words, str(python)]


def _environment(name: str) -> Path:
    return ROOT / ".venv-clients" / name
