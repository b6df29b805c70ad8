"""What lm-evaluation-harness says of the pico model and of SmolLM2: makes `lm_eval_golden.json`.

In an environment with lm-eval 0.4.13 (`tests/clients/make_env.sh lmeval`), from the repository's
root, with the folder of SmolLM2:

    PYTHONPATH=.:src:tests/support python tests/support/lm_eval_golden.py FOLDER

The task is one of output type `loglikelihood_rolling` on a local file, as `wikitext` is on
WikiText-2. The pico model and its texts are the same in every run; those of SmolLM2 are the first
paragraphs of the demo's held-out prose.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pico

GOLDEN = Path(__file__).with_suffix(".json")
METRICS = ("word_perplexity", "byte_perplexity", "bits_per_byte")
WORDS = (3, 40, 9, 90, 25)  # of each document; a token is a letter, and the model has 128 positions
PROSE = Path(__file__).parents[2] / "src" / "camelpress" / "data" / "demo" / "evaluation.txt"
PARAGRAPHS, WINDOW = 4, 128  # of SmolLM2; the last one takes several windows


def write_documents(folder: Path) -> Path:
    """Plain texts as JSON lines: one shorter than a window, others of several windows."""
    lines = []
    for number, words in enumerate(WORDS):
        text = pico.write_text(folder / f"{number}.txt", words, number).read_text(encoding="utf-8")
        lines.append(json.dumps({"text": text.replace(" ship", "\n ship")}))
    path = folder / "documents.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_paragraphs(folder: Path) -> Path:
    """Paragraphs of English prose as JSON lines."""
    found = PROSE.read_text(encoding="utf-8").split("\n\n")[:PARAGRAPHS]
    path = folder / "paragraphs.jsonl"
    lines = [json.dumps({"text": paragraph}) for paragraph in found]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Run lm-eval and write what it says."""
    from benchmarks.peers.lmeval import perplexities

    smollm2 = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, paragraphs = pico.write_model(folder / "model"), write_paragraphs(folder)
        told = {
            "lm_eval": version("lm_eval"),
            "pico": perplexities(model, write_documents(folder), window=None, batch=1),
            "smollm2": perplexities(smollm2, paragraphs, window=WINDOW, batch=1),
        }
    GOLDEN.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(GOLDEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
