"""Numba compilation with an optional disk cache.

Numba refuses to compile without a folder for its cache, and fails on a full disk or a damaged cache
file. Here, each of these faults costs only a new compilation of a few seconds.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache

CompiledFunction = TypeVar("CompiledFunction", bound=Callable[..., Any])
CACHE_ERRORS = (  # disk errors, and errors of pickle on damaged files
    OSError,
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)


class LenientCache(FunctionCache):
    """Numba cache that ignores read and write errors."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Returns the cached function for a signature, or none after a miss or an error."""
        try:
            return super().load_overload(sig, target_context)
        except CACHE_ERRORS:
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Writes a compiled function to the cache, ignoring errors."""
        with suppress(*CACHE_ERRORS):
            super().save_overload(sig, data)


def cached_njit(**options: Any) -> Callable[[CompiledFunction], CompiledFunction]:
    """Returns a decorator that compiles without the GIL, with options of `numba.njit`."""

    def compile_function(function: CompiledFunction) -> CompiledFunction:
        dispatcher: Any = numba.njit(nogil=True, **options)(function)
        with suppress(RuntimeError):  # no writable folder, or no home folder
            dispatcher._cache = LenientCache(function)
        result: CompiledFunction = dispatcher
        return result

    return compile_function
