"""Inputs that people hand in by mistake: each has one true sentence and a next step that works."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

import damage
import stages
import weights
from camelpress.core.checkpoint.checkpoint import Checkpoint, require_valid_sidecars
from camelpress.core.checkpoint.tensor_names import canonical_names
from camelpress.core.documents.document_reader import read_corpus
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_recognizer import recognize_file
from camelpress.core.files.yaml_files import read_yaml
from camelpress.core.progress import use_listener
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.reporting.report_classes import read_report
from camelpress.validate.settings import StoreSettings
from camelpress.validate.store.build_store import build_store as store
from notes import Notes

GENERIC = ("download it again", "complete the checkpoint folder", "do not trust")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 9876543210\n" % (
    b"a1" * 32
)
PAGES = {
    "a page": b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>",
    "a page with a mark": b"\xef\xbb\xbf<html lang='en'>",
    "an answer in XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "a refusal": b"Access to model meta-llama/Llama-2-7b is restricted. You must be logged in.",
    "a refusal in JSON": b'{"error":"Repository not found"}',
    "no such file": b"Entry not found",
}


def xor(left: bytes, right: bytes) -> bytes:
    """Each byte of the first file XOR that of the second, which zeros make as long."""
    return bytes(a ^ b for a, b in zip(left, right.ljust(len(left), b"\0"), strict=False))


def tiktoken_file() -> bytes:
    words = [bytes([number]) for number in range(256)] + [b"the", b" camel"]
    return b"".join(b"%s %d\n" % (base64.b64encode(w), n) for n, w in enumerate(words))


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return buffer.getvalue()


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    return buffer.getvalue()


CONTENTS: dict[str, tuple[str, bytes, str, str]] = {  # file name, content, what, next step
    "LFS": ("model.safetensors", POINTER, "is a Git LFS pointer for 9,876,543,210", "git lfs pull"),
    "LFS config": ("config.json", POINTER, "is a Git LFS pointer", "git lfs pull"),
    "GGUF": ("pytorch_model.bin", b"GGUF\3\0\0\0" + bytes(64), "is a GGUF file", "16-bit"),
    "GGJT": ("pytorch_model.bin", b"tjgg\1\0\0\0" + bytes(64), "is a GGUF file", "16-bit"),
    "tiktoken": ("tokenizer.model", tiktoken_file(), "is a tiktoken vocabulary", "tokenizer.json"),
    "link": ("model.safetensors", b"../../blobs/" + b"5a" * 32, "is a link to ../../", "cp -rL"),
    "gzip": ("pytorch_model.bin", gzip.compress(b"weights"), "is a gzip archive", "unpack"),
    "tar": ("pytorch_model.bin", tar_file(), "is a tar archive", "unpack it (tar -xf"),
    "torch": ("model.safetensors", torch_file(), "is a file of torch.save", "rename it to model.b"),
    "safetensors": ("x.bin", save({"a": torch.ones(2)}), "is a safetensors file", "x.safetensors"),
    "zeros": ("model.safetensors", bytes(70_000), "holds nothing but zero bytes", "download"),
    "empty": ("model.safetensors", b"", "is empty (0 bytes)", "download"),
}


@pytest.mark.parametrize("case", CONTENTS.values(), ids=CONTENTS.keys())
def test_the_content_of_a_file_is_recognized(
    tmp_path: Path, case: tuple[str, bytes, str, str]
) -> None:
    name, content, what, next_step = case
    (tmp_path / name).write_bytes(content)
    recognition = recognize_file(tmp_path / name)
    assert recognition is not None
    assert recognition.message.startswith(f"{tmp_path / name} {what}")
    assert next_step in recognition.next_step


@pytest.mark.parametrize("content", PAGES.values(), ids=PAGES.keys())
def test_an_answer_of_a_server_is_recognized(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    recognition = recognize_file(path)
    assert recognition is not None
    assert "not the file itself" in recognition.message
    assert "hf download" in recognition.next_step


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_have_at_most_one_sentence(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        recognition = recognize_file(path)
    assert recognition is None or "\n" not in str(recognition.problem())


def test_good_files_are_nothing_special(base: Path) -> None:
    for path in base.iterdir():
        assert recognize_file(path) is None, path


def test_an_xor_diff_is_recognized_by_its_zeros(base: Path, tuned: Path, tmp_path: Path) -> None:
    for folder, files in ((tmp_path / "one", None), (tmp_path / "two", ["model.safetensors"])):
        damage.copied(tuned, folder)
        for path in folder.iterdir():
            if (base / path.name).is_file() and (files is None or path.name in files):
                path.write_bytes(xor(path.read_bytes(), (base / path.name).read_bytes()))
        with pytest.raises(CheckpointProblem, match="XOR diff") as refusal:
            Checkpoint.open(folder)
        assert "xor_codec.py" in refusal.value.next_step


# --- folders ------------------------------------------------------------------------------------


def adapter(folder: Path, base: Path) -> str:
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/camel"})
    )
    save_file({"x.lora_A.weight": torch.ones(2)}, folder / "adapter_model.safetensors")
    return "is a LoRA adapter of org/camel"


def adapter_with_config(folder: Path, base: Path) -> str:
    shutil.copy(base / "config.json", folder)
    names = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    torch.save({names: torch.ones(2, 2)}, folder / "pytorch_model.bin")
    return "is a LoRA adapter"


def meta(folder: Path, base: Path) -> str:
    (folder / "params.json").write_text('{"dim": 64}')
    (folder / "consolidated.00.pth").write_bytes(b"")
    return "is a model in Meta's layout"


def meta_parent(folder: Path, base: Path) -> str:
    for size in ("13B", "7B"):
        (folder / size).mkdir()
        (folder / size / "params.json").write_text("{}")
    return "holds models in Meta's layout"


def parent(folder: Path, base: Path) -> str:
    damage.copied(base, folder / "camel-7b")
    return "has no config.json, but folders in it have one"


def cache_root(folder: Path, base: Path) -> str:
    damage.copied(base, folder / "models--org--camel" / "snapshots" / "4b0a")
    return "is the hub's cache of 1 models"


def cache_home(folder: Path, base: Path) -> str:
    damage.copied(base, folder / "hub" / "models--org--camel" / "snapshots" / "4b0a")
    return "is the hub's cache of 1 models"


def gguf(folder: Path, base: Path) -> str:
    (folder / "camel.Q4_K_M.gguf").write_bytes(b"GGUF")
    return "holds weights of GGUF (llama.cpp) only"


def flax(folder: Path, base: Path) -> str:
    shutil.copy(base / "config.json", folder)
    (folder / "flax_model.msgpack").write_bytes(b"\x80")
    return "holds weights of Flax only"


def zero(folder: Path, base: Path) -> str:
    (folder / "global_step100").mkdir()
    (folder / "global_step100" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    (folder / "global_step100" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    return "is a training checkpoint of DeepSpeed ZeRO"


def distributed(folder: Path, base: Path) -> str:
    (folder / "__0_0.distcp").touch()
    return "is a sharded checkpoint of torch.distributed"


FOLDERS = (
    adapter,
    adapter_with_config,
    meta,
    meta_parent,
    parent,
    cache_root,
    cache_home,
    gguf,
    flax,
    zero,
    distributed,
)


@pytest.mark.parametrize("build", FOLDERS, ids=[build.__name__ for build in FOLDERS])
def test_a_folder_that_is_no_checkpoint_is_recognized(
    build: Callable[[Path, Path], str], base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    what = build(folder, base)
    with pytest.raises(CheckpointProblem) as refusal:
        Checkpoint.open(folder)
    assert refusal.value.message.startswith(f"{folder} {what}")
    assert not refusal.value.next_step.startswith(GENERIC)


@pytest.mark.parametrize("part", ["", "snapshots", "blobs"])
def test_the_cache_of_a_repository_leads_to_its_snapshot(
    base: Path, tmp_path: Path, part: str
) -> None:
    root = tmp_path / "models--org--camel"
    for commit in ("0ld", "4b0a"):
        damage.copied(base, root / "snapshots" / commit)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0ld")
    with pytest.raises(CheckpointProblem) as refusal:
        Checkpoint.open(root / part)
    snapshot = root / "snapshots" / "0ld"
    assert refusal.value.next_step == f"give {snapshot}, or org/camel"
    assert Checkpoint.open(snapshot).tensors


def test_a_store_is_no_model(base: Path, chat: Path, tmp_path: Path) -> None:
    store(Checkpoint.open(base), tmp_path / "store", StoreSettings(text=(chat,)))
    with pytest.raises(CheckpointProblem) as refusal:
        Checkpoint.open(tmp_path / "store")
    assert (
        refusal.value.message
        == f"{tmp_path / 'store'} is a store of a model's predictions, " + ("not a model")
    )


@pytest.mark.parametrize(
    ("place", "next_step"),
    [
        ("https://huggingface.co/org/camel", "give org/camel"),
        ("https://huggingface.co/org/camel/tree/main", "give org/camel@main"),
        ("https://huggingface.co/org/camel/blob/0ld/config.json", "give org/camel@0ld"),
        ("huggingface.co/org/camel", "give org/camel"),
        ("hf.co/org/camel/", "give org/camel"),
    ],
)
def test_the_address_of_a_page_leads_to_its_repository(place: str, next_step: str) -> None:
    with pytest.raises(CheckpointProblem) as refusal:
        Checkpoint.open(Path(place))
    assert refusal.value.next_step == next_step


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_a_checkpoint_leads_to_its_folder(base: Path, name: str) -> None:
    with pytest.raises(CheckpointProblem) as refusal:
        Checkpoint.open(base / name)
    assert refusal.value.next_step == f"give its folder {base}"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_in_place_of_a_tokenizer_is_named(base: Path, tmp_path: Path, name: str) -> None:
    folder = damage.copied(base, tmp_path / "copy")
    (folder / name).write_bytes(POINTER)
    with pytest.raises(CheckpointProblem) as refusal:
        Tokenizer.load(folder)
    assert refusal.value.message.startswith(f"{folder / name} is a Git LFS pointer")


# --- shards without an index --------------------------------------------------------------------


def numbered(base: Path, folder: Path, pattern: str) -> Path:
    """A checkpoint in three shards with names of a pattern, without an index."""
    damage.copied(base, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for number in range(3):
        part = {name: t for at, (name, t) in enumerate(tensors.items()) if at % 3 == number}
        path = folder / pattern.format(number + 1)
        if path.suffix == ".bin":
            torch.save(part, path)
        else:
            save_file(part, path, metadata={"format": "pt"})
    return folder


PATTERNS = (
    "model-{:05}-of-00003.safetensors",
    "pytorch_model-{:05}-of-00003.bin",
    "model.fp16-{:05}-of-00003.safetensors",
    "pytorch_model-{:05}-of-00003.fp16.bin",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_complete_set_of_shards_needs_no_index(base: Path, tmp_path: Path, pattern: str) -> None:
    opened = Checkpoint.open(numbered(base, tmp_path / "numbered", pattern))
    expected = load_file(base / "model.safetensors")
    assert opened.tensors.keys() == expected.keys()
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in expected.items())


def test_a_set_that_lacks_a_shard_is_refused(base: Path, tmp_path: Path) -> None:
    folder = numbered(base, tmp_path / "numbered", PATTERNS[0])
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointProblem) as refusal:
        Checkpoint.open(folder)
    assert refusal.value.message == (
        f"{folder} has no index, and of its 3 shards lacks model-00002-of-00003.safetensors"
    )


def test_a_left_over_index_gives_way_to_complete_shards(base: Path, tmp_path: Path) -> None:
    folder = numbered(base, tmp_path / "numbered", PATTERNS[1])
    places = {name: "model-00001-of-00001.safetensors" for name in ("a", "b")}
    (folder / damage.INDEX).write_text(json.dumps({"weight_map": places}))
    assert Checkpoint.open(folder).tensors.keys() == Checkpoint.open(base).tensors.keys()


def test_the_only_variant_is_read_and_of_two_none(base: Path, tmp_path: Path) -> None:
    folder = damage.copied(base, tmp_path / "variant")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    notes = Notes()
    with use_listener(notes):
        assert Checkpoint.open(folder).tensors
    assert notes.heard == [f"{folder} has no index: model.fp16.safetensors are its weights"]
    shutil.copy(folder / "model.fp16.safetensors", folder / "model.fp32.safetensors")
    with pytest.raises(CheckpointProblem, match="holds several models"):
        Checkpoint.open(folder)


def test_a_tensor_in_two_shards_is_refused(base: Path, tmp_path: Path) -> None:
    folder = numbered(base, tmp_path / "numbered", PATTERNS[0])
    first, second = (folder / PATTERNS[0].format(number) for number in (1, 2))
    shutil.copy(first, second)
    with pytest.raises(CheckpointProblem, match=f"which {first.name} holds, too"):
        Checkpoint.open(folder)


# --- names --------------------------------------------------------------------------------------

WRAPPED = (
    "module.{}",
    "_orig_mod.{}",
    "module._orig_mod.{}",
    "_forward_module.module.{}",
    "base_model.model.{}",
    "model.{}",
    "_fsdp_wrapped_module.{}",
)


def renamed(base: Path, folder: Path, change: Callable[[str], str]) -> Path:
    damage.copied(base, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    transposed = {
        name: t.t().contiguous().t() if t.dim() == 2 else t for name, t in tensors.items()
    }
    torch.save({change(n): t for n, t in transposed.items()}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("pattern", WRAPPED)
def test_the_names_of_a_wrapper_are_left_out(base: Path, tmp_path: Path, pattern: str) -> None:
    opened = Checkpoint.open(renamed(base, tmp_path / "wrapped", pattern.format))
    expected = load_file(base / "model.safetensors")
    assert opened.tensors.keys() == expected.keys()
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in expected.items())


def test_a_decoder_that_was_saved_by_itself_gets_its_prefix(base: Path, tmp_path: Path) -> None:
    folder = renamed(base, tmp_path / "bare", lambda name: name.removeprefix("model."))
    assert Checkpoint.open(folder).tensors.keys() == Checkpoint.open(base).tensors.keys()


@pytest.mark.parametrize("extra", ["step", "optimizer"])
def test_the_weights_inside_a_training_checkpoint_are_read(
    base: Path, tmp_path: Path, extra: str
) -> None:
    folder = damage.copied(base, tmp_path / "nested")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    nested = {"state_dict": tensors, extra: 7 if extra == "step" else {"lr": 0.1}}
    torch.save(nested, folder / "pytorch_model.bin")
    assert Checkpoint.open(folder).tensors.keys() == tensors.keys()


def test_names_of_a_model_stay_as_they_are(base: Path) -> None:
    names = list(Checkpoint.open(base).tensors)
    assert canonical_names(names) == ({name: name for name in names}, "")


def test_wrapped_names_that_would_collide_stay_as_they_are() -> None:
    names = ["module.model.embed_tokens.weight", "module._orig_mod.model.embed_tokens.weight"]
    assert canonical_names(names) == ({name: name for name in names}, "")


@pytest.mark.parametrize("count", [1, 3])
def test_empty_weights_are_named(base: Path, tmp_path: Path, count: int) -> None:
    names = sorted(load_file(base / "model.safetensors"))[:count]
    empty = dict.fromkeys(names, torch.empty(0))
    with pytest.raises(CheckpointProblem, match="without any value") as refusal:
        Checkpoint.open(damage.with_tensors(base, tmp_path / "empty", empty))
    assert "ZeRO-3" in refusal.value.message
    assert "zero_to_fp32.py" in refusal.value.next_step


# --- what stands in the place of a text, a gate, a report or a companion ------------------------


NO_TEXTS = {
    "a refusal": (PAGES["a refusal"], "is a server's refusal"),
    "no such file": (PAGES["no such file"], "is a server's refusal"),
    "a tiktoken vocabulary": (tiktoken_file(), "is a tiktoken vocabulary (Llama 3), and no text"),
    "a copied link": (b"../../blobs/" + b"5a" * 32, "is a link to"),
    "safetensors": (save({"a": torch.ones(2)}), "is a safetensors file, and no text"),
    "torch.save": (torch_file(), "is a file of torch.save, and no text"),
}


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
@pytest.mark.parametrize("case", NO_TEXTS.values(), ids=NO_TEXTS.keys())
def test_what_is_no_text_is_never_scored(
    tmp_path: Path, case: tuple[bytes, str], name: str
) -> None:
    (tmp_path / name).write_bytes(case[0])
    with pytest.raises(RecipeProblem) as refusal:
        read_corpus(tmp_path / name)
    assert refusal.value.message.startswith(f"{tmp_path / name} {case[1]}")


@pytest.mark.parametrize(
    "content",
    [
        "whale 12\nsea 9\nship 4\n",
        "Entry not found, he wrote in the log, and closed the book.",
        '{"error": null, "text": "the whale"}',
        "Not Found, or The Whale",
    ],
)
def test_prose_and_rows_that_look_a_little_so_are_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.txt").write_text(content, encoding="utf-8")
    assert len(read_corpus(tmp_path / "x.txt").documents) == 1


@pytest.mark.parametrize("content", [POINTER, PAGES["a page"], PAGES["no such file"]])
def test_a_gate_and_a_report_that_were_never_fetched_are_named(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeProblem, match="not the file itself"):
        read_yaml(path)
    with pytest.raises(CheckpointProblem, match="not the file itself"):
        read_report(path)


def test_a_report_in_place_of_its_folder_leads_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointProblem, match=r"report\.json is a file; give the folder"):
        read_report(tmp_path / "report.json" / "report.json")


@pytest.mark.parametrize("content", [POINTER, PAGES["a page"], b"../../blobs/" + b"5a" * 32])
@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "LICENSE"])
def test_no_output_takes_over_a_companion_that_was_never_fetched(
    base: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = damage.copied(base, tmp_path / "copy")
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointProblem) as refusal:
        stages.quantize(folder, tmp_path / "out", method="rtn")
    assert refusal.value.message.startswith(f"{folder / name} is a")
    assert not (tmp_path / "out").exists()


def test_a_licence_may_be_a_page(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.html").write_bytes(PAGES["a page"])
    require_valid_sidecars({"LICENSE.html": tmp_path / "LICENSE.html"})


def test_a_strange_prefix_is_named_before_a_head_that_it_hides(base: Path, tmp_path: Path) -> None:
    folder = weights.changed(base, tmp_path / "copy", lambda t: {f"llama.{n}": t[n] for n in t})
    with pytest.raises(CheckpointProblem, match=r"none may begin with llama\."):
        stages.quantize(folder, tmp_path / "out", method="rtn")


def test_a_cache_leads_to_a_model_that_has_a_snapshot(base: Path, tmp_path: Path) -> None:
    (tmp_path / "models--a--unfinished").mkdir()
    snapshot = damage.copied(base, tmp_path / "models--org--camel" / "snapshots" / "4b0a")
    with pytest.raises(CheckpointProblem) as refusal:
        Checkpoint.open(tmp_path)
    assert refusal.value.next_step == f"give one snapshot in it, such as {snapshot}"


def test_a_cache_without_a_snapshot_leads_to_the_hub(tmp_path: Path) -> None:
    (tmp_path / "models--a--unfinished").mkdir()
    with pytest.raises(CheckpointProblem, match="give the name of the model on the hub"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "README.md"])
def test_any_file_of_a_checkpoint_leads_to_its_folder(
    base: Path, tmp_path: Path, name: str
) -> None:
    folder = damage.copied(base, tmp_path / "copy")
    (folder / name).touch()
    with pytest.raises(CheckpointProblem) as refusal:
        Checkpoint.open(folder / name)
    assert refusal.value.next_step == f"give its folder {folder}"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_snapshot_that_was_copied_without_its_blobs_is_named(
    base: Path, tmp_path: Path, name: str
) -> None:
    folder = damage.copied(base, tmp_path / "copy")
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/5a")
    with pytest.raises(CheckpointProblem) as refusal:
        Checkpoint.open(folder)
    assert refusal.value.message.startswith(f"{folder / name} is a link to ../../blobs/5a")
    assert "cp -rL" in refusal.value.next_step
