"""Parts that quantize whole blocks of random weights: steps, memory, equal bytes and resumption."""

from __future__ import annotations

import hashlib
import shutil
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.gpu.random_pair import open_model, write_texts
from benchmarks.gpu.session import Session
from benchmarks.gpu.step_timer import timed_steps
from camelpress.core.errors import Interruption
from camelpress.core.progress import use_listener
from camelpress.quantize.run import run as quantize
from camelpress.quantize.settings import QuantizeSettings
from camelpress.reporting.report_classes import QuantizeReport

Item = TypeVar("Item")
GROUP_SIZE = 128
WIDTH_7B, WIDTH_65B = 4096, 8192  # hidden sizes; the widths of the MLP follow


def block_65b(session: Session) -> None:
    """Quantizes one block as wide as that of LLaMA 65B, twice."""
    _quantize_twice(session, session.width(WIDTH_65B), layers=1)


def block_7b(session: Session) -> None:
    """Quantizes two blocks as wide as those of LLaMA 7B, twice, and once with a stop between."""
    hidden = session.width(WIDTH_7B)
    digest = _quantize_twice(session, hidden, layers=2)
    out = session.folder / "stopped"
    stopped = False
    try:
        with use_listener(_StopInFirstBlock()):
            _quantize(session, hidden, 2, out)
    except Interruption:
        stopped = True
    _quantize(session, hidden, 2, out)
    same_bytes = stopped and _digest(out) == digest
    session.report(run="stopped and resumed", same_bytes=same_bytes, ok=same_bytes)
    shutil.rmtree(out)


def launches(session: Session) -> None:
    """Counts the kernels that one block as wide as that of LLaMA 7B starts, with one sequence."""
    if not session.is_gpu:
        session.report(skipped="needs a GPU")
        return
    hidden, out = session.width(WIDTH_7B), session.folder / "profiled"
    count = session.launches(partial(_quantize, session, hidden, 1, out, samples=1))
    session.report(hidden=hidden, launches=count)
    shutil.rmtree(out)


class _StopInFirstBlock:
    """Asks for a stop, as a user does, when the first block begins."""

    def track(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        """Yields the items."""
        if label == "quantize":
            signal.raise_signal(signal.SIGTERM)
        yield from items

    def note(self, text: str) -> None:
        """Discards the line."""


def _quantize_twice(session: Session, hidden: int, *, layers: int) -> str:
    """Reports a run with its steps and one without timers; returns the digest of the weights."""
    digests = []
    for label in ("timed by step", "plain"):
        out = session.folder / "quantized"
        session.reset_peak()
        facts: dict[str, Any] = {}
        if label == "plain":
            report = _quantize(session, hidden, layers, out)
        else:
            with timed_steps(session) as times:
                report = _quantize(session, hidden, layers, out)
            facts = {
                "step_seconds": dict(sorted(times.seconds.items(), key=lambda item: -item[1])),
                "step_calls": dict(times.calls),
                "missing_steps": times.missing,
            }
        digests.append(_digest(out))
        same_bytes = len(set(digests)) == 1
        session.report(
            run=label,
            hidden=hidden,
            layers=layers,
            **_token_facts(session),
            dtype=report.facts.dtype,
            **facts,
            cost=report.cost,
            same_bytes=same_bytes,
            ok=same_bytes,
            **session.peaks(),
        )
        shutil.rmtree(out)
    return digests[0]


def _token_facts(session: Session) -> dict[str, int]:
    return {"samples": session.count(16, 4), "sequence_length": session.count(2048, 64)}


def _quantize(
    session: Session, hidden: int, layers: int, out: Path, *, samples: int | None = None
) -> QuantizeReport:
    model = open_model(session, hidden, layers)
    calibration, _ = write_texts(session)
    options = {
        **_token_facts(session),
        **({"samples": samples} if samples else {}),
        "group_size": GROUP_SIZE,
        "calibration": (str(calibration),),
        "device": str(session.device),
        "max_fallbacks": 7 * layers,  # random weights may lose more than real ones
    }
    return quantize(model, out, QuantizeSettings.parse(options, source="benchmark"))


def _digest(out: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(out.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
