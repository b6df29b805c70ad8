"""A cache of compiled functions that cannot be read or written is no obstacle."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from numba.core.caching import FunctionCache, IndexDataCacheFile

from camelpress.quantize.kernels.numba_cache import cached_njit


def double(number: int) -> int:
    return 2 * number


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_compiled_function_is_kept_and_found(folder: Path) -> None:
    assert cached_njit()(double)(3) == 6
    again = cached_njit()(double)
    assert again(4) == 8
    assert sum(again.stats.cache_hits.values()) == 1  # type: ignore[attr-defined]
    assert list(folder.rglob("*.nbc"))


def test_without_any_folder_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(FunctionCache, "__init__", nowhere)
    assert cached_njit()(double)(3) == 6


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_more_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(IndexDataCacheFile, "_save_data", refuse)
    assert cached_njit()(double)(3) == 6


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("harm", ["half", "nothing", "no pickle"])
def test_a_damaged_file_is_compiled_over(folder: Path, suffix: str, harm: str) -> None:
    assert cached_njit()(double)(3) == 6
    (path,) = folder.rglob(f"*.{suffix}")
    content = path.read_bytes()
    path.write_bytes({"half": content[: len(content) // 2], "nothing": b""}.get(harm, b"\x00no"))
    assert cached_njit()(double)(4) == 8
    again = cached_njit()(double)
    assert again(5) == 10
    assert sum(again.stats.cache_hits.values()) == 1  # type: ignore[attr-defined]
