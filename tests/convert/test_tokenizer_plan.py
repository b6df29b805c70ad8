"""The tokenizer of a recovered model works, whatever the files of the diff say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import pico
import pieces
from camelpress.convert.tokenizer.tokenizer_plan import (
    TemplateOption,
    TokenizerPlan,
    plan_tokenizer,
)
from camelpress.core.errors import Problem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import TULU_CHAT_TEMPLATE, Message, encode_chat

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / os.environ.get("CAMELPRESS_LLAMA_TOKENIZER", ".models/llama-tokenizer")
OLD = ROOT / ".models/transformers-4"
SIZE = pieces.SIZE
PAD = SIZE  # the first id behind the pieces
CONFIG = {"model_type": "llama", "max_position_embeddings": 2048, "pad_token_id": 0}
EMPTY = {"bos_token": "", "eos_token": "", "unk_token": ""}
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TULU = {"added_tokens.json": {"<pad>": PAD}, "special_tokens_map.json": {"pad_token": "<pad>"}}


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def planned(
    *sources: Path, rows: int, base: int, drop: bool = False, template: TemplateOption = "auto"
) -> TokenizerPlan:
    return plan_tokenizer(sources, rows, base, drop=drop, config=CONFIG, template=template)


def written(made: TokenizerPlan, folder: Path) -> Path:
    folder.mkdir()
    made.write(folder)
    (folder / "config.json").write_text(json.dumps(made.align_config(CONFIG)), encoding="utf-8")
    return folder


def read(made: TokenizerPlan, name: str) -> Any:
    return json.loads(made.files[name])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tokenizer.model of LLaMA's kind, alone."""
    return pieces.write(tmp_path / "diff")


# --- LLaMA --------------------------------------------------------------------------------------

USER = [529, 29989, 1792, 29989, 29958, 13]
ASSISTANT = [29966, 29989, 465, 22137, 29989, 29958, 13]
QUESTION = [1, *USER, 10994, 13, *ASSISTANT]
MESSAGES = [Message(role="user", content="Hello"), Message(role="assistant", content="Hi")]
# fmt: off
IDS = {
    "<|user|>\n":             USER,
    "x\n<|user|>\n":          [921, 13, 29966, *USER[1:]],
    "<|assistant|>\n":        [529, *ASSISTANT[1:]],
    "x\n<|assistant|>\n":     [921, 13, *ASSISTANT],
    "<|system|>\n":           [529, 29989, 5205, 29989, 29958, 13],
    "x\n<|system|>\n":        [921, 13, 29966, 29989, 5205, 29989, 29958, 13],
    "x\nHello":               [921, 13, 10994],
    "Hello":                  [15043],
    "\n":                     [29871, 13],
    "\n\n":                   [29871, 13, 13],
    "<s>":                    [1],
    "</s>":                   [2],
    "<pad>":                  [32000],
    "<s><|user|>\n":          [1, *USER],
    "Hi</s><|user|>\n":       [6324, 2, *USER],
    "Hi</s>\n<|user|>\n":     [6324, 2, 29871, 13, 29966, *USER[1:]],
}
# fmt: on
LOADS = r"""
import json, sys
from transformers import AutoTokenizer
from transformers.utils import logging
logging.set_verbosity_error()
texts, messages, folders = json.load(sys.stdin)
told = []
for folder, fast in folders:
    try:
        made = AutoTokenizer.from_pretrained(folder, use_fast=fast, local_files_only=True)
        told.append({
            "class": type(made).__name__,
            "special": [made.bos_token_id, made.eos_token_id, made.unk_token_id, made.pad_token_id],
            "size": len(made),
            "ids": [made(text, add_special_tokens=False)["input_ids"] for text in texts],
            "with bos": made("Hello")["input_ids"],
            "question": made.apply_chat_template(messages[:1], add_generation_prompt=True),
            "answered": made.apply_chat_template(messages),
            "longest": made.model_max_length,
            "padding": made.padding_side,
        })
    except (RecursionError, TypeError) as error:
        told.append({"error": type(error).__name__})
json.dump(told, sys.stdout)
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is made of a Tulu diff's tokenizer.model, whose small files are of little use."""
    if not LLAMA.is_dir():
        pytest.skip(f"{LLAMA} is not there; make it: python tests/models/llama_tokenizer.py DIR")
    folder = tmp_path_factory.mktemp("llama")
    diff = pieces.write(folder / "diff", (LLAMA / "tokenizer.model").read_bytes())
    config = {**EMPTY, "tokenizer_class": "LlamaTokenizer", "model_max_length": 1e30}
    write(
        diff,
        {
            "tokenizer_config.json": config,
            "special_tokens_map.json": {"pad_token": "<pad>"},
            "added_tokens.json": {"<pad>": 32000},
        },
    )
    made = planned(diff, LLAMA, rows=32001, base=32000)
    assert made.special == {"bos": 1, "eos": 2, "unk": 0, "pad": 32000}
    return written(made, folder / "out")


