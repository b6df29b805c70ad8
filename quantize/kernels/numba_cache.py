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

Function = TypeVar("Function", bound=Callable[..., Any])
UNREADABLE = (  # raised by pickle on bytes that are no pickle, besides an OSError of the disk
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
        except UNREADABLE:
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function on the disk, if it has room."""
        with suppress(*UNREADABLE):
            super().save_overload(sig, data)


def compiled(**options: Any) -> Callable[[Function], Function]:
    """A decorator that compiles a function for threads, with options of `numba.njit`."""

    def compile_function(function: Function) -> Function:
        dispatcher: Any = numba.njit(nogil=True, **options)(function)
        with suppress(RuntimeError):  # no folder can be written, or nobody has a home
            dispatcher._cache = LenientCache(function)
        result: Function = dispatcher
        return result

    return compile_function
