"""A real published model: base + diff comes back bit for bit, and four bits cost what they cost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lm_eval_golden
import pico
import stages
from camelpress.convert.recover.make_diff import make_diff
from camelpress.convert.recover.run import recover
from camelpress.convert.settings import MakeDiffSettings, RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import TokenBatches

ROOT = Path(__file__).parents[1]
SMOLLM2 = Path(os.environ.get("CAMELPRESS_SMOLLM2", ROOT / ".models" / "SmolLM2-135M-Instruct"))

pytestmark = pytest.mark.skipif(
    not SMOLLM2.is_dir(),
    reason=f"{SMOLLM2} is absent; make it with python tests/models/smollm2.py {SMOLLM2}",
)


def test_recover_of_make_diff_is_bit_exact(tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(SMOLLM2, tuned)
    generator = torch.Generator().manual_seed(0)
    near = {
        name: (tensor.float() + 1e-3 * torch.randn(tensor.shape, generator=generator)).bfloat16()
        for name, tensor in load_file(SMOLLM2 / "model.safetensors").items()
    }
    save_file(near, tuned / "model.safetensors", metadata={"format": "pt"})
    base = Checkpoint.open(SMOLLM2)
    make_diff(base, Checkpoint.open(tuned), tmp_path / "diff", MakeDiffSettings())
    diff = Checkpoint.open(tmp_path / "diff")
    report = recover(base, diff, tmp_path / "recovered", RecoverSettings())
    assert report.facts.record["dtype"] == "bfloat16"
    recovered = load_file(tmp_path / "recovered" / "model.safetensors")
    assert recovered.keys() == near.keys()
    for name, tensor in near.items():
        assert torch.equal(recovered[name].view(torch.int16), tensor.view(torch.int16)), name


def test_streamed_logits_are_those_of_transformers() -> None:
    ids = Tokenizer.load(SMOLLM2).encode("The capital of France is")
    model = StreamedModel(Checkpoint.open(SMOLLM2), device=torch.device("cpu"), dtype=torch.float32)
    sequences = TokenBatches([ids], limit=model.max_positions)
    with torch.inference_mode():
        logits = model.read_head()(model.last_hidden_states(sequences, "test"))
        expected = pico.load_model(SMOLLM2)(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


def test_perplexities_are_those_of_lm_eval(tmp_path: Path) -> None:
    golden = json.loads(lm_eval_golden.GOLDEN.read_text(encoding="utf-8"))["smollm2"]
    text, window = lm_eval_golden.write_paragraphs(tmp_path), lm_eval_golden.WINDOW
    told = stages.validate(
        SMOLLM2, SMOLLM2, tmp_path / "out", text,
        protocol="lm-eval", sequence_length=window, max_tokens=None,
    ).facts.record  # fmt: skip
    for metric in lm_eval_golden.METRICS:
        for model in ("reference", "candidate"):
            assert told[f"{model}_{metric}"] == pytest.approx(golden[metric], rel=2e-6), metric
