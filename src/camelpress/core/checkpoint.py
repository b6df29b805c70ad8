"""A Hugging Face checkpoint folder, opened lazily: names and shapes first, tensors one by one.

Reads safetensors and the pickled `.bin` shards of 2023 alike: the headers tell where in which
file a tensor lies (`shards`). Nothing here knows of diffs, bits or gates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from camelpress.core import pickles, shards
from camelpress.core.bounds import MAX_CONFIG_BYTES
from camelpress.core.config_check import require_every_layer, require_sane
from camelpress.core.errors import CheckpointProblem, OutOfMemory, UnknownTensor
from camelpress.core.json import read_json
from camelpress.core.origin import COMPANIONS, locate
from camelpress.core.shards import TensorInfo

PACKED = (".qweight", ".weight_packed")
SETTINGS = "quantize_config.json"  # where GPTQ tools keep a copy of the quantization_config


class Checkpoint:
    """A folder of weights and its config; `open` checks it before any work is done."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        *,
        origin: str | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = tensors
        self.origin = origin or str(folder)

    @classmethod
    def open(cls, place: Path) -> Checkpoint:
        """Read the config, the index and the header of every shard.

        Args:
            place: a folder, or a model repository as `origin.locate` takes it.
        Raises:
            CheckpointProblem: no such place, no config, a missing, truncated or contradictory
                shard.
            UnsafeShard: the index names something other than a plain file of this folder.
        """
        located = locate(place)
        folder = located.folder
        config = read_json(folder / "config.json", MAX_CONFIG_BYTES)
        require_sane(config, folder / "config.json")
        if "auto_map" in config:
            raise CheckpointProblem(
                f"{folder / 'config.json'} asks to run code of its own (auto_map)",
                next_step="use a checkpoint of an architecture that transformers ships",
            )
        listed = shards.listed(folder)
        tensors: dict[str, TensorInfo] = {}
        for shard in sorted(set(listed.values())) or [shards.single(folder)]:
            for name, info in shards.header(folder / shard).items():
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
        require_every_layer(config, tensors, folder / "config.json")
        return cls(
            folder, MappingProxyType(config), MappingProxyType(tensors), origin=located.origin
        )

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
        """One whole tensor, in its own dtype, on the CPU, in memory of its own."""
        return self._read(name, 0, None)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor, without reading the others."""
        return self._read(name, start, stop)

    def _read(self, name: str, start: int, stop: int | None) -> Tensor:
        info = self.info(name)
        path = self.folder / info.shard
        if info.offset is None:
            return pickles.read(path, name)[start:stop].clone()
        if stop is None or not info.shape:
            return _bytes(path, info.offset, info.nbytes).view(info.dtype).reshape(info.shape)
        start, stop, _ = slice(start, stop).indices(info.shape[0])
        rows = max(0, stop - start)
        width = info.nbytes // max(1, info.shape[0])
        found = _bytes(path, info.offset + start * width, rows * width)
        return found.view(info.dtype).reshape(rows, *info.shape[1:])

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
        if found is None and any(name.endswith(PACKED) for name in self.tensors):
            raise CheckpointProblem(
                f"{self.folder} holds packed weights, but its config.json has no "
                "quantization_config",
                next_step=self._where_it_may_be(),
            )
        return found

    def _where_it_may_be(self) -> str:
        if (self.folder / SETTINGS).is_file():
            return f"copy {SETTINGS} there: most loaders would take the weights for missing"
        return "add it: a loader would take the weights for missing"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def companions(self) -> dict[str, Path]:
        """What lies beside the weights and goes where they go: name to file."""
        return companions(self.folder)

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


def _bytes(path: Path, offset: int, count: int) -> UInt8[Tensor, " count"]:
    """Some bytes of a file.

    They are read, not mapped: a mapped page stays in the process's memory as long as its file
    is open, whoever has long forgotten the tensor.

    Raises:
        CheckpointProblem: the file ends before, or cannot be read.
        OutOfMemory: there is no room for so many bytes.
    """
    try:
        found = torch.empty(count, dtype=torch.uint8)
    except RuntimeError as error:
        raise OutOfMemory(
            f"{path} holds a tensor of {count / 1e9:,.1f} GB, for which there is no memory",
            next_step="use a machine with more",
        ) from error
    view = found.numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < count:
                step = file.readinto(view[done:])
                if not step:
                    raise CheckpointProblem(
                        f"{path} ends before all of its tensors do", next_step="download it again"
                    )
                done += step
    except OSError as error:
        raise CheckpointProblem(
            f"{path} cannot be read ({error.strerror})",
            next_step="see that its disk is there and well, and run the same command again",
        ) from error
    return found
