"""The base as Meta ships it, under Hugging Face's names and shapes.

A model lies in one `consolidated.NN.pth` for each model-parallel rank, which holds a part of every
matrix. Its rotary embedding turns neighbouring rows of a head together; Hugging Face's turns row i
and row i + half. Tensors are joined and reordered while they are read; no bit of a weight changes.
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
    """A tensor of Meta's, and what it is for Hugging Face."""

    meta: str
    hf: str
    shape: str
    axes: tuple[int | None, ...]  # that may join the parts of ranks; None: each is the whole


# fmt: off
WEIGHT_MAPPINGS = (
    WeightMapping("tok_embeddings", "model.embed_tokens", "vocab dim", ANY_AXIS),
    WeightMapping("norm", "model.norm", "dim", REPLICATED),
    WeightMapping("output", "lm_head", "vocab dim", ROW_AXIS),
    WeightMapping("layers.*.attention_norm", "model.layers.*.input_layernorm", "dim", REPLICATED),
    WeightMapping("layers.*.attention.wq",    "model.layers.*.self_attn.q_proj",         "query dim", ROW_AXIS),
    WeightMapping("layers.*.attention.wk", "model.layers.*.self_attn.k_proj", "key dim", ROW_AXIS),
    WeightMapping("layers.*.attention.wv",    "model.layers.*.self_attn.v_proj",         "value dim", ROW_AXIS),
    WeightMapping("layers.*.attention.wo",    "model.layers.*.self_attn.o_proj",         "dim dim",   COLUMN_AXIS),
    WeightMapping("layers.*.ffn_norm",        "model.layers.*.post_attention_layernorm", "dim",       REPLICATED),
    WeightMapping("layers.*.feed_forward.w1", "model.layers.*.mlp.gate_proj", "ffn dim", ROW_AXIS),
    WeightMapping("layers.*.feed_forward.w2", "model.layers.*.mlp.down_proj",            "dim ffn",   COLUMN_AXIS),
    WeightMapping("layers.*.feed_forward.w3", "model.layers.*.mlp.up_proj", "ffn dim", ROW_AXIS),
)
# fmt: on
ROTARY_SHAPES = ("query", "key")  # by the rotary embedding


class MetaParams(BaseModel):
    """What params.json says, as far as it is needed; the defaults are Meta's."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    dim: int = Field(gt=0, le=MAX_WIDTH)
    n_layers: int = Field(gt=0, le=MAX_LAYERS)
    n_heads: int = Field(gt=0, le=MAX_HEADS)
    n_kv_heads: int | None = Field(default=None, gt=0, le=MAX_HEADS)
    norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    vocab_size: int = Field(
        default=-1, le=MAX_VOCABULARY
    )  # the tokenizer's, where it is not positive

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; fewer than those of queries in grouped-query attention."""
        return self.n_kv_heads or self.n_heads

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes known before any tensor is."""
        kv = self.dim // self.n_heads * self.kv_heads
        known = {"dim": self.dim, "query": self.dim, "key": kv, "value": kv}
        return known | ({"vocab": self.vocab_size} if self.vocab_size > 0 else {})


class TensorOrigin(NamedTuple):
    """Where a tensor comes from."""

    name: str
    axis: int | None
    head_rows: int | None  # rows of one head, where they are to be reordered
    info: TensorInfo  # of the whole


class MetaCheckpoint(Checkpoint):
    """A folder of Meta's, opened like any other.

    Its config says what params.json and the tensors do. The scaled rotary embedding of Llama 3.1
    and later and the special tokens of Llama 3 are in neither.

    Args:
        folder: holds params.json.
        config: as Hugging Face writes it.
        sources: Hugging Face name to origin.
        ranks: file to what it holds, in the order of ranks.
    Source:
        meta-llama/llama 689c7f2 and meta-llama/llama3 a0940f9, llama/model.py;
        huggingface/transformers v4.32.1, models/llama/convert_llama_weights_to_hf.py, whose later
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
        """Read params.json and the header of every rank's file.

        Raises:
            CheckpointProblem: params.json is broken, a file is missing or not plain weights, or
                ranks disagree.
            UnknownTensor: a tensor is missing, or one is there that does not belong.
            ShapeMismatch: the parts do not join to what params.json asks for.
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
        """One whole tensor, in its own dtype, on the CPU, in memory of its own."""
        return self.read_rows(name, 0, self.tensor_info(name).shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor; where heads are reordered, all between are read."""
        info = self.tensor_info(name)
        source = self._sources[name]
        wanted = _rotary_permutation(info.shape[0], source.head_rows)[start:stop]
        if not len(wanted):
            return torch.empty(0, *info.shape[1:], dtype=info.dtype)
        first, last = int(wanted.min()), int(wanted.max())
        joined = torch.cat(list(self._rank_rows(source, first, last + 1)), dim=source.axis or 0)
        return joined if source.head_rows is None else joined[wanted - first]

    def weight_files(self) -> Iterator[Path]:
        """The files of all ranks."""
        yield from self._ranks

    def sidecar_files(self) -> dict[str, Path]:
        """What lies beside the weights; Meta puts the tokenizer one folder above them."""
        shared = self.folder.absolute().parent / "tokenizer.model"
        return ({shared.name: shared} if shared.is_file() else {}) | sidecar_files(self.folder)

    def _rank_rows(self, source: TensorOrigin, start: int, stop: int) -> Iterator[Tensor]:
        """What each rank has of rows `start` to `stop` of the joined tensor, in Meta's order."""
        for number, rank in enumerate(self._ranks.values()):
            height = rank.tensor_info(source.name).shape[0]
            above = number * height if source.axis == 0 else 0
            begin, end = max(0, start - above), min(height, stop - above)
            if begin < end and (number == 0 or source.axis is not None):
                yield rank.read_rows(source.name, begin, end)


