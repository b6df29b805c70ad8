"""The command line with lanes and blocks of rows so small that the pico model has several."""

from __future__ import annotations

from camelpress.cli import entry_point
from camelpress.inference.streaming import token_shards
from camelpress.quantize.solver import layer

LANE_TOKENS, ROWS = 100, 32


def shrink() -> None:
    """Make lanes and blocks of rows small."""
    token_shards.SHARD_TOKENS, layer.SOLVE_ROWS = LANE_TOKENS, ROWS


if __name__ == "__main__":
    shrink()
    entry_point.main()
