"""Whether a whole model fits, told before any of it is read."""

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
CGROUP = Path("/sys/fs/cgroup")  # of a container: what it sees as its own
NO_LIMIT = 2**62
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # as malloc.h has them
RETAINED_BYTES, MMAP_BYTES = 2**30, 2**25  # bytes; a larger piece glibc never keeps
MEMORY_MARGIN = 0.1  # of the weights: activations, the tokenizer, what an allocator rounds up


def choose_load_dtype(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    wanted: str,
    device: torch.device,
    *,
    tokens: int,
) -> torch.dtype:
    """The type to compute in; never fp16 on a CPU.

    Args:
        checkpoint: 16-bit or GPTQ.
        config: of the model.
        wanted: a type by name, or `auto`.
        device: where the model will be.
        tokens: of the longest conversation to be had.
    Raises:
        RecipeProblem: fp16 on a CPU.
        OutOfMemory: the model does not fit.
    """
    on_cpu = device.type == "cpu"
    if on_cpu and wanted == "float16":
        raise RecipeProblem(
            "float16 is not computed with on a CPU", next_step="give --dtype float32 or bfloat16"
        )
    if wanted != "auto":
        choices = [getattr(torch, wanted)]
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
        next_step="use a machine with more, or serve the 4-bit checkpoint as it is (camelpress "
        "inspect --for vllm tells where it runs)",
    )


def required_bytes(
    checkpoint: Checkpoint, config: PreTrainedConfig, dtype: torch.dtype, *, tokens: int
) -> int:
    """Bytes that a whole model takes, dequantized, with keys and values of so many tokens."""
    weights = count_parameters(checkpoint) * dtype.itemsize
    widest = max(torch.Size(each.shape).numel() for each in checkpoint.tensors.values())
    reading = 2 * 4 * widest  # one matrix in fp32, and what it is made from
    return int(weights * (1 + MEMORY_MARGIN)) + reading + kv_bytes_per_token(config, dtype) * tokens


def kv_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes that keys and values of a token take, of all blocks."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * shared * width * dtype.itemsize)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if not MEMINFO.is_file():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    return min(int(found[1]) * 1024 if found else NO_LIMIT, _container_bytes())


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let the allocator keep what is freed inside the block for what comes next there.

    It would give it back to the system after every batch and fetch it again page by page, which
    takes a tenth of the time of a decoder block. Without glibc nothing changes.

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
        libc.mallopt(TRIM_THRESHOLD, 2 * MMAP_BYTES)  # as glibc sets it by itself
        libc.malloc_trim(0)


def _container_bytes() -> int:
    """What is left of the memory that a container may take."""
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return NO_LIMIT
    stat = CGROUP / "memory.stat"
    found = re.search(r"^inactive_file (\d+)$", stat.read_text(), re.MULTILINE)
    return limit - used + (int(found[1]) if found else 0)  # the page cache gives way


def _number(path: Path) -> int | None:
    if not path.is_file():
        return None
    content = path.read_text().strip()
    return int(content) if content.isdigit() else None
