"""From a published weight diff to a tested, published 4-bit release."""

__version__ = "0.1.0"
