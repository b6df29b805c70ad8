"""Recognizes a lack of memory in the errors of every library that allocates."""

from __future__ import annotations

import errno

OUT_OF_MEMORY_TEXTS = (  # parts of RuntimeError messages, in lower case
    "out of memory",  # CUDA, also as torch.OutOfMemoryError, and NCCL
    "can't allocate memory",  # torch on a CPU
    "cannot allocate memory",  # the system
    "not enough memory",  # torch on a CPU of Windows
    "status_alloc_failed",  # cuBLAS, cuSOLVER, cuSPARSE and cuDNN
    "status_insufficient_resources",  # cuSPARSE
    "cudaerrormemoryallocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns true if an error reports a lack of host or device memory; never imports torch."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    message = str(error).lower()
    return any(text in message for text in OUT_OF_MEMORY_TEXTS)
