"""Meta's files give the tensors of the Hugging Face model, bit for bit, whole or by rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import meta_layout
import pico
import weights
from camelpress.convert.inputs.meta_checkpoint import MetaCheckpoint, open_base
from camelpress.convert.recover.make_diff import make_diff
from camelpress.convert.recover.run import recover
from camelpress.convert.settings import MakeDiffSettings, RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, Problem, ShapeMismatch, UnknownTensor
from camelpress.core.files.file_hashes import checkpoint_digest
from meta_layout import Sizes
from refusal import refusal, starting
from weights import Tensors

DOWNLOAD = "download it again"
AGAIN = "download the folder again, params.json and every consolidated.*.pth"
QUERY, KEY = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")
OUTPUT, DOWN = "model.layers.1.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
GROUPED, PLAIN = Sizes(), Sizes(kv_heads=8)


class Layout(NamedTuple):
    """How a model is split."""

    sizes: Sizes
    ranks: int
    embedding_axis: int = 1


LAYOUTS = {
    "LLaMA 1, one rank": Layout(PLAIN, 1),
    "LLaMA 1, two ranks": Layout(PLAIN, 2),
    "LLaMA 1, four ranks": Layout(PLAIN, 4),
    "Llama 2, four ranks": Layout(GROUPED, 4),
    "Llama 3, one rank": Layout(GROUPED, 1, 0),
    "Llama 3, two ranks": Layout(GROUPED, 2, 0),
}


class Pair(NamedTuple):
    """One model in both layouts."""

    tensors: Tensors
    checkpoint: Checkpoint


def write(folder: Path, tensors: Tensors, layout: Layout, **params: Any) -> Path:
    parts = meta_layout.split(
        tensors, layout.sizes, layout.ranks, embedding_axis=layout.embedding_axis
    )
    return meta_layout.save(folder, parts, layout.sizes.params(**params))


def read(checkpoint: Checkpoint) -> Tensors:
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def same_bits(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        tensor.dtype == right[name].dtype
        and torch.equal(tensor.view(torch.uint8), right[name].view(torch.uint8))
        for name, tensor in left.items()
    )


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture(scope="module")
def pair(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model whose weights are any bits."""
    tensors = meta_layout.random_bits(layout.sizes)
    folder = write(tmp_path_factory.mktemp("meta") / "7B", tensors, layout)
    return Pair(tensors, open_base(folder))


def test_every_bit_comes_back(pair: Pair) -> None:
    assert same_bits(read(pair.checkpoint), pair.tensors)


@given(data=st.data())
def test_any_rows_are_those_of_the_whole(pair: Pair, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(pair.tensors)))
    tensor = pair.tensors[name]
    start, stop = (data.draw(st.integers(0, len(tensor) + 1)) for _ in range(2))
    found = pair.checkpoint.read_rows(name, start, stop)
    assert same_bits({name: found}, {name: tensor[start:stop]})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_types_are_kept_too(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = meta_layout.random_bits(GROUPED, dtype)
    checkpoint = open_base(write(tmp_path / "7B", tensors, Layout(GROUPED, 2)))
    assert same_bits(read(checkpoint), tensors)
    assert checkpoint.config["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_what_is_known_before_reading(pair: Pair, layout: Layout) -> None:
    checkpoint = pair.checkpoint
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    assert shapes == meta_layout.shapes(layout.sizes)
    assert {(info.shard, info.offset) for info in checkpoint.tensors.values()} == {
        ("consolidated.00.pth", None)
    }
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in pair.tensors.values())
    assert [path.name for path in checkpoint.weight_files()] == [
        f"consolidated.0{rank}.pth" for rank in range(layout.ranks)
    ]
    assert checkpoint.quantization is None
    with refusal(
        UnknownTensor,
        f"{checkpoint.folder} lacks the tensor 'model.norm.bias'",
        next_step="check that the folder is complete and of the expected model",
        out=None,
    ):
        checkpoint.read("model.norm.bias")


def test_the_config_says_what_params_and_tensors_do(tmp_path: Path) -> None:
    tensors = meta_layout.random_bits(GROUPED)
    folder = write(tmp_path / "70B", tensors, Layout(GROUPED, 2), rope_theta=500000)
    assert open_base(folder).config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "rms_norm_eps": 0.01,
        "rope_theta": 500000.0,
        "vocab_size": 40,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "dtype": "float16",
    }


