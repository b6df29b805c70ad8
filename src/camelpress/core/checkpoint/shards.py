"""Weight files of a checkpoint and their headers: name, dtype, shape and offset of each tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from camelpress.core.checkpoint import pickles
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.checkpoint.safetensors_header import SafetensorsHeader, read_safetensors_header
from camelpress.core.errors import CheckpointProblem, UnsafeShard
from camelpress.core.files.file_recognizer import unreadable_file_problem
from camelpress.core.files.folder_recognizer import recognize_folder
from camelpress.core.files.json_files import read_json
from camelpress.core.input_limits import MAX_TENSORS
from camelpress.core.progress import note

INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILE_NAMES = ("model.safetensors", "pytorch_model.bin")
SHARD_SUFFIXES = (".safetensors", ".bin")  # in order of preference
AUTOGPTQ_PATTERN = "gptq_model-*g.safetensors"  # single file of AutoGPTQ, with bits and group size
NUMBERED_SHARD = (
    re.compile(  # one shard of a set; transformers 4 and 5 place the variant differently
        r"(?P<stem>(?:model|pytorch_model)(?:\.\w+)?)-(?P<number>\d{5})-of-(?P<count>\d{5})"
        r"(?P<variant>(?:\.\w+)?)\.(?P<kind>safetensors|bin)"
    )
)
VARIANT_NAME = re.compile(r"(?:model|pytorch_model)\.\w+\.(?:safetensors|bin)")  # such as fp16
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{,200}\.(safetensors|bin)")

# fmt: off
# Supported dtypes in the order of their tensors in a file.
SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = MappingProxyType({
    "I64": torch.int64,     "F64": torch.float64,  "F32": torch.float32,  "I32": torch.int32,
    "BF16": torch.bfloat16, "F16": torch.float16,  "I16": torch.int16,    "I8": torch.int8,
    "U8": torch.uint8,      "BOOL": torch.bool,
})
# fmt: on


@dataclass(frozen=True)
class TensorInfo:
    """Header entry of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    shard: str
    offset: int | None  # position of the first byte in the shard; None if not contiguous
    stored_name: str = ""  # name in the shard, if different

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def index_shards(folder: Path) -> dict[str, str]:
    """Maps tensor names to shard names from the index; empty without an index.

    Pickles are read only without safetensors. A stale index, without any of its shards beside other
    weights, is ignored with a note.

    Raises:
        CheckpointProblem: The index is empty, a shard is missing, or there are several models.
        UnsafeShard: The index names something other than a plain file of this folder.
    """
    for index, single in _index_names(folder):
        if (folder / index).is_file():
            weight_map = read_json(folder / index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise CheckpointProblem(
                    f"{folder / index} has no weight_map", next_step="download it again"
                )
            if _is_stale_index(folder, index, single, weight_map.values()):
                continue
            if len(weight_map) > MAX_TENSORS:
                raise CheckpointProblem(
                    f"{folder / index} lists {len(weight_map):,} tensors, the limit is "
                    f"{MAX_TENSORS:,}",
                    next_step="download it again",
                )
            for shard in weight_map.values():
                _require_shard(folder, index, shard)
            return weight_map
        if (folder / single).is_file():
            break
    return {}


def find_shards(folder: Path) -> list[str]:
    """Finds the weight files of a folder without an index.

    The order of preference is: a single file with a standard name, a complete set of numbered
    shards, a single file of a variant such as `model.fp16.safetensors`. A note names a set or
    variant.

    Raises:
        CheckpointProblem: There are no weights or several models, or a set lacks shards.
    """
    for _, name in _index_names(folder):
        if (folder / name).is_file():
            return [name]
    models = _complete_sets(folder) or [
        [path.name] for path in sorted(folder.glob("*")) if VARIANT_NAME.fullmatch(path.name)
    ]
    suffixes = {Path(files[0]).suffix for files in models}
    candidates = [
        files for files in models if files[0].endswith(min(suffixes, key=SHARD_SUFFIXES.index))
    ]
    if len(candidates) > 1:
        raise CheckpointProblem(
            f"{folder} holds several models: {', '.join(files[0] for files in candidates)}",
            next_step="move all but one of them away",
        )
    if candidates:
        note(f"{folder} has no index: {', '.join(candidates[0])} are its weights")
        return candidates[0]
    recognition = recognize_folder(folder)
    if recognition is not None:
        raise recognition.problem()
    raise CheckpointProblem(
        f"{folder} holds no weights",
        next_step=f"it needs {SINGLE_FILE_NAMES[0]}, {SINGLE_FILE_NAMES[1]} or shards with "
        "an index",
    )


def _complete_sets(folder: Path) -> list[list[str]]:
    """Lists the complete sets of numbered shards in a folder.

    Raises:
        CheckpointProblem: There are sets, and none of them is complete.
    """
    sets: dict[tuple[str, ...], list[str]] = {}
    for path in sorted(folder.glob("*-of-*")):
        shard = NUMBERED_SHARD.fullmatch(path.name)
        if shard:
            key = shard.group("stem", "count", "variant", "kind")
            sets.setdefault(key, []).append(path.name)
    expected = {
        key: [
            f"{stem}-{number:05}-of-{count}{variant}.{kind}" for number in range(1, int(count) + 1)
        ]
        for key in sets
        for stem, count, variant, kind in [key]
    }
    complete_sets = [sets[key] for key in sets if sets[key] == expected[key]]
    if sets and not complete_sets:
        key, files = next(iter(sets.items()))
        missing = sorted(set(expected[key]) - set(files))
        raise CheckpointProblem(
            f"{folder} has no index, and of its {len(expected[key])} shards lacks "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}",
            next_step="download what is missing",
        )
    return complete_sets


