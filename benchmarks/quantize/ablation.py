"""What each part of the quantizer is worth: same model, text and tokens, one part more each time.

    python -m benchmarks.quantize.ablation MODEL --calibration FILE --text FILE [--text FILE]

The parts are the ones of docs/design.md. Those that are always on have no option; they are taken
out here, by running the solver with another order or with a kernel that searches less.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.tables import table
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.quantize.kernels import cpu_kernel, reference_kernel
from camelpress.quantize.kernels.kernel import GroupResult
from camelpress.quantize.run import run as quantize
from camelpress.quantize.settings import QuantizeSettings
from camelpress.validate.run import run as validate
from camelpress.validate.settings import ValidateSettings

LAYER = "camelpress.quantize.solver.layer"
Part = Callable[[], Iterator[None]]


def spanning(columns: Tensor, importance: Tensor, *, bits: int, sym: bool) -> tuple[Tensor, Tensor]:
    """The grid that spans a group, and no other."""
    return next(reference_kernel._grid_candidates(columns, 2**bits - 1, sym))


def unsigned(columns: Tensor, importance: Tensor, *, bits: int, sym: bool) -> tuple[Tensor, Tensor]:
    """The best grid with a positive step: of a weight and its mirror image, the better half."""
    grids = list(reference_kernel._grid_candidates(columns, 2**bits - 1, sym))[:: 2 if sym else 1]
    with patch.object(reference_kernel, "_grid_candidates", lambda *_: iter(grids)):
        return reference_kernel.search_group(columns, importance, bits=bits, sym=sym)


@contextmanager
def searching(search: Callable[..., tuple[Tensor, Tensor]]) -> Iterator[None]:
    """With another search, and everything else as it is."""

    def round_group(
        columns: Tensor, upper: Tensor, importance: Tensor, *, bits: int, sym: bool
    ) -> GroupResult:
        scales, zeros = search(columns, importance, bits=bits, sym=sym)
        codes, errors = cpu_kernel.round_columns(columns, upper, scales, zeros, top=2**bits - 1)
        return GroupResult(codes, errors, scales, zeros)

    other = SimpleNamespace(
        round_group=round_group,
        search_group=search,
        round_columns=cpu_kernel.round_columns,
    )
    with patch(f"{LAYER}.pick_kernel", lambda _: other):
        yield


@contextmanager
def natural_order() -> Iterator[None]:
    """With the columns in the order in which they stand."""
    with patch(f"{LAYER}.activation_order", lambda diagonal, **_: torch.arange(len(diagonal))):
        yield


# fmt: off
VARIANTS = (  # name, correction (None: the default), what is taken out
    ("plain GPTQ", 0.0, (natural_order, lambda: searching(spanning))),
    ("+ activation order", 0.0, (lambda: searching(spanning),)),
    ("+ search for the step", 0.0, (lambda: searching(unsigned),)),
    ("+ with either sign", 0.0, ()),
    ("+ correction towards the 16-bit outputs", None, ()),
    ("full correction", 1.0, ()),
)
# fmt: on


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=8192)
    given = parser.parse_args()
    rows = []
    for name, correction, without in VARIANTS:
        options = {
            "group_size": given.group_size,
            "samples": given.samples,
            "sequence_length": given.sequence_length,
            "calibration": (given.calibration,),
        }
        options |= {} if correction is None else {"correction": correction}
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            for part in without:
                stack.enter_context(part())
            out = Path(folder)
            quantize(
                Checkpoint.open(given.model),
                out / "q",
                QuantizeSettings.parse(options, source=name),
            )
            report = validate(
                Checkpoint.open(given.model),
                Checkpoint.open(out / "q"),
                out / "report",
                ValidateSettings.parse(
                    {
                        "text": tuple(given.text),
                        "sequence_length": given.sequence_length,
                        "max_tokens": given.max_tokens,
                    },
                    source=name,
                ),
            )
        facts = report.facts.record
        low, high = facts["kl_mean_interval"]
        rows.append(
            [
                name,
                f"{facts['perplexity_ratio']:.4f}",
                f"{facts['kl_mean']:.4f} ({low:.4f} - {high:.4f})",
                f"{facts['top1_agreement']:.1%}",
            ]
        )
        print(rows[-1], flush=True)
    print(table(["", "perplexity ratio", "mean KL, nats", "top-1"], rows))


if __name__ == "__main__":
    main()
