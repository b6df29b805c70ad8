"""Describes the protocol and the computation behind the scores of a report."""

from __future__ import annotations

from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.validate.corpus.protocols import PROTOCOLS
from camelpress.validate.settings import ScoringSettings


def describe_protocol(settings: ScoringSettings, length: int, model: StreamedModel) -> str:
    """Returns a sentence about the protocol and the computation, for the report."""
    description = PROTOCOLS[settings.protocol].description.format(length=length)
    assistant_note = (
        "; of conversations only what the assistant says" if settings.assistant_only else ""
    )
    computation = f"{dtype_name(model.dtype)} on {model.device.type}"
    return (
        f"{settings.protocol}: {description}{assistant_note}; perplexity per token; {computation}"
    )
