"""The command line with lanes and blocks of rows so small that the pico model has several."""

from __future__ import annotations

from camelpress.cli import entry_point
from camelpress.inference.model import batch_sizes
from camelpress.inference.model.batch_sizes import BatchSizes
from camelpress.quantize.solver import layer

LANE_TOKENS, ROWS = 100, 32
TABLE = "camelpress.inference.model.batch_sizes.SIZES"  # for `MonkeyPatch.setattr`


def shrink() -> None:
    """Make lanes and blocks of rows small."""
    batch_sizes.SIZES = resized(shard=LANE_TOKENS, scored_shard=LANE_TOKENS)
    layer.SOLVE_ROWS = ROWS


def resized(**sizes: int) -> dict[str, BatchSizes]:
    """The sizes of each device, some of them replaced."""
    return {device: old._replace(**sizes) for device, old in batch_sizes.SIZES.items()}


if __name__ == "__main__":
    shrink()
    entry_point.main()
