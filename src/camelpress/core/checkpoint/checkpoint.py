"""A Hugging Face checkpoint folder, opened lazily: headers first, tensors on demand.

Reads safetensors and pickled `.bin` shards; `shards` locates each tensor from the file headers.
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
from camelpress.core.file_names import SIDECAR_PATTERNS
from camelpress.core.files.file_hashes import FileStates, file_states, require_file_states
from camelpress.core.files.file_recognizer import recognize_substitute
from camelpress.core.files.json_files import read_json, write_json
from camelpress.core.hub.model_location import locate_model
from camelpress.core.input_limits import MAX_CONFIG_BYTES
from camelpress.core.progress import note

QUANTIZE_CONFIG = "quantize_config.json"  # copy of the quantization_config by GPTQ tools


class Checkpoint:
    """A folder of weights and its config, checked by `open`.

    Args:
        folder: Folder of the files.
        config: Config in agreement with the tensors.
        tensors: Tensor name to its header entry.
        origin: Name of the model, as the user wrote it; None for the folder.
        file_config: Content of config.json; None if equal to `config`.
        changes: One sentence per difference between the two configs.
        files: States of the files before the first read; None for their current states.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        *,
        origin: str | None = None,
        file_config: Mapping[str, Any] | None = None,
        changes: tuple[str, ...] = (),
        files: FileStates | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = tensors
        self.source_name = origin or str(folder)
        self.file_config = config if file_config is None else file_config
        self.config_changes = changes
        self.file_states = file_states(folder) if files is None else files

    @classmethod
    def open(cls, place: Path) -> Checkpoint:
        """Reads the config, the index and the header of every shard.

        Args:
            place: Folder, or model repository on the hub; see `locate_model`.
        Raises:
            CheckpointProblem: The place or the config is missing, or a shard is missing, truncated
                or contradictory.
            UnsafeShard: The index names something other than a plain file of this folder.
        """
        location = locate_model(place)
        folder = location.folder
        files = file_states(folder)
        config = read_json(folder / "config.json", MAX_CONFIG_BYTES)
        require_valid_config(config, folder / "config.json")
        if "auto_map" in config:
            raise CheckpointProblem(
                f"{folder / 'config.json'} asks to run code of its own (auto_map)",
                next_step="use a checkpoint of an architecture that transformers ships",
            )
        index = shards.index_shards(folder)
        tensors: dict[str, TensorInfo] = {}
        for shard in sorted(set(index.values())) or shards.find_shards(folder):
            for name, info in shards.read_shard_header(folder / shard).items():
                if index and index.get(name) != shard:
                    raise CheckpointProblem(
                        f"{folder / shard} holds {name!r}, which the index places "
                        f"in {index.get(name, 'no file')}",
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
        missing_names = sorted(index.keys() - tensors.keys() - _optional_names(config, tensors))
        if missing_names:
            name = missing_names[0]
            raise UnknownTensor(
                f"{folder / index[name]} lacks {name!r}, which the index lists there",
                next_step="download that file again",
            )
        recognition = recognize_names(folder, {name: info.shape for name, info in tensors.items()})
        if recognition is not None:
            raise recognition.problem()
        tensors = _rename_tensors(folder, tensors)
        require_layer_count(config, tensors, folder / "config.json")
        checkpoint = cls(
            folder,
            MappingProxyType(config),
            MappingProxyType(tensors),
            origin=location.origin,
            files=files,
        )
        return checkpoint._with_repaired_config()

    def _with_repaired_config(self) -> Checkpoint:
        """Repairs the config to agree with the tensors and notes each change."""
        path = self.folder / "config.json"
        config, changes = repair_config(self.config, self.tensors, self.read_rows, path)
        for change in changes:
            note(f"{path}: {change}")
        return Checkpoint(
            self.folder,
            MappingProxyType(config),
            self.tensors,
            origin=self.source_name,
            file_config=self.config,
            changes=changes,
            files=self.file_states,
        )

    def require_unchanged(self, hashes: Mapping[str, str]) -> None:
        """Checks that no file of the model was written, replaced, added or removed since `open`.

        Args:
            hashes: Name to SHA-256 of the files as read.
        Raises:
            CheckpointProblem: A file changed; names the first one.
        """
        require_file_states(self.folder, self.file_states, hashes)

    def tensor_info(self, name: str) -> TensorInfo:
        """Returns the header entry of a tensor.

        Raises:
            UnknownTensor: The checkpoint lacks the tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            suffix = f".{name}"
            long_name = next((key for key in self.tensors if key.endswith(suffix)), None)
            if long_name is not None:
                prefix = long_name.removesuffix(name)
                raise UnknownTensor(
                    f"{self.folder} has {long_name!r} where {name!r} belongs",
                    next_step=f"rename its tensors: none may begin with {prefix}",
                ) from None
            raise UnknownTensor(
                f"{self.folder} lacks the tensor {name!r}",
                next_step="check that the folder is complete and of the expected model",
            ) from None

    def read(self, name: str) -> Tensor:
        """Reads a whole tensor to the CPU, in its stored dtype."""
        return self._read_rows(name, 0, None)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Reads rows `start` to `stop` of a tensor, without the other rows."""
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
        content = _read_bytes(path, info.offset + start * width, rows * width)
        return content.view(info.dtype).reshape(rows, *info.shape[1:])

    @cached_property
    def quantization(self) -> Mapping[str, Any] | None:
        """The `quantization_config` of the checkpoint; None for plain weights.

        Raises:
            CheckpointProblem: Packed weights have no quantization_config or an unsupported format.
        """
        evidence = format_detection.find_foreign_format(self.tensors)
        if evidence is not None:
            raise CheckpointProblem(
                f"{self.folder} holds weights packed as {evidence.format} ({evidence.tensor})",
                next_step="give the 16-bit model, or one packed as "
                f"{format_detection.READABLE_FORMATS}",
            )
        quantization = self.config.get(QUANTIZATION_CONFIG)
        if quantization is not None and not isinstance(quantization, Mapping):
            is_plain = format_detection.has_plain_linears(self.tensors)
            raise CheckpointProblem(
                f"{self.folder / 'config.json'} has a {QUANTIZATION_CONFIG} that is a "
                f"{type(quantization).__name__}{', and its weights are plain' if is_plain else ''}",
                next_step=f"delete {QUANTIZATION_CONFIG} from it"
                if is_plain
                else "download it again",
            )
        if quantization is None and format_detection.has_packed_weights(self.tensors):
            raise CheckpointProblem(
                f"{self.folder} holds packed weights, but its config.json has no "
                f"{QUANTIZATION_CONFIG}",
                next_step=self._missing_config_advice(),
            )
        return quantization

    def _missing_config_advice(self) -> str:
        """Returns the next step for packed weights without a quantization_config."""
        if (self.folder / QUANTIZE_CONFIG).is_file():
            return (
                f"copy the object in {QUANTIZE_CONFIG} into config.json as {QUANTIZATION_CONFIG}, "
                'with "quant_method": "gptq" if it has none'
            )
        return (
            f"add its {QUANTIZATION_CONFIG} to config.json: a loader would take the weights for "
            "missing"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Most frequent dtype of the plain matrices; norms, embedding or head may have another."""
        votes = Counter(
            info.dtype
            for name, info in self.tensors.items()
            if len(info.shape) == 2 and name.endswith(".weight")
        )
        return max(votes, key=votes.__getitem__) if votes else torch.float32

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(info.nbytes for info in self.tensors.values())

    def sidecar_files(self) -> dict[str, Path]:
        """Maps names to files of tokenizer, generation config, licences and earlier reports."""
        return sidecar_files(self.folder)

    def weight_files(self) -> Iterator[Path]:
        """Yields the weight files, sorted by name."""
        for shard in sorted({info.shard for info in self.tensors.values()}):
            yield self.folder / shard


def _rename_tensors(folder: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Returns the tensors under their Hugging Face names, without the prefixes of wrappers."""
    names, sentence = canonical_names(tensors)
    if sentence:
        note(f"{folder}: {sentence}")
    return {
        names[name]: info if names[name] == name else replace(info, stored_name=name)
        for name, info in tensors.items()
    }


def _name_shared_matrix(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Names the shared matrix of a tied model after the embedding.

    safetensors' `save_model` keeps the alphabetically first name of shared memory: the head's.
    """
    embedding, head = f"{llama.EMBEDDING_NAME}.weight", f"{llama.HEAD_NAME}.weight"
    if embedding in tensors or head not in tensors or tensors[head].offset is None:
        return tensors
    return {embedding if name == head else name: info for name, info in tensors.items()}


def _optional_names(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> set[str]:
    """Returns the tensor names allowed in an index without a tensor in a shard.

    safetensors stores one of two tied matrices; an index written before the save lists both.
    """
    names = {f"{llama.EMBEDDING_NAME}.weight", f"{llama.HEAD_NAME}.weight"}
    return names if llama.is_tied(config) and f"{llama.EMBEDDING_NAME}.weight" in tensors else set()


def repair_output_config(folder: Path) -> tuple[str, ...]:
    """Repairs the config of an output to agree with its tensors; returns a sentence per change."""
    checkpoint = Checkpoint.open(folder)
    if checkpoint.config_changes:
        write_json(folder / "config.json", dict(checkpoint.config))
    return checkpoint.config_changes


def sidecar_files(folder: Path) -> dict[str, Path]:
    """Maps names to files of a folder that match `SIDECAR_PATTERNS`."""
    return {
        path.relative_to(folder).as_posix(): path
        for pattern in SIDECAR_PATTERNS
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }


def require_valid_sidecars(files: Mapping[str, Path]) -> None:
    """Checks that sidecar files are genuine before a copy.

    Raises:
        CheckpointProblem: A file is a Git LFS pointer, a web page or the text of a link.
    """
    for path in files.values():
        recognition = recognize_substitute(path)
        if recognition is not None:
            raise recognition.problem()


def copy_sidecars(files: Mapping[str, Path], folder: Path) -> None:
    """Copies files into a folder, under the names in `files`."""
    for name, path in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)


def _read_bytes(path: Path, offset: int, count: int) -> UInt8[Tensor, " count"]:
    """Reads bytes of a file.

    The file is not memory-mapped: mapped pages would stay in the memory of the process until the
    file is closed, even after the tensor is freed.

    Args:
        path: File.
        offset: Position of the first byte.
        count: Number of bytes.
    Raises:
        CheckpointProblem: The file is too short or cannot be read.
        OutOfMemory: The bytes do not fit into memory.
    """
    try:
        content = torch.empty(count, dtype=torch.uint8)
    except RuntimeError as error:
        raise OutOfMemory(
            f"{path} holds a tensor of {count / 1e9:,.1f} GB, for which there is no memory",
            next_step="use a machine with more",
        ) from error
    view = content.numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            position = 0
            while position < count:
                size = file.readinto(view[position:])
                if not size:
                    raise CheckpointProblem(
                        f"{path} ends before all of its tensors do", next_step="download it again"
                    )
                position += size
    except OSError as error:
        raise CheckpointProblem(
            f"{path} cannot be read ({error.strerror})",
            next_step="check that its disk is connected and works, then run the same command again",
        ) from error
    return content