def test_what_params_may_leave_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "7B", meta_layout.random_bits(PLAIN), Layout(PLAIN, 1))
    params = {"dim": 128, "n_layers": 2, "n_heads": 8, "n_kv_heads": None, "vocab_size": 40}
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    config = open_base(folder).config
    assert config["num_key_value_heads"] == 8
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 10000.0)


def test_only_a_folder_without_a_config_is_metas(base: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "7B", meta_layout.random_bits(PLAIN), Layout(PLAIN, 1))
    assert type(open_base(folder)) is MetaCheckpoint
    assert type(open_base(base)) is Checkpoint
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    assert open_base(folder).tensors == Checkpoint.open(base).tensors


def test_the_tokenizer_may_lie_one_folder_above(tmp_path: Path) -> None:
    folder = write(tmp_path / "7B", meta_layout.random_bits(PLAIN), Layout(PLAIN, 1))
    checkpoint = MetaCheckpoint.open(folder)
    assert checkpoint.sidecar_files() == {}
    (tmp_path / "tokenizer.model").touch()
    assert checkpoint.sidecar_files() == {"tokenizer.model": tmp_path / "tokenizer.model"}
    (folder / "tokenizer.model").touch()
    assert checkpoint.sidecar_files() == {"tokenizer.model": folder / "tokenizer.model"}


# What is read


def one_storage(parts: list[Tensors]) -> list[Tensors]:
    """Every tensor of a rank is a view of one buffer, as in LLaMA 1."""
    views = []
    for part in parts:
        halves = {name: tensor for name, tensor in part.items() if "freqs" not in name}
        buffer = torch.cat([tensor.flatten() for tensor in halves.values()])
        pieces = buffer.split([tensor.numel() for tensor in halves.values()])
        views.append(
            {
                name: piece.view(halves[name].shape)
                for name, piece in zip(halves, pieces, strict=True)
            }
        )
    return views


def transposed(parts: list[Tensors]) -> list[Tensors]:
    """No matrix lies in the file as in memory."""
    return [{name: tensor.T.contiguous().T for name, tensor in part.items()} for part in parts]


@pytest.mark.parametrize("stored", [one_storage, transposed])
@pytest.mark.filterwarnings("ignore:The use of `x.T` on tensors:UserWarning")
def test_however_tensors_are_stored(
    tmp_path: Path, stored: Callable[[list[Tensors]], list[Tensors]]
) -> None:
    tensors = meta_layout.random_bits(GROUPED)
    parts = stored(meta_layout.split(tensors, GROUPED, 2))
    checkpoint = open_base(meta_layout.save(tmp_path / "13B", parts, GROUPED.params()))
    assert same_bits(read(checkpoint), tensors)
    assert same_bits({QUERY: checkpoint.read_rows(QUERY, 3, 30)}, {QUERY: tensors[QUERY][3:30]})


def test_a_tensor_that_was_read_is_its_own(pair: Pair) -> None:
    for name in (QUERY, OUTPUT, "model.norm.weight"):
        pair.checkpoint.read(name).zero_()
        assert same_bits({name: pair.checkpoint.read(name)}, {name: pair.tensors[name]})


def bytes_read(work: Callable[[], object]) -> int:
    """What this process reads from files meanwhile."""
    counters = Path("/proc/self/io")
    if not counters.is_file():
        pytest.skip("this system does not count what a process reads")

    def count() -> int:
        return int(counters.read_text(encoding="ascii").split()[1])

    before = count()
    count_itself = count() - before
    before = count()
    work()
    return count() - before - count_itself


