"""The files of a checkpoint and what their headers say: name, type, shape, place of each tensor."""

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
SHARD_SUFFIXES = (".safetensors", ".bin")  # in the order of preference
AUTOGPTQ_PATTERN = (
    "gptq_model-*g.safetensors"  # its name for a single file, which has bits and group size
)
NUMBERED_SHARD = re.compile(  # one shard of a set, with the variant where either generation puts it
    r"(?P<stem>(?:model|pytorch_model)(?:\.\w+)?)-(?P<number>\d{5})-of-(?P<count>\d{5})"
    r"(?P<variant>(?:\.\w+)?)\.(?P<kind>safetensors|bin)"
)
VARIANT_NAME = re.compile(r"(?:model|pytorch_model)\.\w+\.(?:safetensors|bin)")  # such as fp16
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{,200}\.(safetensors|bin)")

# fmt: off
# in the order they have in a file
SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = MappingProxyType({
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
    offset: int | None  # of its first byte in the shard; None where it does not lie in one piece
    stored_name: str = ""  # in the shard, where the checkpoint calls the tensor otherwise

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def index_shards(folder: Path) -> dict[str, str]:
    """Tensor name to shard name, as the index says; empty where there is no index.

    Pickles are read only where there are no safetensors. An index none of whose shards is there
    is left aside if the folder holds other weights: it was left over, and a note says so.

    Raises:
        CheckpointProblem: an index without content, a shard that is missing, or several models.
        UnsafeShard: the index names something other than a plain file of this folder.
    """
    for index, single in _index_names(folder):
        if (folder / index).is_file():
            found = read_json(folder / index).get("weight_map")
            if not isinstance(found, dict) or not found:
                raise CheckpointProblem(
                    f"{folder / index} has no weight_map", next_step="download it again"
                )
            if _is_stale_index(folder, index, single, found.values()):
                continue
            if len(found) > MAX_TENSORS:
                raise CheckpointProblem(
                    f"{folder / index} lists {len(found):,} tensors, {MAX_TENSORS:,} are the limit",
                    next_step="download it again",
                )
            for shard in found.values():
                _require_shard(folder, index, shard)
            return found
        if (folder / single).is_file():
            break
    return {}


def find_shards(folder: Path) -> list[str]:
    """Names the weight files of a folder without an index.

    They are the one file with a standard name, or else a complete set of numbered shards, or else
    the one file of a variant such as `model.fp16.safetensors`; a note names the last two.

    Raises:
        CheckpointProblem: there is none, a set lacks shards, or there are several models.
    """
    for _, name in _index_names(folder):
        if (folder / name).is_file():
            return [name]
    models = _complete_sets(folder) or [
        [path.name] for path in sorted(folder.glob("*")) if VARIANT_NAME.fullmatch(path.name)
    ]
    kinds = {Path(files[0]).suffix for files in models}
    preferred = [
        files for files in models if files[0].endswith(min(kinds, key=SHARD_SUFFIXES.index))
    ]
    if len(preferred) > 1:
        raise CheckpointProblem(
            f"{folder} holds several models: {', '.join(files[0] for files in preferred)}",
            next_step="move all but one of them away",
        )
    if preferred:
        note(f"{folder} has no index: {', '.join(preferred[0])} are its weights")
        return preferred[0]
    recognition = recognize_folder(folder)
    if recognition is not None:
        raise recognition.problem()
    raise CheckpointProblem(
        f"{folder} holds no weights",
        next_step=f"it needs {SINGLE_FILE_NAMES[0]}, {SINGLE_FILE_NAMES[1]} or shards with "
        "an index",
    )


def _complete_sets(folder: Path) -> list[list[str]]:
    """The complete sets of numbered shards of a folder.

    Raises:
        CheckpointProblem: a set lacks shards, and no other one is complete.
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
    complete = [sets[key] for key in sets if sets[key] == expected[key]]
    if sets and not complete:
        key, files = next(iter(sets.items()))
        missing = sorted(set(expected[key]) - set(files))
        raise CheckpointProblem(
            f"{folder} has no index, and of its {len(expected[key])} shards lacks "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}",
            next_step="download what is missing",
        )
    return complete


def _is_stale_index(folder: Path, index: str, single: str, shards: Iterable[object]) -> bool:
    """Tells whether an index belongs to weights that are gone, while others are there."""
    if any((folder / str(shard)).exists() for shard in shards if SHARD_NAME.fullmatch(str(shard))):
        return False
    others = [
        name
        for name in (*INDEX_NAMES, *SINGLE_FILE_NAMES)
        if name != index and (folder / name).is_file()
    ]
    numbered = [path.name for path in folder.glob("*-of-*") if NUMBERED_SHARD.fullmatch(path.name)]
    if not others and not numbered:
        return False
    note(f"{folder / index} lists files that are not there: it is left over and not used")
    return True


def _index_names(folder: Path) -> list[tuple[str, str]]:
    """What an index may be called, and a file that needs none, in the order of preference."""
    standard = list(zip(INDEX_NAMES, SINGLE_FILE_NAMES, strict=True))
    if any((folder / name).is_file() for name in (*INDEX_NAMES, *SINGLE_FILE_NAMES)):
        return standard
    ends = len(".index.json")
    found = {path.name[:-ends] for path in folder.glob(f"{AUTOGPTQ_PATTERN}.index.json")}
    found |= {path.name for path in folder.glob(AUTOGPTQ_PATTERN)}
    if len(found) > 1:
        raise CheckpointProblem(
            f"{folder} holds several models: {', '.join(sorted(found))}",
            next_step="move all but one of them away",
        )
    return [*standard, *((f"{name}.index.json", name) for name in found)]


def read_shard_header(path: Path) -> dict[str, TensorInfo]:
    """What one weight file says it holds, in the order of the file.

    Raises:
        CheckpointProblem: it is not complete, holds a type that is not known, or says something
            twice.
    """
    if path.suffix == ".safetensors":
        return _safetensors_infos(path)
    found = {}
    for name, (tensor, offset) in pickles.tensor_offsets(path).items():
        if tensor.dtype not in SAFETENSORS_DTYPES.values():
            raise _dtype_problem(path, name, dtype_name(tensor.dtype))
        found[name] = TensorInfo(tensor.dtype, tuple(tensor.shape), path.name, offset)
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the texts that a safetensors file says of itself; nothing for any other file."""
    return dict(_read_safetensors_header(path).metadata) if path.suffix == ".safetensors" else {}


def _safetensors_infos(path: Path) -> dict[str, TensorInfo]:
    tensors = {}
    for name, entry in _read_safetensors_header(path).entries.items():
        dtype = SAFETENSORS_DTYPES.get(entry.dtype)
        if dtype is None:
            raise _dtype_problem(path, name, entry.dtype)
        tensors[name] = TensorInfo(dtype, entry.shape, path.name, entry.offset)
    return tensors


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
