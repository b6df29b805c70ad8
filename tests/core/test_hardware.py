"""What a release tells of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from camelpress.core.runtime import hardware


def test_processor_and_gpus_are_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Camel 9000\nflags\t: fpu\n")
    for number in (1, 2):
        place = tmp_path / "gpus" / f"0000:0{number}:00.0" / "information"
        place.parent.mkdir(parents=True)
        place.write_text(f"Model: \t\t NVIDIA H{number}00\nIRQ:   \t\t 77\n")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(hardware, "GPU_FOLDER", tmp_path / "gpus")
    told = hardware.describe_hardware()
    assert (told["processor"], told["cores"]) == ("A Camel 9000", os.cpu_count())
    assert told["gpus"] == ["NVIDIA H100", "NVIDIA H200"]


def test_elsewhere_there_is_no_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "nothing")
    monkeypatch.setattr(hardware, "GPU_FOLDER", tmp_path / "nothing")
    told = hardware.describe_hardware()
    assert isinstance(told["processor"], str)
    assert told["gpus"] == []
