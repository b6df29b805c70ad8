"""Defines the resource limits of one model-written program."""

from __future__ import annotations

from pydantic import Field

from camelpress.core.settings import Settings


class ProgramLimits(Settings):
    """Limits of one program; a program beyond them fails its test."""

    seconds: int = Field(
        default=3,
        gt=0,
        description="CPU time limit, s; independent of the load of the machine",
    )
    patience: int = Field(
        default=15, gt=0, description="wall-clock limit, s, for programs that wait"
    )
    memory: int = Field(default=2**30, ge=2**27, description="address space limit, bytes")
    answer: int = Field(
        default=2**20, ge=2**10, description="length limit of a returned value, bytes"
    )
    workers: int | None = Field(
        default=None, gt=0, description="number of parallel programs; one per CPU core by default"
    )
