"""A recovered tokenizer gives the ids of the diff's own, on joined text and near special tokens."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.utils import logging

import pico
import pieces
from camelpress.convert.tokenizer.tokenizer_plan import TokenizerPlan, plan_tokenizer
from camelpress.core.errors import CheckpointProblem
from camelpress.core.progress import use_listener
from notes import Notes

ROOT = Path(__file__).parents[2]
OLD = ROOT / ".models/transformers-4"
SIZE = pieces.SIZE
CONFIG = {"model_type": "llama", "max_position_embeddings": 256}
STATED = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": True,
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
TEXTS = [
    "the whale and the white ship",
    "the old man\nof the sea,\r\n\n\tsees  a   ship ",
    "Größe, где ещё, 海上の船, سفينة, जहाज़ 1234567 🐋👩\u200d👧",
    "\ufb01 \u2460 \uff46\uff55 e\u0301 Vie\u0323\u0302t \u00a0\u3000x",
    "seashipseashipwhaleseeee!!! ooo<<>>",
]
FRAMED = [
    "<s>ship to sea",
    "ship</s>whale",
    "sea</s> <s>ship see",
    "the<|a|>white <|a|> whale [word] of",
    "ship[word]s",
    "old </s>\n\nman",
    "<unk>go",
]


@pytest.fixture(autouse=True)
def quiet() -> None:
    """No warning of transformers about files that are meant to be odd."""
    logging.set_verbosity_error()


def write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def stated(place: Path, model: bytes | None = None, **entries: Any) -> Path:
    """A tokenizer.model and a tokenizer_config.json with these settings; `...` leaves one out."""
    config = {key: value for key, value in (STATED | entries).items() if value is not ...}
    folder = pieces.write(place, model)
    return write(folder, {"tokenizer_config.json": config, "config.json": CONFIG})


def planned(*sources: Path, rows: int, base: int | None = None, drop: bool = False) -> Any:
    base = rows if base is None else base
    return plan_tokenizer(sources, rows, base, drop=drop, config=CONFIG, template="auto")


def written(made: TokenizerPlan, folder: Path) -> Path:
    folder.mkdir()
    made.write(folder)
    return write(folder, {"config.json": CONFIG})


def ids(folder: Path, texts: list[str]) -> list[Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [
        [tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]]
        for text in texts
    ]


def changes(made: TokenizerPlan) -> dict[str, tuple[Any, Any, str]]:
    return {
        each["setting"]: (each["old"], each["new"], each["reason"])
        for each in made.facts["changes"]
    }


# --- SentencePiece's ids ------------------------------------------------------------------------

# fmt: off
KINDS: dict[str, bytes] = {
    "LLaMA's":         pieces.model(),
    "OpenLLaMA's":     pieces.model(normalization_rule_name="nmt_nfkc",
                                    remove_extra_whitespaces=True),
    "case folded":     pieces.model(normalization_rule_name="nmt_nfkc_cf"),
    "blanks removed":  pieces.model(remove_extra_whitespaces=True),
    "no blank before": pieces.model(add_dummy_prefix=False),
    "no bytes":        pieces.model(80, byte_fallback=False),
    "own symbols":     pieces.model(user_defined_symbols="<sep>,[x],  "),
    "unigram":         pieces.model(298, "unigram"),
    "unigram, NFKC":   pieces.model(298, "unigram", normalization_rule_name="nfkc",
                                    remove_extra_whitespaces=True),
    "digits split":    pieces.model(split_digits=True),
    "no BOS":          pieces.model(bos=-1),
    "equal scores":    pieces.merged({"zq": 0, "wz": 0, "qj": -3, "jz": -3, "qjz": -3}),
    "another's order": pieces.merged({"shipsea": -0.5, "zz": 9, "海上": 3, "海": -50, "上": -51}),
}
# fmt: on


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer of a recovered model as transformers loads it, and SentencePiece's own."""
    place = tmp_path_factory.mktemp("kind")
    content = KINDS[request.param]
    model = pieces.reader(content)
    made = planned(stated(place / "diff", content), rows=model.get_piece_size())
    assert made.facts["form"] == "tokenizer.json made from tokenizer.model"
    folder = written(made, place / "out")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), model


def joins(model: Any) -> list[str]:
    words = [
        model.id_to_piece(number).replace("▁", " ")
        for number in range(min(259, len(model) - 20), len(model))
    ]
    mixed = random.Random(7)
    return ["x" + "".join(mixed.choices(words, k=60)) for _ in range(60)]


