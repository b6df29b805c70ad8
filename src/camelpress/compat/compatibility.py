"""Compatibility of a checkpoint with inference engines, from its files alone; no engine runs."""

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
from camelpress.reporting.verdict import Verdict

INFERENCE_ENGINES = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "tgi": TGI,
    "exllama": EXLLAMA,
    "marlin": MARLIN,
}
ALL_ENGINES = "all"
PRECONDITIONS = ("config keys", "tensors")  # rows required by all other rows


def parse_engine_names(names: Sequence[str]) -> list[str]:
    """Returns the named engines without duplicates.

    Args:
        names: engine names, comma-separated lists of them, or `all`.
    Raises:
        RecipeProblem: a name is unknown.
    """
    engines = [part.strip().lower() for name in names for part in name.split(",")]
    for name in engines:
        if name not in (*INFERENCE_ENGINES, ALL_ENGINES):
            raise RecipeProblem(
                f"there is no engine {name!r}",
                next_step=f"use {', '.join(INFERENCE_ENGINES)} or {ALL_ENGINES}",
            )
    return list(INFERENCE_ENGINES) if ALL_ENGINES in engines else list(dict.fromkeys(engines))


def check_compatibility(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, Any]:
    """Checks a GPTQ checkpoint against the requirements of engines.

    Args:
        checkpoint: quantized checkpoint.
        names: engine names from `parse_engine_names`.
    Returns:
        `verdict` (PASS or FAIL over all engines) and `engines`, each with its name, verdict,
        source, needs, `ran` (always false) and `requirements`: name, status, reason, next step.
    Raises:
        CheckpointProblem: it is damaged or no GPTQ checkpoint of the LLaMA family.
    """
    subject = GptqCheckpoint(checkpoint)
    results = [_engine_result(subject, INFERENCE_ENGINES[name]) for name in names]
    verdicts = [Verdict(result["verdict"]) for result in results]
    return {"verdict": Verdict.combine(verdicts).value, "engines": results}


def _engine_result(subject: GptqCheckpoint, engine: InferenceEngine) -> dict[str, Any]:
    rows: list[dict[str, str]] = []
    for requirement in sorted(engine.requirements, key=lambda row: row.name not in PRECONDITIONS):
        rows.append(_requirement_result(subject, requirement))
        if requirement.name in PRECONDITIONS and rows[-1]["status"] == FindingStatus.FAIL:
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


def _requirement_result(subject: GptqCheckpoint, requirement: Requirement) -> dict[str, str]:
    finding = requirement.check(subject)
    return {
        "name": requirement.name,
        "status": finding.status.value,
        "reason": finding.reason,
        "next_step": finding.next_step,
    }
