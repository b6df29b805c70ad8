"""Measures what a store loses:

    python -m benchmarks.validate.store MODEL CANDIDATE --text FILE --top-k 64 256 1024

A candidate is held against its reference itself, and against stores of the reference's predictions
that keep more or less of them. Prints Markdown; leaves nothing behind.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tables import MB, table
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.validate.run import run
from camelpress.validate.settings import StoreSettings, ValidateSettings
from camelpress.validate.store import build_store
from camelpress.validate.store.prediction_store import PredictionStore

HEADER = ["", "mean KL, nats", "off", "reverse KL", "off", "99 %", "bounds of the mean",
          "mass of the rest", "MB", "bytes a token"]  # fmt: skip


def row(name: str, facts: dict[str, Any], exact: dict[str, Any], size: int) -> list[str]:
    """Figures by one store, beside the exact ones."""
    both = [f"{facts[key] / exact[key] - 1:+.2%}" for key in ("kl_mean", "kl_reverse_mean")]
    store = facts["store"] or {"kl_bounds": (None, None), "remainder_mass": None}
    low, high = store["kl_bounds"]
    return [
        name,
        f"{facts['kl_mean']:.5f}",
        both[0] if size else "",
        f"{facts['kl_reverse_mean']:.5f}",
        both[1] if size else "",
        f"{facts['kl_percentiles']['99']:.3f}",
        f"{low:.4f} - {high:.4f}" if size else "",
        f"{store['remainder_mass']:.3%}" if size else "",
        f"{size / MB:.1f}" if size else "",
        f"{size / facts['tokens']:,.0f}" if size else "",
    ]


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description="Measure what a store loses.")
    parser.add_argument("model", type=Path)
    parser.add_argument("candidate", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--top-k", type=int, nargs="+", default=[64, 256, 1024, 0],
                        help="tokens kept; 0: all")  # fmt: skip
    parser.add_argument("--max-tokens", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=512)
    given = parser.parse_args()
    options = {
        "text": (given.text,),
        "max_tokens": given.max_tokens,
        "sequence_length": given.sequence_length,
    }
    model, candidate = Checkpoint.open(given.model), Checkpoint.open(given.candidate)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        judged = run(
            model, candidate, folder / "exact", ValidateSettings.parse(options, source="exact")
        )
        exact = judged.facts.record
        low, high = exact["kl_mean_interval"]
        rows = [row(f"the reference itself ({low:.4f} - {high:.4f})", exact, exact, 0)]
        for top_k in given.top_k:
            out = folder / "store"
            settings = StoreSettings.parse(options | {"top_k": top_k}, source="store")
            build_store.build_store(model, out, settings, force=True)
            size = sum(path.stat().st_size for path in out.glob("predictions-*"))
            told = run(
                PredictionStore.open(out), candidate, folder / str(top_k), ValidateSettings()
            )
            kept = f"{top_k} tokens and {settings.samples} drawn" if top_k else "all tokens"
            rows.append(row(kept, told.facts.record, exact, size))
    print(f"{exact['tokens']:,} predictions\n\n{table(HEADER, rows)}")


if __name__ == "__main__":
    main()
