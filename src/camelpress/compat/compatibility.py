"""A checkpoint held against what engines ask for, from its files alone; no engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from camelpress.compat.exllama import EXLLAMA
from camelpress.compat.gptq_checkpoint import GptqCheckpoint
from camelpress.compat.marlin import MARLIN
from camelpress.compat.requirement import FindingStatus, InferenceEngine, Requirement
from camelpress.compat.sglang import SGLANG
from camelpress.compat.tgi import TGI
from camelpress.compat.vllm import VLLM
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.reporting.stage_report import Verdict

INFERENCE_ENGINES = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "tgi": TGI,
    "exllama": EXLLAMA,
    "marlin": MARLIN,
}
ALL_ENGINES = "all"
PRECONDITIONS = ("config keys", "tensors")  # without them there is nothing to ask the others about


def parse_engine_names(names: Sequence[str]) -> list[str]:
    """Engines by name, each once; a name may be a list with commas, or `all`.

    Raises:
        RecipeProblem: there is no such engine.
    """
    wanted = [part.strip().lower() for name in names for part in name.split(",")]
    for name in wanted:
        if name not in (*INFERENCE_ENGINES, ALL_ENGINES):
            raise RecipeProblem(
                f"there is no engine {name!r}",
                next_step=f"use {', '.join(INFERENCE_ENGINES)} or {ALL_ENGINES}",
            )
    return list(INFERENCE_ENGINES) if ALL_ENGINES in wanted else list(dict.fromkeys(wanted))


def check_compatibility(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, Any]:
    """Hold a GPTQ checkpoint against engines.

    Args:
        checkpoint: quantized.
        names: as `chosen` gives them.
    Returns:
        `verdict` (PASS or FAIL over all engines), and for each of `engines` its name, verdict,
        source, needs, whether it `ran` (never) and `requirements`: name, status, reason, next step.
    Raises:
        CheckpointProblem: not a GPTQ checkpoint of the LLaMA family, or damaged.
    """
    subject = GptqCheckpoint(checkpoint)
    told = [_engine_result(subject, INFERENCE_ENGINES[name]) for name in names]
    verdicts = [Verdict(each["verdict"]) for each in told]
    return {"verdict": Verdict.combine(verdicts).value, "engines": told}


def _engine_result(subject: GptqCheckpoint, engine: InferenceEngine) -> dict[str, Any]:
    rows: list[dict[str, str]] = []
    for row in sorted(engine.requirements, key=lambda each: each.name not in PRECONDITIONS):
        rows.append(_requirement_result(subject, row))
        if row.name in PRECONDITIONS and rows[-1]["status"] == FindingStatus.FAIL:
            break
    fails = any(row["status"] == FindingStatus.FAIL for row in rows)
    return {
        "name": engine.name,
        "verdict": (Verdict.FAIL if fails else Verdict.PASS).value,
        "source": engine.source,
        "needs": engine.hardware,
        "ran": False,
        "requirements": rows,
    }


def _requirement_result(subject: GptqCheckpoint, row: Requirement) -> dict[str, str]:
    found = row.check(subject)
    return {
        "name": row.name,
        "status": found.status.value,
        "reason": found.reason,
        "next_step": found.next_step,
    }
