"""lm-evaluation-harness: rolling perplexity of plain texts by its Hugging Face backend, in fp32.

    python -m benchmarks.peers.lmeval MODEL DOCUMENTS OUT --window 512

The task is one of output type `loglikelihood_rolling` on a local file, as `wikitext` is on
WikiText-2. OUT gets perplexities per word and per byte as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

METRICS = ("word_perplexity", "byte_perplexity", "bits_per_byte")
TASK = """
task: rolling
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""


def perplexities(
    model: Path, documents: Path, *, window: int | None, batch: int
) -> dict[str, float]:
    """What lm-eval says of a model.

    Args:
        model: a folder that transformers loads.
        documents: JSON lines, each with a `text`.
        window: tokens that the model sees at once; None for all its positions.
        batch: windows side by side.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_HOME"] = str(folder / "home")
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        (folder / "task.yaml").write_text(TASK.format(path=documents.resolve()), encoding="utf-8")
        backend = HFLM(
            pretrained=str(model),
            dtype="float32",
            device="cpu",
            batch_size=batch,
            max_length=window,
        )
        told = lm_eval.simple_evaluate(
            model=backend,
            tasks=["rolling"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )
    return {metric: told["results"]["rolling"][f"{metric},none"] for metric in METRICS}


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description="Rolling perplexity by lm-evaluation-harness.")
    parser.add_argument("model", type=Path)
    parser.add_argument("documents", type=Path, help="JSON lines with a text each")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--window", type=int, help="tokens (default: all positions)")
    parser.add_argument("--batch", type=int, default=1, help="windows side by side")
    given = parser.parse_args()
    told = perplexities(given.model, given.documents, window=given.window, batch=given.batch)
    given.out.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
