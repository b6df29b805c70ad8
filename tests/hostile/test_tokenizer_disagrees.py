"""Tokenizer files that are damaged, contradict one another or do not belong to the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pico
import pieces
from camelpress.convert.tokenizer.tokenizer_plan import plan_tokenizer
from camelpress.core.errors import CheckpointProblem
from refusal import refusal, starting

SIZE = pieces.SIZE
OWN = "give the tokenizer that these weights were trained with"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer.model of LLaMA's kind, alone."""
    return pieces.write(tmp_path / "diff")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A byte-level tokenizer.json of 259 tokens."""
    folder = tmp_path / "other"
    folder.mkdir()
    pico.write_tokenizer(folder)
    return folder


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def refuses(folder: Path, what: Any, *, next_step: str = OWN, rows: int = SIZE + 2) -> None:
    with refusal(CheckpointProblem, what, next_step=next_step, out=None):
        plan_tokenizer([folder], rows, SIZE, drop=False, config={}, template="auto")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<x>": SIZE + 2}),
        ("tokenizer_config.json", {"added_tokens_decoder": {SIZE + 2: {"content": "<x>"}}}),
    ],
)
def test_an_added_token_without_a_row_is_refused(folder: Path, name: str, content: Any) -> None:
    write(folder, name, content)
    refuses(
        folder,
        f"{folder / name} gives '<x>' the id {SIZE + 2}, but the embedding has {SIZE + 2} rows",
        next_step=f"leave it out with --extra-rows drop, or {OWN}",
    )


def test_pieces_without_rows_are_refused(folder: Path) -> None:
    last = pieces.reader(pieces.model()).id_to_piece(SIZE - 1)
    refuses(
        folder,
        f"{folder / 'tokenizer.model'} gives {last!r} the id {SIZE - 1}, "
        f"but the embedding has {SIZE - 1} rows",
        rows=SIZE - 1,
    )


def test_words_without_rows_are_refused(other: Path) -> None:
    words = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    refuses(
        other,
        f"{other / 'tokenizer.json'} gives {max(words, key=words.get)!r} the id 258, "
        "but the embedding has 258 rows",
        rows=258,
    )


def test_a_token_that_a_loader_renumbers_is_refused(other: Path) -> None:
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 260, "content": "<x>"})
    write(other, "tokenizer.json", content)
    write(other, "added_tokens.json", {"<a>": 259})
    refuses(other, f"{other} has a tokenizer that does not give '<a>' the id 259 when it is loaded")


def test_a_token_that_only_a_loader_adds_needs_a_row(other: Path) -> None:
    write(
        other, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<unk>"}
    )
    refuses(
        other,
        f"{other} has a tokenizer that gives the id 259 when it is loaded, "
        "but the embedding has 259 rows",
        rows=259,
    )


def test_languages_that_only_a_loader_adds_need_rows(other: Path) -> None:
    write(other, "tokenizer_config.json", {"tokenizer_class": "NllbTokenizer"})
    told = starting(f"{other} has a tokenizer that gives the id ")
    refuses(other, told, rows=280)


@pytest.mark.parametrize("given", [0, SIZE - 1, -1, None, "one", True])
def test_an_id_that_is_none_or_a_pieces_is_refused(folder: Path, given: object) -> None:
    write(folder, "added_tokens.json", {"<x>": given})
    refuses(
        folder,
        f"{folder / 'added_tokens.json'} gives '<x>' the id {given}, "
        "which contradicts other tokens",
    )


@pytest.mark.parametrize(
    "content",
    [{"<a>": SIZE, "<b>": SIZE}, {"</s>": SIZE, "<b>": SIZE}],
    ids=["two tokens, one id", "a piece with another id"],
)
def test_ids_given_twice_are_refused(folder: Path, content: dict[str, int]) -> None:
    write(folder, "added_tokens.json", content)
    told = starting(f"{folder / 'added_tokens.json'} gives ")
    refuses(folder, told)


def test_two_files_with_different_ids_are_refused(folder: Path) -> None:
    decoder = {str(SIZE): {"content": "<x>"}}
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": decoder})
    write(folder, "added_tokens.json", {"<x>": SIZE + 1})
    refuses(
        folder,
        f"{folder / 'added_tokens.json'} gives '<x>' the id {SIZE + 1}, "
        "which contradicts other tokens",
    )


def test_a_gap_between_ids_is_refused(folder: Path) -> None:
    write(folder, "added_tokens.json", {"<x>": SIZE + 1})
    refuses(
        folder,
        f"{folder / 'added_tokens.json'} gives '<x>' the id {SIZE + 1}, "
        f"but no token has the id {SIZE}",
    )


@pytest.mark.parametrize(
    ("model", "size"), [({"vocab": {}}, 0), ({"vocab": {"a": 0}}, 1), ({}, 0), (None, 0)]
)
def test_another_tokenizer_json_is_refused(folder: Path, model: object, size: int) -> None:
    write(folder, "tokenizer.json", {"model": model})
    refuses(
        folder,
        f"{folder / 'tokenizer.json'} has a vocabulary of {size}, "
        f"not the {SIZE} of tokenizer.model",
        next_step="remove the one that does not belong to these weights",
    )


def test_a_tokenizer_json_of_the_same_size_is_refused(folder: Path, tmp_path: Path) -> None:
    model = pieces.reader(pieces.model())
    words = {model.id_to_piece(number): number for number in range(SIZE)}
    swapped = words | {"a": words["b"], "b": words["a"]}
    write(folder, "tokenizer.json", {"model": {"type": "BPE", "vocab": swapped}})
    refuses(
        folder,
        f"{folder / 'tokenizer.json'} has a vocabulary of {SIZE}, "
        f"not the {SIZE} of tokenizer.model",
        next_step="remove the one that does not belong to these weights",
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"no model", pieces.model()[:3000]],
    ids=["empty", "text", "cut off"],
)
def test_a_damaged_model_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = pieces.write(tmp_path / "broken", content)
    path = folder / "tokenizer.model"
    damaged = starting(f"{path} is not a SentencePiece model (")
    refuses(
        folder,
        damaged if content else f"{path} is empty (0 bytes)",
        next_step="download it again",
    )


def test_a_pointer_in_place_of_a_model_is_named(tmp_path: Path) -> None:
    folder = pieces.write(
        tmp_path / "broken", b"version https://git-lfs.github.com/spec/v1\nsize 9\n"
    )
    path = folder / "tokenizer.model"
    refuses(
        folder,
        f"{path} is a Git LFS pointer for 9 bytes, not the file itself",
        next_step=f"run git lfs pull in {folder}, or download {path.name} with the hub's client",
    )


TIKTOKEN = "IQ== 0\nIg== 1\nIw== 2\n"


def test_a_tiktoken_file_alone_is_named(other: Path, tmp_path: Path) -> None:
    folder = pieces.write(tmp_path / "alone", TIKTOKEN.encode())
    what = (
        f"{folder / 'tokenizer.model'} is for tiktoken, as Meta ships Llama 3, "
        "and no tokenizer.json is beside it"
    )
    refuses(folder, what, next_step=f"copy the tokenizer.json of this model into {folder}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((other / name).read_bytes())
    made = plan_tokenizer([folder], 259, 259, drop=False, config={}, template="auto")
    assert made.files["tokenizer.json"] == (other / "tokenizer.json").read_bytes()


def test_a_tiktoken_file_of_the_base_is_not_asked_for_where_the_diff_has_a_tokenizer(
    folder: Path, tmp_path: Path
) -> None:
    base = pieces.write(tmp_path / "base", TIKTOKEN.encode())
    made = plan_tokenizer([folder, base], SIZE, SIZE, drop=False, config={}, template="auto")
    assert made.facts["source"] == "diff"
    bare = tmp_path / "bare"
    bare.mkdir()
    with refusal(
        CheckpointProblem,
        starting(f"{base / 'tokenizer.model'} is for tiktoken"),
        next_step=f"copy the tokenizer.json of this model into {bare}",
        out=None,
    ):
        plan_tokenizer([bare, base], SIZE, SIZE, drop=False, config={}, template="auto")


@pytest.mark.parametrize("name", ["tekken.json", "spiece.model", "vocab.txt"])
def test_a_tokenizer_of_another_library_is_not_replaced_by_the_bases(
    folder: Path, tmp_path: Path, name: str
) -> None:
    diff = tmp_path / "foreign"
    diff.mkdir()
    (diff / name).write_text("{}", encoding="utf-8")
    with refusal(
        CheckpointProblem,
        f"{diff / name} is a tokenizer of another library",
        next_step=f"copy the tokenizer.json of this model into {diff}",
        out=None,
    ):
        plan_tokenizer([diff, folder], SIZE, SIZE, drop=False, config={}, template="auto")


@pytest.mark.parametrize(
    ("content", "what", "next_step"),
    [
        ({"a": 0}, "has no merges.txt beside it", "download merges.txt, too"),
        ({"a": "0"}, "is not a vocabulary: words with their ids", "download it again"),
        ({}, "is not a vocabulary: words with their ids", "download it again"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(
    tmp_path: Path, content: Any, what: str, next_step: str
) -> None:
    write(tmp_path, "vocab.json", content)
    if "merges" not in what:
        (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    refuses(tmp_path, f"{tmp_path / 'vocab.json'} {what}", next_step=next_step)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"],
)
@pytest.mark.parametrize(("content", "reason"), [("{", "valid JSON"), ("[]", "a JSON object")])
def test_broken_json_is_refused(folder: Path, name: str, content: str, reason: str) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    what = f"{folder / name} is not {reason}"
    refuses(folder, starting(what) if content == "{" else what, next_step="download it again")


def test_a_tokenizer_json_that_is_none_is_refused(other: Path) -> None:
    write(other, "tokenizer.json", {"model": {"type": "none"}})
    refuses(
        other,
        starting(f"{other / 'tokenizer.json'} is not a tokenizer ("),
        next_step="download it again",
    )


def test_a_template_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    refuses(
        folder,
        f"{folder / 'chat_template.jinja'} is not UTF-8 text",
        next_step="download it again",
    )


def test_a_tokenizer_that_cannot_be_loaded_is_refused(other: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "up"}
    write(other, "tokenizer_config.json", config)
    refuses(
        other,
        starting(f"{other} has no tokenizer that can be read ("),
        next_step="copy tokenizer.json and tokenizer_config.json of the model there",
    )


def test_a_tokenizer_that_cannot_encode_is_refused(other: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": "x"}
    write(other, "tokenizer_config.json", config)
    refuses(
        other,
        starting(f"{other} has no tokenizer that can be read ("),
        next_step="copy tokenizer.json and tokenizer_config.json of the model there",
    )


def test_a_dropped_token_that_is_still_used_is_refused(other: Path) -> None:
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    entry = content["added_tokens"][0] | {"id": 259, "content": "<x>"}
    content["added_tokens"].append(entry)
    content["post_processor"]["single"].append({"SpecialToken": {"id": "<x>", "type_id": 0}})
    content["post_processor"]["special_tokens"]["<x>"] = {
        "id": "<x>",
        "ids": [259],
        "tokens": ["<x>"],
    }
    write(other, "tokenizer.json", content)
    with refusal(
        CheckpointProblem,
        f"{other} has a tokenizer that gives the id 259 when it is loaded, "
        "but the embedding has 259 rows",
        next_step=OWN,
        out=None,
    ):
        plan_tokenizer([other], 260, 259, drop=True, config={}, template="auto")
