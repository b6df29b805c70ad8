"""Recognizes wrappers and adapters of a model from the names and shapes of its tensors.

Source: torch 2.13 (module. of DistributedDataParallel, _orig_mod. of torch.compile,
_fsdp_wrapped_module. of FSDP, _checkpoint_wrapped_module.); PEFT 0.17 (base_model.model., lora_A);
Lightning 2.5 (_forward_module., model.model.); TRL 0.8 (v_head.); transformers 5 (names without
model. in a LlamaModel saved without its head).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from camelpress.core.files.file_recognizer import Recognition
from camelpress.core.files.folder_recognizer import lora_recognition
from camelpress.core.llama import EMBEDDING_NAME, HEAD_NAME

EMBEDDING_WEIGHT = f"{EMBEDDING_NAME}.weight"  # present in every model
DECODER_PREFIX, BARE_EMBEDDING_WEIGHT = "model.", "embed_tokens.weight"
# Name prefixes of a decoder saved by itself.
BARE_PREFIXES = ("embed_tokens.", "layers.", "norm.", f"{HEAD_NAME}.")
WRAPPER_PREFIX = re.compile(r"(?:module\.|_forward_module\.|base_model\.model\.|model\.)+")
WRAPPER_INFIX = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\."
)
ADAPTER_PART = re.compile(r"\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\b")
VALUE_HEADS = ("v_head.", "value_head.", "score.")


def canonical_names(names: Collection[str]) -> tuple[dict[str, str], str]:
    """Maps the names of stored tensors to those of a Hugging Face model.

    Args:
        names: Names of all stored tensors.
    Returns:
        Stored name to canonical name, and a sentence about the change. The names stay and the
        sentence is "" if no name changes, or if two tensors would get the same name.
    """
    inner_names = {name: WRAPPER_INFIX.sub("", name) for name in names}
    prefix, new_prefix = _find_prefix(inner_names.values())
    bare_names = {name: inner.removeprefix(prefix) for name, inner in inner_names.items()}
    canonical = {
        name: bare if new_prefix and bare.startswith(HEAD_NAME) else new_prefix + bare
        for name, bare in bare_names.items()
    }
    changes = [name for name in names if canonical[name] != name]
    if not changes or len(set(canonical.values())) < len(canonical):
        return {name: name for name in names}, ""
    return canonical, f"{changes[0]!r} is read as {canonical[changes[0]]!r}, and others likewise"


def _find_prefix(names: Collection[str]) -> tuple[str, str]:
    """Finds the wrapper prefix of all names, and the missing prefix of a bare decoder."""
    if EMBEDDING_WEIGHT in names:
        return "", ""
    for anchor, new_prefix in ((EMBEDDING_WEIGHT, ""), (BARE_EMBEDDING_WEIGHT, DECODER_PREFIX)):
        for name in names:
            prefix = name.removesuffix(anchor)
            is_known = not prefix or WRAPPER_PREFIX.fullmatch(prefix)
            if prefix != name and is_known and all(key.startswith(prefix) for key in names):
                is_bare = all(key.removeprefix(prefix).startswith(BARE_PREFIXES) for key in names)
                if not new_prefix or is_bare:
                    return prefix, new_prefix
    return "", ""


def recognize_names(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Recognition | None:
    """Recognizes the tensors of a LoRA adapter, or weights without values.

    Args:
        folder: Checkpoint folder.
        shapes: Tensor name to shape.
    """
    if any(ADAPTER_PART.search(name) for name in shapes):
        return lora_recognition(str(folder))
    weights = [name for name in shapes if name.endswith(".weight")]
    empty_names = sorted(name for name in weights if 0 in shapes[name])
    if not empty_names:
        return None
    count = f"{len(empty_names)} of {len(weights)} weights" if len(empty_names) > 1 else "a weight"
    return Recognition(
        f"{folder} holds {count} without any value ({empty_names[0]!r}): the model was saved under "
        "DeepSpeed ZeRO-3 without gathering its weights, or its upload broke",
        "give a complete copy; its authors can save it again with "
        "stage3_gather_16bit_weights_on_model_save, or run zero_to_fp32.py",
    )


def extra_tensor_advice(name: str) -> str:
    """Suggests an option of recover for a tensor missing from the base."""
    head = next((prefix for prefix in VALUE_HEADS if name.startswith(prefix)), None)
    if head is None:
        return f"or, if it is no difference, --rule {name}=absolute"
    return f"or leave this head of reward training out with --rule '{head}*=drop'"
