"""Recognizes what wraps a model from the names and shapes of its tensors.

Source: torch 2.13 (module. of DistributedDataParallel, _orig_mod. of torch.compile,
_fsdp_wrapped_module. of FSDP, _checkpoint_wrapped_module.); PEFT 0.17 (base_model.model., lora_A);
Lightning 2.5 (_forward_module., model.model.); TRL 0.8 (v_head.); transformers 5 (a LlamaModel
that is saved without its head has names without model.).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from camelpress.core.files.file_recognizer import Recognition
from camelpress.core.files.folder_recognizer import lora_recognition
from camelpress.core.llama import EMBEDDING_NAME, HEAD_NAME

EMBEDDING_WEIGHT = f"{EMBEDDING_NAME}.weight"  # every model has it
DECODER_PREFIX, BARE_EMBEDDING_WEIGHT = "model.", "embed_tokens.weight"
BARE_PREFIXES = (
    "embed_tokens.",
    "layers.",
    "norm.",
    f"{HEAD_NAME}.",
)  # names of a decoder saved by itself
WRAPPER_PREFIX = re.compile(r"(?:module\.|_forward_module\.|base_model\.model\.|model\.)+")
WRAPPER_INFIX = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\."
)
ADAPTER_PART = re.compile(r"\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\b")
VALUE_HEADS = ("v_head.", "value_head.", "score.")


def canonical_names(names: Collection[str]) -> tuple[dict[str, str], str]:
    """Maps the names of stored tensors to those of a Hugging Face model.

    Args:
        names: of all tensors.
    Returns:
        stored name to canonical name, and a sentence about the change; "" where nothing changed,
        also where a change would give two tensors one name.
    """
    unwrapped = {name: WRAPPER_INFIX.sub("", name) for name in names}
    prefix, added = _find_prefix(unwrapped.values())
    canonical = {
        name: inner if added and inner.startswith(HEAD_NAME) else added + inner
        for name, inner in ((name, inner.removeprefix(prefix)) for name, inner in unwrapped.items())
    }
    changed = [name for name in names if canonical[name] != name]
    if not changed or len(set(canonical.values())) < len(canonical):
        return {name: name for name in names}, ""
    return canonical, f"{changed[0]!r} is read as {canonical[changed[0]]!r}, and others likewise"


def _find_prefix(names: Collection[str]) -> tuple[str, str]:
    """Finds the prefix that a wrapper put before all names, and the one that they lack."""
    if EMBEDDING_WEIGHT in names:
        return "", ""
    for anchor, added in ((EMBEDDING_WEIGHT, ""), (BARE_EMBEDDING_WEIGHT, DECODER_PREFIX)):
        for name in names:
            prefix = name.removesuffix(anchor)
            known = not prefix or WRAPPER_PREFIX.fullmatch(prefix)
            if prefix != name and known and all(each.startswith(prefix) for each in names):
                bare = all(each.removeprefix(prefix).startswith(BARE_PREFIXES) for each in names)
                if not added or bare:
                    return prefix, added
    return "", ""


def recognize_names(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Recognition | None:
    """Recognizes tensors that are no model's weights: those of a LoRA adapter, or empty ones.

    Args:
        folder: of the checkpoint.
        shapes: of all tensors by name.
    """
    if any(ADAPTER_PART.search(name) for name in shapes):
        return lora_recognition(str(folder))
    weights = [name for name in shapes if name.endswith(".weight")]
    empty = sorted(name for name in weights if 0 in shapes[name])
    if not empty:
        return None
    count = f"{len(empty)} of {len(weights)} weights" if len(empty) > 1 else "a weight"
    return Recognition(
        f"{folder} holds {count} without any value ({empty[0]!r}): the model was saved under "
        "DeepSpeed ZeRO-3 without gathering its weights, or its upload broke",
        "give a complete copy; who trained it can save it again with "
        "stage3_gather_16bit_weights_on_model_save, or run zero_to_fp32.py",
    )


def extra_tensor_advice(name: str) -> str:
    """Returns the rule that fits a tensor which the base lacks, as an option of recover."""
    head = next((prefix for prefix in VALUE_HEADS if name.startswith(prefix)), None)
    if head is None:
        return f"or, if it is no difference, --rule {name}=absolute"
    return f"or leave this head of reward training out with --rule '{head}*=drop'"