@pytest.fixture(scope="module")
def old(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What transformers 4 makes of it, fast and slow, and of a folder with an empty `unk_token`."""
    if not OLD.is_dir():
        pytest.skip(f"{OLD} is not there; make it: python tests/models/old_transformers.py {OLD}")
    broken = pieces.write(
        tmp_path_factory.mktemp("old") / "broken", (LLAMA / "tokenizer.model").read_bytes()
    )
    config = {"tokenizer_class": "LlamaTokenizer", "unk_token": ""}
    write(broken, {"tokenizer_config.json": config, "config.json": CONFIG})
    folders = [(str(llama), True), (str(llama), False), (str(broken), True)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADS],
        input=json.dumps([list(IDS), [message.model_dump() for message in MESSAGES], folders]),
        env=os.environ | {"PYTHONPATH": str(OLD)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.parametrize(("place", "name"), [(0, "LlamaTokenizerFast"), (1, "LlamaTokenizer")])
def test_transformers_4_reads_it(old: list[dict[str, Any]], place: int, name: str) -> None:
    found = old[place]
    assert found["class"] == name
    assert found["special"] == [1, 2, 0, 32000]
    assert found["size"] == 32001
    assert dict(zip(IDS, found["ids"], strict=True)) == IDS
    assert found["with bos"] == [1, 15043]
    assert found["question"] == QUESTION
    assert found["answered"] == [*QUESTION, 18567, 2]
    assert found["longest"] == 2048
    assert found["padding"] == "left"


def test_transformers_4_cannot_read_an_empty_unknown_token(old: list[dict[str, Any]]) -> None:
    assert old[2] == {"error": "RecursionError"}


def test_transformers_5_reads_it(llama: Path) -> None:
    made = AutoTokenizer.from_pretrained(llama, local_files_only=True)
    special = (made.bos_token_id, made.eos_token_id, made.unk_token_id, made.pad_token_id)
    assert special == (1, 2, 0, 32000)
    assert len(made) == 32001
    assert made.model_max_length == 2048
    found = {text: made(text, add_special_tokens=False)["input_ids"] for text in IDS}
    assert found == IDS
    assert made("Hello")["input_ids"] == [1, 15043]
    told = [message.model_dump() for message in MESSAGES]
    question: Any = made.apply_chat_template(told[:1], add_generation_prompt=True)
    assert question["input_ids"] == QUESTION
    assert question["input_ids"][-1] == 13
    answered: Any = made.apply_chat_template(told)
    assert answered["input_ids"] == [*QUESTION, 18567, 2]


def test_the_prompt_is_the_same_in_the_template(llama: Path) -> None:
    tokenizer = Tokenizer.load(llama)
    assert encode_chat(MESSAGES[:1], tokenizer, generation=True) == QUESTION
    assert encode_chat(MESSAGES, tokenizer) == [*QUESTION, 18567, 2]
    assert tokenizer.chat_template == TULU_CHAT_TEMPLATE


def test_transformers_5_cannot_read_empty_special_tokens(tmp_path: Path) -> None:
    folder = pieces.write(tmp_path / "diff")
    write(folder, {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", **EMPTY}})
    with pytest.raises(RecursionError):
        AutoTokenizer.from_pretrained(folder, local_files_only=True)
    made = planned(folder, rows=SIZE, base=SIZE)
    loaded = Tokenizer.load(written(made, tmp_path / "out"))
    assert (loaded.bos, loaded.eos, loaded.pad) == (1, 2, 0)


def test_the_published_files_are_there(llama: Path) -> None:
    model = (LLAMA / "tokenizer.model").read_bytes()
    assert (llama / "tokenizer.model").read_bytes() == model
    named = {**NAMED, "pad_token": "<pad>"}
    assert json.loads((llama / "special_tokens_map.json").read_text()) == named
    assert json.loads((llama / "added_tokens.json").read_text()) == {"<pad>": 32000}


@pytest.fixture(scope="module")
def both(llama: Path) -> tuple[Any, Any]:
    fast = tokenizers.Tokenizer.from_file(str(llama / "tokenizer.json"))
    fast.encode_special_tokens = True  # as text, which SentencePiece takes them for
    model = sentencepiece.SentencePieceProcessor(model_file=str(llama / "tokenizer.model"))
    return fast, model


def test_tokenizer_json_puts_bos_before_each_text(both: tuple[Any, Any]) -> None:
    fast, _ = both
    assert fast.encode("Hello").ids == [1, 15043]
    assert fast.encode("Hello", "Hello").ids == [1, 15043, 1, 15043]


@example("<pad> </s>x")
@given(st.text(st.sampled_from("  \n\taeé—①ﬁ鯨🐋|<17.'\0") | st.characters(codec="utf-8")))
@settings(deadline=None, max_examples=300)
def test_tokenizer_json_gives_the_ids_of_sentencepiece(both: tuple[Any, Any], text: str) -> None:
    fast, model = both
    ids = model.encode(text)
    assert fast.encode(text, add_special_tokens=False).ids == ids
    assert fast.decode(ids) == model.decode(ids) or "\ufffd" in text or "▁" in text


# --- the pad token ------------------------------------------------------------------------------

# fmt: off
PADS: dict[str, tuple[dict[str, Any], int, str, int, str]] = {  # files, rows, text, id, from
    "added tokens":   ({"added_tokens.json": {"<pad>": PAD}}, 1,
                       "<pad>", PAD, "the pad token of the files"),
    "Alpaca's":       ({"added_tokens.json": {"[PAD]": PAD}}, 1,
                       "[PAD]", PAD, "the pad token of the files"),
    "a row behind it": ({"added_tokens.json": {"[PAD]": PAD}}, 2,
                       "[PAD]", PAD, "the pad token of the files"),
    "map":            ({"special_tokens_map.json": {"pad_token": "<x>"}}, 1,
                       "<x>", PAD, "the pad token of the files"),
    "map with added": ({"special_tokens_map.json": {"pad_token": {"content": "<y>"}},
                        "added_tokens.json": {"<x>": PAD, "<y>": PAD + 1}}, 2,
                       "<y>", PAD + 1, "the pad token of the files"),
    "decoder":        ({"tokenizer_config.json": {"pad_token": "<x>", "added_tokens_decoder":
                        {"0": {"content": "<unk>"}, str(PAD): {"content": "<x>"}}}}, 1,
                       "<x>", PAD, "the pad token of the files"),
    "nothing":        ({}, 1, "<pad>", PAD, "the row without a token"),
    "a piece":        ({"special_tokens_map.json": {"pad_token": "</s>"}}, 1,
                       "</s>", 2, "the pad token of the files"),
    "empty":          ({"added_tokens.json": {"": PAD}}, 1,
                       "<pad>", PAD, "the row without a token"),
    "no row":         ({}, 0, "<unk>", 0, "the unknown token"),
    "named, no row":  ({"special_tokens_map.json": {"pad_token": "[PAD]"}}, 0,
                       "<unk>", 0, "the unknown token"),
    "two rows":       ({}, 2, "<unk>", 0, "the unknown token"),
    "another token":  ({"added_tokens.json": {"<x>": PAD}}, 1,
                       "<unk>", 0, "the unknown token"),
}
# fmt: on


@pytest.mark.parametrize("case", PADS)
def test_the_pad_token(small: Path, tmp_path: Path, case: str) -> None:
    files, extra, text, number, rule = PADS[case]
    made = planned(write(small, files), rows=SIZE + extra, base=SIZE)
    assert made.special == {"bos": 1, "eos": 2, "unk": 0, "pad": number}
    assert made.facts["pad"] == rule
    assert made.facts["dropped"] == []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert read(made, name)["pad_token"] == text
    assert made.align_config(CONFIG)["pad_token_id"] == number
    loaded = AutoTokenizer.from_pretrained(written(made, tmp_path / "out"), local_files_only=True)
    assert loaded.pad_token_id == number
    assert loaded.convert_tokens_to_ids(text) == number


def test_an_added_end_is_the_end(small: Path) -> None:
    write(small, {"added_tokens.json": {"<end>": PAD}, "special_tokens_map.json": {**EMPTY}})
    write(small, {"tokenizer_config.json": {"eos_token": "<end>", "bos_token": "</s>"}})
    assert planned(small, rows=SIZE + 1, base=SIZE).special == {
        "bos": 2,
        "eos": PAD,
        "unk": 0,
        "pad": 0,
    }


def test_flags_of_added_tokens_stay(small: Path) -> None:
    decoder = {str(PAD): {"content": "<x>", "lstrip": True, "special": False}}
    write(small, {"tokenizer_config.json": {"added_tokens_decoder": decoder}})
    made = planned(small, rows=SIZE + 1, base=SIZE)
    entry = read(made, "tokenizer.json")["added_tokens"][-1]
    assert (entry["id"], entry["lstrip"], entry["special"]) == (PAD, True, False)
    assert "additional_special_tokens" not in read(made, "special_tokens_map.json")


def test_special_tokens_without_a_role_stay_special(small: Path) -> None:
    more = {"additional_special_tokens": ["<a>", {"content": "<b>"}, ""]}
    made = planned(write(small, {"special_tokens_map.json": more}), rows=SIZE + 2, base=SIZE)
    assert read(made, "added_tokens.json") == {"<a>": PAD, "<b>": PAD + 1}
    assert read(made, "special_tokens_map.json")["additional_special_tokens"] == ["<a>", "<b>"]


# --- what else is written -----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [SIZE, SIZE + 1])
def test_dropped_tokens_are_in_no_file(small: Path, tmp_path: Path, rows: int) -> None:
    made = planned(write(small, TULU), rows=rows, base=SIZE, drop=True)
    assert made.special == {"bos": 1, "eos": 2, "unk": 0, "pad": 0}
    assert made.facts["dropped"] == ["<pad>"]
    assert made.facts["pad"] == "the unknown token"
    assert made.facts["tokens"] == SIZE
    assert "added_tokens.json" not in made.files
    assert not any(b"<pad>" in content for content in made.files.values())
    loaded = AutoTokenizer.from_pretrained(written(made, tmp_path / "out"), local_files_only=True)
    assert len(loaded) == SIZE


@pytest.mark.parametrize(
    ("told", "positions", "written"),
    [
        (1e30, 2048, 2048),
        (10**30, 2048, 2048),
        (512, 2048, 512),
        (4096, 2048, 4096),
        (None, 2048, 2048),
        (0, 2048, 2048),
        (True, 2048, 2048),
        ("512", 2048, 2048),
        (512, None, 512),
        (1e30, None, None),
        (10**30, None, None),
    ],
)
def test_the_longest_text(small: Path, told: object, positions: object, written: object) -> None:
    write(small, {"tokenizer_config.json": {"model_max_length": told}})
    config = {"max_position_embeddings": positions}
    made = plan_tokenizer([small], SIZE, SIZE, drop=False, config=config, template="auto")
    assert read(made, "tokenizer_config.json").get("model_max_length") == written


@pytest.mark.parametrize(
    ("files", "template", "expected", "fact"),
    [
        (TULU, "auto", TULU_CHAT_TEMPLATE, "tulu"),
        ({"special_tokens_map.json": {"pad_token": "<pad>"}}, "auto", TULU_CHAT_TEMPLATE, "tulu"),
        ({"added_tokens.json": {"[PAD]": PAD}}, "auto", None, None),
        ({}, "auto", None, None),
        ({**TULU, "tokenizer_config.json": {"chat_template": "own"}}, "auto", "own", "own"),
        (
            {**TULU, "tokenizer_config.json": {"chat_template": ""}},
            "auto",
            TULU_CHAT_TEMPLATE,
            "tulu",
        ),
        ({"tokenizer_config.json": {"chat_template": "own"}}, "tulu", TULU_CHAT_TEMPLATE, "tulu"),
        ({"tokenizer_config.json": {"chat_template": "own"}}, "none", None, None),
        (TULU, "none", None, None),
    ],
)
def test_the_chat_template(
    small: Path, files: dict[str, Any], template: TemplateOption, expected: object, fact: object
) -> None:
    made = planned(write(small, files), rows=SIZE + 1, base=SIZE, template=template)
    assert read(made, "tokenizer_config.json").get("chat_template") == expected
    assert made.facts["chat_template"] == fact


def test_a_template_in_a_file_of_its_own_counts(small: Path) -> None:
    (small / "chat_template.jinja").write_text("own é", encoding="utf-8")
    made = planned(write(small, TULU), rows=SIZE + 1, base=SIZE)
    assert read(made, "tokenizer_config.json")["chat_template"] == "own é"
    assert "chat_template.jinja" not in made.files


def test_an_empty_template_is_none(small: Path) -> None:
    (small / "chat_template.jinja").write_text("", encoding="utf-8")
    assert planned(write(small, TULU), rows=SIZE + 1, base=SIZE).facts["chat_template"] == "tulu"


def test_two_tokens_or_an_older_pad_are_not_tulus(small: Path) -> None:
    write(small, {"added_tokens.json": {"<pad>": PAD, "<x>": PAD + 1}})
    assert planned(small, rows=SIZE + 2, base=SIZE).facts["chat_template"] is None
    assert planned(small, rows=SIZE + 2, base=SIZE + 1).facts["chat_template"] is None
    assert planned(small, rows=SIZE + 2, base=SIZE + 2).facts["chat_template"] is None


def test_a_dropped_pad_still_tells_of_tulu(small: Path) -> None:
    made = planned(write(small, TULU), rows=SIZE + 1, base=SIZE, drop=True)
    assert made.facts["chat_template"] == "tulu"


def test_the_base_gives_what_the_diff_lacks(small: Path, tmp_path: Path) -> None:
    write(tmp_path, {"special_tokens_map.json": {"pad_token": "<pad>"}})
    made = planned(tmp_path, write(small, TULU), rows=SIZE + 1, base=SIZE)
    facts = {
        "from": "diff",
        "source": "base",
        "form": "tokenizer.json made from tokenizer.model",
        "tokens": SIZE + 1,
        "pad": "the pad token of the files",
        "dropped": [],
        "chat_template": None,
    }
    assert facts.items() <= made.facts.items()
    assert read(made, "added_tokens.json") == {"<pad>": PAD}


def test_without_a_tokenizer_nothing_is_written(tmp_path: Path) -> None:
    made = planned(tmp_path, rows=SIZE + 1, base=SIZE, template="tulu")
    assert (made.files, made.special, made.facts) == ({}, {}, {"from": None})
    config = {"bos_token_id": 1, "eos_token_id": [2, SIZE + 1], "pad_token_id": -1, "x": 5}
    assert made.align_config(config) == {**config, "eos_token_id": 2, "pad_token_id": None}
    assert made.align_config({"x": 5}) == {"x": 5}
    assert made.generation_config(None) == {}


def test_configs_agree(small: Path) -> None:
    made = planned(write(small, TULU), rows=SIZE + 1, base=SIZE)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
    assert made.generation_config(None) == ids
    for told in (0, -1, None, True, "2", [2, "x"], [5], SIZE + 1):
        config = dict.fromkeys(ids, told) | {"vocab_size": 5}
        assert made.align_config(config) == {**ids, "vocab_size": 5}
    assert made.align_config({"eos_token_id": [2, 7]})["eos_token_id"] == [2, 7]
    assert made.align_config({"eos_token_id": [2, 7, SIZE + 1]})["eos_token_id"] == [2, 7]
    existing = {
        "_from_model_config": True,
        "transformers_version": "4.28",
        "temperature": 0.5,
        "pad_token_id": 0,
    }
    assert made.generation_config(existing) == {"temperature": 0.5, **ids}


# --- tokenizers of another kind -----------------------------------------------------------------

PICO_SIZE = 259


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A complete byte-level tokenizer with an added token behind its vocabulary."""
    folder = tmp_path / "other"
    folder.mkdir()
    pico.write_tokenizer(folder)
    fast = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    fast["added_tokens"].append({"id": PICO_SIZE, "content": "<pad>", "special": True, **flags})
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["pad_token"] = "<pad>"
    return write(folder, {"tokenizer.json": fast, "tokenizer_config.json": config})


def changed(folder: Path, **entries: Any) -> Path:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | entries
    return write(folder, {path.name: {k: v for k, v in config.items() if v is not ...}})


def rewritten(made: TokenizerPlan, folder: Path) -> set[str]:
    return {name for name, content in made.files.items() if content != (folder / name).read_bytes()}


def test_a_complete_tokenizer_is_kept_byte_for_byte(other: Path) -> None:
    (other / "chat_template.jinja").write_text("own", encoding="utf-8")
    write(other, {"special_tokens_map.json": {"pad_token": "<pad>"} | NAMED})
    made = planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE)
    assert made.files.keys() == {path.name for path in other.iterdir()}
    assert rewritten(made, other) == set()
    assert made.special == {"bos": 1, "eos": 2, "unk": 0, "pad": PICO_SIZE}
    assert made.facts["chat_template"] == "own"


