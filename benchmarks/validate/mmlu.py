"""MMLU block by block against lm-evaluation-harness' own transformers backend, item by item.

    python -m benchmarks.validate.mmlu .models/SmolLM2-135M-Instruct --items 200

Both get the same requests of `tulu_mmlu_0shot`, the first items of one shuffle, in fp32. Prints the
largest difference of a log-likelihood, the share of items with the same likeliest choice, and what
each took. Needs CAMELPRESS_DATA and `camelpress[tasks]`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import table
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.generator import GenerationModel, LocalGenerator
from camelpress.inference.generation.stop_tokens import stop_token_ids
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.validate.benchmarks import task_catalogue, time_budget
from camelpress.validate.benchmarks.response_cache import ResponseCache

LARGEST = 1e-3  # difference of log-likelihoods, at most
SAME = 0.999  # share of items with the same choice, at least
CHOICES = 4


def asked(model: Path, task: str, items: int) -> list[Any]:
    """The requests of so many items."""
    loaded = task_catalogue.load_tasks([task], data_dir=None, tokenizer=model, judged=False)
    found = loaded.tasks[task]
    parts = [doc["part"] for doc in found.eval_docs]
    found.set_config("num_fewshot", 0)
    with task_catalogue.silence_lm_eval():
        found.build_all_requests(samples=time_budget.sample_items(parts, items, by_part=False))
    requests: list[Any] = found.instances
    return requests


def ours(folder: Path, task: str, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """Block by block."""
    from camelpress.validate.benchmarks.lm_eval_adapter import CamelpressLM

    checkpoint, tokenizer = Checkpoint.open(folder), Tokenizer.load(folder)
    model = StreamedModel(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    answers, columns = (
        ResponseCache({}, None),
        {task: task_catalogue.BenchmarkSpec(task, "acc", add_bos=False)},
    )
    asked = GenerationModel(
        "model", checkpoint, model, tokenizer, stop_token_ids(checkpoint, tokenizer)
    )
    harness = CamelpressLM(asked, answers, columns, LocalGenerator(asked))
    found: list[tuple[float, bool]] = harness.loglikelihood(requests)
    return found


def theirs(folder: Path, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """The whole model, batch by batch."""
    from lm_eval.models.huggingface import HFLM

    with task_catalogue.silence_lm_eval():
        backend = HFLM(
            pretrained=str(folder), device="cpu", dtype="float32", batch_size=8, add_bos_token=False
        )
        found: list[tuple[float, bool]] = backend.loglikelihood(requests, disable_tqdm=True)
    return found


def main() -> int:
    """Print the comparison as Markdown; 1 if it is not close enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", default="tulu_mmlu_0shot")
    parser.add_argument("--items", type=int, default=200)
    given = parser.parse_args()
    requests = asked(given.model, given.task, given.items)
    begun = time.monotonic()
    first = ours(given.model, given.task, requests)
    between = time.monotonic()
    second = theirs(given.model, requests)
    ended = time.monotonic()
    logs = [
        torch.tensor([log for log, _ in each]).unflatten(0, (-1, CHOICES))
        for each in (first, second)
    ]
    largest = float((logs[0] - logs[1]).abs().max())
    same = float((logs[0].argmax(dim=-1) == logs[1].argmax(dim=-1)).double().mean())
    header = [f"items of {given.task}", "largest difference", "same choice", "ours", "theirs"]
    seconds = [f"{between - begun:.1f} s", f"{ended - between:.1f} s"]
    print(table(header, [[f"{len(logs[0]):,}", f"{largest:.1e}", f"{same:.2%}", *seconds]]))
    return int(largest > LARGEST or same < SAME)


if __name__ == "__main__":
    raise SystemExit(main())
