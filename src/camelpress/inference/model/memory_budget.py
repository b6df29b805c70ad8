"""Memory budget: checks that a whole model fits before reading it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import OutOfMemory, RecipeProblem
from camelpress.core.packing.linear_layers import count_parameters

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # control group of the container
NO_LIMIT = 2**62  # bytes
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt parameters of malloc.h
RETAINED_BYTES, MMAP_BYTES = 2**30, 2**25  # bytes; glibc never keeps a larger allocation
MEMORY_MARGIN = 0.1  # share of the weights, for activations, tokenizer and allocator overhead


def choose_load_dtype(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    dtype_option: str,
    device: torch.device,
    *,
    tokens: int,
) -> torch.dtype:
    """Returns the widest dtype with enough memory for the whole model; never fp16 on a CPU.

    Args:
        checkpoint: a 16-bit or GPTQ checkpoint.
        config: config of the model.
        dtype_option: name of a dtype, or `auto`.
        device: device of the model.
        tokens: tokens of the longest conversation.
    Raises:
        RecipeProblem: fp16 was chosen on a CPU.
        OutOfMemory: the model does not fit.
    """
    on_cpu = device.type == "cpu"
    if on_cpu and dtype_option == "float16":
        raise RecipeProblem(
            "float16 is not supported on a CPU", next_step="give --dtype float32 or bfloat16"
        )
    if dtype_option != "auto":
        choices = [getattr(torch, dtype_option)]
    elif on_cpu:
        choices = [torch.float32, torch.bfloat16]
    else:
        choices = [checkpoint.dtype]
    free = free_bytes(device)
    needs = [required_bytes(checkpoint, config, dtype, tokens=tokens) for dtype in choices]
    for dtype, need in zip(choices, needs, strict=True):
        if free is None or need <= free:
            return dtype
    raise OutOfMemory(
        f"{checkpoint.source_name} needs about {needs[-1] / 1e9:,.1f} GB of memory in "
        f"{dtype_name(choices[-1])} for {tokens:,} tokens, and {(free or 0) / 1e9:,.1f} GB are "
        f"free on {device}",
        next_step="use a machine with more memory, or serve the 4-bit checkpoint unchanged "
        "(camelpress inspect --for vllm checks a server)",
    )


def required_bytes(
    checkpoint: Checkpoint, config: PreTrainedConfig, dtype: torch.dtype, *, tokens: int
) -> int:
    """Returns the bytes of a dequantized model, with keys and values of `tokens` tokens."""
    weights = count_parameters(checkpoint) * dtype.itemsize
    max_tensor_values = max(torch.Size(info.shape).numel() for info in checkpoint.tensors.values())
    read_bytes = 2 * 4 * max_tensor_values  # one matrix in fp32 and its source
    return (
        int(weights * (1 + MEMORY_MARGIN)) + read_bytes + kv_bytes_per_token(config, dtype) * tokens
    )


def kv_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Returns the bytes of keys and values per token, in all blocks."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kv_heads * width * dtype.itemsize)


def free_bytes(device: torch.device) -> int | None:
    """Returns the free bytes of a device; None if the system does not report them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if not MEMINFO.is_file():
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    return min(int(match[1]) * 1024 if match else NO_LIMIT, _container_bytes())


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Makes the allocator keep memory freed inside the block for reuse.

    By default glibc returns it to the system after every batch and fetches it again page by page,
    a tenth of the time of a decoder block. Without glibc nothing changes.

    Source:
        glibc 2.36, mallopt(3) and malloc_trim(3).
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(MMAP_THRESHOLD, MMAP_BYTES)
    libc.mallopt(TRIM_THRESHOLD, RETAINED_BYTES)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, 2 * MMAP_BYTES)  # default of glibc
        libc.malloc_trim(0)


def _container_bytes() -> int:
    """Returns the free bytes of the container."""
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return NO_LIMIT
    stat = CGROUP / "memory.stat"
    match = re.search(r"^inactive_file (\d+)$", stat.read_text(), re.MULTILINE)
    return limit - used + (int(match[1]) if match else 0)  # the page cache is reclaimable


def _number(path: Path) -> int | None:
    if not path.is_file():
        return None
    content = path.read_text().strip()
    return int(content) if content.isdigit() else None
