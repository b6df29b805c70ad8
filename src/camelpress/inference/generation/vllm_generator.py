"""Completes prompts with vLLM, an optional dependency for large models and tasks.

Its samples are reproducible, but differ from those of `LocalGenerator`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch

from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import ToolProblem
from camelpress.core.files.file_hashes import sha256_json
from camelpress.core.runtime import optional_packages
from camelpress.inference.generation import vllm_worker
from camelpress.inference.generation.generator import GenerationModel, GenerationRequest
from camelpress.inference.generation.stop_rule import StopRule

SEED_RANGE = 2**63


def require_vllm() -> None:
    """Checks that vLLM is installed.

    Raises:
        ToolProblem: vLLM is not installed.
    """
    optional_packages.require_package("vllm", need="completions by vLLM need vLLM", extra="vllm")


class VllmGenerator:
    """Generator with as many copies of a model as the GPUs allow.

    Args:
        generation_model: the model.
        tokenizer: folder of its tokenizer.
        gpus: GPUs per copy.
    Raises:
        ToolProblem: vLLM is not installed.
    """

    def __init__(self, generation_model: GenerationModel, *, tokenizer: Path, gpus: int) -> None:
        require_vllm()
        self._target = generation_model
        self._tokenizer = tokenizer
        self._gpus = gpus
        self._copies: list[ProcessPoolExecutor] = []
        self._max_tokens = 0  # longest sequence in tokens
        self.fixed_seconds = 0.0  # unknown for vLLM

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, str]]:
        """Yields the index and completion of each request, copy by copy.

        Raises:
            ToolProblem: a copy failed.
        """
        max_request_tokens = max(
            len(request.prompt.ids) + request.sampling.max_tokens for request in requests
        )
        if max_request_tokens > self._max_tokens or not self._copies:
            self.release()
            self._max_tokens = max(max_request_tokens, self._target.model.max_positions)
            self._copies = self._start_workers()
        count = len(self._copies)
        shares = [range(number, len(requests), count) for number in range(count)]
        share_of_future = {
            copy.submit(
                vllm_worker.answer_requests, [self._request(requests[index]) for index in share]
            ): share
            for copy, share in zip(self._copies, shares, strict=True)
            if share
        }
        for future in as_completed(share_of_future):
            try:
                completions = future.result()
            except (BrokenProcessPool, RuntimeError, ValueError) as error:
                raise ToolProblem(
                    f"vLLM failed with the {self._target.label} ({_line(error)})",
                    next_step="read its output above, or complete without vLLM",
                ) from error
            for index, tokens in zip(share_of_future[future], completions, strict=True):
                yield index, self._cut_text(requests[index], tokens)

    def release(self) -> None:
        """Ends the worker processes, and frees their GPUs."""
        for copy in self._copies:
            copy.shutdown(cancel_futures=True)
        self._copies = []

    def _start_workers(self) -> list[ProcessPoolExecutor]:
        arguments = {
            "model": str(self._target.checkpoint.folder),
            "tokenizer": str(self._tokenizer),
            "dtype": dtype_name(self._target.model.dtype),
            "tensor_parallel_size": self._gpus,
            "max_model_len": self._max_tokens,
            "enable_prefix_caching": True,
        }
        visible = os.environ.get(vllm_worker.VISIBLE_GPUS_VARIABLE)
        gpus = (
            [*map(str, range(torch.cuda.device_count()))] if visible is None else visible.split(",")
        )
        copies = len(gpus) // self._gpus
        if not copies:
            raise ToolProblem(
                f"a copy of the {self._target.label} in vLLM needs {self._gpus} GPUs, and "
                f"{len(gpus)} are visible",
                next_step="complete without vLLM, or set --vllm-gpus",
            )
        groups = [gpus[copy * self._gpus : (copy + 1) * self._gpus] for copy in range(copies)]
        context = get_context("spawn")
        return [
            ProcessPoolExecutor(
                1, context, initializer=vllm_worker.start_worker, initargs=(group, arguments)
            )
            for group in groups
        ]

    def _request(self, request: GenerationRequest) -> vllm_worker.WorkerRequest:
        prompt, sampling, positions = request
        return vllm_worker.WorkerRequest(
            prompt.ids,
            [*sampling.stop],
            [*self._target.eos_ids],
            min(sampling.max_tokens, positions - len(prompt.ids)),
            sampling.temperature,
            sampling.top_p,
            int(sha256_json(prompt.seed), 16) % SEED_RANGE,
        )

    def _cut_text(self, request: GenerationRequest, tokens: Sequence[int]) -> str:
        stop_rule = StopRule(
            request.sampling,
            self._target.tokenizer,
            frozenset(self._target.eos_ids),
            request.max_positions,
        )
        return stop_rule.cut_text(request.prompt.ids, tokens)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
