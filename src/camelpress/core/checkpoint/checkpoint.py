"""A Hugging Face checkpoint folder, opened lazily: names and shapes first, tensors one by one.

Reads safetensors and the pickled `.bin` shards of 2023 alike: the headers tell where in which
file a tensor lies (`shards`). Nothing here knows of diffs, bits or gates.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from camelpress.core import llama
from camelpress.core.checkpoint import format_detection, pickles, shards
from camelpress.core.checkpoint.config_check import require_layer_count, require_valid_config
from camelpress.core.checkpoint.config_repair import QUANTIZATION_CONFIG, repair_config
from camelpress.core.checkpoint.shards import TensorInfo
from camelpress.core.checkpoint.tensor_names import canonical_names, recognize_names
from camelpress.core.errors import CheckpointProblem, OutOfMemory, UnknownTensor
from camelpress.core.files.file_hashes import FileStates, file_states, require_file_states
from camelpress.core.files.file_recognizer import recognize_substitute
from camelpress.core.files.json_files import read_json, write_json
from camelpress.core.hub.model_location import SIDECAR_PATTERNS, locate_model
from camelpress.core.input_limits import MAX_CONFIG_BYTES
from camelpress.core.progress import note

QUANTIZE_CONFIG = "quantize_config.json"  # where GPTQ tools keep a copy of the quantization_config


class Checkpoint:
    """A folder of weights and its config; `open` checks it before any work is done.

    Args:
        folder: place of the files.
        config: agrees with the tensors.
        tensors: headers.
        origin: name of the place, as it was given.
        stated: the config as it stands in the file; None where it is the same.
        changes: a sentence for each difference between the two.
        files: states of the files before the first of them was read; None: as they are now.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        *,
        origin: str | None = None,
        stated: Mapping[str, Any] | None = None,
        changes: tuple[str, ...] = (),
        files: FileStates | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = tensors
        self.source_name = origin or str(folder)
        self.file_config = config if stated is None else stated
        self.config_changes = changes
        self.file_states = file_states(folder) if files is None else files

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
        located = locate_model(place)
        folder = located.folder
        files = file_states(folder)
        config = read_json(folder / "config.json", MAX_CONFIG_BYTES)
        require_valid_config(config, folder / "config.json")
        if "auto_map" in config:
            raise CheckpointProblem(
                f"{folder / 'config.json'} asks to run code of its own (auto_map)",
                next_step="use a checkpoint of an architecture that transformers ships",
            )
        listed = shards.index_shards(folder)
        tensors: dict[str, TensorInfo] = {}
        for shard in sorted(set(listed.values())) or shards.find_shards(folder):
            for name, info in shards.read_shard_header(folder / shard).items():
                if listed and listed.get(name) != shard:
                    raise CheckpointProblem(
                        f"{folder / shard} holds {name!r}, which the index places "
                        f"in {listed.get(name, 'no file')}",
                        next_step="download the checkpoint again, index included",
                    )
                if name in tensors:
                    raise CheckpointProblem(
                        f"{folder / shard} holds {name!r}, which {tensors[name].shard} holds, too",
                        next_step="remove the shard that does not belong to this model",
                    )
                tensors[name] = info
        if llama.is_tied(config):
            tensors = _name_shared_matrix(tensors)
        missing = sorted(listed.keys() - tensors.keys() - _optional_names(config, tensors))
        if missing:
            raise UnknownTensor(
                f"{folder / listed[missing[0]]} lacks {missing[0]!r}, which the index lists there",
                next_step="download that file again",
            )
        recognition = recognize_names(folder, {name: each.shape for name, each in tensors.items()})
        if recognition is not None:
            raise recognition.problem()
        tensors = _rename_tensors(folder, tensors)
        require_layer_count(config, tensors, folder / "config.json")
        stated = cls(
            folder,
            MappingProxyType(config),
            MappingProxyType(tensors),
            origin=located.origin,
            files=files,
        )
        return stated._with_repaired_config()

    def _with_repaired_config(self) -> Checkpoint:
        """Returns this checkpoint with a config that agrees with its tensors, and says what that
        changes.
        """
        path = self.folder / "config.json"
        config, changes = repair_config(self.config, self.tensors, self.read_rows, path)
        for change in changes:
            note(f"{path}: {change}")
        return Checkpoint(
            self.folder,
            MappingProxyType(config),
            self.tensors,
            origin=self.source_name,
            stated=self.config,
            changes=changes,
            files=self.file_states,
        )

    def require_unchanged(self, hashes: Mapping[str, str]) -> None:
        """Checks that no file of the model was written, replaced, added or removed since `open`.

        Args:
            hashes: name to SHA-256 of files as they were read.
        Raises:
            CheckpointProblem: names the first such file.
        """
        require_file_states(self.folder, self.file_states, hashes)

    def tensor_info(self, name: str) -> TensorInfo:
        """What is known of one tensor.

        Raises:
            UnknownTensor: the checkpoint does not hold it.
        """
        try:
            return self.tensors[name]
        except KeyError:
            near = next((each for each in self.tensors if each.endswith(f".{name}")), None)
            if near is not None:
                raise UnknownTensor(
                    f"{self.folder} has {near!r} where {name!r} belongs",
                    next_step=f"rename its tensors: none may begin with {near.removesuffix(name)}",
                ) from None
            raise UnknownTensor(
                f"{self.folder} lacks the tensor {name!r}",
                next_step="check that the folder is complete and of the expected model",
            ) from None

    def read(self, name: str) -> Tensor:
        """One whole tensor, in its own dtype, on the CPU, in memory of its own."""
        return self._read_rows(name, 0, None)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor, without reading the others."""
        return self._read_rows(name, start, stop)

    def _read_rows(self, name: str, start: int, stop: int | None) -> Tensor:
        info = self.tensor_info(name)
        path = self.folder / info.shard
        if info.offset is None:
            return pickles.read_pickled_tensor(path, info.stored_name or name)[start:stop].clone()
        if stop is None or not info.shape:
            return _read_bytes(path, info.offset, info.nbytes).view(info.dtype).reshape(info.shape)
        start, stop, _ = slice(start, stop).indices(info.shape[0])
        rows = max(0, stop - start)
        width = info.nbytes // max(1, info.shape[0])
        found = _read_bytes(path, info.offset + start * width, rows * width)
        return found.view(info.dtype).reshape(rows, *info.shape[1:])

    @cached_property
    def quantization(self) -> Mapping[str, Any] | None:
        """The `quantization_config` of the checkpoint, or None where its weights are plain.

        Raises:
            CheckpointProblem: there are packed weights, but nothing says how they are packed, or
                they are packed in a way that is not read here.
        """
        foreign = format_detection.find_foreign_format(self.tensors)
        if foreign is not None:
            raise CheckpointProblem(
                f"{self.folder} holds weights packed as {foreign.format} ({foreign.tensor})",
                next_step="give the 16-bit model, or one packed as "
                f"{format_detection.READABLE_FORMATS}",
            )
        stated = self.config.get(QUANTIZATION_CONFIG)
        if stated is not None and not isinstance(stated, Mapping):
            plain = format_detection.has_plain_linears(self.tensors)
            raise CheckpointProblem(
                f"{self.folder / 'config.json'} has a {QUANTIZATION_CONFIG} that is a "
                f"{type(stated).__name__}{', and its weights are plain' if plain else ''}",
                next_step=f"delete {QUANTIZATION_CONFIG} from it" if plain else "download it again",
            )
        if stated is None and format_detection.has_packed_weights(self.tensors):
            raise CheckpointProblem(
                f"{self.folder} holds packed weights, but its config.json has no "
                f"{QUANTIZATION_CONFIG}",
                next_step=self._missing_config_advice(),
            )
        return stated

    def _missing_config_advice(self) -> str:
        """Returns what makes a packed model whole that lacks its quantization_config."""
        if (self.folder / QUANTIZE_CONFIG).is_file():
            return (
                f"copy the object in {QUANTIZE_CONFIG} into config.json as "
                f"{QUANTIZATION_CONFIG}, with "
                '"quant_method": "gptq" if it has none'
            )
        return f"add its {QUANTIZATION_CONFIG} to config.json: a loader would take the weights for missing"

    @property
    def dtype(self) -> torch.dtype:
        """Type of most plain matrices; norms, embedding or head may have another one."""
        votes = Counter(
            info.dtype
            for name, info in self.tensors.items()
            if len(info.shape) == 2 and name.endswith(".weight")
        )
        return max(votes, key=votes.__getitem__) if votes else torch.float32

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def sidecar_files(self) -> dict[str, Path]:
        """What lies beside the weights and goes where they go: name to file."""
        return sidecar_files(self.folder)

    def weight_files(self) -> Iterator[Path]:
        """The weight files, sorted by name."""
        for shard in sorted({info.shard for info in self.tensors.values()}):
            yield self.folder / shard


def _rename_tensors(folder: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors under the names of a Hugging Face model, without those of a wrapper."""
    names, change = canonical_names(tensors)
    if change:
        note(f"{folder}: {change}")
    return {
        names[name]: info if names[name] == name else replace(info, stored_name=name)
        for name, info in tensors.items()
    }


