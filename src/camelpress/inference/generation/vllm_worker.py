"""Worker processes of vLLM: a copy of the model in each, on GPUs of its own.

This module imports only the needs of a worker. vLLM refuses `data_parallel_size` with one process
(vllm-project/vllm#27282), so requests are divided among the workers. Each request has its seed, so
the samples do not depend on the number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# a benchmark protocol of 2023 exceeds the positions of a model
LONG_CONTEXT_VARIABLE = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
VISIBLE_GPUS_VARIABLE = "CUDA_VISIBLE_DEVICES"


class WorkerRequest(NamedTuple):
    """A prompt with sampling parameters for vLLM."""

    ids: list[int]
    stop: list[str]
    stop_token_ids: list[int]
    max_tokens: int  # largest number of new tokens
    temperature: float
    top_p: float
    seed: int


_llm: Any = None


def start_worker(gpus: Sequence[str], model: Mapping[str, Any]) -> None:
    """Loads the model, once per process.

    Args:
        gpus: GPUs visible to this process.
        model: arguments of `vllm.LLM`.
    """
    global _llm
    os.environ |= {VISIBLE_GPUS_VARIABLE: ",".join(gpus), LONG_CONTEXT_VARIABLE: "1"}
    from vllm import LLM

    _llm = LLM(**model)


def answer_requests(requests: Sequence[WorkerRequest]) -> list[list[int]]:
    """Returns the completion tokens of each prompt, up to the first stop and slightly beyond."""
    from vllm import SamplingParams, TokensPrompt

    sampling = [
        SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop=request.stop or None,
            stop_token_ids=request.stop_token_ids,
            skip_special_tokens=False,
        )
        for request in requests
    ]
    prompts = [TokensPrompt(prompt_token_ids=request.ids) for request in requests]
    outputs = _llm.generate(prompts, sampling, use_tqdm=False)
    return [[*output.outputs[0].token_ids] for output in outputs]
