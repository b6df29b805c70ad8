"""Load many quantized folders with one client, and save what it computes with each.

This script runs inside the virtual environment of a client (see ``make_env.sh``), so it uses only
what such an environment has: the client, torch and numpy.

    python client_run.py CLIENT JOB_JSON OUT_DIR

``JOB_JSON`` holds ``tokens``, a list of lists of token ids; ``prompt``, one such list; and
``folders``, names and places of checkpoints. For each name ``OUT_DIR`` receives ``NAME.json`` with
what happened and, if it was loaded, ``NAME.npy`` with float32 logits of shape [sum of the lengths,
vocabulary]. Each list of tokens goes through the model as a batch of one.

Where a client can, it computes in float32. The kernels of some take only 16-bit types: with
``widened`` the checkpoint is loaded in float16, which is lossless for fp16 scales, embeddings,
norms and head, and every floating-point tensor is widened to float32 before the first forward pass.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

# The environment is read when the libraries are imported, hence before any of those imports.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

NEW_TOKENS = 20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "widened": torch.float16}
TELLING = ("missing", "unexpected", "mismatch", "newly init", "not init", "not used")
OF_CONFIGS = ("`generation_config`", "quantization configuration")  # and of no tensor


class Loaded(NamedTuple):
    """A model, and what its loader says of keys that it could not place."""

    model: Any
    keys: dict[str, list[str]]


def load_gptqmodel(folder: str, dtype: torch.dtype, backend: str) -> Loaded:
    """GPTQModel's own loader, on the kernel that is named."""
    from gptqmodel import BACKEND, GPTQModel

    wrapper = GPTQModel.load(folder, device="cpu", backend=BACKEND(backend), dtype=dtype)
    return Loaded(wrapper.model, {})


def load_transformers(folder: str, dtype: torch.dtype, backend: str) -> Loaded:
    """``AutoModelForCausalLM.from_pretrained``, as most users do."""
    from transformers import AutoModelForCausalLM, GPTQConfig

    options: dict[str, Any] = {}
    if backend:
        bits = json.loads(Path(folder, "quantize_config.json").read_text())["bits"]
        options["quantization_config"] = GPTQConfig(bits=bits, backend=backend)
    return Loaded(*_from_pretrained(AutoModelForCausalLM, folder, dtype, options))


def load_autoround(folder: str, dtype: torch.dtype, backend: str) -> Loaded:
    """The same, with the layers of auto-round put in; it takes no config that has ``meta``."""
    from transformers import AutoModelForCausalLM, AutoRoundConfig

    options = {"quantization_config": AutoRoundConfig(backend=backend)}
    with tempfile.TemporaryDirectory() as name:
        for path in Path(folder).resolve().iterdir():
            Path(name, path.name).symlink_to(path)
        config = json.loads(Path(folder, "config.json").read_text())
        del config["quantization_config"]["meta"]
        Path(name, "config.json").unlink()
        Path(name, "config.json").write_text(json.dumps(config))
        return Loaded(*_from_pretrained(AutoModelForCausalLM, name, dtype, options))


def load_autogptq(folder: str, dtype: torch.dtype, backend: str) -> Loaded:
    """AutoGPTQ's own loader."""
    from auto_gptq import AutoGPTQForCausalLM

    wrapper = AutoGPTQForCausalLM.from_quantized(
        folder, device="cpu", use_safetensors=True, torch_dtype=dtype
    )
    return Loaded(wrapper.model, {})


def _from_pretrained(
    kind: Any, folder: str, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[Any, dict[str, list[str]]]:
    model, told = kind.from_pretrained(
        folder,
        dtype=dtype,
        device_map="cpu",
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    return model, {name: sorted(map(str, told.get(name) or ())) for name in
                   ("missing_keys", "unexpected_keys", "mismatched_keys")}  # fmt: skip


LOADERS: dict[str, Callable[[str, torch.dtype, str], Loaded]] = {
    "autogptq": load_autogptq,
    "autoround": load_autoround,
    "gptqmodel": load_gptqmodel,
    "transformers": load_transformers,
}


def main() -> int:
    """Run the command line and return the exit status."""
    client, job, out = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    loader, dtype, backend = client.split(":")
    torch.set_num_threads(1)
    for name, folder in job["folders"].items():
        told = out / f"{name}.json"
        told.write_text(json.dumps({"status": "died"}))  # unless it comes back
        found, logits = tried(loader, dtype, backend, folder, job)
        if logits is not None:
            np.save(out / f"{name}.npy", logits)
        told.write_text(json.dumps(found))
    return 0


def tried(
    loader: str, dtype: str, backend: str, folder: str, job: dict[str, Any]
) -> tuple[dict[str, Any], np.ndarray[Any, Any] | None]:
    """What became of one folder, and its logits if there are any."""
    said: list[str] = []
    step = "load"
    try:
        with heard(said):
            loaded = LOADERS[loader](folder, DTYPES[dtype], backend)
        model = loaded.model.eval()
        kinds = (type(m).__name__ for m in model.modules() if type(m) is not torch.nn.Linear)
        layers = dict(collections.Counter(kind for kind in kinds if "Linear" in kind))
        if dtype == "widened":
            widen(model)
        step = "compute"
        with heard([]):
            logits, computed = logits_of(model, job["tokens"])
            tokens = greedy(model, job["prompt"])
    except Exception as error:  # noqa: BLE001 - a client may fail in any way
        traceback.print_exc()
        text = " ".join(str(error).split())[:400]
        return {"status": f"{step} failed", "error": f"{type(error).__name__}: {text}"}, None
    found = {"status": "loaded", "keys": loaded.keys, "layers": layers, "computed": computed}
    return found | {"said": [line for line in said if telling(line)], "tokens": tokens}, logits


def telling(line: str) -> bool:
    """Whether a line is about tensors that had no place, or places that had no tensor."""
    told = line.lower()
    return any(word in told for word in TELLING) and not any(word in told for word in OF_CONFIGS)


@contextmanager
def heard(lines: list[str]) -> Iterator[None]:
    """Add what is printed meanwhile, by whatever way, to `lines`; show it where the block fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def widen(model: torch.nn.Module) -> None:
    """Turn every 16-bit parameter and buffer of ``model`` into float32, in place.

    This works tensor by tensor because the ``float`` method of a quantized model is refused.
    """
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()


def logits_of(model: Any, tokens: list[list[int]]) -> tuple[np.ndarray[Any, Any], str]:
    """The logits of all token lists, one below the other, and the type they were computed in."""
    rows = []
    with torch.inference_mode():
        for ids in tokens:
            batch = torch.tensor([ids], dtype=torch.int64)
            mask = torch.ones_like(batch)
            rows.append(model(input_ids=batch, attention_mask=mask, use_cache=False).logits[0])
    return torch.cat(rows).float().numpy(), str(rows[0].dtype).removeprefix("torch.")


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """The likeliest next tokens."""
    batch = torch.tensor([prompt], dtype=torch.int64)
    with torch.inference_mode():
        found = model.generate(
            input_ids=batch,
            attention_mask=torch.ones_like(batch),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )
    tokens: list[int] = found[0, len(prompt) :].tolist()
    return tokens


if __name__ == "__main__":
    sys.exit(main())