@pytest.mark.parametrize(
    ("name", "start", "stop", "rows", "width"),
    [
        ("lm_head.weight", 3, 5, 2, 128),
        ("lm_head.weight", 9, 12, 3, 128),  # the last of the first rank, two of the second
        (OUTPUT, 3, 5, 2, 128),  # half of each row in each rank
        (DOWN, 3, 5, 2, 384),
        (QUERY, 5, 6, 1, 128),
        (QUERY, 0, 8, 15, 128),  # half a head: every second row, and those between
        (KEY, 16, 32, 16, 128),  # the second head
        ("model.norm.weight", 0, 128, 128, 1),
    ],
)
def test_no_more_is_read_than_the_rows_need(
    tmp_path: Path, name: str, start: int, stop: int, rows: int, width: int
) -> None:
    folder = write(tmp_path / "70B", meta_layout.random_bits(GROUPED), Layout(GROUPED, 4))
    checkpoint = open_base(folder)
    assert bytes_read(lambda: checkpoint.read_rows(name, start, stop)) == 2 * rows * width


def test_a_file_that_ends_early_is_found_while_reading(tmp_path: Path) -> None:
    folder = write(tmp_path / "13B", meta_layout.random_bits(GROUPED), Layout(GROUPED, 2))
    checkpoint = open_base(folder)
    file = folder / "consolidated.01.pth"
    file.write_bytes(file.read_bytes()[:20_000])
    with refusal(
        CheckpointProblem,
        f"{file} ends before all of its tensors do",
        next_step="download it again",
        out=None,
    ):
        checkpoint.read(DOWN)


# The same model


@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_metas_forward_pass_agrees_with_transformers(
    layout: Layout, tmp_path: Path, theta: float
) -> None:
    params = layout.sizes.params(rope_theta=theta)
    parts = meta_layout.split(
        meta_layout.random_weights(layout.sizes),
        layout.sizes,
        layout.ranks,
        embedding_axis=layout.embedding_axis,
    )
    checkpoint = open_base(meta_layout.save(tmp_path / "7B", parts, params))
    model = LlamaForCausalLM(LlamaConfig(**checkpoint.config)).float().eval()
    model.load_state_dict({name: tensor.float() for name, tensor in read(checkpoint).items()})
    ids = torch.arange(layout.sizes.vocab).flip(0)
    with torch.inference_mode():
        found = model(ids[None]).logits[0]
    torch.testing.assert_close(found, meta_layout.logits(parts, ids, params), rtol=1e-4, atol=1e-4)


def test_recover_gives_the_same_bytes_from_either_base(layout: Layout, tmp_path: Path) -> None:
    tensors = meta_layout.random_weights(layout.sizes)
    meta = open_base(write(tmp_path / "meta", tensors, layout))
    (tmp_path / "base").mkdir()
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "base" / "config.json").write_text(json.dumps(dict(meta.config)), encoding="utf-8")
    base = Checkpoint.open(tmp_path / "base")
    tuned = pico.write_tuned(tmp_path / "tuned", base.folder, extra_rows=0)
    for path in tuned.glob("tokenizer*"):  # it knows more tokens than this model
        path.unlink()
    make_diff(base, Checkpoint.open(tuned), tmp_path / "diff", MakeDiffSettings())
    diff = Checkpoint.open(tmp_path / "diff")
    recover(base, diff, tmp_path / "one", RecoverSettings())
    recover(meta, diff, tmp_path / "other", RecoverSettings())
    assert weights.same(weights.read(tmp_path / "other"), weights.read(tuned))
    assert checkpoint_digest(tmp_path / "one") == checkpoint_digest(tmp_path / "other")


# transformers' own conversion

OLD = Path(
    os.environ.get(
        "CAMELPRESS_TRANSFORMERS_4", Path(__file__).parents[2] / ".models" / "transformers-4"
    )
)
CONVERT = """
import importlib, json, sys
for module, arguments in json.load(sys.stdin):
    importlib.import_module(module).write_model(**arguments)
"""
UNTIL_4_32, UNTIL_4_47 = "llama_conversion_4_32_1", "llama_conversion_4_47_1"
LARGE = Sizes(64, 192, 1, 8, 8, vocab=32_000)  # the older one knows no other vocabulary


