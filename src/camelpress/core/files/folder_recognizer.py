"""Recognizes a wrong path or address in place of a checkpoint folder.

Source: huggingface_hub 2.4, docs of the cache (models--ORG--NAME/snapshots/COMMIT); PEFT 0.17
(adapter_config.json); meta-llama/llama 689c7f2 (params.json, consolidated.NN.pth);
deepspeed 0.17, zero_to_fp32.py; torch 2.13, torch.distributed.checkpoint.format_utils.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_recognizer import Recognition, recognize_file

CONFIG, PARAMS = "config.json", "params.json"
STORE_REPORT = "store-report.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
CACHE_FOLDER = re.compile(r"(?P<kind>model|dataset|space)s--(?P<repository>[\w.-]+(?:--[\w.-]+)?)")
PAGE_ADDRESS = re.compile(
    r"(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?!datasets/|spaces/)"
    r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?:tree|blob|resolve)/(?P<revision>[\w.-]+))?(?:/.*)?"
)
OTHER_FORMATS = {  # file pattern: format of the weights
    "flax_model*.msgpack": "Flax",
    "tf_model*.h5": "TensorFlow",
    "*.gguf": "GGUF (llama.cpp)",
    "*.onnx": "ONNX",
    "ggml-*.bin": "GGML (llama.cpp)",
}
WEIGHT_FILE = re.compile(r".*\.(?:safetensors|bin|pth|pt|gguf|index\.json)")
SNIPPET_BYTES = 10**6  # bytes of a JSON file read for one field, upper limit


def missing_file_problem(path: Path) -> CheckpointProblem:
    """Returns the problem of a missing checkpoint file, or of a recognized folder around it.

    Args:
        path: config.json or another required file.
    """
    recognition = recognize_folder(path.parent)
    if recognition is not None:
        return recognition.problem()
    return CheckpointProblem(f"{path} does not exist", next_step="complete the checkpoint folder")


def not_a_folder_problem(place: Path) -> CheckpointProblem:
    """Returns the problem of a path without a folder or a hub repository behind it."""
    recognition = recognize_place(place)
    if recognition is not None:
        return recognition.problem()
    return CheckpointProblem(
        f"{place} is not a folder", next_step="give a Hugging Face checkpoint folder"
    )


def recognize_place(place: Path) -> Recognition | None:
    """Recognizes a file of a checkpoint, or the address of a hub page."""
    page = PAGE_ADDRESS.fullmatch(str(place))
    if page and not place.exists():
        revision = f"@{page['revision']}" if page["revision"] else ""
        return Recognition(
            f"{place} is the address of a page", f"give {page['repository']}{revision}"
        )
    if not place.is_file():
        return None
    content = recognize_file(place) if place.stat().st_size else None
    if content is not None:
        return content
    if place.name in (CONFIG, PARAMS) or WEIGHT_FILE.fullmatch(place.name):
        return Recognition(f"{place} is a file of a checkpoint", f"give its folder {place.parent}")
    if any((place.parent / name).is_file() for name in (CONFIG, ADAPTER[0], STORE_REPORT)):
        return Recognition(f"{place} is a file, not a folder", f"give its folder {place.parent}")
    return None


def recognize_folder(folder: Path) -> Recognition | None:
    """Recognizes a folder of another kind than a complete checkpoint; None if it is unknown."""
    for recognize in FOLDER_RECOGNIZERS:
        recognition = recognize(folder)
        if recognition is not None:
            return recognition
    return None


def recognize_adapter(folder: Path) -> Recognition | None:
    """Recognizes a LoRA adapter (PEFT) without its base weights."""
    if not any((folder / name).is_file() for name in ADAPTER):
        return None
    base = _json_string(folder / ADAPTER[0], "base_model_name_or_path")
    base_label = f" of {base}" if base else ""
    return lora_recognition(str(folder), base_label)


def lora_recognition(place: str, base_label: str = "") -> Recognition:
    """Describes a LoRA adapter and the way to merge it.

    Args:
        place: Path of the adapter.
        base_label: " of NAME" with the name of its base, or "".
    """
    return Recognition(
        f"{place} is a LoRA adapter{base_label}, not a model and not a weight diff",
        f"merge it with PEFT (PeftModel.from_pretrained(model, {place!r}).merge_and_unload(), then "
        "save_pretrained) and give the merged model",
    )


def _hub_cache(folder: Path) -> Recognition | None:
    resolved = folder.absolute()
    for path in (resolved, *resolved.parents[:2]):
        match = CACHE_FOLDER.fullmatch(path.name)
        if match and resolved.relative_to(path).parts in ((), ("snapshots",), ("blobs",)):
            return _cache_of_repository(folder, path, match)
    for cache in (folder, folder / "hub"):
        roots = sorted(cache.glob("models--*")) if cache.is_dir() else []
        if roots:
            return Recognition(
                f"{folder} is the hub's cache of {len(roots)} models", _cache_advice(roots)
            )
    return None


def _cache_advice(roots: Iterable[Path]) -> str:
    snapshots = [(root, _snapshot(root)) for root in roots]
    folders = [snapshot for root, snapshot in snapshots if snapshot != root]
    if folders:
        return f"give one snapshot in it, such as {folders[0]}"
    return "give the name of the model on the hub, ORG/NAME, to fetch it again"


def _cache_of_repository(folder: Path, root: Path, match: re.Match[str]) -> Recognition:
    repository = match["repository"].replace("--", "/")
    message = f"{folder} is the hub's cache of {repository}"
    if match["kind"] != "model":
        return Recognition(f"{message}, a {match['kind']}", "give a model")
    snapshot = _snapshot(root)
    if snapshot == root:
        return Recognition(f"{message}, without a snapshot", f"give {repository} to fetch it again")
    return Recognition(f"{message}, not a checkpoint", f"give {snapshot}, or {repository}")


def _snapshot(root: Path) -> Path:
    """Finds the snapshot of `main`, else the newest one; the root without any snapshot."""
    main = root / "refs" / "main"
    commit = main.read_text("utf-8", "replace").strip() if main.is_file() else ""
    if re.fullmatch(r"\w+", commit) and (root / "snapshots" / commit).is_dir():
        return root / "snapshots" / commit
    snapshots = sorted(root.glob("snapshots/*/"), key=lambda path: path.stat().st_mtime)
    return snapshots[-1] if snapshots else root


def _store(folder: Path) -> Recognition | None:
    if not (folder / STORE_REPORT).is_file():
        return None
    return Recognition(
        f"{folder} is a store of a model's predictions, not a model",
        "give it to validate in place of REFERENCE, or give the model itself",
    )


def _camelpress_output(folder: Path) -> Recognition | None:
    if folder.name.endswith(".partial"):
        return Recognition(
            f"{folder} is an unfinished output", "run the command that writes it again"
        )
    if (folder / "report.json").is_file() and (folder / "report.html").is_file():
        return Recognition(f"{folder} is a validation report, not a model", "give the model")
    return None


def _meta(folder: Path) -> Recognition | None:
    if not (folder / PARAMS).is_file():
        return None
    return Recognition(
        f"{folder} is a model in Meta's layout (params.json, consolidated.*.pth), which recover "
        "and make-diff take as RAW, and inspect reads",
        "for other commands convert it with convert_llama_weights_to_hf.py of transformers 4",
    )


def _meta_parent(folder: Path) -> Recognition | None:
    sizes = sorted(path.parent for path in folder.glob(f"*/{PARAMS}"))
    if not sizes:
        return None
    return Recognition(
        f"{folder} holds models in Meta's layout, one folder each",
        f"give one of them: {_list_paths(sizes)}",
    )


def _checkpoint_below(folder: Path) -> Recognition | None:
    subfolders = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not subfolders:
        return None
    return Recognition(
        f"{folder} has no {CONFIG}, but folders in it have one", f"give {_list_paths(subfolders)}"
    )


def _training(folder: Path) -> Recognition | None:
    if any(folder.glob("zero_pp_rank_*")) or any(folder.glob("global_step*/*zero_pp_rank_*")):
        return Recognition(
            f"{folder} is a training checkpoint of DeepSpeed ZeRO, split into one piece per rank",
            "join them: run python zero_to_fp32.py . . in it, and give the folder with its config",
        )
    if any(folder.glob("*.distcp")):
        return Recognition(
            f"{folder} is a sharded checkpoint of torch.distributed",
            "join it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{folder} pytorch_model.bin, and add the config and tokenizer",
        )
    return None


def recognize_other_format(folder: Path) -> Recognition | None:
    """Recognizes weights of an unsupported library in a folder without supported weights."""
    for pattern, kind in OTHER_FORMATS.items():
        if any(folder.glob(pattern)):
            return Recognition(
                f"{folder} holds weights of {kind} only",
                "give a checkpoint with safetensors or PyTorch weights",
            )
    return None


def _pointers(folder: Path) -> Recognition | None:
    """Recognizes a git checkout without its large files, config.json included."""
    for path in sorted(folder.glob("*")):
        if WEIGHT_FILE.fullmatch(path.name):
            recognition = recognize_file(path)
            if recognition is not None:
                return recognition
    return None


def _broken_links(folder: Path) -> Recognition | None:
    """Recognizes a snapshot of the hub's cache copied without the targets of its links."""
    for path in sorted(folder.glob("*")):
        is_model_file = path.name == CONFIG or WEIGHT_FILE.fullmatch(path.name)
        if is_model_file and path.is_symlink() and not path.exists():
            return Recognition(
                f"{path} is a link to {path.readlink()}, which does not exist",
                "copy the folder with its links followed (cp -rL), or download it again",
            )
    return None


def _json_string(path: Path, key: str) -> str:
    """Reads one string of a JSON object; "" if the file is not well-formed."""
    try:
        if path.stat().st_size > SNIPPET_BYTES:
            return ""
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, str) else ""


def _list_paths(paths: Iterable[Path]) -> str:
    names = [str(path) for path in paths]
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


FOLDER_RECOGNIZERS: tuple[Callable[[Path], Recognition | None], ...] = (
    recognize_adapter,
    _store,
    _camelpress_output,
    _hub_cache,
    _meta,
    _meta_parent,
    _training,
    _checkpoint_below,
    recognize_other_format,
    _pointers,
    _broken_links,
)
