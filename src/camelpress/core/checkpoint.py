"""A Hugging Face checkpoint folder, opened lazily: names and shapes first, tensors one by one.

Reads safetensors (memory-mapped, so a tensor costs memory only while somebody holds it) and the
pickled `.bin` shards of 2023 (`pickles`). Nothing here knows of diffs, bits or gates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from camelpress.core import pickles
from camelpress.core.errors import CheckpointProblem, UnknownTensor, UnsafeShard
from camelpress.core.json import read_json

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
COMPANIONS = (  # what lies beside weights and goes where they go
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "llama_license.txt",
    "*-report.json",  # of the stages before: a checkpoint carries its history
)
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(safetensors|bin)")

# fmt: off
DTYPES: Mapping[str, torch.dtype] = MappingProxyType({  # in the order they have in a file
    "I64": torch.int64,     "F64": torch.float64,  "F32": torch.float32,  "I32": torch.int32,
    "BF16": torch.bfloat16, "F16": torch.float16,  "I16": torch.int16,    "I8": torch.int8,
    "U8": torch.uint8,      "BOOL": torch.bool,
})
# fmt: on


@dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint says of a tensor before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    shard: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Checkpoint:
    """A folder of weights and its config; `open` checks it before any work is done."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = tensors

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the config, the index and the header of every shard.

        Raises:
            CheckpointProblem: no folder, no config, a missing, truncated or contradictory shard.
            UnsafeShard: the index names something other than a plain file of this folder.
        """
        if not folder.is_dir():
            raise CheckpointProblem(
                f"{folder} is not a folder", next_step="give a Hugging Face checkpoint folder"
            )
        config = read_json(folder / "config.json")
        if "auto_map" in config:
            raise CheckpointProblem(
                f"{folder / 'config.json'} asks to run code of its own (auto_map)",
                next_step="use a checkpoint of an architecture that transformers ships",
            )
        listed = _listed(folder)
        tensors: dict[str, TensorInfo] = {}
        for shard in sorted(set(listed.values())) or [_single(folder)]:
            for name, info in _header(folder / shard).items():
                if listed and listed.get(name) != shard:
                    raise CheckpointProblem(
                        f"{folder / shard} holds {name!r}, which the index places "
                        f"in {listed.get(name, 'no file')}",
                        next_step="download the checkpoint again, index included",
                    )
                tensors[name] = info
        missing = sorted(listed.keys() - tensors.keys())
        if missing:
            raise UnknownTensor(
                f"{folder / listed[missing[0]]} lacks {missing[0]!r}, which the index lists there",
                next_step="download that file again",
            )
        return cls(folder, MappingProxyType(config), MappingProxyType(tensors))

    def info(self, name: str) -> TensorInfo:
        """What is known of one tensor.

        Raises:
            UnknownTensor: the checkpoint does not hold it.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise UnknownTensor(
                f"{self.folder} lacks the tensor {name!r}",
                next_step="check that the folder is complete and of the expected model",
            ) from None

    def read(self, name: str) -> Tensor:
        """One whole tensor, in its own dtype, on the CPU; do not write into it."""
        path = self.folder / self.info(name).shard
        if path.suffix == ".bin":
            return pickles.load(path)[name]
        with _opened(path) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor, without reading the others."""
        path = self.folder / self.info(name).shard
        if path.suffix == ".bin":
            return pickles.load(path)[name][start:stop]
        with _opened(path) as file:
            rows: Tensor = file.get_slice(name)[start:stop]
            return rows

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """The `quantization_config` of the checkpoint, or None where its weights are plain.

        Raises:
            CheckpointProblem: there are packed weights, but nothing says how they are packed.
        """
        found = self.config.get("quantization_config")
        if found is not None and not isinstance(found, Mapping):
            raise CheckpointProblem(
                f"{self.folder / 'config.json'} has a quantization_config that is a "
                f"{type(found).__name__}",
                next_step="download it again",
            )
        if found is None and any(name.endswith(".qweight") for name in self.tensors):
            raise CheckpointProblem(
                f"{self.folder} holds packed weights, but its config.json has no "
                "quantization_config",
                next_step="add it: a loader would take the weights for missing",
            )
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def files(self) -> Iterator[Path]:
        """The weight files, sorted by name."""
        for shard in sorted({info.shard for info in self.tensors.values()}):
            yield self.folder / shard


def companions(folder: Path) -> dict[str, Path]:
    """Tokenizer, generation config, licences and history of a checkpoint: name to file."""
    return {
        path.name: path
        for pattern in COMPANIONS
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }


def _listed(folder: Path) -> dict[str, str]:
    """Tensor name to shard name, as the index says; empty where there is no index.

    Pickles are read only where there are no safetensors.
    """
    for index, single in zip(INDEXES, SINGLES, strict=True):
        if (folder / index).is_file():
            listed = read_json(folder / index).get("weight_map")
            if not isinstance(listed, dict) or not listed:
                raise CheckpointProblem(
                    f"{folder / index} has no weight_map", next_step="download it again"
                )
            for shard in listed.values():
                _check_shard(folder, index, shard)
            return listed
        if (folder / single).is_file():
            break
    return {}


def _check_shard(folder: Path, index: str, shard: object) -> None:
    if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
        raise UnsafeShard(
            f"{folder / index} names the shard {shard!r}, which is not a plain file name",
            next_step="do not use this checkpoint",
        )
    if not (folder / shard).is_file():
        raise CheckpointProblem(
            f"{folder / shard} is missing, {index} lists it", next_step="download that file"
        )


def _single(folder: Path) -> str:
    for name in SINGLES:
        if (folder / name).is_file():
            return name
    raise CheckpointProblem(
        f"{folder} holds no weights",
        next_step=f"it needs {SINGLES[0]}, {SINGLES[1]} or shards with an index",
    )


def _header(path: Path) -> dict[str, TensorInfo]:
    if path.suffix == ".bin":
        return {
            name: TensorInfo(tensor.dtype, tuple(tensor.shape), path.name)
            for name, tensor in pickles.load(path).items()
        }
    with _opened(path) as file:
        header = {}
        for name in file.keys():  # noqa: SIM118 - not a mapping
            view = file.get_slice(name)
            dtype = DTYPES.get(view.get_dtype())
            if dtype is None:
                raise CheckpointProblem(
                    f"{path} holds {name!r} as {view.get_dtype()}",
                    next_step=f"convert it to one of {', '.join(DTYPES)}",
                )
            header[name] = TensorInfo(dtype, tuple(view.get_shape()), path.name)
        return header


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointProblem(
            f"{path} is not a complete safetensors file ({error})", next_step="download it again"
        ) from error
