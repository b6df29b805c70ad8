"""Two metrics added to the product, one by each kind of formula, and a whole run with them.

The rows stand before any other module reads the table, so this runs in a process of its own:
python added_metrics.py FOLDER, with `base` and `prose.txt` in the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from camelpress.reporting.limit_range import AGREEMENT, NON_NEGATIVE
from camelpress.reporting.metrics import METRICS, Metric

ROWS = (
    Metric("test_gap", "Mean test gap", "logits", 0.0, NON_NEGATIVE),
    Metric("test_share", "Share of test tokens", "%", 1.0, AGREEMENT),
)
METRICS.update((row.key, row) for row in ROWS)
GATE: dict[str, Any] = {
    "test_gap": {"max": 1e6},
    "test_share": {"min": 1e-6},
    **dict.fromkeys(("perplexity_ratio", "kl_mean", "top1_agreement")),
    "early": {"test_gap": {"max": 0.0}},
}
TEXT: dict[str, Any] = {"sequence_length": 32, "max_tokens": 800}


def test_gap(reference: Tensor, candidate: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean absolute difference of logits, each row less its mean."""
    rows = [log_p - log_p.mean(dim=-1, keepdim=True) for log_p in (reference, candidate)]
    return (rows[0] - rows[1]).abs().mean(dim=-1)


def main(place: Path) -> None:
    """Quantizes, validates against the model and against a store, and publishes."""
    from camelpress import publish, quantize, validate
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.reporting.rendering.terminal_summary import terminal_rows
    from camelpress.reporting.validation_report import validation_schema
    from camelpress.validate.scoring.metric_formulas import FORMULAS
    from camelpress.validate.scoring.token_formulas import TOKEN_FORMULAS
    from camelpress.validate.settings import Gate, StoreSettings
    from camelpress.validate.statistics.clustered import clustered_share
    from camelpress.validate.store.build_store import build_store

    TOKEN_FORMULAS["test_gap"] = test_gap
    FORMULAS["test_share"] = lambda scores: clustered_share(
        (scores.confidence > 0.004).float(), scores.cluster
    )
    text = [place / "prose.txt"]
    base, packed = place / "base", place / "4bit"
    quantize(base, out=packed, method="rtn", group_size=32)
    report = validate(base, packed, out=place / "validation", text=text, gate=GATE, **TEXT)
    publish(
        packed, place / "validation", to=str(place / "release"), license="mit",
        allow_failed_gate="a test",
    )  # fmt: skip
    settings = StoreSettings.parse({"text": text, "top_k": 0} | TEXT, source="test")
    build_store(Checkpoint.open(base), place / "store", settings)
    stored = validate(place / "store", packed, out=place / "stored", text=text, gate=GATE)
    outcome = {
        "terminal": dict(terminal_rows(report)),
        "stored": dict(terminal_rows(stored)),
        "gate": Gate.model_json_schema(),
        "report": validation_schema(),
    }
    (place / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