def test_its_dropped_tokens_are_in_no_file(other: Path, tmp_path: Path) -> None:
    write(other, {"added_tokens.json": {"<pad>": PICO_SIZE}})
    write(other, {"special_tokens_map.json": {"pad_token": "<pad>", **NAMED}})
    decoder = {"0": {"content": "<unk>"}, str(PICO_SIZE): {"content": "<pad>"}}
    more = ["<pad>", "<s>"]
    changed(other, added_tokens_decoder=decoder, additional_special_tokens=more)
    made = planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE, drop=True, template="none")
    assert made.special["pad"] == 0
    assert not any(b"<pad>" in content for content in made.files.values())
    assert read(made, "tokenizer_config.json")["additional_special_tokens"] == ["<s>"]
    loaded = AutoTokenizer.from_pretrained(written(made, tmp_path / "out"), local_files_only=True)
    assert (len(loaded), loaded.pad_token_id) == (PICO_SIZE, 0)


def test_a_list_of_added_tokens_is_completed(other: Path) -> None:
    changed(other, added_tokens_decoder={"0": {"content": "<unk>"}, "1": {"content": ""}})
    made = planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE)
    decoder = read(made, "tokenizer_config.json")["added_tokens_decoder"]
    assert {number: token["content"] for number, token in decoder.items()} == {
        "0": "<unk>",
        str(PICO_SIZE): "<pad>",
    }


