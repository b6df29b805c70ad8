"""Reads Meta's checkpoint format under Hugging Face's names and shapes.

A model consists of one `consolidated.NN.pth` per model-parallel rank, with a part of every matrix.
Meta's rotary embedding rotates neighbouring rows of a head together, Hugging Face's rotates row i
with row i + half. Tensors are joined and reordered during reading; no bit of a weight changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from camelpress.core.checkpoint import shards
from camelpress.core.checkpoint.checkpoint import Checkpoint, sidecar_files
from camelpress.core.checkpoint.portable_config import dtype_name, portable_config
from camelpress.core.checkpoint.shards import TensorInfo
from camelpress.core.errors import CheckpointProblem, ShapeMismatch, UnknownTensor
from camelpress.core.files.file_hashes import file_states
from camelpress.core.files.json_files import read_json
from camelpress.core.input_limits import MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH
from camelpress.core.llama import is_derived_buffer
from camelpress.core.settings import describe_validation_error

PARAMS_FILE = "params.json"
DOWNLOAD_STEP = "download the folder again, params.json and every consolidated.*.pth"

ROW_AXIS, COLUMN_AXIS, ANY_AXIS, REPLICATED = (0,), (1,), (0, 1), (None,)


class WeightMapping(NamedTuple):
    """Meta's and Hugging Face's name of a weight, its shape, and the axes of its split."""

    meta: str
    hf: str
    shape: str
    axes: tuple[int | None, ...]  # possible axes of the split over ranks; None: replicated


WEIGHT_MAPPINGS = (
    WeightMapping("tok_embeddings", "model.embed_tokens", "vocab dim", ANY_AXIS),
    WeightMapping("norm", "model.norm", "dim", REPLICATED),
    WeightMapping("output", "lm_head", "vocab dim", ROW_AXIS),
    WeightMapping("layers.*.attention_norm", "model.layers.*.input_layernorm", "dim", REPLICATED),
    WeightMapping(
        "layers.*.attention.wq", "model.layers.*.self_attn.q_proj", "query dim", ROW_AXIS
    ),
    WeightMapping("layers.*.attention.wk", "model.layers.*.self_attn.k_proj", "key dim", ROW_AXIS),
    WeightMapping(
        "layers.*.attention.wv", "model.layers.*.self_attn.v_proj", "value dim", ROW_AXIS
    ),
    WeightMapping(
        "layers.*.attention.wo", "model.layers.*.self_attn.o_proj", "dim dim", COLUMN_AXIS
    ),
    WeightMapping(
        "layers.*.ffn_norm", "model.layers.*.post_attention_layernorm", "dim", REPLICATED
    ),
    WeightMapping("layers.*.feed_forward.w1", "model.layers.*.mlp.gate_proj", "ffn dim", ROW_AXIS),
    WeightMapping(
        "layers.*.feed_forward.w2", "model.layers.*.mlp.down_proj", "dim ffn", COLUMN_AXIS
    ),
    WeightMapping("layers.*.feed_forward.w3", "model.layers.*.mlp.up_proj", "ffn dim", ROW_AXIS),
)
ROTARY_SHAPES = ("query", "key")  # shapes with rows in rotary order


class MetaParams(BaseModel):
    """Required fields of params.json, with Meta's defaults."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    dim: int = Field(gt=0, le=MAX_WIDTH)
    n_layers: int = Field(gt=0, le=MAX_LAYERS)
    n_heads: int = Field(gt=0, le=MAX_HEADS)
    n_kv_heads: int | None = Field(default=None, gt=0, le=MAX_HEADS)
    norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    vocab_size: int = Field(default=-1, le=MAX_VOCABULARY)  # -1: that of the tokenizer

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads; below `n_heads` in grouped-query attention."""
        return self.n_kv_heads or self.n_heads

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes known from params.json alone, by the words of `WeightMapping.shape`."""
        kv = self.dim // self.n_heads * self.kv_heads
        sizes_by_name = {"dim": self.dim, "query": self.dim, "key": kv, "value": kv}
        return sizes_by_name | ({"vocab": self.vocab_size} if self.vocab_size > 0 else {})


class TensorOrigin(NamedTuple):
    """Source of a tensor in Meta's files."""

    name: str
    axis: int | None
    head_rows: int | None  # rows of one head to reorder; None: no reordering
    info: TensorInfo  # dtype and shape of the joined tensor


