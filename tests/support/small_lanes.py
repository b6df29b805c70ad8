"""The command line with lanes and blocks of rows so small that the pico model has several."""

from __future__ import annotations

from camelpress import cli
from camelpress.core import lanes
from camelpress.quantize import layer

LANE_TOKENS, ROWS = 100, 32


def shrink() -> None:
    """Make lanes and blocks of rows small."""
    lanes.LANE_TOKENS, layer.ROWS = LANE_TOKENS, ROWS


if __name__ == "__main__":
    shrink()
    cli.main()
