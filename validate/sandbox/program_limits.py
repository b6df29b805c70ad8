"""What a model's program may use, each of them."""

from __future__ import annotations

from pydantic import Field

from camelpress.core.settings import Settings


class ProgramLimits(Settings):
    """Limits of one program; what goes beyond has failed its test."""

    seconds: int = Field(
        default=3,
        gt=0,
        description="of processor time, s; on a busy machine that is no more than on an idle one",
    )
    patience: int = Field(
        default=15, gt=0, description="time on the clock, s, for programs that wait for something"
    )
    memory: int = Field(default=2**30, ge=2**27, description="address space, bytes")
    answer: int = Field(default=2**20, ge=2**10, description="length of a returned value, bytes")
    workers: int | None = Field(
        default=None, gt=0, description="programs at the same time; without it one per core"
    )