class MetaCheckpoint(Checkpoint):
    """Opens a folder in Meta's format like any other checkpoint.

    Its config follows from params.json and the tensors. Neither states the scaled rotary embedding
    of Llama 3.1 and later, or the special tokens of Llama 3.

    Args:
        folder: folder of params.json.
        config: config in Hugging Face's format.
        sources: Hugging Face name to source of the tensor.
        ranks: file to checkpoint of its tensors, in the order of ranks.
    Source:
        meta-llama/llama 689c7f2 and meta-llama/llama3 a0940f9, llama/model.py;
        huggingface/transformers v4.32.1, models/llama/convert_llama_weights_to_hf.py; later
        versions round to bfloat16.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        sources: Mapping[str, TensorOrigin],
        ranks: Mapping[Path, Checkpoint],
    ) -> None:
        tensors = {name: source.info for name, source in sources.items()}
        states = next(iter(ranks.values())).file_states
        super().__init__(folder, config, MappingProxyType(tensors), files=states)
        self._sources = sources
        self._ranks = ranks

    @classmethod
    def open(cls, place: Path) -> MetaCheckpoint:
        """Reads params.json and the header of every rank's file.

        Raises:
            CheckpointProblem: params.json is broken, a file is missing or not plain weights, or
                ranks disagree.
            UnknownTensor: a tensor is missing, or is not part of the model.
            ShapeMismatch: the joined parts do not have the shape in params.json.
        """
        states = file_states(place)
        params = _read_params(place / PARAMS_FILE)
        ranks = {
            path: Checkpoint(place, {}, shards.read_shard_header(path), files=states)
            for path in _rank_files(place)
        }
        sources = _map_tensors(params, ranks)
        return cls(place, MappingProxyType(_hf_config(params, sources)), sources, ranks)

    def read(self, name: str) -> Tensor:
        """Returns one whole tensor as a copy on the CPU, in the stored dtype."""
        return self.read_rows(name, 0, self.tensor_info(name).shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Returns rows `start` to `stop` of a tensor; reordered heads need wider reads."""
        info = self.tensor_info(name)
        source = self._sources[name]
        row_order = _rotary_permutation(info.shape[0], source.head_rows)[start:stop]
        if not len(row_order):
            return torch.empty(0, *info.shape[1:], dtype=info.dtype)
        first, last = int(row_order.min()), int(row_order.max())
        joined = torch.cat(list(self._rank_rows(source, first, last + 1)), dim=source.axis or 0)
        return joined if source.head_rows is None else joined[row_order - first]

    def weight_files(self) -> Iterator[Path]:
        """Yields the files of all ranks."""
        yield from self._ranks

    def sidecar_files(self) -> dict[str, Path]:
        """Returns the sidecar files, with Meta's tokenizer from the parent folder."""
        shared = self.folder.absolute().parent / "tokenizer.model"
        return ({shared.name: shared} if shared.is_file() else {}) | sidecar_files(self.folder)

    def _rank_rows(self, source: TensorOrigin, start: int, stop: int) -> Iterator[Tensor]:
        """Yields the part of each rank in rows `start` to `stop` of the joined tensor."""
        for number, rank in enumerate(self._ranks.values()):
            height = rank.tensor_info(source.name).shape[0]
            above = number * height if source.axis == 0 else 0
            begin, end = max(0, start - above), min(height, stop - above)
            if begin < end and (number == 0 or source.axis is not None):
                yield rank.read_rows(source.name, begin, end)


def open_base(folder: Path) -> Checkpoint:
    """Opens a base: in Meta's format if params.json exists and config.json does not.

    Raises:
        CheckpointProblem: as in `MetaCheckpoint.open` and `Checkpoint.open`.
    """
    if (folder / PARAMS_FILE).is_file() and not (folder / "config.json").is_file():
        return MetaCheckpoint.open(folder)
    return Checkpoint.open(folder)


def _read_params(path: Path) -> MetaParams:
    try:
        params = MetaParams.model_validate(read_json(path))
    except ValidationError as error:
        raise CheckpointProblem(
            f"{path}: {describe_validation_error(error)}", next_step="download it again"
        ) from error
    if params.dim % (2 * params.n_heads) or params.n_heads % params.kv_heads:
        raise CheckpointProblem(
            f"{path}: dim {params.dim} does not divide into pairs of {params.n_heads} heads, or "
            f"the heads not into {params.kv_heads} groups",
            next_step="download it again",
        )
    return params


def _rank_files(folder: Path) -> list[Path]:
    count = len(list(folder.glob("consolidated.*.pth")))
    unnumbered = folder / "consolidated.pth"  # name of a single rank's file in some downloads
    if count == 0 and unnumbered.is_file():
        return [unnumbered]
    paths = [folder / f"consolidated.{number:02}.pth" for number in range(max(1, count))]
    for path in paths:
        if not path.is_file():
            raise CheckpointProblem(
                f"{path} is missing; the folder holds {count} such files",
                next_step="download that file",
            )
    return paths