def test_padding_with_a_dropped_token_goes(other: Path) -> None:
    fast = tokenizers.Tokenizer.from_file(str(other / "tokenizer.json"))
    fast.enable_padding(pad_id=PICO_SIZE, pad_token="<pad>")
    fast.save(str(other / "tokenizer.json"))
    made = planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE, drop=True)
    assert read(made, "tokenizer.json")["padding"] is None


def test_only_a_missing_pad_is_added(base: Path) -> None:
    made = planned(base, rows=PICO_SIZE + 9, base=PICO_SIZE + 9)
    assert rewritten(made, base) == {"tokenizer_config.json"}
    before = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert read(made, "tokenizer_config.json") == before | {"pad_token": "<unk>"}


def test_the_row_without_a_token_is_the_pad(base: Path, tmp_path: Path) -> None:
    made = planned(base, rows=PICO_SIZE + 1, base=PICO_SIZE)
    assert made.special["pad"] == PICO_SIZE
    assert made.facts["pad"] == "the row without a token"
    loaded = AutoTokenizer.from_pretrained(written(made, tmp_path / "out"), local_files_only=True)
    assert loaded("<pad>", add_special_tokens=False)["input_ids"] == [PICO_SIZE]


def test_special_tokens_that_are_not_there_go(other: Path) -> None:
    changed(other, bos_token="", mask_token="<nope>", sep_token=None)
    made = planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE)
    config = read(made, "tokenizer_config.json")
    assert not {"bos_token", "mask_token"} & config.keys()
    assert config["sep_token"] is None
    assert made.special == {"eos": 2, "unk": 0, "pad": PICO_SIZE}


