"""One model in every layout that lies around gives the same tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from camelpress.core.checkpoint.checkpoint import Checkpoint, sidecar_files
from camelpress.core.checkpoint.shards import SAFETENSORS_DTYPES, TensorInfo
from camelpress.core.errors import CheckpointProblem, UnknownTensor
from camelpress.core.files.json_files import read_json, write_json

Tensors = dict[str, Tensor]

TENSORS: Tensors = {
    "embed": torch.arange(12, dtype=torch.float16).reshape(4, 3),
    "norm": torch.tensor([0.5, 1.5, 2.5], dtype=torch.bfloat16),
    "ids": torch.tensor([[7], [8]], dtype=torch.int32),
}


def save(path: Path, *names: str) -> None:
    tensors = {name: TENSORS[name] for name in names}
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})


def write_index(folder: Path, kind: str, **places: str) -> None:
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": places}))


def single(folder: Path) -> None:
    save(folder / "model.safetensors", *TENSORS)


def sharded(folder: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save(folder / first, "embed", "ids")
    save(folder / second, "norm")
    write_index(folder, "model.safetensors", embed=first, norm=second, ids=first)


def pickled(folder: Path) -> None:
    save(folder / "pytorch_model.bin", *TENSORS)


def pickled_shards(folder: Path) -> None:
    first, second = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    save(folder / first, "embed", "ids")
    save(folder / second, "norm")
    write_index(folder, "pytorch_model.bin", embed=first, norm=second, ids=first)


def mixed(folder: Path) -> None:
    save(folder / "old.bin", "norm")
    save(folder / "new.safetensors", "embed", "ids")
    places = {"embed": "new.safetensors", "norm": "old.bin", "ids": "new.safetensors"}
    write_index(folder, "pytorch_model.bin", **places)


LAYOUTS = (single, sharded, pickled, pickled_shards, mixed)


@pytest.fixture(params=LAYOUTS, ids=[layout.__name__ for layout in LAYOUTS])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    request.param(tmp_path)
    return open_with(tmp_path)


def open_with(folder: Path, **config: Any) -> Checkpoint:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    return Checkpoint.open(folder)


# --- the same model in every layout -------------------------------------------------------------


def test_every_layout_gives_the_same_tensors(checkpoint: Checkpoint) -> None:
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        found = checkpoint.read(name)
        assert found.dtype is expected.dtype
        assert torch.equal(found, expected)


def test_every_layout_tells_types_and_shapes_before_reading(checkpoint: Checkpoint) -> None:
    info = {
        name: (found.dtype, found.shape, found.nbytes) for name, found in checkpoint.tensors.items()
    }
    assert info == {
        "embed": (torch.float16, (4, 3), 24),
        "norm": (torch.bfloat16, (3,), 6),
        "ids": (torch.int32, (2, 1), 8),
    }
    assert checkpoint.nbytes == 38


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 3), (2, 4), (0, 4), (3, 9), (2, 2)])
def test_rows_are_those_of_the_whole_tensor(checkpoint: Checkpoint, start: int, stop: int) -> None:
    assert torch.equal(checkpoint.read_rows("embed", start, stop), TENSORS["embed"][start:stop])


def test_files_are_the_shards_by_name(tmp_path: Path) -> None:
    mixed(tmp_path)
    assert [path.name for path in open_with(tmp_path).weight_files()] == [
        "new.safetensors",
        "old.bin",
    ]


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    pickled_shards(tmp_path)
    single(tmp_path)
    assert [path.name for path in open_with(tmp_path).weight_files()] == ["model.safetensors"]


def test_a_shard_may_be_a_link_as_in_a_download_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save(tmp_path / "blobs" / "x.safetensors", *TENSORS)
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/x.safetensors")
    assert open_with(tmp_path / "snapshot").tensors.keys() == TENSORS.keys()


def test_the_size_of_a_tensor_without_values_is_zero() -> None:
    assert TensorInfo(torch.float32, (0, 5), "x", 0).nbytes == 0
    assert TensorInfo(torch.float32, (), "x", 0).nbytes == 4


# --- any rows of any tensor ---------------------------------------------------------------------

FLAT = torch.arange(-30, 30, dtype=torch.float32)
MATRIX = FLAT.reshape(6, 10)
VIEWS: Tensors = {
    "whole": MATRIX,
    "rows": MATRIX[2:5],
    "row": MATRIX[3],
    "value": MATRIX[3, 4],
    "flat": FLAT[7:],
    "transposed": MATRIX.T,
    "column": MATRIX[:, 3],
    "columns": MATRIX[:, 3:5],
    "every second row": MATRIX[::2],
    "one row, repeated": MATRIX[:1].expand(4, -1),
    "three axes": FLAT.reshape(3, 4, 5),
    "axes in another order": FLAT.reshape(3, 4, 5).permute(2, 0, 1),
    "channels last": FLAT.reshape(1, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "no rows": torch.zeros(0, 3),
    "no columns": torch.zeros(3, 0),
    "a parameter": torch.nn.Parameter(MATRIX[1:].clone()),
    "a parameter, transposed": torch.nn.Parameter(MATRIX.clone().T),
    "in 16 bits": MATRIX.bfloat16()[1:],
    "truths": MATRIX > 0,
    "integers": MATRIX.long()[1:, 2:],
}


@pytest.fixture(scope="module", params=["safetensors", "bin", "bin, apart"])
def views(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """All of them in one file; in the second, most share one storage."""
    folder: Path = tmp_path_factory.mktemp("views")
    if request.param == "safetensors":
        apart = {name: tensor.detach().clone().contiguous() for name, tensor in VIEWS.items()}
        save_file(apart, folder / "model.safetensors")
    elif request.param == "bin":
        torch.save(VIEWS, folder / "pytorch_model.bin")
    else:
        apart = {name: tensor.clone() for name, tensor in VIEWS.items()}
        torch.save(apart, folder / "pytorch_model.bin")
    return open_with(folder)


@given(st.sampled_from(sorted(VIEWS)), st.integers(0, 12), st.integers(0, 12))
@settings(deadline=None, max_examples=200)
def test_any_rows_are_those_of_the_whole_tensor(
    views: Checkpoint, name: str, start: int, stop: int
) -> None:
    expected = VIEWS[name] if VIEWS[name].dim() == 0 else VIEWS[name][start:stop]
    for found, wanted in (
        (views.read(name), VIEWS[name]),
        (views.read_rows(name, start, stop), expected),
    ):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert torch.equal(found, wanted)
        assert found.is_contiguous()
        assert not found.requires_grad


def test_a_header_of_many_tensors_is_read(tmp_path: Path) -> None:
    tensors = {f"{'x' * 80}.{number}": torch.tensor([number]) for number in range(40_000)}
    save_file(tensors, tmp_path / "model.safetensors")
    opened = open_with(tmp_path)
    assert len(opened.tensors) == 40_000
    assert int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little") > 5_000_000
    assert opened.read(f"{'x' * 80}.31415").tolist() == [31415]


# --- config and companions ----------------------------------------------------------------------


def test_plain_weights_have_no_quantization(tmp_path: Path) -> None:
    single(tmp_path)
    assert open_with(tmp_path).quantization is None


def test_the_quantization_is_that_of_the_config(tmp_path: Path) -> None:
    single(tmp_path)
    found = open_with(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert found.quantization == {"quant_method": "gptq", "bits": 4}


def test_a_quantization_that_is_no_object_is_refused(tmp_path: Path) -> None:
    single(tmp_path)
    with pytest.raises(CheckpointProblem) as told:
        open_with(tmp_path, quantization_config="gptq").quantization  # noqa: B018 - a property
    assert (
        told.value.message == f"{tmp_path / 'config.json'} has a quantization_config that is a str"
    )
    assert told.value.next_step == "download it again"


def test_companions_are_tokenizer_generation_config_and_licences(tmp_path: Path) -> None:
    wanted = {
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
        "generation_config.json",
        "LICENSE.md",
        "NOTICE.txt",
        "llama_license.txt",
        "recover-report.json",
    }
    (tmp_path / "additional_chat_templates").mkdir()
    for name in wanted | {"config.json", "README.md", "model.safetensors", "optimizer.bin"}:
        (tmp_path / name).touch()
    (tmp_path / "tokenizer").mkdir()
    assert sidecar_files(tmp_path) == {name: tmp_path / name for name in wanted}


# --- what is refused ----------------------------------------------------------------------------


def refused(kind: type[CheckpointProblem], folder: Path) -> str:
    with pytest.raises(kind) as told:
        Checkpoint.open(folder)
    assert type(told.value) is kind
    return str(told.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    told = refused(CheckpointProblem, tmp_path / "no")
    assert told == f"{tmp_path / 'no'} is not a folder; give a Hugging Face checkpoint folder"


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    single(tmp_path)
    told = refused(CheckpointProblem, tmp_path)
    assert told == f"{tmp_path / 'config.json'} does not exist; complete the checkpoint folder"


def test_a_config_with_a_byte_order_mark_is_named(tmp_path: Path) -> None:
    single(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8-sig")
    assert refused(CheckpointProblem, tmp_path) == (
        f"{tmp_path / 'config.json'} begins with a byte order mark, which other programs refuse; "
        "save it as UTF-8 without the mark"
    )


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert refused(CheckpointProblem, tmp_path) == (
        f"{tmp_path} holds no weights; it needs model.safetensors, pytorch_model.bin or shards "
        "with an index"
    )


def test_a_tensor_that_is_not_there_is_named(checkpoint: Checkpoint) -> None:
    for read in (
        checkpoint.tensor_info,
        checkpoint.read,
        lambda name: checkpoint.read_rows(name, 0, 1),
    ):
        with pytest.raises(UnknownTensor) as told:
            read("head")
        assert str(told.value) == (
            f"{checkpoint.folder} lacks the tensor 'head'; "
            "check that the folder is complete and of the expected model"
        )


@pytest.mark.parametrize("content", ['{"weight_map": {}}', '{"weight_map": ["a"]}', "{}"])
def test_an_index_without_a_map_is_refused(tmp_path: Path, content: str) -> None:
    single(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    told = refused(CheckpointProblem, tmp_path)
    assert told == f"{index} has no weight_map; download it again"


@pytest.mark.parametrize("layout", [sharded, pickled_shards])
def test_a_tensor_that_the_index_does_not_list_is_refused(
    tmp_path: Path, layout: Callable[[Path], None]
) -> None:
    layout(tmp_path)
    open_with(tmp_path)
    index = next(tmp_path.glob("*.index.json"))
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {"ids": places["norm"]}}))
    assert refused(CheckpointProblem, tmp_path) == (
        f"{tmp_path / places['ids']} holds 'ids', which the index places in {places['norm']}; "
        "download the checkpoint again, index included"
    )
    del places["ids"]
    index.write_text(json.dumps({"weight_map": places}))
    assert "holds 'ids', which the index places in no file;" in refused(CheckpointProblem, tmp_path)


def test_a_dtype_that_cannot_be_computed_with_is_refused(tmp_path: Path) -> None:
    tensor = torch.ones(2).to(torch.float8_e4m3fn)
    save_file({"a": tensor}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    told = refused(CheckpointProblem, tmp_path)
    assert told.startswith(f"{tmp_path / 'model.safetensors'} holds 'a' as F8_E4M3; convert it to ")
    assert "BF16" in told


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.uint16])
def test_a_pickled_dtype_that_cannot_be_computed_with_is_refused(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    torch.save({"a": torch.ones(2).to(dtype)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    assert refused(CheckpointProblem, tmp_path) == (
        f"{tmp_path / 'pytorch_model.bin'} holds 'a' as {str(dtype).removeprefix('torch.')}; "
        f"convert it to one of {', '.join(SAFETENSORS_DTYPES)}"
    )


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"a": torch.ones(2)}, "model": {"a": torch.zeros(2)}},
        {"state_dict": {"a": torch.ones(2), "step": 7}},
        {"optimizer": {"a": torch.ones(2)}},
        {"a": torch.ones(2), "step": 7},
        {7: torch.ones(2)},
        {"a": torch.ones(2).to_sparse()},
        {"a": torch._neg_view(torch.ones(2))},
        [torch.ones(2)],
        torch.ones(2),
    ],
)
def test_a_pickle_that_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    (tmp_path / "config.json").write_text("{}")
    told = refused(CheckpointProblem, tmp_path)
    assert told == f"{path} is not a dictionary of tensors; give a model's state dict"


# --- JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b" ", b"{", b"\xff{}", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=["empty", "open", "not UTF-8", "too deep", "too many digits"],
)
def test_what_is_not_json_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CheckpointProblem) as told:
        read_json(tmp_path / "x.json")
    assert str(told.value).startswith(f"{tmp_path / 'x.json'} is not valid JSON (")
    assert told.value.next_step == "download it again"


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(CheckpointProblem) as told:
        read_json(tmp_path / "x.json")
    assert str(told.value) == f"{tmp_path / 'x.json'} is not a JSON object; download it again"


def test_a_folder_in_place_of_json_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(CheckpointProblem) as told:
        read_json(tmp_path / "x.json")
    assert str(told.value) == (
        f"{tmp_path / 'x.json'} cannot be read (Is a directory); complete the checkpoint folder"
    )


@pytest.mark.parametrize("text", ["whale \U0001f40b", "half \ud83d", "\udc00\ud800", '"\\\n\0'])
def test_any_string_comes_back_from_json(tmp_path: Path, text: str) -> None:
    write_json(tmp_path / "x.json", {text: [text]})
    assert read_json(tmp_path / "x.json") == {text: [text]}
