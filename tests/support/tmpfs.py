"""A file system of a few pages, as a disk that is full or write-protected even for root."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs at `folder` while the block runs; the test is skipped where that is not permitted."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    mount = ["mount", "-t", "tmpfs", "-o", options, "camelpress-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not permitted here ({done.stderr.splitlines()[0]})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