def test_the_file_that_loaders_believe_counts(other: Path) -> None:
    write(other, {"special_tokens_map.json": {**NAMED, "eos_token": "<s>"}})
    assert planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE).special["eos"] == 1
    changed(other, added_tokens_decoder={})
    made = planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE)
    assert made.special["eos"] == 2
    assert read(made, "special_tokens_map.json")["eos_token"] == "</s>"


def test_what_is_no_text_stays_as_it_was(other: Path) -> None:
    changed(other, note="\ud800é", auto_map={})
    made = planned(changed(other, tokenizer_class=...), rows=PICO_SIZE + 1, base=PICO_SIZE)
    assert read(made, "tokenizer_config.json")["note"] == "\ud800é"


def test_code_is_not_asked_for(other: Path, tmp_path: Path) -> None:
    changed(other, tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    made = planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE)
    config = read(made, "tokenizer_config.json")
    assert "auto_map" not in config
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("name", ["TokenizersBackend", ...])
def test_the_class_is_one_that_both_generations_have(other: Path, name: object) -> None:
    changed(other, tokenizer_class=name, model_input_names=...)
    made = planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE)
    config = read(made, "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


def test_a_template_replaces_both_of_its_own(other: Path) -> None:
    (other / "chat_template.jinja").write_text("own", encoding="utf-8")
    changed(other, chat_template="older")
    made = planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE, template="tulu")
    assert "chat_template.jinja" not in made.files
    assert read(made, "tokenizer_config.json")["chat_template"] == TULU_CHAT_TEMPLATE
    none = planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE, template="none")
    assert "chat_template.jinja" not in none.files
    assert "chat_template" not in read(none, "tokenizer_config.json")


