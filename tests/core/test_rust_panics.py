"""Panics of Rust become one line, and nothing else that is written to stderr is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tokenizers

import pico
from camelpress.core.errors import CheckpointProblem
from camelpress.core.runtime.rust_panics import drop_panic_messages, is_panic
from camelpress.core.text.hf_tokenizer import Tokenizer


def panicking(folder: Path) -> Path:
    """A tokenizer whose prefix for pieces inside a word is longer than its pieces."""
    folder.mkdir()
    pico.write_tokenizer(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"] |= {"merges": [["a", "b"]], "continuing_subword_prefix": "#" * 20}
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_panic_is_one_line_and_leaves_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = panicking(tmp_path / "model")
    with pytest.raises(CheckpointProblem) as raised:
        Tokenizer.load(folder)
    assert len(str(raised.value).splitlines()) == 1
    assert capfd.readouterr().err == ""


def test_the_library_panics_on_such_a_file(tmp_path: Path) -> None:
    text = (panicking(tmp_path / "model") / "tokenizer.json").read_text(encoding="utf-8")
    with pytest.raises(BaseException) as raised:
        tokenizers.Tokenizer.from_str(text)
    assert is_panic(raised.value)
    assert not isinstance(raised.value, Exception)


def test_other_text_reaches_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with drop_panic_messages():
        os.write(2, b"a warning\n")
    assert capfd.readouterr().err == "a warning\n"


def test_what_a_library_prints_is_no_result(capfd: pytest.CaptureFixture[str]) -> None:
    print("a result")  # noqa: T201 - what stands in a buffer is no library's
    with drop_panic_messages():
        os.write(1, b"Ignored an option\n")
    assert capfd.readouterr() == ("a result\n", "Ignored an option\n")


def test_other_exceptions_keep_their_text(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), drop_panic_messages():
        os.write(2, b"a warning\n")
        raise KeyError
    assert capfd.readouterr().err == "a warning\n"