def _is_stale_index(folder: Path, index: str, single: str, shards: Iterable[object]) -> bool:
    """Returns True if all shards of an index are gone and other weights exist."""
    if any((folder / str(shard)).exists() for shard in shards if SHARD_NAME.fullmatch(str(shard))):
        return False
    other_files = [
        name
        for name in (*INDEX_NAMES, *SINGLE_FILE_NAMES)
        if name != index and (folder / name).is_file()
    ]
    numbered = [path.name for path in folder.glob("*-of-*") if NUMBERED_SHARD.fullmatch(path.name)]
    if not other_files and not numbered:
        return False
    note(f"{folder / index} lists files that are not there: it is left over and not used")
    return True


def _index_names(folder: Path) -> list[tuple[str, str]]:
    """Lists pairs of index name and single file name, in order of preference."""
    standard_names = list(zip(INDEX_NAMES, SINGLE_FILE_NAMES, strict=True))
    if any((folder / name).is_file() for name in (*INDEX_NAMES, *SINGLE_FILE_NAMES)):
        return standard_names
    indexes = folder.glob(f"{AUTOGPTQ_PATTERN}.index.json")
    names = {path.name.removesuffix(".index.json") for path in indexes}
    names |= {path.name for path in folder.glob(AUTOGPTQ_PATTERN)}
    if len(names) > 1:
        raise CheckpointProblem(
            f"{folder} holds several models: {', '.join(sorted(names))}",
            next_step="move all but one of them away",
        )
    return [*standard_names, *((f"{name}.index.json", name) for name in names)]


def read_shard_header(path: Path) -> dict[str, TensorInfo]:
    """Reads the header entries of a weight file, in file order.

    Raises:
        CheckpointProblem: The file is incomplete, or has an unsupported dtype or a duplicate key.
    """
    if path.suffix == ".safetensors":
        return _safetensors_infos(path)
    infos = {}
    for name, (tensor, offset) in pickles.tensor_offsets(path).items():
        if tensor.dtype not in SAFETENSORS_DTYPES.values():
            raise _dtype_problem(path, name, dtype_name(tensor.dtype))
        infos[name] = TensorInfo(tensor.dtype, tuple(tensor.shape), path.name, offset)
    return infos


def read_metadata(path: Path) -> dict[str, str]:
    """Reads the metadata of a safetensors file; empty for any other file."""
    return dict(_read_safetensors_header(path).metadata) if path.suffix == ".safetensors" else {}


def _safetensors_infos(path: Path) -> dict[str, TensorInfo]:
    infos = {}
    for name, entry in _read_safetensors_header(path).entries.items():
        dtype = SAFETENSORS_DTYPES.get(entry.dtype)
        if dtype is None:
            raise _dtype_problem(path, name, entry.dtype)
        infos[name] = TensorInfo(dtype, entry.shape, path.name, entry.offset)
    return infos


def _read_safetensors_header(path: Path) -> SafetensorsHeader:
    try:
        return read_safetensors_header(path)
    except OSError as error:
        raise _incomplete_problem(path, error.strerror) from error
    except ValueError as error:
        raise _incomplete_problem(path, error) from error


def _incomplete_problem(path: Path, error: object) -> CheckpointProblem:
    return unreadable_file_problem(path, f"{path} is not a complete safetensors file ({error})")


def _dtype_problem(path: Path, name: str, dtype: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{path} holds {name!r} as {dtype}",
        next_step=f"convert it to one of {', '.join(SAFETENSORS_DTYPES)}",
    )


def _require_shard(folder: Path, index: str, shard: object) -> None:
    if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
        raise UnsafeShard(
            f"{folder / index} names the shard {shard!r}, which is not a plain file name",
            next_step="do not use this checkpoint",
        )
    if not (folder / shard).is_file():
        raise CheckpointProblem(
            f"{folder / shard} is missing, {index} lists it", next_step="download that file"
        )
