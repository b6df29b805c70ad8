"""Independent GPTQ clients must compute the logits that the file format promises.

Each test hands a checkpoint to a client in that client's own virtual environment (``make_env.sh``)
and compares its logits with those of a dense float32 model whose weights are dequantized here, in
plain numpy, from the packed tensors. A client whose environment is absent is skipped.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".venv-clients"
TOLERANCE = 1e-2
"""Largest logit difference allowed, relative to the largest logit."""

LOGGER = logging.getLogger(__name__)

VOCAB = 256
ROPE_THETA = 500.0
PER_WORD = 8
"""Four-bit values in one int32 word."""


@dataclass(frozen=True)
class Client:
    """One way to load a checkpoint: a virtual environment and a loader inside it."""

    environment: str
    loader: str

    @property
    def python(self) -> Path:
        """The interpreter of the client's virtual environment."""
        return ENVIRONMENTS / self.environment / "bin" / "python"

    @property
    def ready(self) -> bool:
        """Whether the environment was installed to the end."""
        return (ENVIRONMENTS / self.environment / "requirements.sha256").exists()

    def __str__(self) -> str:
        return f"{self.environment}-{self.loader}"


GPTQMODEL = Client("gptqmodel", "gptqmodel")
CLIENTS = (
    GPTQMODEL,
    Client("gptqmodel", "transformers"),
    Client("autogptq", "transformers"),
    Client("autogptq", "autogptq"),
)


@dataclass(frozen=True)
class Scheme:
    """The quantization grid of a test checkpoint."""

    sym: bool
    group: int

    def __str__(self) -> str:
        return f"{'sym' if self.sym else 'asym'}-g{self.group}"


SCHEMES = (Scheme(sym=True, group=32), Scheme(sym=False, group=64))


@dataclass(frozen=True)
class Quantized:
    """A quantized folder and how it was made."""

    folder: Path
    scheme: Scheme


# --- a checkpoint by hand ---------------------------------------------------------------------