def open_base(place: Path) -> Checkpoint:
    """A base in either layout: Meta's if there is a params.json and no config.json.

    Raises:
        CheckpointProblem: as `MetaCheckpoint.open` and `Checkpoint.open`.
    """
    if (place / PARAMS_FILE).is_file() and not (place / "config.json").is_file():
        return MetaCheckpoint.open(place)
    return Checkpoint.open(place)


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
            f"these not into {params.kv_heads} groups",
            next_step="download it again",
        )
    return params


def _rank_files(folder: Path) -> list[Path]:
    count = len(list(folder.glob("consolidated.*.pth")))
    unnumbered = folder / "consolidated.pth"  # what some downloads call the file of a single rank
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
    found = {}
    for row in WEIGHT_MAPPINGS:
        for layer in range(params.n_layers if "*" in row.meta else 1):
            meta, name = (f"{each}.weight".replace("*", str(layer)) for each in (row.meta, row.hf))
            part = _require_same_parts(meta, params, ranks)
            axis, shape = _joined_shape(meta, row, part.shape, sizes, ranks)
            sizes |= dict(zip(row.shape.split(), shape, strict=True))
            head = params.dim // params.n_heads if row.shape.startswith(ROTARY_SHAPES) else None
            found[name] = TensorOrigin(
                meta, axis, head, TensorInfo(part.dtype, shape, part.shard, None)
            )
    _require_all_known({source.name for source in found.values()}, params, ranks)
    return found


def _require_same_parts(
    name: str, params: MetaParams, ranks: Mapping[Path, Checkpoint]
) -> TensorInfo:
    """What all ranks say of their part of a tensor."""
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
    """The axis that joins the parts of a tensor, and the shape of the whole.

    Embeddings are split by columns in LLaMA 1 and 2 and by rows in Llama 3: only one of them
    gives the width of the model.
    """
    words = row.shape.split()
    for axis in row.axes:
        whole = tuple(size * len(ranks) if at == axis else size for at, size in enumerate(part))
        if len(whole) == len(words) and all(
            sizes.get(word, size) == size for word, size in zip(words, whole, strict=True)
        ):
            return axis, whole
    asked = ", ".join(str(sizes.get(word, word)) for word in words)
    raise ShapeMismatch(
        f"{name!r} is {list(whole)} over the {len(ranks)} files of {next(iter(ranks)).parent}, "
        f"but should be [{asked}]",
        next_step=DOWNLOAD_STEP,
    )


def _require_all_known(
    known: set[str], params: MetaParams, ranks: Mapping[Path, Checkpoint]
) -> None:
    for path, rank in ranks.items():
        for name in rank.tensors:
            if name not in known and not is_derived_buffer(name):
                raise UnknownTensor(
                    f"{path} holds {name!r}, which a model with n_layers {params.n_layers} lacks",
                    next_step=DOWNLOAD_STEP,
                )


def _rotary_permutation(rows: int, head: int | None) -> Int64[Tensor, " rows"]:
    """For each row of Hugging Face's tensor, the row of Meta's."""
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
