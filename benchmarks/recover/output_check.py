"""Compares a recovered model with the tuned one:

    python -m benchmarks.recover.output_check BILLIONS FOLDER SEED

The tuned model is drawn anew: the embedding, the head, the last norm and one layer, which the
seed chooses, are compared bit for bit as bfloat16, all others by name and shape.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from safetensors import safe_open

from benchmarks import weights
from benchmarks.shapes import TUNED_ROWS, VOCABULARY, Sizes, near


def require(folder: Path, sizes: Sizes, layer: int) -> None:
    """See that a folder holds the tuned model.

    Args:
        folder: the recovered model in safetensors, of any type.
        sizes: of the pair.
        layer: the one whose values are compared.
    Raises:
        SystemExit: they differ.
    """
    raw, grown = sizes.shapes(VOCABULARY), sizes.shapes(TUNED_ROWS)
    found: dict[str, tuple[int, ...]] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():
                found[name] = tuple(file.get_slice(name).get_shape())
                others = ".layers." in name and f".layers.{layer}." not in name
                if others or name not in raw:
                    continue
                want, _ = weights.tuned(name, weights.base(name, raw[name]), grown[name][0])
                have = file.get_tensor(name).to(torch.bfloat16)
                if not torch.equal(have.view(torch.int16), want.view(torch.int16)):
                    raise SystemExit(f"{shard}: {name} is not that of the tuned model")
    if found != grown:
        raise SystemExit(f"{folder}: names or shapes are not those of the tuned model")


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description="Compare a folder with the tuned model.")
    parser.add_argument("billions", type=float, help="of the pair")
    parser.add_argument("folder", type=Path, help="what was recovered")
    parser.add_argument("seed", type=int, help="chooses the layer")
    given = parser.parse_args()
    sizes = near(given.billions)
    require(given.folder, sizes, random.Random(given.seed).randrange(sizes.layers))


if __name__ == "__main__":
    main()
