"""Load a quantized folder with a third-party client and save its logits.

This script runs inside the virtual environment of a client (see ``make_env.sh``), so it uses only
what such an environment has: the client, torch and numpy.

    python client_logits.py --client gptqmodel|transformers|autogptq MODEL_DIR TOKENS_JSON OUT_NPY

``TOKENS_JSON`` is a JSON list of lists of token ids. Each list goes through the model as a batch of
one, and ``OUT_NPY`` receives one float32 array of shape [sum of the lengths, vocabulary].

Everything is computed in float32 on the CPU. The kernels of some clients take only 16-bit types;
for those the checkpoint is loaded in float16, which is lossless for fp16 scales, embeddings, norms
and head, and every floating-point tensor is widened to float32 before the first forward pass.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The environment is read when the libraries are imported, hence before any of those imports.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

LOGGER = logging.getLogger("client_logits")


def load_gptqmodel(folder: Path) -> torch.nn.Module:
    """Load ``folder`` with GPTQModel's own loader, on its portable torch kernel.

    The backend is named because the automatic choice for float32 on a CPU is a fused kernel that
    is wrong on asymmetric checkpoints.
    """
    from gptqmodel import BACKEND, GPTQModel

    wrapper = GPTQModel.load(
        str(folder), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16
    )
    model = wrapper.model
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"GPTQModel.load gave a {type(model).__name__}, not a torch module")
    return model


def load_transformers(folder: Path) -> torch.nn.Module:
    """Load ``folder`` with ``AutoModelForCausalLM.from_pretrained``, as most users do.

    On top of GPTQModel the portable torch kernel is asked for: the automatic choice depends on the
    processor, and may first compile an extension for minutes.
    """
    from transformers import AutoModelForCausalLM, GPTQConfig

    options: dict[str, Any] = {}
    if importlib.util.find_spec("gptqmodel") is not None:
        options["quantization_config"] = GPTQConfig(bits=4, backend="gptq_torch")
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", local_files_only=True, **options
    )
    return model


def load_autogptq(folder: Path) -> torch.nn.Module:
    """Load ``folder`` with AutoGPTQ's own loader."""
    from auto_gptq import AutoGPTQForCausalLM

    wrapper = AutoGPTQForCausalLM.from_quantized(
        str(folder), device="cpu", use_safetensors=True, torch_dtype=torch.float32
    )
    model = wrapper.model
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"from_quantized gave a {type(model).__name__}, not a torch module")
    return model


LOADERS: dict[str, Callable[[Path], torch.nn.Module]] = {
    "autogptq": load_autogptq,
    "gptqmodel": load_gptqmodel,
    "transformers": load_transformers,
}


def quantized_layers(model: torch.nn.Module) -> dict[str, int]:
    """Count the quantized linear layers of ``model`` by the name of their class."""
    names = (type(m).__name__ for m in model.modules() if hasattr(m, "qweight"))
    return dict(collections.Counter(names))


def widen(model: torch.nn.Module) -> None:
    """Turn every 16-bit parameter and buffer of ``model`` into float32, in place.

    This works tensor by tensor because the ``float`` method of a quantized model is refused.
    """
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()


def logits_of(model: torch.nn.Module, tokens: list[list[int]]) -> np.ndarray[Any, Any]:
    """Return the float32 logits of all token lists, one below the other."""
    rows = []
    with torch.inference_mode():
        for ids in tokens:
            batch = torch.tensor([ids], dtype=torch.int64)
            mask = torch.ones_like(batch)
            output = model(input_ids=batch, attention_mask=mask, use_cache=False).logits[0]
            if output.dtype != torch.float32:
                raise TypeError(f"the client computed in {output.dtype}, not in float32")
            rows.append(output.numpy())
    return np.concatenate(rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description="Save the logits a GPTQ client computes.")
    parser.add_argument("--client", required=True, choices=sorted(LOADERS))
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("tokens_json", type=Path)
    parser.add_argument("out_npy", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    LOGGER.setLevel(logging.INFO)
    torch.set_num_threads(1)

    tokens: list[list[int]] = json.loads(options.tokens_json.read_text(encoding="utf-8"))
    model = LOADERS[options.client](options.model_dir).eval()
    layers = quantized_layers(model)
    if not layers:
        # Clients load a folder without a quantization config as a 16-bit model with random weights.
        LOGGER.error("the client built no quantized layer for %s", options.model_dir)
        return 1
    LOGGER.info("quantized layers: %s", json.dumps(layers))
    widen(model)
    np.save(options.out_npy, logits_of(model, tokens))
    return 0


if __name__ == "__main__":
    sys.exit(main())