def _map_tensors(params: MetaParams, ranks: Mapping[Path, Checkpoint]) -> dict[str, TensorOrigin]:
    sizes = params.sizes
    origins = {}
    for row in WEIGHT_MAPPINGS:
        for layer in range(params.n_layers if "*" in row.meta else 1):
            meta, name = (
                f"{pattern}.weight".replace("*", str(layer)) for pattern in (row.meta, row.hf)
            )
            part = _require_same_parts(meta, params, ranks)
            axis, shape = _joined_shape(meta, row, part.shape, sizes, ranks)
            sizes |= dict(zip(row.shape.split(), shape, strict=True))
            head = params.dim // params.n_heads if row.shape.startswith(ROTARY_SHAPES) else None
            origins[name] = TensorOrigin(
                meta, axis, head, TensorInfo(part.dtype, shape, part.shard, None)
            )
    _require_all_known({source.name for source in origins.values()}, params, ranks)
    return origins


def _require_same_parts(
    name: str, params: MetaParams, ranks: Mapping[Path, Checkpoint]
) -> TensorInfo:
    """Returns dtype and shape of a tensor's part, after checking that all ranks agree."""
    parts = {}
    for path, rank in ranks.items():
        if name not in rank.tensors:
            raise UnknownTensor(
                f"{path} lacks {name!r}, which a model with n_layers {params.n_layers} has",
                next_step=DOWNLOAD_STEP,
            )
        parts[path] = rank.tensors[name]
    (first, expected), *others = parts.items()
    for path, part in others:
        if (part.dtype, part.shape) != (expected.dtype, expected.shape):
            raise CheckpointProblem(
                f"{path} holds {name!r} as {dtype_name(part.dtype)} {list(part.shape)}, but "
                f"{first.name} as {dtype_name(expected.dtype)} {list(expected.shape)}",
                next_step=DOWNLOAD_STEP,
            )
    return expected


def _joined_shape(
    name: str,
    row: WeightMapping,
    part: tuple[int, ...],
    sizes: Mapping[str, int],
    ranks: Mapping[Path, Checkpoint],
) -> tuple[int | None, tuple[int, ...]]:
    """Returns the axis of a tensor's split, and the shape of the joined tensor.

    LLaMA 1 and 2 split embeddings by columns, Llama 3 splits them by rows; only one of the axes
    gives the width of the model.
    """
    axis_names = row.shape.split()
    for axis in row.axes:
        joined_shape = tuple(
            size * len(ranks) if index == axis else size for index, size in enumerate(part)
        )
        if len(joined_shape) == len(axis_names) and all(
            sizes.get(axis_name, size) == size
            for axis_name, size in zip(axis_names, joined_shape, strict=True)
        ):
            return axis, joined_shape
    expected = ", ".join(str(sizes.get(axis_name, axis_name)) for axis_name in axis_names)
    raise ShapeMismatch(
        f"{name!r} is {list(joined_shape)} over the {len(ranks)} files of "
        f"{next(iter(ranks)).parent}, but should be [{expected}]",
        next_step=DOWNLOAD_STEP,
    )


def _require_all_known(
    names: set[str], params: MetaParams, ranks: Mapping[Path, Checkpoint]
) -> None:
    for path, rank in ranks.items():
        for name in rank.tensors:
            if name not in names and not is_derived_buffer(name):
                raise UnknownTensor(
                    f"{path} holds {name!r}, which a model with n_layers {params.n_layers} lacks",
                    next_step=DOWNLOAD_STEP,
                )


def _rotary_permutation(rows: int, head: int | None) -> Int64[Tensor, " rows"]:
    """Returns the index of Meta's row for each row of Hugging Face's tensor."""
    order = torch.arange(rows)
    return order if head is None else order.view(-1, head // 2, 2).transpose(1, 2).flatten()


def _hf_config(params: MetaParams, sources: Mapping[str, TensorOrigin]) -> dict[str, Any]:
    vocab_size, _ = sources["model.embed_tokens.weight"].info.shape
    intermediate_size, _ = sources["model.layers.0.mlp.gate_proj.weight"].info.shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": params.dim,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": params.n_layers,
        "num_attention_heads": params.n_heads,
        "num_key_value_heads": params.kv_heads,
        "rms_norm_eps": params.norm_eps,
        "rope_theta": params.rope_theta,
        "vocab_size": vocab_size,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return portable_config(config, sources["model.embed_tokens.weight"].info.dtype)