def test_sentencepiece_of_another_kind_needs_tokenizer_json(other: Path) -> None:
    (other / "tokenizer.model").write_bytes(pieces.model(298, "unigram"))
    made = planned(other, rows=PICO_SIZE + 1, base=PICO_SIZE, template="none")
    assert rewritten(made, other) == set()
    assert "tokenizer.model" in made.files


# --- whatever the files say ---------------------------------------------------------------------

ODD: st.SearchStrategy[Any] = st.sampled_from(
    ["", None, "<pad>", "[PAD]", "<s>", "</s>", "<unk>", {}, {"content": ""}, {"content": None}]
    + [{"content": "<pad>"}, 0, [], "\ud800", " ", "ship"]
)
NUMBER = st.sampled_from(
    [PAD, PAD + 1, PAD - 1, 0, 2, -1, None, True, "0", str(PAD), "x", "²", 1e9]
)
NAMES = [f"{role}_token" for role in ("bos", "eos", "unk", "pad")]
SINGLES = st.dictionaries(st.sampled_from(NAMES), ODD)
MORE = st.fixed_dictionaries(
    {},
    optional={
        "additional_special_tokens": st.none() | st.lists(ODD, max_size=2) | SINGLES,
        "extra_special_tokens": st.lists(ODD, max_size=2) | SINGLES,
        "added_tokens_decoder": st.none()
        | st.dictionaries(NUMBER.map(str), ODD, max_size=2)
        | st.lists(ODD, max_size=1),
        "model_max_length": st.sampled_from([1e30, None, "x", 10**400]),
        "chat_template": st.sampled_from([None, "", "x", [], ["x"], {"name": "x"}]),
        "tokenizer_class": st.sampled_from([None, "LlamaTokenizer", "LlamaTokenizerFast"]),
    },
)
TOKEN = st.sampled_from(["", "<pad>", "[PAD]", "<s>", "<x>", "\ud800"])
FILES = st.fixed_dictionaries(
    {},
    optional={
        "tokenizer_config.json": st.builds(lambda a, b: a | b, SINGLES, MORE),
        "special_tokens_map.json": st.builds(lambda a, b: a | b, SINGLES, MORE),
        "added_tokens.json": st.dictionaries(TOKEN, NUMBER, max_size=2),
    },
)


