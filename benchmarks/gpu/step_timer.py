"""Seconds and calls of the steps inside a run, with the device waited for around each."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib import import_module
from typing import Any, NamedTuple
from unittest.mock import patch

from benchmarks.gpu.session import Session

# fmt: off
STEPS = (  # module of camelpress, and the function in it; a step inside another counts in both
    ("inference.model.streamed_model",        "StreamedModel.read_block_weights"),
    ("inference.model.streamed_model",        "DecoderBlock.context"),
    ("inference.model.streamed_model",        "DecoderBlock.attention_output"),
    ("inference.model.streamed_model",        "DecoderBlock.mlp_middle"),
    ("inference.model.streamed_model",        "DecoderBlock.mlp_output"),
    ("inference.streaming.token_shards",      "TokenShard.read_states"),
    ("inference.streaming.token_shards",      "TokenShard.write_states"),
    ("inference.streaming.token_shards",      "TokenShard.start_save"),
    ("inference.model.token_batches",         "take_batch"),
    ("quantize.block_quantizer",              "put_batch"),
    ("quantize.solver.hessian",               "HessianAccumulator.add_batch"),
    ("quantize.block_quantizer",              "correct_weight"),
    ("quantize.block_quantizer",              "round_layer"),
    ("quantize.solver.layer",                 "factorize_hessian"),
    ("quantize.solver.layer",                 "solve_gptq"),
    ("quantize.solver.layer",                 "pack_gptq"),
    ("core.checkpoint.checkpoint_writer",     "CheckpointWriter.write_tensor"),
)
# fmt: on


class StepTimes(NamedTuple):
    """Seconds and calls by step, and the steps that this version does not have."""

    seconds: defaultdict[str, float]
    calls: Counter[str]
    missing: list[str]


@contextmanager
def timed_steps(session: Session) -> Iterator[StepTimes]:
    """Times the steps inside the block."""
    times = StepTimes(defaultdict(float), Counter(), [])
    with ExitStack() as stack:
        for module, name in STEPS:
            owner: Any = import_module(f"camelpress.{module}")
            *classes, function = name.split(".")
            for part in classes:
                owner = getattr(owner, part, None)
            step = getattr(owner, function, None)
            if step is None:
                times.missing.append(name)
            else:
                stack.enter_context(
                    patch.object(owner, function, _timed(step, name, times, session))
                )
        yield times


def _timed(
    step: Callable[..., Any], name: str, times: StepTimes, session: Session
) -> Callable[..., Any]:
    @wraps(step)
    def timed(*arguments: Any, **options: Any) -> Any:
        session.synchronize()
        start = time.perf_counter()
        try:
            return step(*arguments, **options)
        finally:
            session.synchronize()
            times.seconds[name] += time.perf_counter() - start
            times.calls[name] += 1

    return timed
