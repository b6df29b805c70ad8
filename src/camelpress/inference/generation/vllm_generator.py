"""Prompts completed by vLLM, which is an extra: for models and tasks that outgrow this program.

Its draws are its own: the same in every run and for both models' seeds, but not those that are made
here without it.
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
from camelpress.inference.generation.sampling import StopRule

SEED_RANGE = 2**63


def require_vllm() -> None:
    """See that vLLM is there.

    Raises:
        EngineProblem: it is not installed.
    """
    optional_packages.require_package("vllm", need="completions by vLLM need vLLM", extra="vllm")


class VllmGenerator:
    """One model, in as many copies as there are GPUs for.

    Args:
        respondent: the model.
        tokenizer: folder of it.
        gpus: that a copy takes.
    Raises:
        EngineProblem: vLLM is not installed.
    """

    def __init__(self, respondent: GenerationModel, *, tokenizer: Path, gpus: int) -> None:
        require_vllm()
        self._of = respondent
        self._tokenizer = tokenizer
        self._gpus = gpus
        self._copies: list[ProcessPoolExecutor] = []
        self._longest = 0  # text that they have room for
        self.fixed_seconds = 0.0  # is not known

    def generate(self, wanted: Sequence[GenerationRequest]) -> Iterator[tuple[int, str]]:
        """Place and completion of each, copy by copy.

        Raises:
            EngineProblem: a copy broke.
        """
        longest = max(len(each.prompt.ids) + each.sampling.max_tokens for each in wanted)
        if longest > self._longest or not self._copies:
            self.release()
            self._longest = max(longest, self._of.model.max_positions)
            self._copies = self._start_workers()
        count = len(self._copies)
        shares = [range(number, len(wanted), count) for number in range(count)]
        asked = {
            copy.submit(
                vllm_worker.answer_requests, [self._request(wanted[place]) for place in share]
            ): share
            for copy, share in zip(self._copies, shares, strict=True)
            if share
        }
        for done in as_completed(asked):
            try:
                found = done.result()
            except (BrokenProcessPool, RuntimeError, ValueError) as error:
                raise ToolProblem(
                    f"vLLM broke with the {self._of.label} ({_line(error)})",
                    next_step="see what it said above, or complete without it",
                ) from error
            for place, tokens in zip(asked[done], found, strict=True):
                yield place, self._cut_text(wanted[place], tokens)

    def release(self) -> None:
        """End the processes, and give back their GPUs."""
        for copy in self._copies:
            copy.shutdown(cancel_futures=True)
        self._copies = []

    def _start_workers(self) -> list[ProcessPoolExecutor]:
        told = {
            "model": str(self._of.checkpoint.folder),
            "tokenizer": str(self._tokenizer),
            "dtype": dtype_name(self._of.model.dtype),
            "tensor_parallel_size": self._gpus,
            "max_model_len": self._longest,
            "enable_prefix_caching": True,
        }
        named = os.environ.get(vllm_worker.VISIBLE_GPUS_VARIABLE)
        seen = [*map(str, range(torch.cuda.device_count()))] if named is None else named.split(",")
        copies = len(seen) // self._gpus
        if not copies:
            raise ToolProblem(
                f"a copy of the {self._of.label} in vLLM takes {self._gpus} GPUs, and {len(seen)} "
                "are here",
                next_step="complete without vLLM, or set --vllm-gpus",
            )
        groups = [seen[copy * self._gpus : (copy + 1) * self._gpus] for copy in range(copies)]
        context = get_context("spawn")
        return [
            ProcessPoolExecutor(
                1, context, initializer=vllm_worker.start_worker, initargs=(group, told)
            )
            for group in groups
        ]

    def _request(self, wanted: GenerationRequest) -> vllm_worker.WorkerRequest:
        prompt, decoding, positions = wanted
        return vllm_worker.WorkerRequest(
            prompt.ids,
            [*decoding.stop],
            [*self._of.eos_ids],
            min(decoding.max_tokens, positions - len(prompt.ids)),
            decoding.temperature,
            decoding.top_p,
            int(sha256_json(prompt.seed), 16) % SEED_RANGE,
        )

    def _cut_text(self, wanted: GenerationRequest, tokens: Sequence[int]) -> str:
        ending = StopRule(
            wanted.sampling, self._of.tokenizer, frozenset(self._of.eos_ids), wanted.max_positions
        )
        return ending.cut(wanted.prompt.ids, tokens)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
