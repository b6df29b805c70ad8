"""What lm-evaluation-harness says of the pico model: makes `lm_eval_golden.json`.

In an environment with lm-eval 0.4.13 (with its extra `hf`), torch and transformers, from the
repository's root:

    PYTHONPATH=src:tests/support python tests/support/lm_eval_golden.py

The task is one of output type `loglikelihood_rolling` on a local file, as `wikitext` is on
WikiText-2; model and texts are made by `pico`, the same in every run.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pico

GOLDEN = Path(__file__).with_suffix(".json")
WORDS = (3, 40, 9, 90, 25)  # of each document; a token is a letter, and the model has 128 positions
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


def write_documents(folder: Path) -> Path:
    """Plain texts as JSON lines: one shorter than a window, others of several windows."""
    lines = []
    for number, words in enumerate(WORDS):
        text = pico.write_text(folder / f"{number}.txt", words, number).read_text(encoding="utf-8")
        lines.append(json.dumps({"text": text.replace(" ship", "\n ship")}))
    path = folder / "documents.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Run lm-eval and write what it says."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_HOME"] = str(folder / "home")
        path, model = write_documents(folder), pico.write_model(folder / "model")
        (folder / "task.yaml").write_text(TASK.format(path=path), encoding="utf-8")
        told = lm_eval.simple_evaluate(
            model=HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=1),
            tasks=["rolling"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )
    found = {metric: told["results"]["rolling"][f"{metric},none"] for metric in METRICS}
    GOLDEN.write_text(
        json.dumps({"lm_eval": version("lm_eval"), **found}, indent=2) + "\n", encoding="utf-8"
    )
    sys.stdout.write(GOLDEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
