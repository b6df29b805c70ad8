"""Compiled functions whose cache on the disk saves time and can never be an obstacle.

Numba refuses to compile where it finds no folder for a cache, and fails where the disk under the
cache is full or a file in it is damaged. Here each of these costs a compilation, of some seconds.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache

CompiledFunction = TypeVar("CompiledFunction", bound=Callable[..., Any])
CACHE_ERRORS = (  # raised by pickle on bytes that are no pickle, besides an OSError of the disk
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
    """A cache that is left out where it cannot be read or written."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function for a signature; None where none can be had from the disk."""
        try:
            return super().load_overload(sig, target_context)
        except CACHE_ERRORS:
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function on the disk, if it has room."""
        with suppress(*CACHE_ERRORS):
            super().save_overload(sig, data)


def cached_njit(**options: Any) -> Callable[[CompiledFunction], CompiledFunction]:
    """A decorator that compiles a function for threads, with options of `numba.njit`."""

    def compile_function(function: CompiledFunction) -> CompiledFunction:
        dispatcher: Any = numba.njit(nogil=True, **options)(function)
        with suppress(RuntimeError):  # no folder can be written, or nobody has a home
            dispatcher._cache = LenientCache(function)
        result: CompiledFunction = dispatcher
        return result

    return compile_function