def _name_shared_matrix(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Gives the one matrix of a tied model the name of the embedding.

    Of two names for the same memory, safetensors' `save_model` keeps the first in the alphabet,
    which is the head's.
    """
    embedding, head = f"{llama.EMBEDDING_NAME}.weight", f"{llama.HEAD_NAME}.weight"
    if embedding in tensors or head not in tensors or tensors[head].offset is None:
        return tensors
    return {embedding if name == head else name: info for name, info in tensors.items()}


def _optional_names(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> set[str]:
    """Names the tensors that an index may list although no shard holds them.

    safetensors stores one of two tied matrices; an index from before the save lists both.
    """
    names = {f"{llama.EMBEDDING_NAME}.weight", f"{llama.HEAD_NAME}.weight"}
    return names if llama.is_tied(config) and f"{llama.EMBEDDING_NAME}.weight" in tensors else set()


def repair_output_config(folder: Path) -> tuple[str, ...]:
    """Makes the config of an output agree with its tensors; returns a sentence for each change."""
    checkpoint = Checkpoint.open(folder)
    if checkpoint.config_changes:
        write_json(folder / "config.json", dict(checkpoint.config))
    return checkpoint.config_changes


def sidecar_files(folder: Path) -> dict[str, Path]:
    """Maps names to files: tokenizer, generation config, licences and history of a checkpoint."""
    return {
        path.relative_to(folder).as_posix(): path
        for pattern in SIDECAR_PATTERNS
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }


def require_valid_sidecars(files: Mapping[str, Path]) -> None:
    """Checks that files which an output takes over are what their names promise.

    Raises:
        CheckpointProblem: one is a Git LFS pointer, a web page or the text of a link.
    """
    for path in files.values():
        recognition = recognize_substitute(path)
        if recognition is not None:
            raise recognition.problem()


def copy_sidecars(files: Mapping[str, Path], folder: Path) -> None:
    """Copies files to their names in a folder."""
    for name, path in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)


def _read_bytes(path: Path, offset: int, count: int) -> UInt8[Tensor, " count"]:
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
