"""Makes logistic_golden.json: a logistic regression with clustered errors, by statsmodels 0.15.0.

Needs statsmodels, which the tests do not: python tests/support/logistic_golden.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_suffix(".json")
PAIRS = 60


def verdicts() -> dict[str, np.ndarray]:
    """Made-up verdicts on pairs in both orders; some are draws, some between."""
    draw = np.random.default_rng(7)
    longer = np.repeat(draw.integers(-900, 1200, PAIRS), 2).astype(float)
    first = np.tile([1.0, 0.0], PAIRS)
    pair = np.repeat(np.arange(PAIRS), 2)
    taste = np.repeat(draw.normal(0, 1, PAIRS), 2)
    logits = 0.3 + 1.2 * np.tanh(longer / longer.std(ddof=1)) + 0.8 * (first - 0.5) + taste
    won = (draw.random(2 * PAIRS) < 1 / (1 + np.exp(-logits))).astype(float)
    won[::17], won[::23] = 0.5, 0.75
    return {"won": won, "longer": longer, "first": first, "pair": pair}


def main() -> None:
    """Fit, and write coefficients and errors."""
    import statsmodels.api as sm

    told = verdicts()
    longer = told["longer"]
    terms = [np.ones_like(longer), np.tanh(longer / longer.std(ddof=1)), told["first"] - 0.5]
    model = sm.GLM(told["won"], np.stack(terms, axis=1), family=sm.families.Binomial())
    found = model.fit(
        tol=1e-12,
        cov_type="cluster",
        cov_kwds={"groups": told["pair"], "use_correction": False},
    )
    errors = found.bse * np.sqrt(PAIRS / (PAIRS - 1))
    golden = {"coefficients": found.params.tolist(), "errors": errors.tolist()}
    GOLDEN.write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
