"""Requirements on what stands in the tensors: scales and zero points."""

from __future__ import annotations

from camelpress.compat.gptq_checkpoint import Subject
from camelpress.compat.layer_values import SMALLEST
from camelpress.compat.requirement import Check, Found, failed, noted, passed


def scales(*, dtypes: tuple[str, ...] = ("float16",)) -> Check:
    """Scales are finite, of a type the engine takes, and large enough for fp16.

    Negative ones are no fault: kernels multiply by a scale and do not ask for its sign.

    Args:
        dtypes: that are taken as they are.
    """

    def check(subject: Subject) -> Found:
        values = subject.values
        broken, small, negative, count = (
            sum(getattr(each, key) for each in values)
            for key in ("broken", "small", "negative", "scales")
        )
        found = sorted({each.dtype for each in values})
        if broken:
            return failed(f"{broken:,} scales are not finite", "download or quantize it again")
        if any(each not in dtypes for each in found):
            return noted(
                f"stored as {', '.join(found)}, computed with as float16: rounded",
                "quantize again, which stores float16",
            )
        if small:
            return noted(
                f"{small:,} of {count:,} are below {SMALLEST:g}, where fp16 has few digits",
                "see that the layers concerned hold what they should (camelpress validate)",
            )
        return passed(
            f"{', '.join(found)}, finite; {negative / max(1, count):.0%} are negative, which "
            "kernels take as any factor"
        )

    return check


def zeros() -> Check:
    """Zero points of symmetric layers are in the middle: some kernels do not look at them."""

    def check(subject: Subject) -> Found:
        for layer, values in zip(subject.layers, subject.values, strict=True):
            if layer.sym and values.off_centre:
                return failed(
                    f"{layer.name} is symmetric by its config, and has other zero points",
                    "correct sym in config.json, or quantize again",
                )
            if values.wrapped:
                return noted(
                    f"{layer.name} has a zero point of 0, which v1 stores as its largest number: "
                    "not every kernel undoes that",
                    "quantize again; camelpress keeps zero points from 1 up",
                )
        return passed("in the middle of symmetric layers")

    return check
