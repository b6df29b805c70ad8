"""A model that speaks on the command line: what is said where, and what reaches no terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from camelpress.core.text.tulu_format import TULU_CHAT_TEMPLATE
from camelpress.inference.generation.detokenizer import Detokenizer
from camelpress.inference.model import memory_budget
from command import Run

SHORT = ("--max-new-tokens", "8")


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with Tulu's template."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("chat") / "model")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": TULU_CHAT_TEMPLATE}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def escaping(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the model say escape sequences, whatever its tokens are."""
    said = "\x1b]0;owned\x07\x9b2J\r\u202e"
    monkeypatch.setattr(Detokenizer, "add_token", lambda *_: said)
    monkeypatch.setattr(Detokenizer, "finish", lambda *_: "")
    return said


def test_the_reply_is_all_there_is_on_stdout(run: Run, model: Path) -> None:
    told = json.loads(run("generate", model, "-p", "a whale", *SHORT, "--json").out)
    ended = run("generate", model, "--prompt", "a whale", *SHORT)
    assert ended.code == 0
    assert ended.out.rstrip("\n").encode() == printed(told["text"]).rstrip("\n").encode()
    assert "8 tokens" in ended.err
    assert run("generate", model, *SHORT, typed="a whale").out == ended.out
    assert run("generate", model, "-p", "a whale", *SHORT, "-q").err == ""


def printed(text: str) -> str:
    from camelpress.core.runtime.terminal_text import escape_controls

    return escape_controls(text)


def test_json_tells_ids_and_settings(run: Run, model: Path) -> None:
    told = json.loads(run("generate", model, "-p", "a", *SHORT, "--seed", 3, "--json").out)
    assert told["stage"] == "generate"
    assert len(told["ids"]) == 8
    assert told["settings"]["seed"] == 3
    assert told["cost"]["tokens_per_second"] > 0
    assert told["model"]["architecture"] == "LlamaForCausalLM"


def test_escapes_reach_neither_terminal_nor_pipe(run: Run, model: Path, escaping: str) -> None:
    ended = run("generate", model, "-p", "a", "--max-new-tokens", 1)
    assert ended.out == "␛]0;owned␇\ufffd2J␍\ufffd\n"
    told = run("generate", model, "-p", "a", "--max-new-tokens", 1, "--json").out
    assert not set(told) & set("\x1b\x07\x9b\r\u202e")
    assert json.loads(told)["text"] == escaping


def test_a_name_with_escapes_is_shown_as_signs(run: Run, tmp_path: Path) -> None:
    ended = run("generate", tmp_path / "a\x1b[2Jb", "-p", "a")
    assert ended.code == 3
    assert "\x1b" not in ended.err
    assert "a␛[2Jb" in ended.err


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_model_that_does_not_fit_is_said_to_at_once(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(memory_budget, "free_bytes", lambda _: 100_000)
    monkeypatch.setattr(
        "camelpress.chat.chat_model.load_transformers_model", lambda *_, **__: 1 / 0
    )
    ended = run(command, model, typed="a")
    assert ended.code == 3
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert "needs about 0.0 GB of memory in bfloat16 for 128 tokens" in ended.err
    assert "camelpress inspect --for vllm" in ended.err


def test_a_model_that_fits_in_half_is_computed_in_bfloat16(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_budget, "free_bytes", lambda _: 480_000)
    told = json.loads(run("generate", model, "-p", "a", *SHORT, "--json").out)
    assert told["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--temperature", "-1"), "temperature: Input should be greater than or equal to 0"),
        (("--top-p", "0"), "top_p: Input should be greater than 0"),
        (("--max-new-tokens", "0"), "max_new_tokens: Input should be greater than 0"),
        (("--seed", "-1"), "seed: Input should be greater than or equal to 0"),
        (("--template", "alpaca"), "template: Input should be 'auto', 'tulu' or 'plain'"),
        (("--device", "tpu"), "'tpu' is not a device"),
    ],
)
def test_wrong_options_end_with_2(
    run: Run, model: Path, options: tuple[str, str], fault: str
) -> None:
    ended = run("generate", model, "-p", "a", *options)
    assert ended.code == 2
    assert fault in ended.err


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_stdin_that_is_no_text_is_refused(run: Run, model: Path, command: str) -> None:
    ended = run(command, model, typed=b"caf\xe9\n")
    assert ended.code == 2
    assert "not UTF-8 text" in ended.err


