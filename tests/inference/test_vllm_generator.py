"""Completions by vLLM, with a module in its place that has its names and signatures.

vLLM itself needs a GPU; it was never run here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import ToolProblem
from camelpress.core.runtime import optional_packages
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation import vllm_worker
from camelpress.inference.generation.generator import GenerationModel, GenerationRequest
from camelpress.inference.generation.sampling import SamplingParams, TokenPrompt
from camelpress.inference.generation.vllm_generator import VllmGenerator, require_vllm
from camelpress.inference.model.streamed_model import StreamedModel
from refusal import refusal

STAND_IN = '''
"""Says where it runs and what it was asked for, as tokens: the letters of that text, and a stop."""

import os
from dataclasses import dataclass, field


@dataclass
class TokensPrompt:
    prompt_token_ids: list


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop: object = None
    stop_token_ids: list | None = None
    skip_special_tokens: bool = True


@dataclass
class Output:
    token_ids: list


@dataclass
class RequestOutput:
    outputs: list


class LLM:
    def __init__(self, model, *, tokenizer, dtype, tensor_parallel_size, max_model_len,
                 enable_prefix_caching):
        self.told = f"{dtype} {tensor_parallel_size} {max_model_len}"
        if not os.path.isdir(model):
            raise OSError(f"no model in {model}")

    def generate(self, prompts, sampling_params, *, use_tqdm=True):
        found = []
        for prompt, how in zip(prompts, sampling_params, strict=True):
            if how.max_tokens < 1:
                raise ValueError("max_tokens must be at least 1, got 0.")
            gpus = os.environ["CUDA_VISIBLE_DEVICES"]
            length = len(prompt.prompt_token_ids)
            text = f"{gpus} {self.told} {how.max_tokens} {how.temperature} {length}"
            ids = [ALPHABET[letter] for letter in text + how.stop[0] + "beyond"]
            found.append(RequestOutput([Output(ids)]))
        return found
'''
GREEDY = SamplingParams(stop=("\n",), max_tokens=12, temperature=0.0, top_p=1.0)


@pytest.fixture
def stand_in(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `vllm`, for this process and those that it starts."""
    encode = Tokenizer.load(base).encode
    letters = {chr(code): encode(chr(code))[0] for code in (10, *range(32, 127))}
    (tmp_path / "vllm.py").write_text(f"ALPHABET = {letters!r}\n{STAND_IN}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    monkeypatch.setenv(vllm_worker.VISIBLE_GPUS_VARIABLE, "4,5")


def completer(folder: Path, gpus: int = 1) -> VllmGenerator:
    model = StreamedModel(Checkpoint.open(folder), device=torch.device("cpu"), dtype=torch.float32)
    asked = GenerationModel("reference", model.checkpoint, model, Tokenizer.load(folder), [2])
    return VllmGenerator(asked, tokenizer=folder, gpus=gpus)


def wanted(length: int, positions: int = 128) -> GenerationRequest:
    return GenerationRequest(TokenPrompt([5] * length, "seed"), GREEDY, positions)


@pytest.mark.usefixtures("stand_in")
def test_each_copy_has_its_gpus_and_its_share_of_the_prompts(base: Path) -> None:
    model = completer(base)
    found = dict(model.generate([wanted(length) for length in (3, 4, 5, 6)]))
    assert found == {
        place: f"{4 + place % 2} float32 1 128 12 0.0 {3 + place}" for place in range(4)
    }
    again = dict(model.generate([wanted(20, positions=25)]))  # the same processes
    assert again == {0: "4 float32 1 128 5 0.0 20"}
    model.release()


@pytest.mark.usefixtures("stand_in")
def test_what_vllm_refuses_is_one_line(base: Path) -> None:
    model = completer(base, gpus=2)
    with refusal(
        ToolProblem,
        "vLLM failed with the reference (max_tokens must be at least 1, got 0.)",
        next_step="read its output above, or complete without vLLM",
        out=None,
    ):
        [*model.generate([wanted(128)])]
    model.release()


@pytest.mark.usefixtures("stand_in")
def test_too_few_gpus(base: Path) -> None:
    with refusal(
        ToolProblem,
        "a copy of the reference in vLLM needs 3 GPUs, and 2 are visible",
        next_step="complete without vLLM, or set --vllm-gpus",
        out=None,
    ):
        [*completer(base, gpus=3).generate([wanted(3)])]


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda _: None)
    with refusal(
        ToolProblem,
        "completions by vLLM need vLLM, which is not installed",
        next_step='pip install "camelpress[vllm]"',
        out=None,
    ):
        require_vllm()
