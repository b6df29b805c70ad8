"""The real models behind other tests: converted right, or skipped where they are not there."""

import os
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / ".models"

QUESTION = "The capital of France is"
QUESTION_IDS = [504, 3575, 282, 4649, 314]
LOGITS = [1.6168, -11.8701, -7.9472, -9.3432]  # ids 0-3 at the last position, fp32
TOLERANCE = 2e-3

BLANK = "\u2581"

TULU = "<|user|>\nHello!\n<|assistant|>\n"
IDS = {  # what LLaMA's tokenizer makes of it, without BOS
    "Hello world": [15043, 3186],
    "\n": [29871, 13],
    TULU: [
        *(529, 29989, 1792, 29989, 29958, 13),
        *(10994, 29991, 13),
        *(29966, 29989, 465, 22137, 29989, 29958, 13),
    ],
}
TEXTS = (
    *IDS,
    "",
    " ",
    "   three blanks, then  two",
    "a\ttab, a line\r\nbreak and\n\n\ttwo more\n",
    "def f(x):\n    return 3.14159 * x ** 2  # 1,000,000\n",
    "naïve façade, Straße, ελληνικά, русский, العربية, हिन्दी, 日本語",
    "\U0001f42a\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2581 \x00\x7f\ufffd",
)


def folder(variable: str, name: str, script: str) -> Path:
    """Return a model's folder, or skip the test with the command that makes it."""
    path = Path(os.environ.get(variable, MODELS / name))
    if not path.is_dir():
        pytest.skip(f"{path} is not there; make it: python tests/models/{script} {path}")
    return path


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return folder("CAMELPRESS_SMOLLM2", "SmolLM2-135M-Instruct", "smollm2.py")


@pytest.fixture(scope="module")
def llama() -> Path:
    return folder("CAMELPRESS_LLAMA_TOKENIZER", "llama-tokenizer", "llama_tokenizer.py")


@pytest.fixture(scope="module")
def loaded(llama: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(llama)
    return tokenizer


@pytest.fixture(scope="module")
def pieces(llama: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(llama / "tokenizer.model"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# SmolLM2


@pytest.mark.usefixtures("one_thread")
def test_smollm2_continues_a_sentence(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    assert tokenizer.encode(QUESTION).ids == QUESTION_IDS

    model = LlamaForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with torch.inference_mode():
        last = model(torch.tensor([QUESTION_IDS]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(last[:4], torch.tensor(LOGITS), rtol=0, atol=TOLERANCE)
    assert tokenizer.decode([int(last.argmax())]) == " Paris"


def test_smollm2_tokenizer_splits_digits_and_renders_chats(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    assert tokenizer(QUESTION).keys() == {"input_ids", "attention_mask"}
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2]
    chat = [{"role": "user", "content": "Hello!"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    assert text.endswith("<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(text).input_ids[0] == 1


# The LLaMA tokenizer


@pytest.mark.parametrize("text", IDS)
def test_llama_ids(
    text: str, loaded: PreTrainedTokenizerBase, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    assert loaded(text).input_ids == [1, *IDS[text]]
    assert loaded(text, add_special_tokens=False).input_ids == IDS[text]
    assert pieces.encode(text) == IDS[text]


@pytest.mark.parametrize("text", TEXTS)
def test_fast_and_sentencepiece_agree(
    text: str, llama: Path, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    fast = Tokenizer.from_file(str(llama / "tokenizer.json"))
    ids = fast.encode(text, add_special_tokens=False).ids
    assert ids == pieces.encode(text)
    assert fast.encode(text).ids == [1, *ids]
    if BLANK not in text:  # both read it as a blank
        assert fast.decode(ids) == pieces.decode(ids) == text


def test_fast_and_sentencepiece_hold_the_same_vocabulary(
    llama: Path, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    fast = Tokenizer.from_file(str(llama / "tokenizer.json"))
    assert [fast.id_to_token(i) for i in range(32_000)] == [
        pieces.id_to_piece(i) for i in range(32_000)
    ]
    assert fast.get_vocab_size() == pieces.get_piece_size() == 32_000


def test_special_tokens_in_text_are_special_in_one_form_only(
    loaded: PreTrainedTokenizerBase, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    ids = loaded("<s>x</s>", add_special_tokens=False).input_ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert not {1, 2} & set(pieces.encode("<s>x</s>"))


def test_pad_is_added_as_tulu_has_it(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    assert len(tokenizer) == 32_000
    assert tokenizer.add_special_tokens({"pad_token": "<pad>"}) == 1
    assert tokenizer.pad_token_id == 32_000
    assert len(tokenizer) == 32_001


# The scripts


def script(name: str) -> dict[str, Any]:
    """Run a script's definitions, not its `main`."""
    if name == "smollm2.py":
        pytest.importorskip("gguf")
    return runpy.run_path(str(HERE / name))


@pytest.mark.parametrize("name", ["smollm2.py", "llama_tokenizer.py", "old_transformers.py"])
def test_a_folder_that_is_there_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    script(name)["main"]([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("name", "file"),
    [("smollm2.py", "model.safetensors"), ("llama_tokenizer.py", "llama-tokenizer-js-1.2.2.tgz")],
)
def test_other_bytes_are_named_with_both_hashes(name: str, file: str, tmp_path: Path) -> None:
    made = script(name)
    pinned = made["SHA256"] if isinstance(made["SHA256"], str) else made["SHA256"][file]
    (tmp_path / file).touch()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(SystemExit) as stopped:
        made["verify"](tmp_path / file)
    assert stopped.value.code == f"{file}: sha256 expected {pinned}, found {empty}"


def test_without_npm_the_script_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        script("llama_tokenizer.py")["main"]([str(tmp_path / "out")])
    assert stopped.value.code == 3
    said = capsys.readouterr().err
    assert said.startswith("npm is not installed") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_tensor_names() -> None:
    rename = script("smollm2.py")["rename"]
    q = "model.layers.12.self_attn.q_proj.weight"
    assert rename("blk.12.attn_q.weight") == ("blk.*.attn_q", q)
    assert rename("output_norm.weight") == ("output_norm", "model.norm.weight")
    with pytest.raises(SystemExit, match="'blk.0.attn_q.bias', which is in no row"):
        rename("blk.0.attn_q.bias")


def test_half_split_undoes_the_interleaving() -> None:
    rows = torch.arange(2 * 6)[:, None].numpy()  # two heads of six rows: x0 x1 x2 y0 y1 y2
    interleaved = rows.reshape(2, 2, 3, 1).swapaxes(1, 2).reshape(12, 1)
    assert interleaved[:6, 0].tolist() == [0, 3, 1, 4, 2, 5]
    assert (script("smollm2.py")["half_split"](interleaved, 2) == rows).all()