def works(sources: Sequence[Path], rows: int, base: int, *, drop: bool) -> None:
    """It ends in a problem of one line, or in a tokenizer whose ids all have a row."""
    try:
        made = planned(*sources, rows=rows, base=base, drop=drop)
    except Problem as problem:
        assert len(str(problem).splitlines()) == 1
        assert str(sources[0]) in problem.message
        return
    with TemporaryDirectory() as place:
        loaded = Tokenizer.load(written(made, Path(place) / "out"))
    found = {"bos": loaded.bos, "eos": loaded.eos, "pad": loaded.pad}
    assert found == {role: made.special.get(role) for role in found}
    assert len(loaded) <= made.rows
    assert max(loaded.encode_document("whale <pad></s>")) < made.rows


@given(FILES, st.sampled_from([0, 1, 2]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_llamas_kind_works_or_is_refused(files: dict[str, Any], extra: int, drop: bool) -> None:
    with TemporaryDirectory() as place:
        folder = write(pieces.write(Path(place) / "diff"), files)
        works([folder], SIZE + extra, SIZE, drop=drop)


@given(FILES, st.sampled_from([0, 1, 90]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_another_kind_works_or_is_refused(files: dict[str, Any], extra: int, drop: bool) -> None:
    with TemporaryDirectory() as place:
        pico.write_tokenizer(Path(place))
        works([write(Path(place), files)], PICO_SIZE + extra, PICO_SIZE, drop=drop)


def test_a_hub_copy_stays_as_it_is() -> None:
    folder = ROOT / ".models/SmolLM2-135M-Instruct"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; make it: python tests/models/smollm2.py {folder}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    made = plan_tokenizer([folder], 49152, 49152, drop=False, config=config, template="auto")
    assert rewritten(made, folder) == set()
    assert made.align_config(config) == config


def test_the_source_is_left_alone(small: Path) -> None:
    before = shutil.copytree(small, small.parent / "before")
    planned(small, rows=SIZE + 1, base=SIZE)
    assert {path.name: path.read_bytes() for path in small.iterdir()} == {
        path.name: path.read_bytes() for path in before.iterdir()
    }