def test_joined_text_gets_sentencepieces_ids(kind: Any) -> None:
    tokenizer, model = kind
    for text in [*TEXTS, *joins(model), "zqzqj wzqjz qjzqj zzzz", "上海海上 shipseaship"]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == model.encode(text), text


@given(text=st.text(st.sampled_from("the ship sea,\n\té—鯨🐋<17.'") | st.characters(codec="utf-8")))
@settings(deadline=None, max_examples=60)
def test_any_text_gets_the_ids_of_llamas_kind(text: str, llama: Any) -> None:
    tokenizer, model = llama
    ids = tokenizer("x" + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == model.encode("x" + text)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As `kind`, of LLaMA's."""
    place = tmp_path_factory.mktemp("llama")
    made = planned(stated(place / "diff"), rows=SIZE)
    folder = written(made, place / "out")
    return AutoTokenizer.from_pretrained(folder), pieces.reader(pieces.model())


# fmt: off
UNEQUALLED = {
    "equal scores in a circle": pieces.merged({"zq": 0, "qz": 0}),
    "blank behind a word":      pieces.model(treat_whitespace_as_suffix=True),
    "letters it does not have": pieces.merged({"海上": 3}),
    "words":                    pieces.model(30, "word", byte_fallback=False),
}
# fmt: on


@pytest.mark.parametrize("name", UNEQUALLED)
def test_a_model_that_no_fast_tokenizer_equals_is_kept_alone(tmp_path: Path, name: str) -> None:
    content = UNEQUALLED[name]
    diff = stated(tmp_path / "diff", content, pad_token="</s>")
    notes = Notes()
    with use_listener(notes):
        made = planned(diff, rows=len(pieces.reader(content)))
    assert made.facts["form"] == "tokenizer.model alone, as no fast tokenizer gives its ids"
    assert any(f"{diff / 'tokenizer.model'}: no fast tokenizer" in note for note in notes.heard)
    kept = ("tokenizer.model", "tokenizer_config.json")
    assert made.files == {name: (diff / name).read_bytes() for name in kept}


def test_rare_marks_that_the_library_composes_otherwise_are_counted(tmp_path: Path) -> None:
    content = KINDS["OpenLLaMA's"]
    notes = Notes()
    with use_listener(notes):
        made = planned(stated(tmp_path / "diff", content), rows=len(pieces.reader(content)))
    compared = made.facts["sentencepiece"]
    assert 0 < compared["mismatches"] < compared["texts"] / 10
    assert any(f"but {compared['mismatches']}, which hold rare marks" in n for n in notes.heard)


# --- settings that the diff states --------------------------------------------------------------

FLAGS = {"lstrip": True, "rstrip": True, "single_word": True, "normalized": True, "special": False}
DECODER = {str(SIZE): {"content": "<|a|>"}, str(SIZE + 1): {"content": "[word]", **FLAGS}}
# fmt: off
SETTINGS: dict[str, dict[str, Any]] = {
    "plain":             {},
    "legacy false":      {"legacy": False},
    "no BOS":            {"add_bos_token": False},
    "EOS":               {"add_eos_token": True, "legacy": False},
    "EOS alone":         {"add_eos_token": True, "add_bos_token": False},
    "no blank before":   {"add_prefix_space": False, "legacy": False},
    "no blank, legacy":  {"add_prefix_space": False},
    "blank before":      {"add_prefix_space": True, "legacy": False},
    "padding right":     {"padding_side": "right", "truncation_side": "left"},
    "longer texts":      {"model_max_length": 4096},
    "added tokens":      {"added_tokens_decoder": DECODER, "legacy": False},
    "end as pad":        {"pad_token": "</s>"},
    "another BOS":       {"bos_token": "</s>"},
    "tokens in objects": {"bos_token": {"__type": "AddedToken", "content": "<s>"}},
    "a word as a token": {"added_tokens_decoder": {"300": {"content": "PIECE", "special": True}}},
    "a word as the end": {"eos_token": "PIECE"},
    "flags of the end":  {"added_tokens_decoder": {"2": {"content": "</s>", "rstrip": True,
                          "special": True}}, "legacy": False},
}
# fmt: on
RENAMED = ("another BOS", "a word as the end")  # slow, `<s>` or `</s>` is no token there


def diff_of(name: str, place: Path) -> Path:
    piece = pieces.reader(pieces.model()).id_to_piece(300)
    text = json.dumps(SETTINGS[name]).replace("PIECE", piece)
    return stated(place, **json.loads(text))


@pytest.mark.parametrize("name", SETTINGS)
def test_stated_settings_give_the_ids_of_the_diffs_own(name: str, tmp_path: Path) -> None:
    diff = diff_of(name, tmp_path / "diff")
    made = planned(diff, rows=SIZE + 2, base=SIZE)
    out = written(made, tmp_path / "out")
    texts = [*TEXTS, *FRAMED, " ship", "  sea\n"]
    assert ids(out, texts) == ids(diff, texts)
    assert made.facts["transformers"]["mismatches"] == 0
    one, other = (AutoTokenizer.from_pretrained(each) for each in (diff, out))
    assert one.truncation_side == other.truncation_side
    assert one.padding_side == other.padding_side
    assert one.eos_token_id == other.eos_token_id
    if "model_max_length" in SETTINGS[name]:
        assert one.model_max_length == other.model_max_length


LOADS = r"""
import json, sys
from transformers import AutoTokenizer
from transformers.utils import logging
logging.set_verbosity_error()
texts, folders = json.load(sys.stdin)
made = [AutoTokenizer.from_pretrained(folder, use_fast=fast) for folder, fast in folders]
json.dump([[each(text)["input_ids"] for text in texts] for each in made], sys.stdout)
"""


def old_ids(folders: list[tuple[Path, bool]], texts: list[str]) -> list[list[list[int]]]:
    """The ids of transformers 4, of a folder's fast or slow tokenizer."""
    if not OLD.is_dir():
        pytest.skip(f"{OLD} is not there; make it: python tests/models/old_transformers.py {OLD}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADS],
        input=json.dumps([texts, [(str(folder), fast) for folder, fast in folders]]),
        env=os.environ | {"PYTHONPATH": str(OLD)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_transformers_4_gives_the_ids_of_the_diffs_own(tmp_path: Path) -> None:
    texts = [*TEXTS, *FRAMED]
    folders = []
    for number, name in enumerate(SETTINGS):
        diff = diff_of(name, tmp_path / f"diff{number}")
        out = written(planned(diff, rows=SIZE + 2, base=SIZE), tmp_path / f"out{number}")
        folders += [(diff, True), (out, True), (diff, False), (out, False)]
    found = old_ids(folders, texts)
    for number, name in enumerate(SETTINGS):
        fast, fast_out, slow, slow_out = found[4 * number : 4 * number + 4]
        assert fast_out == fast, name
        kept = [at for at, text in enumerate(texts) if name not in RENAMED or "s>" not in text]
        assert [slow_out[at] for at in kept] == [slow[at] for at in kept], name


def test_transformers_4_gives_sentencepieces_ids(tmp_path: Path) -> None:
    outs = []
    for number, content in enumerate(KINDS.values()):
        diff = stated(tmp_path / f"diff{number}", content, add_bos_token=False)
        made = planned(diff, rows=len(pieces.reader(content)))
        outs.append((written(made, tmp_path / f"out{number}"), True))
    found = old_ids(outs, TEXTS)
    for encoded, (name, content) in zip(found, KINDS.items(), strict=True):
        assert encoded == pieces.reader(content).encode(TEXTS), name


@pytest.mark.parametrize("legacy", [..., None, "yes"])
def test_a_setting_that_is_not_stated_is_filled_and_told(tmp_path: Path, legacy: Any) -> None:
    made = planned(stated(tmp_path / "diff", legacy=legacy, add_bos_token=...), rows=SIZE)
    config = json.loads(made.files["tokenizer_config.json"])
    assert (config["legacy"], config["add_bos_token"], config["add_eos_token"]) == (
        True,
        True,
        False,
    )
    told = changes(made)
    assert told["add_bos_token"] == (None, True, "not stated")
    assert told["legacy"][:2] == (None if legacy in (..., None) else legacy, True)
    assert told["model_max_length"] == (None, 256, "not stated")
    assert "add_eos_token" not in told


def test_a_token_that_is_not_there_is_told(tmp_path: Path) -> None:
    diff = stated(tmp_path / "diff", eos_token="<end>", auto_map={"AutoTokenizer": ["x.X", None]})
    told = changes(planned(diff, rows=SIZE))
    assert told["eos_token"] == ("<end>", "</s>", "the vocabulary has no such token")
    assert told["auto_map"][2] == "code of the source is not run"


def test_settings_that_no_one_here_knows_stay(tmp_path: Path) -> None:
    made = planned(stated(tmp_path / "diff", future={"a": [1]}, name_or_path="/x"), rows=SIZE)
    config = json.loads(made.files["tokenizer_config.json"])
    assert config["future"] == {"a": [1]}
    assert "name_or_path" not in config


# --- tokenizers that are kept -------------------------------------------------------------------


def saved(tmp_path: Path, **entries: Any) -> Path:
    """A folder as transformers 5 saves it, with a pad token and one more."""
    loaded = AutoTokenizer.from_pretrained(stated(tmp_path / "source", **entries))
    loaded.add_special_tokens({"pad_token": "<pad>", "extra_special_tokens": ["<|a|>"]})
    loaded.save_pretrained(tmp_path / "saved")
    return write(tmp_path / "saved", {"config.json": CONFIG})


@pytest.mark.parametrize("legacy", [True, False])
def test_a_tokenizer_json_beside_the_model_counts(tmp_path: Path, legacy: bool) -> None:
    diff = saved(tmp_path, legacy=legacy)
    (diff / "tokenizer.model").write_bytes(pieces.model())
    made = planned(diff, rows=SIZE + 2, base=SIZE)
    assert made.files["tokenizer.json"] == (diff / "tokenizer.json").read_bytes()
    out = written(made, tmp_path / "out")
    texts = [*TEXTS, *FRAMED, " ship"]
    assert ids(out, texts) == ids(diff, texts)
    assert made.facts["transformers"]["mismatches"] == 0
    fast, slow = old_ids([(out, True), (out, False)], ["sea<|a|>", "ship<pad>"])
    assert [each[-1] for each in fast] == [each[-1] for each in slow] == [SIZE + 1, SIZE]


def test_a_tokenizer_json_without_bos_gets_what_the_settings_state(tmp_path: Path) -> None:
    diff = saved(tmp_path, add_prefix_space=...)
    fast = json.loads((diff / "tokenizer.json").read_text(encoding="utf-8"))
    write(diff, {"tokenizer.json": fast | {"post_processor": None}})
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True}
    write(diff, {"tokenizer_config.json": config | {"pad_token": "<pad>"}})
    made = planned(diff, rows=SIZE + 2, base=SIZE)
    out = written(made, tmp_path / "out")
    assert changes(made)["post_processor"][2] == "as add_bos_token and add_eos_token state"
    new, (old,) = ids(out, TEXTS), old_ids([(diff, True)], TEXTS)
    assert [each[0] for each in new] == old
    assert old[0][0] == 1
    assert old[0][-1] == 2


@pytest.mark.parametrize("legacy", [True, False])
def test_empty_tokens_beside_a_tokenizer_json_are_mended(tmp_path: Path, legacy: bool) -> None:
    made = planned(stated(tmp_path / "good", legacy=legacy), rows=SIZE)
    diff = write(tmp_path / "diff", {"config.json": CONFIG})
    (diff / "tokenizer.json").write_bytes(made.files["tokenizer.json"])
    empty = {"bos_token": "", "eos_token": "", "unk_token": ""}
    write(diff, {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", **empty}})
    (diff / "tokenizer.model").write_bytes(pieces.model())
    mended = planned(diff, rows=SIZE)
    assert mended.special == {"bos": 1, "eos": 2, "unk": 0, "pad": 0}
    assert mended.facts["transformers"] is None
    out = written(mended, tmp_path / "out")
    assert ids(out, [*TEXTS, *FRAMED]) == ids(tmp_path / "good", [*TEXTS, *FRAMED])


@pytest.fixture
def bytewise(tmp_path: Path) -> Path:
    """A vocab.json and a merges.txt, as GPT-2 and Qwen have them."""
    pico.write_tokenizer(write(tmp_path / "pico", {}))
    model = json.loads((tmp_path / "pico/tokenizer.json").read_text(encoding="utf-8"))["model"]
    config = json.loads((tmp_path / "pico/tokenizer_config.json").read_text(encoding="utf-8"))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return write(
        tmp_path / "bytewise",
        {
            "vocab.json": model["vocab"],
            "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
            "tokenizer_config.json": config | {"tokenizer_class": "GPT2Tokenizer"},
            "config.json": CONFIG,
        },
    )


def test_vocabulary_and_merges_are_a_tokenizer(bytewise: Path, tmp_path: Path) -> None:
    base = stated(tmp_path / "base")
    size = len(json.loads((bytewise / "vocab.json").read_text(encoding="utf-8")))
    write(bytewise, {"added_tokens.json": {"<|a|>": size}})
    made = planned(bytewise, base, rows=size + 2, base=size)
    assert made.facts["source"] == "diff"
    assert "tokenizer.model" not in made.files
    for name in ("vocab.json", "merges.txt"):
        assert made.files[name] == (bytewise / name).read_bytes()
    assert made.special["pad"] == size + 1
    out = written(made, tmp_path / "out")
    assert ids(out, [*TEXTS, *FRAMED]) == ids(bytewise, [*TEXTS, *FRAMED])
    assert AutoTokenizer.from_pretrained(out).pad_token_id == size + 1


def test_the_bases_vocabulary_has_the_diffs_settings(tmp_path: Path) -> None:
    base = stated(tmp_path / "base")
    files = {
        "added_tokens.json": {"[PAD]": SIZE},
        "special_tokens_map.json": {"pad_token": "[PAD]"},
    }
    diff = write(tmp_path / "diff", files)
    notes = Notes()
    with use_listener(notes):
        made = planned(diff, base, rows=SIZE + 1, base=SIZE)
    assert f"{diff} has no tokenizer of its own: that of {base} is used" in notes.heard
    assert made.facts["source"] == "base"
    assert made.special["pad"] == SIZE


# --- ids without a row --------------------------------------------------------------------------


def test_a_pad_without_a_row_is_refused_and_dropped(tmp_path: Path) -> None:
    diff = stated(tmp_path / "diff")
    write(diff, {"added_tokens.json": {"<pad>": SIZE}})
    write(diff, {"special_tokens_map.json": {"pad_token": "<pad>"}})
    with pytest.raises(CheckpointProblem) as refused:
        planned(diff, rows=SIZE)
    assert "--extra-rows drop" in str(refused.value.next_step)
    notes = Notes()
    with use_listener(notes):
        made = planned(diff, rows=SIZE, drop=True)
    assert f"{diff}: without a row in the output, so left out: '<pad>'" in notes.heard
    assert (made.facts["dropped"], made.special["pad"]) == (["<pad>"], 0)
    assert made.facts["chat_template"] is None
    assert changes(made)["pad_token"] == ("<pad>", "<unk>", "the vocabulary has no such token")
    assert len(AutoTokenizer.from_pretrained(written(made, tmp_path / "out"))) == SIZE
    assert made.generation_config({"pad_token_id": SIZE, "eos_token_id": [2, SIZE]}) == {
        **{"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}
    }


def test_several_tokens_without_rows_are_dropped(tmp_path: Path) -> None:
    diff = saved(tmp_path)
    made = planned(diff, rows=SIZE, drop=True)
    assert made.facts["dropped"] == ["<pad>", "<|a|>"]
    assert not any(b"<pad>" in content or b"<|a|>" in content for content in made.files.values())
    out = written(made, tmp_path / "out")
    assert len(AutoTokenizer.from_pretrained(out)) == SIZE
    assert ids(out, TEXTS) == ids(diff, TEXTS)


def test_a_token_inside_the_vocabulary_of_tokenizer_json_is_dropped(tmp_path: Path) -> None:
    pico.write_tokenizer(write(tmp_path / "diff", {"config.json": CONFIG}))
    path = tmp_path / "diff/tokenizer.json"
    fast = json.loads(path.read_text(encoding="utf-8"))
    size = len(fast["model"]["vocab"])
    fast["model"]["vocab"]["<pad>"] = size
    fast["added_tokens"].append(fast["added_tokens"][0] | {"id": size, "content": "<pad>"})
    path.write_text(json.dumps(fast), encoding="utf-8")
    with pytest.raises(CheckpointProblem, match=f"gives '<pad>' the id {size}"):
        planned(path.parent, rows=size)
    made = planned(path.parent, rows=size, drop=True)
    assert made.facts["dropped"] == ["<pad>"]
    assert b"<pad>" not in made.files["tokenizer.json"]
    out = written(made, tmp_path / "out")
    assert ids(out, TEXTS) == ids(path.parent, TEXTS)
