"""Pickled `.bin` shards, read through torch's allowlist unpickler and never any other way.

A shard is a zip archive that compresses nothing: a tensor lies in it as in memory, in a record of
its own. Where, torch tells without having looked, from how it writes archives itself. So it is
believed only of an archive like that, and only where a record of the right size begins.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from camelpress.core.errors import CheckpointProblem

SAFE_TORCH = (2, 10)  # weights_only was broken before: CVE-2025-32434 (2.6), CVE-2026-24747 (2.10)
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how torch before 1.6 began a file
ARCHIVE = b"PK\x03\x04"  # and since; a zip archive that begins with something else is not for torch
LOCAL = struct.Struct("<26xHH")  # before a record, and two lengths of what follows it: name, extra
REFUSALS = (  # what torch's unpickler ends in where the file is damaged or means harm
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def places(path: Path) -> dict[str, tuple[Tensor, int | None]]:
    """The tensors of one shard, without their values, and where in the file these begin.

    There is no place for a tensor that is not contiguous, such as a transposed view.

    Raises:
        CheckpointProblem: a torch that is not safe for this, a file that is not a plain
            dictionary of tensors, one that wants to run code, or one that torch would have
            written in another way.
    """
    sizes = _records(path)
    content = _loaded(path, values=False)
    if not sizes:
        raise _foreign(path, "it is from before torch 1.6")
    found: dict[str, tuple[Tensor, int | None]] = {}
    for name, tensor in content.items():
        storage = tensor.untyped_storage()
        start = getattr(storage, "_checkpoint_offset", 0)  # set by torch.load
        if storage.nbytes() and sizes.get(start) != storage.nbytes():
            raise _foreign(path, f"no record fits {name!r}")
        begin = start + int(tensor.storage_offset()) * tensor.element_size()
        found[name] = (tensor, begin if tensor.is_contiguous() else None)
    return found


@lru_cache(maxsize=1)
def load(path: Path) -> dict[str, Tensor]:
    """The tensors of one shard that has passed `places`, memory-mapped.

    Raises:
        CheckpointProblem: as `places`.
    """
    return {name: tensor.detach() for name, tensor in _loaded(path, values=True).items()}


def _loaded(path: Path, *, values: bool) -> dict[str, Tensor]:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise CheckpointProblem(
            f"{path} is a pickle, and torch {torch.__version__} does not read those safely",
            next_step="install torch >= 2.10, or convert the file to safetensors",
        )
    with _suspected(path):
        if values:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            with FakeTensorMode():
                content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout is torch.strided
        for name, tensor in content.items()
    ):
        raise CheckpointProblem(
            f"{path} is not a dictionary of tensors", next_step="give a model's state dict"
        )
    return content


def _records(path: Path) -> dict[int, int]:
    """Where the records of an archive begin, and their sizes; nothing for a file before torch 1.6.

    Raises:
        CheckpointProblem: torch would have written it in another way.
    """
    found: dict[str, tuple[int, int]] = {}
    with _suspected(path), path.open("rb") as file:
        start = file.read(len(LEGACY))
        if start == LEGACY:
            return {}
        if not start.startswith(ARCHIVE):
            raise ValueError("it is not an archive of torch")
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise _foreign(path, "it is compressed")
                name = entry.filename.partition("/")[2].lower()  # torch does not look at case
                if name in found:
                    raise ValueError(f"it has two records {name!r}")
                with archive.open(entry) as record:  # compares what the file says of it twice
                    if name == "byteorder" and record.read(6) != b"little":
                        raise _foreign(path, "it is big-endian")
                file.seek(entry.header_offset)
                begin = entry.header_offset + LOCAL.size + sum(LOCAL.unpack(file.read(LOCAL.size)))
                found[name] = (begin, entry.file_size)
    stored = [name for name in sorted(found, key=found.__getitem__) if name.startswith("data/")]
    if ".format_version" in found and stored != [f"data/{key}" for key in range(len(stored))]:
        raise _foreign(path, "its records are in another order")
    return dict(found.values())


@contextmanager
def _suspected(path: Path) -> Iterator[None]:
    try:
        yield
    except REFUSALS as error:
        found = re.search(r"WeightsUnpickler error: (.*?)(\. |$)", str(error), re.MULTILINE)
        reason = shorten(found[1] if found else str(error).strip().partition("\n")[0], 200)
        raise CheckpointProblem(
            f"{path} cannot be read as plain weights ({reason or type(error).__name__})",
            next_step="do not trust this file, or download it again",
        ) from error


def _foreign(path: Path, reason: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{path} is not laid out as torch does it now: {reason}",
        next_step="load it by torch.load(FILE, weights_only=True) and save that by torch.save",
    )
