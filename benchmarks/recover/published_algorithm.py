"""Applies a weight diff as the published script does:

    python -m benchmarks.recover.published_algorithm RAW DIFF OUT

Both models whole in fp32, one added to the other, and the sum saved in fp32. The tokenizers and
the text that the published script generates at the end are left out: they take no part in the sum.

Source: allenai/open-instruct 0d2e152d7, scripts/weight_diff.py, recover.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def recover(raw: Path, diff: Path, out: Path) -> None:
    """Write raw + diff; a row that only the diff has is added to the mean of the raw rows."""
    base: Any = AutoModelForCausalLM.from_pretrained(raw, dtype=torch.float32)
    tuned: Any = AutoModelForCausalLM.from_pretrained(diff, dtype=torch.float32)
    rows = tuned.get_input_embeddings().weight.shape[0]
    old = base.get_input_embeddings().weight.shape[0]
    base.resize_token_embeddings(rows, mean_resizing=False)  # the new rows are replaced anyway
    for embedding in (base.get_input_embeddings(), base.get_output_embeddings()):
        embedding.weight[old:] = embedding.weight[:old].mean(dim=0, keepdim=True)
    raw_state = base.state_dict()
    for name, tensor in tuned.state_dict().items():
        tensor.add_(raw_state[name])
    tuned.save_pretrained(out)


def main() -> None:
    """Parse the command line and recover."""
    parser = argparse.ArgumentParser(description="Apply a weight diff the published way.")
    for name in ("raw", "diff", "out"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    with torch.inference_mode():
        recover(given.raw, given.diff, given.out)


if __name__ == "__main__":
    main()
