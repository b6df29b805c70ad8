"""A LLaMA of random weights in fp16: python -m benchmarks.quantize.random_model HIDDEN LAYERS OUT

It has LLaMA's vocabulary and tokenizer.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from benchmarks import weights
from benchmarks.pair import RAW, checkpoint
from benchmarks.quantize.models import TOKENIZER
from benchmarks.shapes import VOCABULARY, Sizes


def write(folder: Path, sizes: Sizes) -> None:
    """Make the folder.

    Raises:
        SystemExit: the tokenizer is not there.
    """
    if not TOKENIZER.is_dir():
        raise SystemExit(f"{TOKENIZER} is missing: make it with tests/models/llama_tokenizer.py")
    shapes = sizes.shapes(VOCABULARY)
    checkpoint(folder, RAW, sizes, shapes, lambda name: weights.base(name, shapes[name]))
    for path in TOKENIZER.iterdir():
        shutil.copyfile(path, folder / path.name)


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description="Make a LLaMA of random weights.")
    parser.add_argument("hidden", type=int, help="width, a multiple of 128")
    parser.add_argument("layers", type=int)
    parser.add_argument("out", type=Path, help="folder to make")
    given = parser.parse_args()
    write(given.out, Sizes(given.hidden, given.layers))


if __name__ == "__main__":
    main()