def pack_rows(values: NDArray[np.int64]) -> NDArray[np.int32]:
    """Pack [rows, columns] of 4-bit values along the rows, eight to a word, low nibble first."""
    words = np.zeros((values.shape[0] // PER_WORD, values.shape[1]), dtype=np.uint32)
    for nibble in range(PER_WORD):
        words |= values[nibble::PER_WORD].astype(np.uint32) << np.uint32(4 * nibble)
    return words.view(np.int32)


def unpack_rows(words: NDArray[np.int32]) -> NDArray[np.int64]:
    """Undo :func:`pack_rows`."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)[None, :, None]
    nibbles = (words.view(np.uint32)[:, None, :] >> shifts) & np.uint32(15)
    return nibbles.reshape(-1, words.shape[1]).astype(np.int64)


def round_to_nearest(weight: torch.Tensor, scheme: Scheme) -> dict[str, torch.Tensor]:
    """Quantize ``weight`` [outputs, inputs] to 4 bits and return the four GPTQ v1 tensors."""
    outputs, inputs = weight.shape
    groups = inputs // scheme.group
    columns = np.ascontiguousarray(weight.detach().float().numpy().T)
    grouped = columns.reshape(groups, scheme.group, outputs)
    if scheme.sym:
        scale = np.abs(grouped).max(axis=1) / 7.5
        zero = np.full((groups, outputs), 8, dtype=np.int64)
    else:
        low = np.minimum(grouped.min(axis=1), 0)
        scale = (np.maximum(grouped.max(axis=1), 0) - low) / 15
        # A zero point of 0 would be stored as -1, which four bits cannot hold.
        zero = np.clip(np.rint(-low / scale), 1, 15).astype(np.int64)
    scale = scale.astype(np.float16)
    codes = np.rint(grouped / scale.astype(np.float32)[:, None]).astype(np.int64) + zero[:, None]
    codes = np.clip(codes, 0, 15).reshape(inputs, outputs)
    return {
        "qweight": torch.from_numpy(pack_rows(codes)),
        "qzeros": torch.from_numpy(np.ascontiguousarray(pack_rows((zero - 1).T).T)),
        "scales": torch.from_numpy(scale),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // scheme.group,
    }


def write_tokenizer(folder: Path) -> None:
    """Write a word-level tokenizer, since GPTQModel loads no folder without a tokenizer."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    Tokenizer(WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    record = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # a name that every client knows
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(record, indent=2), encoding="utf-8")


def write_checkpoint(folder: Path, scheme: Scheme) -> None:
    """Write a small random LLaMA, its decoder linears quantized, as a GPTQ v1 folder."""
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=128,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(20230313)
    model = LlamaForCausalLM(config)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if name.endswith("_proj.weight"):
            parts = round_to_nearest(value, scheme)
            stem = name.removesuffix("weight")
            tensors.update({stem + part: tensor for part, tensor in parts.items()})
        else:
            if name.endswith("norm.weight"):  # not all ones, so that a lost norm is seen
                value = torch.empty_like(value).uniform_(0.5, 1.5)
            tensors[name] = value.half()
    quantization = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": scheme.group,
        "desc_act": False,
        "sym": scheme.sym,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "damp_percent": 0.01,
        "static_groups": False,
        "true_sequential": True,
        "pack_dtype": "int32",
        "meta": {"quantizer": ["camelpress-test:0"]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    record = config.to_dict()
    record["architectures"] = ["LlamaForCausalLM"]
    record["dtype"] = record["torch_dtype"] = "float16"
    record["rope_theta"] = ROPE_THETA  # transformers 4 reads this one, transformers 5 the other
    record["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    (folder / "quantize_config.json").write_text(
        json.dumps(quantization, indent=2), encoding="utf-8"
    )


# --- the reference and the comparison ---------------------------------------------------------


def dequantize(tensors: dict[str, torch.Tensor], stem: str, zero_offset: int = 1) -> torch.Tensor:
    """Return the float32 weight [outputs, inputs] of the GPTQ linear ``stem``."""
    codes = unpack_rows(tensors[stem + "qweight"].numpy())
    packed_zeros = np.ascontiguousarray(tensors[stem + "qzeros"].numpy().T)
    zeros = unpack_rows(packed_zeros).T + zero_offset
    scales = tensors[stem + "scales"].float().numpy()
    group = tensors[stem + "g_idx"].numpy()
    weight = (codes - zeros[group]).astype(np.float32) * scales[group]
    return torch.from_numpy(np.ascontiguousarray(weight.T))


def dequantized_model(folder: Path, zero_offset: int = 1) -> torch.nn.Module:
    """Build the float32 model of a GPTQ folder, with plain linear layers.

    ``zero_offset`` is what the stored zero points are short of: 1 in GPTQ v1, 0 in v2.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    weights: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        if name.endswith(".qweight"):
            stem = name.removesuffix("qweight")
            weights[stem + "weight"] = dequantize(tensors, stem, zero_offset)
        elif not name.endswith((".qzeros", ".scales", ".g_idx")):
            weights[name] = value.float()
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del record["quantization_config"]
    model = LlamaForCausalLM(LlamaConfig.from_dict(record)).float().eval()
    model.load_state_dict(weights, strict=True)
    return model


def dense_logits(model: torch.nn.Module, tokens: list[list[int]]) -> NDArray[np.float32]:
    """Return the logits of a local model, one token list below the other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            rows = [model(input_ids=torch.tensor([ids])).logits[0].float() for ids in tokens]
    finally:
        torch.set_num_threads(threads)
    logits: NDArray[np.float32] = torch.cat(rows).numpy()
    return logits


def relative_difference(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Return the largest difference over the largest wanted value."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def run_client(
    client: Client, folder: Path, tokens: list[list[int]], work: Path
) -> subprocess.CompletedProcess[str]:
    """Run ``client_logits.py`` in the client's environment; logits go to ``work/logits.npy``."""
    if not client.ready:
        pytest.skip(f"no client environment: run tests/clients/make_env.sh {client.environment}")
    (work / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    # Nothing of this process's Python setup may reach the client, and the client's temporary files
    # may not outlive it.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))}
    return subprocess.run(
        [
            str(client.python),
            str(HERE / "client_logits.py"),
            "--client",
            client.loader,
            str(folder.resolve()),
            str(work / "tokens.json"),
            str(work / "logits.npy"),
        ],
        cwd=work,
        env=inherited | {"OMP_NUM_THREADS": "1", "TMPDIR": str(work)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def assert_same_logits(
    client: Client, folder: Path, dense_model: torch.nn.Module, tokens: list[list[int]]
) -> float:
    """Fail unless ``client`` gives the logits of ``dense_model``; return the relative difference.

    The test is skipped when the environment of ``client`` is absent.
    """
    with tempfile.TemporaryDirectory() as name:
        done = run_client(client, folder, tokens, Path(name))
        assert done.returncode == 0, f"{client}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        found: NDArray[np.float32] = np.load(Path(name) / "logits.npy")
    wanted = dense_logits(dense_model, tokens)
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    difference = relative_difference(found, wanted)
    kernel = next((row for row in done.stderr.splitlines() if "quantized layers:" in row), "")
    LOGGER.info("%s: relative difference %.3g; %s", client, difference, kernel)
    assert difference <= TOLERANCE, f"{client}: logits differ by {difference:.3g} of the largest"
    return difference


def assert_refuses_asym(client: Client, folder: Path, tokens: list[list[int]]) -> None:
    """Fail unless ``client`` refuses ``folder`` for its true zero points, and for nothing else."""
    with tempfile.TemporaryDirectory() as name:
        done = run_client(client, folder, tokens, Path(name))
    assert done.returncode != 0, f"{client} takes such checkpoints now: compare its logits"
    assert "sym=False model" in done.stderr, done.stderr[-6000:]


# --- fixtures and tests -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=SCHEMES, ids=str)
def quantized_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Quantized:
    """A hand-made GPTQ v1 checkpoint, once symmetric and once with true zero points."""
    scheme: Scheme = request.param
    folder = tmp_path_factory.mktemp(f"quantized-{scheme}")
    write_checkpoint(folder, scheme)
    return Quantized(folder, scheme)


@pytest.fixture
def tokens() -> list[list[int]]:
    """Token lists of different lengths, 105 tokens in all."""
    draw = np.random.default_rng(7)
    return [draw.integers(3, VOCAB, size=length).tolist() for length in (64, 1, 33, 7)]


def test_pack_rows_puts_the_low_nibble_first() -> None:
    """The packing agrees with a word written out by hand."""
    column = np.array([[1], [2], [3], [4], [5], [6], [7], [15]], dtype=np.int64)
    assert pack_rows(column).view(np.uint32).tolist() == [[0xF7654321]]
    assert unpack_rows(pack_rows(column)).tolist() == column.tolist()


def test_checkpoint_is_close_to_its_source(quantized_model: Quantized) -> None:
    """Every stored zero point is legal and every weight is within its grid of the drawn one."""
    scheme = quantized_model.scheme
    tensors = load_file(quantized_model.folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 128, generator=generator) * 0.05
    parts = round_to_nearest(weight, scheme)
    found = dequantize(parts, "")
    step = parts["scales"].float().T.repeat_interleave(scheme.group, dim=1)
    assert ((found - weight).abs() <= 0.51 * step).float().mean() > 0.97
    stored = {name: value for name, value in tensors.items() if name.endswith(".qzeros")}
    assert len(stored) == 21
    for value in stored.values():
        nibbles = unpack_rows(np.ascontiguousarray(value.numpy().T))
        assert nibbles.max() <= 14
        assert len(np.unique(nibbles)) == 1 if scheme.sym else len(np.unique(nibbles)) > 1


def test_tolerance_tells_v1_from_v2(quantized_model: Quantized, tokens: list[list[int]]) -> None:
    """Zero points read one off exceed the tolerance by far, so the comparison would show them."""
    right = dense_logits(dequantized_model(quantized_model.folder), tokens)
    wrong = dense_logits(dequantized_model(quantized_model.folder, zero_offset=0), tokens)
    assert relative_difference(wrong, right) > 10 * TOLERANCE


@pytest.mark.client
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_client_logits(
    client: Client,
    quantized_model: Quantized,
    tokens: list[list[int]],
    record_property: Callable[[str, object], None],
) -> None:
    """A client computes the logits of the dequantized weights."""
    folder = quantized_model.folder
    if client == GPTQMODEL and not quantized_model.scheme.sym:
        # Its own loader takes GPTQ v1 with true zero points only from itself, judging by the
        # quantizer named in the config. The transformers route in the same environment takes it.
        assert_refuses_asym(client, folder, tokens)
        return
    difference = assert_same_logits(client, folder, dequantized_model(folder), tokens)
    record_property("relative_difference", difference)
