"""Caches of libraries, where nobody has a home that can be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from camelpress.core.runtime.cache_folders import CACHE_VARIABLES, provide_cache_folders


@pytest.fixture(autouse=True)
def _unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable names a folder, and none stays named."""
    for name in (*CACHE_VARIABLES, "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_home_that_can_be_written_is_left_to_the_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_cache_folders()
    assert not set(CACHE_VARIABLES) & os.environ.keys()


@pytest.mark.parametrize("home", ["file", "file/below"])
def test_a_home_that_is_none_gets_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "chosen"))
    provide_cache_folders()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "chosen")
    assert Path(os.environ["MPLCONFIGDIR"]).parent.is_dir()


@pytest.mark.parametrize("place", ["file", "file/below", "~nobody-of-this-name/x"])
def test_a_named_folder_that_cannot_be_written_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").touch()
    named = place if place.startswith("~") else str(tmp_path / place)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MPLCONFIGDIR", named)
    provide_cache_folders()
    assert os.environ["MPLCONFIGDIR"] != named
    assert Path(os.environ["MPLCONFIGDIR"]).parent.is_dir()
    assert "TRITON_CACHE_DIR" not in os.environ


def test_matplotlib_has_nothing_to_say(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lines = (
        "from camelpress.core.runtime.cache_folders import provide_cache_folders",
        "provide_cache_folders()",
        "import matplotlib",
        "matplotlib.get_configdir()",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | {"HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "file")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_without_any_folder_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    provide_cache_folders()
    assert "MPLCONFIGDIR" not in os.environ
