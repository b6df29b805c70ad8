"""vLLM in processes of their own: a copy of the model on each, with GPUs that no other has.

Nothing here imports what a worker does not need. vLLM refuses `data_parallel_size` with one
process (vllm-project/vllm#27282), so requests are dealt out; with several copies a row's draws are
the same, for each has a seed of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LONG_CONTEXT_VARIABLE = (
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN"  # a protocol of 2023 went beyond a model's positions
)
VISIBLE_GPUS_VARIABLE = "CUDA_VISIBLE_DEVICES"


class WorkerRequest(NamedTuple):
    """A prompt for vLLM."""

    ids: list[int]
    stop: list[str]
    stop_token_ids: list[int]
    max_tokens: int  # tokens
    temperature: float
    top_p: float
    seed: int


_llm: Any = None


def start_worker(gpus: Sequence[str], model: Mapping[str, Any]) -> None:
    """Read the model, once in a process.

    Args:
        gpus: that this process sees.
        model: arguments of `vllm.LLM`.
    """
    global _llm
    os.environ |= {VISIBLE_GPUS_VARIABLE: ",".join(gpus), LONG_CONTEXT_VARIABLE: "1"}
    from vllm import LLM

    _llm = LLM(**model)


def answer_requests(requests: Sequence[WorkerRequest]) -> list[list[int]]:
    """The tokens that each prompt is completed with, up to the first stop and some beyond."""
    from vllm import SamplingParams, TokensPrompt

    told = [
        SamplingParams(
            temperature=each.temperature,
            top_p=each.top_p,
            seed=each.seed,
            max_tokens=each.max_tokens,
            stop=each.stop or None,
            stop_token_ids=each.stop_token_ids,
            skip_special_tokens=False,
        )
        for each in requests
    ]
    prompts = [TokensPrompt(prompt_token_ids=each.ids) for each in requests]
    found = _llm.generate(prompts, told, use_tqdm=False)
    return [[*each.outputs[0].token_ids] for each in found]
