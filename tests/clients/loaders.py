"""The clients: how each is started, how near it has to come, and what is known not to work."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints import ENVIRONMENTS, Kind, is_made
from wanted import NEW_TOKENS, Wanted

HERE = Path(__file__).resolve().parent
# Largest difference of a logit over the largest logit. fp32: other orders of summation give 1e-6.
# 16 bits: as often the difference that bf16 makes to the same dense model. A kernel may round a
# weight as well as an activation.
FP32, ROUNDINGS = 1e-4, 2.0
TIMEOUT = 1800


@dataclass(frozen=True)
class Client:
    """One way to load a checkpoint: an environment, a loader inside it and a kernel.

    Args:
        title: the head of its column.
        environment: as `make_env.sh` calls it.
        loader: for `client_run.py`.
        exact: whether it computes in fp32.
    """

    title: str
    environment: str
    loader: str
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.environment}-{self.loader.replace(':', '-')}"


GPTQMODEL = tuple(
    Client(kernel, "gptqmodel", f"gptqmodel:{dtype}:{backend}", exact)
    for kernel, dtype, backend, exact in (
        ("TORCH, fp32", "widened", "gptq_torch", True),
        ("TORCH_FUSED, fp32", "float32", "gptq_torch_fused", False),
        ("AUTO, fp32", "float32", "auto", False),
        ("TORCH_INT8", "float32", "gptq_torch_int8", False),
        ("TORCH_ATEN, bf16", "bfloat16", "gptq_torch_aten", False),
        ("AVX512, bf16", "bfloat16", "gptq_torch_cpu_avx512", False),
        ("AUTO, bf16", "bfloat16", "auto", False),
    )
)
OPTIMUM = tuple(
    replace(each, loader=each.loader.replace("gptqmodel:", "transformers:")) for each in GPTQMODEL
)
OTHERS = (
    Client("AutoGPTQ", "autogptq", "autogptq:float32:"),
    Client("transformers 4 + optimum + AutoGPTQ", "autogptq", "transformers:float32:"),
    Client("auto-round, TORCH, fp16", "autoround", "autoround:float32:torch", exact=False),
)
TABLES = {
    "GPTQModel's own loader": GPTQMODEL,
    "transformers 5 + optimum, on GPTQModel": OPTIMUM,
    "AutoGPTQ and auto-round": OTHERS,
}
CLIENTS = tuple(client for clients in TABLES.values() for client in clients)


class Outcome(NamedTuple):
    """What became of one checkpoint with one client."""

    word: str  # ok, refused, fails, wrong
    detail: str  # what the client says, or what is wrong
    difference: float | None = None
    tokens: int | None = None  # that agree, of 20, before the first that does not


def run(client: Client, job: Mapping[str, Any], work: Path) -> dict[str, dict[str, Any]]:
    """What `client_run.py` finds, checkpoint by checkpoint; one that kills it is passed over."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))}
    python = ENVIRONMENTS / client.environment / "bin" / "python"
    found: dict[str, dict[str, Any]] = {}
    work.mkdir()
    while left := {name: path for name, path in job["folders"].items() if name not in found}:
        (work / "job.json").write_text(json.dumps({**job, "folders": left}), encoding="utf-8")
        ended = subprocess.run(
            [str(python), str(HERE / "client_run.py"), client.loader, "job.json", "."],
            cwd=work,
            env=inherited | {"OMP_NUM_THREADS": "1", "TMPDIR": str(work)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        new = {n: json.loads((work / f"{n}.json").read_text())
               for n in left if (work / f"{n}.json").exists()}  # fmt: skip
        if not new:
            raise RuntimeError(f"{client} does not start: {ended.stderr[-2000:]}")
        found |= new
    return found


def judge(client: Client, found: Mapping[str, Any], logits: Path, wanted: Wanted) -> Outcome:
    """Hold what a client found against the dense model."""
    if found["status"] != "loaded":
        word = "refused" if found["status"] == "load failed" else "fails"
        return Outcome(word, found.get("error", "the process died"))
    difference = wanted.off(np.load(logits))
    pairs = zip(found["tokens"], wanted.tokens, strict=True)
    agree = next((n for n, (theirs, ours) in enumerate(pairs) if theirs != ours), NEW_TOKENS)
    faults = []
    if not difference <= (FP32 if client.exact else ROUNDINGS * wanted.rounding):
        faults.append(f"logits differ by {difference:.2g} of the largest")
    for what, keys in found["keys"].items():
        # Groups are neighbours, so a loader that passes over their numbers loses nothing.
        left = [key for key in keys if not (what == "unexpected_keys" and key.endswith("g_idx"))]
        if left:
            faults.append(f"{what.replace('_', ' ')}: {', '.join(left[:2])}")
    if not found["keys"]:  # the loader only prints them
        faults += [line for line in found["said"] if "g_idx" not in line]
    if client.exact and agree < NEW_TOKENS:
        faults.append(f"only {agree} tokens agree")
    return Outcome("wrong" if faults else "ok", "; ".join(faults), difference, agree)


class Known(NamedTuple):
    """Something that does not work, and why."""

    client: str  # regular expression for the client
    kind: Callable[[Kind], bool]
    word: str  # regular expression for that of the outcome, or any
    detail: str  # regular expression
    reason: str  # for the document


def is_own(kind: Kind) -> bool:
    """Whether some layers have settings of their own."""
    return "modules" in kind.options


def is_mixed(kind: Kind) -> bool:
    """Whether some of these are packed otherwise, and not just kept in 16 bits."""
    return is_own(kind) and "in 16 bits" not in kind.row


FUSED = (
    "TORCH_FUSED computes asymmetric layers incorrectly. AUTO chooses TORCH_FUSED in GPTQModel's "
    "loader for fp32, and through optimum where groups are whole rows."
)
# fmt: off
KNOWN = (
    Known(r".*(fused|aten|avx512)", lambda kind: kind.bits != 4, "refused", "only supports",
          "The kernel supports 4 bits only."),
    Known(r".*int8", lambda kind: kind.bits != 8, "refused", "8-bit|only supports",
          "The kernel supports 8 bits only."),
    Known(r"gptqmodel-gptqmodel-.*(fused|aten|avx512|float32-auto)", is_mixed, "refused",
          "only supports?", "The kernel supports 4 bits only, in every layer."),
    Known(r".*(aten|avx512)", lambda kind: kind.group == -1, "refused", "only supports",
          "The kernel supports no groups of whole rows."),
    Known(r"gptqmodel-gptqmodel-float32-auto", lambda kind: kind.bits != 4, "refused", "dtype",
          "AUTO chooses TORCH for any requested type, and TORCH supports 16-bit types only."),
    Known(r"gptqmodel-gptqmodel", lambda kind: not kind.sym and "gptqmodel" not in kind.row,
          "refused", "sym=False",
          "GPTQModel loads an asymmetric v1 checkpoint only if `meta.quantizer` names GPTQModel, "
          "as in a checkpoint of `--engine gptqmodel`. All asymmetric checkpoints load through "
          "transformers and optimum."),
    Known(r".*(fused|gptqmodel-float32-auto)", lambda kind: not kind.sym and kind.bits == 4,
          "wrong", "differ", FUSED),
    Known(r".*-transformers-.*auto",
          lambda kind: not kind.sym and kind.bits == 4 and kind.group == -1,
          "wrong", "differ", FUSED),
    Known(r"gptqmodel-transformers", is_mixed, "refused", "mismatched_sizes",
          "optimum 2.3 does not read `dynamic`."),
    Known(r"gptqmodel-transformers", is_own, "fails|wrong", "IndexError|missing",
          "optimum 2.3 does not read `dynamic`."),
    Known(r"autogptq", is_mixed, "refused", "size mismatch|set a tensor of shape",
          "AutoGPTQ and optimum 2.0 do not read `dynamic`."),
    Known(r"autogptq-autogptq", is_own, "wrong", "not used",
          "AutoGPTQ and optimum 2.0 do not read `dynamic`."),
    Known(r"autogptq-transformers", is_own, "fails", "rshift_cpu",
          "AutoGPTQ and optimum 2.0 do not read `dynamic`."),
    Known(r"autogptq-autogptq", lambda kind: kind.model in ("tied", "smollm2"), "any", "",
          "AutoGPTQ leaves the head of a tied model uninitialised without a message."),
    Known(r"autoround", lambda kind: not kind.sym, "fails", "NoneType",
          "auto-round has no kernel for these asymmetric layers and simulates one, which fails."),
)
# fmt: on


def known(client: Client, kind: Kind) -> Known | None:
    """The first entry that holds."""
    for entry in KNOWN:
        if re.match(entry.client, str(client)) and entry.kind(kind):
            return entry
    return None


def expected_missing(client: Client) -> str | None:
    """Why a client cannot be run here."""
    if is_made(client.environment):
        return None
    return f"no client environment: run tests/clients/make_env.sh {client.environment}"