def test_ctrl_c_ends_generate_with_130(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Detokenizer, "add_token", interrupt)
    assert run("generate", model, "-p", "a").code == 130


def test_each_line_of_a_pipe_gets_a_line_of_plain_text(run: Run, model: Path) -> None:
    ended = run("chat", model, *SHORT, typed="a whale\n\na ship\n")
    assert ended.code == 0
    assert "›" not in ended.out and "\x1b" not in ended.out
    first = run("chat", model, *SHORT, typed="a whale\n").out
    assert ended.out.startswith(first) and len(ended.out) > len(first)


def test_what_was_said_counts_until_it_is_taken_back(run: Run, model: Path) -> None:
    def second(*between: str) -> str:
        typed = "\n".join(["a whale", *between, "a ship"])
        out = run("chat", model, *SHORT, "-q", typed=typed).out
        return out.removeprefix(run("chat", model, *SHORT, "-q", typed="a whale").out)

    alone = run("chat", model, *SHORT, "-q", typed="a ship").out
    assert second() != alone
    assert second("/undo") == second("/reset") == alone


def test_a_line_can_go_on_and_a_slash_be_meant(run: Run, model: Path) -> None:
    def reply(*typed: str) -> str:
        return run("chat", model, *SHORT, typed="\n".join(typed)).out

    asked = run("generate", model, "-p", "a\nwhale", *SHORT).out
    assert reply("a\\", "whale") == asked
    assert reply("//help") == run("generate", model, "-p", "/help", *SHORT).out


def test_commands_answer_on_stderr_and_quit_quits(run: Run, model: Path) -> None:
    ended = run("chat", model, "-q", typed="/help\n/undo\n/bake\n/reset\n/quit\na whale\n")
    assert (ended.code, ended.out) == (0, "")
    for told in (
        "/reset   forget",
        "nothing to take back",
        "there is no command /bake",
        "forgotten",
    ):
        assert told in ended.err


def test_a_chat_that_fills_the_model_says_so_and_goes_on(run: Run, model: Path) -> None:
    typed = f"a whale\n{'a' * 150}\n/reset\n{'a' * 150}\na whale\n"
    ended = run("chat", model, *SHORT, typed=typed)
    assert ended.code == 0
    assert "tokens, and the model has 128 positions; /reset starts a new chat" in ended.err
    assert "tokens, and the model has 128 positions; shorten it" in ended.err
    assert ended.out == 2 * run("chat", model, *SHORT, typed="a whale\n").out
    cut = run("chat", model, typed="a whale\n")
    assert "cut off at the model's last position" in cut.err


def test_plain_text_is_no_chat(run: Run, model: Path) -> None:
    ended = run("chat", model, "--template", "plain")
    assert ended.code == 2
    assert "plain text has no turns to chat in" in ended.err


def test_a_person_on_a_terminal_sees_who_speaks(model: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "camelpress", "chat", str(model), *SHORT],
        stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        for typed in (b"a whale\n", b"/quit\n"):
            shown += _until("you › ".encode(), ours)
            os.write(ours, typed)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    text = shown.decode()
    assert "LlamaForCausalLM" in text and "greedy" in text
    assert "model ›" in text and "8 tokens" in text


def _until(mark: bytes, place: int) -> bytes:
    """What is shown until the mark is, within a minute."""
    shown = b""
    while mark not in shown:
        ready, _, _ = select.select([place], [], [], 60)
        assert ready, shown
        shown += os.read(place, 4096)
    return shown


def test_a_reader_that_leaves_ends_it_quietly(model: Path) -> None:
    command = (
        f"{sys.executable} -m camelpress generate {model} -p a | false; echo ${{PIPESTATUS[0]}}"
    )
    ended = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.stdout.strip() == "141"
    assert "Traceback" not in ended.stderr
