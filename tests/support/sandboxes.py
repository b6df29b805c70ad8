"""Whether bubblewrap can work here at all, told by itself and not by the code that is tested."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def why_not() -> str:
    """The reason why bubblewrap cannot be used, or nothing."""
    path = shutil.which("bwrap")
    if path is None:
        return "bubblewrap is not installed (apt install bubblewrap)"
    done = subprocess.run(
        [path, "--unshare-all", "--unshare-user", "--ro-bind", "/", "/", "true"],
        capture_output=True,
        text=True,
    )
    return f"bubblewrap may not do its work here: {done.stderr.strip()}" if done.returncode else ""


needs_bubblewrap = pytest.mark.skipif(bool(WHY_NOT := why_not()), reason=WHY_NOT or "it works")
