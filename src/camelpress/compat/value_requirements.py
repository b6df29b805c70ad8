"""Requirements on tensor values: scales and zero points."""

from __future__ import annotations

from camelpress.compat.gptq_checkpoint import GptqCheckpoint
from camelpress.compat.layer_values import MIN_SCALE
from camelpress.compat.requirement import Finding, RequirementCheck, fails, passes, warns


def scale_values(*, dtypes: tuple[str, ...] = ("float16",)) -> RequirementCheck:
    """Requires finite scales of a supported dtype, large enough for fp16.

    Negative scales pass: kernels multiply by a scale whatever its sign.

    Args:
        dtypes: dtypes that the engine reads without conversion.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        layers = subject.values
        stored_dtypes = sorted({layer.dtype for layer in layers})
        count = sum(layer.scales for layer in layers)
        if non_finite_count := sum(layer.non_finite for layer in layers):
            return fails(
                f"{non_finite_count:,} scales are not finite", "download or quantize it again"
            )
        if any(dtype not in dtypes for dtype in stored_dtypes):
            return warns(
                f"stored as {', '.join(stored_dtypes)}, computed as float16: rounded",
                "quantize again, which stores float16",
            )
        if tiny_count := sum(layer.tiny_scales for layer in layers):
            return warns(
                f"{tiny_count:,} of {count:,} are below {MIN_SCALE:g}, where fp16 has few digits",
                "check the affected layers (camelpress validate)",
            )
        negative_count = sum(layer.negative for layer in layers)
        return passes(
            f"{', '.join(stored_dtypes)}, finite; {negative_count / max(1, count):.0%} are "
            "negative, which kernels support"
        )

    return check


def zero_points() -> RequirementCheck:
    """Requires zero points of symmetric layers in the middle; some kernels ignore them."""

    def check(subject: GptqCheckpoint) -> Finding:
        for layer, values in zip(subject.layers, subject.values, strict=True):
            if layer.sym and values.has_off_centre_zeros:
                return fails(
                    f"{layer.name} is symmetric by its config, but has other zero points",
                    "correct sym in config.json, or quantize again",
                )
            if values.has_wrapped_zeros:
                return warns(
                    f"{layer.name} has a zero point of 0, which v1 stores as its largest number: "
                    "some kernels misread it",
                    "quantize again; camelpress writes zero points of at least 1",
                )
        return passes("in the middle of symmetric layers")

    return check
