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
from camelpress.core.errors import EngineProblem
from camelpress.core.files.file_hashes import sha256_json
from camelpress.core.runtime import optional_packages
from camelpress.inference.generation import vllm_worker
from camelpress.inference.generation.generator import Respondent, Wanted
from camelpress.inference.generation.sampling import Ending

SEEDS = 2**63


def require_vllm() -> None:
    """See that vLLM is there.

    Raises:
        EngineProblem: it is not installed.
    """
    optional_packages.require("vllm", need="completions by vLLM need vLLM", extra="vllm")


class VllmCompleter:
    """One model, in as many copies as there are GPUs for.

    Args:
        respondent: the model.
        tokenizer: folder of it.
        gpus: that a copy takes.
    Raises:
        EngineProblem: vLLM is not installed.
    """

    def __init__(self, respondent: Respondent, *, tokenizer: Path, gpus: int) -> None:
        require_vllm()
        self._of = respondent
        self._tokenizer = tokenizer
        self._gpus = gpus
        self._copies: list[ProcessPoolExecutor] = []
        self._longest = 0  # text that they have room for
        self.overhead = 0.0  # is not known

    def complete(self, wanted: Sequence[Wanted]) -> Iterator[tuple[int, str]]:
        """Place and completion of each, copy by copy.

        Raises:
            EngineProblem: a copy broke.
        """
        longest = max(len(each.prompt.ids) + each.decoding.most for each in wanted)
        if longest > self._longest or not self._copies:
            self.release()
            self._longest = max(longest, self._of.model.positions)
            self._copies = self._started()
        count = len(self._copies)
        shares = [range(number, len(wanted), count) for number in range(count)]
        asked = {
            copy.submit(
                vllm_worker.answer, [self._request(wanted[place]) for place in share]
            ): share
            for copy, share in zip(self._copies, shares, strict=True)
            if share
        }
        for done in as_completed(asked):
            try:
                found = done.result()
            except (BrokenProcessPool, RuntimeError, ValueError) as error:
                raise EngineProblem(
                    f"vLLM broke with the {self._of.label} ({_line(error)})",
                    next_step="see what it said above, or complete without it",
                ) from error
            for place, tokens in zip(asked[done], found, strict=True):
                yield place, self._text(wanted[place], tokens)

    def release(self) -> None:
        """End the processes, and give back their GPUs."""
        for copy in self._copies:
            copy.shutdown(cancel_futures=True)
        self._copies = []

    def _started(self) -> list[ProcessPoolExecutor]:
        told = {
            "model": str(self._of.checkpoint.folder),
            "tokenizer": str(self._tokenizer),
            "dtype": dtype_name(self._of.model.dtype),
            "tensor_parallel_size": self._gpus,
            "max_model_len": self._longest,
            "enable_prefix_caching": True,
        }
        named = os.environ.get(vllm_worker.VISIBLE)
        seen = [*map(str, range(torch.cuda.device_count()))] if named is None else named.split(",")
        copies = len(seen) // self._gpus
        if not copies:
            raise EngineProblem(
                f"a copy of the {self._of.label} in vLLM takes {self._gpus} GPUs, and {len(seen)} "
                "are here",
                next_step="complete without vLLM, or set --vllm-gpus",
            )
        groups = [seen[copy * self._gpus : (copy + 1) * self._gpus] for copy in range(copies)]
        context = get_context("spawn")
        return [
            ProcessPoolExecutor(1, context, initializer=vllm_worker.start, initargs=(group, told))
            for group in groups
        ]

    def _request(self, wanted: Wanted) -> vllm_worker.Request:
        prompt, decoding, positions = wanted
        return vllm_worker.Request(
            prompt.ids,
            [*decoding.stops],
            [*self._of.ends],
            min(decoding.most, positions - len(prompt.ids)),
            decoding.temperature,
            decoding.top_p,
            int(sha256_json(prompt.seed), 16) % SEEDS,
        )

    def _text(self, wanted: Wanted, tokens: Sequence[int]) -> str:
        ending = Ending(
            wanted.decoding, self._of.tokenizer, frozenset(self._of.ends), wanted.positions
        )
        return ending.cut(wanted.prompt.ids, tokens)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
