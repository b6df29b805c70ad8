"""Caches of libraries, where nobody has a home that can be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from camelpress.core.caches import FOLDERS, provide_caches


@pytest.fixture(autouse=True)
def _unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable names a folder, and none stays named."""
    for name in (*FOLDERS, "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_home_that_can_be_written_is_left_to_the_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_caches()
    assert not set(FOLDERS) & os.environ.keys()


@pytest.mark.parametrize("home", ["file", "file/below"])
def test_a_home_that_is_none_gets_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setenv("TRITON_CACHE_DIR", "/chosen")
    provide_caches()
    assert os.environ["TRITON_CACHE_DIR"] == "/chosen"
    assert Path(os.environ["MPLCONFIGDIR"]).parent.is_dir()


def test_without_any_folder_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    provide_caches()
    assert "MPLCONFIGDIR" not in os.environ
