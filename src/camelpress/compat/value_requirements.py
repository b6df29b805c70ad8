"""Requirements on what stands in the tensors: scales and zero points."""

from __future__ import annotations

from camelpress.compat.gptq_checkpoint import GptqCheckpoint
from camelpress.compat.layer_values import MIN_SCALE
from camelpress.compat.requirement import Finding, RequirementCheck, fails, passes, warns


def scale_values(*, dtypes: tuple[str, ...] = ("float16",)) -> RequirementCheck:
    """Scales are finite, of a type the engine takes, and large enough for fp16.

    Negative ones are no fault: kernels multiply by a scale and do not ask for its sign.

    Args:
        dtypes: that are taken as they are.
    """

    def check(subject: GptqCheckpoint) -> Finding:
        values = subject.values
        broken, small, negative, count = (
            sum(getattr(each, key) for each in values)
            for key in ("broken", "small", "negative", "scales")
        )
        found = sorted({each.dtype for each in values})
        if broken:
            return fails(f"{broken:,} scales are not finite", "download or quantize it again")
        if any(each not in dtypes for each in found):
            return warns(
                f"stored as {', '.join(found)}, computed with as float16: rounded",
                "quantize again, which stores float16",
            )
        if small:
            return warns(
                f"{small:,} of {count:,} are below {MIN_SCALE:g}, where fp16 has few digits",
                "see that the layers concerned hold what they should (camelpress validate)",
            )
        return passes(
            f"{', '.join(found)}, finite; {negative / max(1, count):.0%} are negative, which "
            "kernels take as any factor"
        )

    return check


def zero_points() -> RequirementCheck:
    """Zero points of symmetric layers are in the middle: some kernels do not look at them."""

    def check(subject: GptqCheckpoint) -> Finding:
        for layer, values in zip(subject.layers, subject.values, strict=True):
            if layer.sym and values.has_off_centre_zeros:
                return fails(
                    f"{layer.name} is symmetric by its config, and has other zero points",
                    "correct sym in config.json, or quantize again",
                )
            if values.has_wrapped_zeros:
                return warns(
                    f"{layer.name} has a zero point of 0, which v1 stores as its largest number: "
                    "not every kernel undoes that",
                    "quantize again; camelpress keeps zero points from 1 up",
                )
        return passes("in the middle of symmetric layers")

    return check