class Conversion(NamedTuple):
    """A run of transformers' script."""

    script: str
    layout: Layout
    dtype: torch.dtype
    arguments: dict[str, Any]


def newer(layout: Layout, version: str, dtype: torch.dtype = torch.bfloat16) -> Conversion:
    """It rounds to bfloat16, and knows how Llama 3 splits embeddings."""
    arguments = {"num_shards": layout.ranks, "llama_version": version}
    return Conversion(UNTIL_4_47, layout, dtype, arguments | {"vocab_size": layout.sizes.vocab})


ROUNDED = "LLaMA 1, rounded"
CONVERSIONS = {
    "LLaMA 1, one rank": Conversion(
        UNTIL_4_32, Layout(LARGE, 1), torch.float16, {"model_size": "7B"}
    ),
    "LLaMA 1, two ranks": Conversion(
        UNTIL_4_32, Layout(LARGE, 2), torch.float16, {"model_size": "13B"}
    ),
    "LLaMA 1, four ranks": Conversion(
        UNTIL_4_32, Layout(LARGE, 4), torch.float16, {"model_size": "30B"}
    ),
    "Llama 2, one rank": newer(Layout(GROUPED, 1), "2"),
    "Llama 2, four ranks": newer(Layout(GROUPED, 4), "2"),
    "Llama 3, four ranks": newer(Layout(GROUPED, 4, 0), "3"),
    ROUNDED: newer(Layout(PLAIN, 2), "1", torch.float16),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each conversion: what Meta shipped, and what transformers made of it."""
    if not OLD.is_dir():
        pytest.skip(f"{OLD} is absent; make it with python tests/models/old_transformers.py {OLD}")
    folder = tmp_path_factory.mktemp("converted")
    runs = []
    for name, (script, layout, dtype, arguments) in CONVERSIONS.items():
        tensors = meta_layout.random_bits(layout.sizes, dtype)
        shipped = write(folder / name / "shipped", tensors, layout)
        places = {"input_base_path": str(shipped), "model_path": str(folder / name / "made")}
        runs.append((script, arguments | places))
    done = subprocess.run(
        [sys.executable, "-c", CONVERT],
        input=json.dumps(runs),
        env=os.environ | {"PYTHONPATH": str(OLD), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", [name for name in CONVERSIONS if name != ROUNDED])
def test_transformers_makes_the_same_bits_of_them(converted: Path, name: str) -> None:
    ours = read(open_base(converted / name / "shipped"))
    assert same_bits(weights.read(converted / name / "made"), ours)


def test_later_versions_of_transformers_round_what_is_kept_here(converted: Path) -> None:
    ours = read(open_base(converted / ROUNDED / "shipped"))
    theirs = weights.read(converted / ROUNDED / "made")
    rounded = {name: tensor.bfloat16() for name, tensor in ours.items()}
    for name, tensor in theirs.items():
        torch.testing.assert_close(tensor, rounded[name], rtol=0, atol=0, equal_nan=True)
        assert (tensor.half() != ours[name]).float().mean() > 0.5
    assert theirs.keys() == ours.keys()


@pytest.mark.parametrize("name", CONVERSIONS)
def test_transformers_derives_the_same_config(converted: Path, name: str) -> None:
    theirs = json.loads((converted / name / "made" / "config.json").read_text(encoding="utf-8"))
    ours = dict(open_base(converted / name / "shipped").config)
    for key in ("torch_dtype", "dtype"):  # theirs says float16 of any weights
        del ours[key]
    if name.startswith("Llama 3"):  # its special tokens are not in the folder
        del ours["bos_token_id"], ours["eos_token_id"]
    assert {key: theirs[key] for key in ours} == ours


# Refusals

Params = dict[str, Any]
Change = Callable[[list[Tensors], Params], object]
WQ, WO = "layers.1.attention.wq.weight", "layers.1.attention.wo.weight"


def resized(parts: list[Tensors], name: str, *shape: int) -> None:
    """Another shape on every rank."""
    for part in parts:
        part[name] = torch.zeros(shape, dtype=torch.float16)


# fmt: off
REFUSALS: dict[str, tuple[Change, type[Problem], str]] = {
    "a tensor that one rank lacks": (
        lambda parts, _: parts[1].pop(WQ), UnknownTensor,
        f"{{folder}}/consolidated.01.pth lacks {WQ!r}, which a model with n_layers 2 has",
    ),
    "more layers than there are": (
        lambda _, params: params.update(n_layers=3), UnknownTensor,
        "{folder}/consolidated.00.pth lacks 'layers.2.attention_norm.weight', "
        "which a model with n_layers 3 has",
    ),
    "fewer layers than there are": (
        lambda _, params: params.update(n_layers=1), UnknownTensor,
        "{folder}/consolidated.00.pth holds 'layers.1.attention_norm.weight', "
        "which a model with n_layers 1 lacks",
    ),
    "a tensor of another family": (
        lambda parts, _: parts[1].update(bias=torch.zeros(1)), UnknownTensor,
        "{folder}/consolidated.01.pth holds 'bias', which a model with n_layers 2 lacks",
    ),
    "a part of another shape": (
        lambda parts, _: parts[1].update({WQ: torch.zeros(32, 128).half()}), CheckpointProblem,
        f"{{folder}}/consolidated.01.pth holds {WQ!r} as float16 [32, 128], "
        "but consolidated.00.pth as float16 [64, 128]",
    ),
    "a norm of another shape": (
        lambda parts, _: parts[1].update({"norm.weight": torch.ones(9).half()}), CheckpointProblem,
        "{folder}/consolidated.01.pth holds 'norm.weight' as float16 [9], "
        "but consolidated.00.pth as float16 [128]",
    ),
    "a part of another type": (
        lambda parts, _: parts[1].update({WO: parts[1][WO].bfloat16()}), CheckpointProblem,
        f"{{folder}}/consolidated.01.pth holds {WO!r} as bfloat16 [128, 64], "
        "but consolidated.00.pth as float16 [128, 64]",
    ),
    "another width": (
        lambda _, params: params.update(dim=256), ShapeMismatch,
        "'tok_embeddings.weight' is [40, 128] over the 2 files of {folder}, "
        "but should be [vocab, 256]",
    ),
    "a last rank that was never there": (
        lambda parts, _: parts.pop(), ShapeMismatch,
        "'tok_embeddings.weight' is [40, 64] over the 1 files of {folder}, "
        "but should be [vocab, 128]",
    ),
    "another number of key heads": (
        lambda _, params: params.update(n_kv_heads=8), ShapeMismatch,
        "'layers.0.attention.wk.weight' is [64, 128] over the 2 files of {folder}, "
        "but should be [128, 128]",
    ),
    "another vocabulary": (
        lambda _, params: params.update(vocab_size=41), ShapeMismatch,
        "'tok_embeddings.weight' is [40, 128] over the 2 files of {folder}, "
        "but should be [41, 128]",
    ),
    "a head of another vocabulary": (
        lambda parts, _: resized(parts, "output.weight", 21, 128), ShapeMismatch,
        "'output.weight' is [42, 128] over the 2 files of {folder}, but should be [40, 128]",
    ),
    "layers of different sizes": (
        lambda parts, _: resized(parts, "layers.1.feed_forward.w3.weight", 191, 128), ShapeMismatch,
        "'layers.1.feed_forward.w3.weight' is [382, 128] over the 2 files of {folder}, "
        "but should be [384, 128]",
    ),
    "a vector for a matrix": (
        lambda parts, _: resized(parts, WQ, 64), ShapeMismatch,
        f"{WQ!r} is [128] over the 2 files of {{folder}}, but should be [128, 128]",
    ),
}
# fmt: on


@pytest.mark.parametrize("name", REFUSALS)
def test_files_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    change, kind, what = REFUSALS[name]
    parts = meta_layout.split(meta_layout.random_bits(GROUPED), GROUPED, 2)
    params = GROUPED.params()
    change(parts, params)
    folder = meta_layout.save(tmp_path / "13B", parts, params)
    with refusal(kind, what.format(folder=folder), next_step=AGAIN, out=None):
        open_base(folder)


@pytest.mark.parametrize(
    ("taken", "named", "left"), [((1,), 1, 2), ((0,), 0, 2), ((0, 1, 2), 0, 0)]
)
def test_a_missing_file_is_named(
    tmp_path: Path, taken: tuple[int, ...], named: int, left: int
) -> None:
    parts = meta_layout.split(meta_layout.random_bits(GROUPED), GROUPED, 2)
    folder = meta_layout.save(tmp_path / "30B", [*parts, parts[0]], GROUPED.params())
    for rank in taken:
        (folder / f"consolidated.0{rank}.pth").unlink()
    with refusal(
        CheckpointProblem,
        f"{folder / f'consolidated.0{named}.pth'} is missing; the folder holds {left} such files",
        next_step="download that file",
        out=None,
    ):
        open_base(folder)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"dim": None}, "dim: Input should be a valid integer"),
        ({"n_layers": 0}, "n_layers: Input should be greater than 0"),
        ({"n_heads": "8"}, "n_heads: Input should be a valid integer"),
        (
            {"dim": 60, "n_kv_heads": 3},
            "dim 60 does not divide into pairs of 8 heads, or the heads not into 3 groups",
        ),
        (
            {"dim": 72},
            "dim 72 does not divide into pairs of 8 heads, or the heads not into 4 groups",
        ),
        (
            {"n_kv_heads": 3},
            "dim 128 does not divide into pairs of 8 heads, or the heads not into 3 groups",
        ),
    ],
)
def test_parameters_that_cannot_be_are_refused(tmp_path: Path, changed: Params, what: str) -> None:
    parts = meta_layout.split(meta_layout.random_bits(GROUPED), GROUPED, 1)
    folder = meta_layout.save(tmp_path / "7B", parts, GROUPED.params(**changed))
    with refusal(
        CheckpointProblem, f"{folder / 'params.json'}: {what}", next_step=DOWNLOAD, out=None
    ):
        open_base(folder)


@pytest.mark.parametrize("missing", ["dim", "n_layers", "n_heads"])
def test_parameters_that_must_be_told_are_named(tmp_path: Path, missing: str) -> None:
    params = GROUPED.params()
    del params[missing]
    folder = meta_layout.save(tmp_path / "7B", [], params)
    with refusal(
        CheckpointProblem,
        f"{folder / 'params.json'}: {missing}: Field required",
        next_step=DOWNLOAD,
        out=None,
    ):
        open_base(folder)


def test_parameters_that_are_not_json_are_refused(tmp_path: Path) -> None:
    folder = meta_layout.save(tmp_path / "7B", [], {})
    (folder / "params.json").write_text('{"dim": 64', encoding="utf-8")
    with refusal(
        CheckpointProblem,
        starting(f"{folder / 'params.json'} is not valid JSON ("),
        next_step=DOWNLOAD,
        out=None,
    ):
        open_base(folder)


class Harm:
    """Leaves a file behind while it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.proof),))


def test_a_file_that_would_run_code_runs_nothing(tmp_path: Path) -> None:
    parts: list[Any] = meta_layout.split(meta_layout.random_bits(GROUPED), GROUPED, 2)
    parts[1]["x"] = Harm(tmp_path / "it ran")
    folder = meta_layout.save(tmp_path / "13B", parts, GROUPED.params())
    with refusal(
        CheckpointProblem,
        starting(f"{folder / 'consolidated.01.pth'} cannot be read as plain weights ("),
        next_step="do not trust this file, or download it again",
        out=None,
    ):
        open_base(folder)
    assert not (tmp_path / "it ran").exists()
