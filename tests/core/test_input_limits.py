"""The bounds on inputs, as the document states them and as the command line keeps them."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import pico
from camelpress.core import input_limits
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.json_files import read_json
from command import Ended, Run

DOCUMENT = Path(__file__).parents[2] / "docs/reliability.md"
ROW = re.compile(r"^\| .+ \| ([\d.,]+) \| `(MAX_\w+)` \|$", re.MULTILINE)
MEMORY = 8 * 2**30  # bytes of address space; torch alone maps some
SECONDS = 300  # wall time on a busy machine; the processor time is bounded below
PROCESSOR_SECONDS = 60


def test_the_document_states_every_bound() -> None:
    stated = dict(reversed(row) for row in ROW.findall(DOCUMENT.read_text(encoding="utf-8")))
    values = {name: value for name, value in vars(input_limits).items() if name.startswith("MAX_")}
    assert stated == {name: f"{value:,}" for name, value in values.items()}


def bounded(*arguments: object) -> Ended:
    """Runs camelpress in a process with bounded memory and processor time."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))

    done = subprocess.run(
        [sys.executable, "-m", "camelpress", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        preexec_fn=limit,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def one_line(ended: Ended, code: int) -> str:
    assert ended.code == code, ended.err
    text = " ".join(ended.err.split())
    assert text.startswith("error: ")
    assert "Traceback" not in text
    assert len(text) < 2 * input_limits.MAX_MESSAGE_CHARACTERS
    return text


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.mkdir()


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def deep(path: Path) -> None:
    path.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")


def layers(path: Path) -> None:
    path.write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 8_000_000_056}))


def digits(path: Path) -> None:
    path.write_text('{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (pipe, "a named pipe"),
        (listener, "cannot be read"),
        (zeros, "a device"),
        (loop, "cannot be read"),
        (folder, "Is a directory"),
        (large, "larger than the 4,194,304 bytes"),
        (deep, "nested deeper than 100 levels"),
        (layers, "num_hidden_layers is 8000000056"),
        (digits, "limit"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_config_beyond_the_bounds_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    make: Callable[[Path], None],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model/model.safetensors")
    make(tmp_path / "model/config.json")
    assert reason in one_line(run("inspect", "model"), 3)


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ALIASES, "more than 20,000 values"),
        ("base: &a [*a]", "a value that contains itself"),
        ("base: " + "[" * 5_000, "more than 50 levels"),
        ('base: !!int ""', "is not valid YAML"),
        ("base: !!binary aGk=", "is not valid YAML"),
        ("base: !!set {a, b}", "is not valid YAML"),
        ("a: 1\n" * 2, "the key 'a' appears twice"),
        ("base: ~nosuchuser/x\ndiff: x\nout: y", "begins with an unknown user"),
        (f"base: {'x' * 5000}\ndiff: x\nout: y", "which is not a valid path"),
        ('base: "a\\0b"\ndiff: x\nout: y', "which is not a valid path"),
        ("#" * (2**20 + 1), "larger than the 1,048,576 bytes"),
    ],
)
def test_a_recipe_beyond_the_bounds_is_one_line(
    tmp_path: Path, run: Run, text: str, reason: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert reason in one_line(run("run", tmp_path / "recipe.yaml", "--dry-run"), 2)


def test_a_named_pipe_as_a_recipe_is_one_line(tmp_path: Path, run: Run) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    assert "a named pipe" in one_line(run("run", tmp_path / "recipe.yaml", "--dry-run"), 2)


def test_a_path_longer_than_any_is_one_line(run: Run) -> None:
    assert "File name too long" in one_line(run("inspect", "x/" + "y" * 5000), 3)


def test_many_values_of_json_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [' + "[]," * 2_000_001 + "[]]}")
    with pytest.raises(CheckpointProblem, match="more than 4,000,000 values"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_json_does_not_have_is_refused(tmp_path: Path, number: str) -> None:
    (tmp_path / "x.json").write_text(f'{{"a": {number}}}')
    with pytest.raises(CheckpointProblem, match="is not a finite number"):
        read_json(tmp_path / "x.json")


def test_an_alias_bomb_takes_neither_memory_nor_time(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(ALIASES)
    assert "more than 20,000" in one_line(bounded("run", tmp_path / "recipe.yaml", "--dry-run"), 2)


def test_a_device_as_a_config_takes_neither_memory_nor_time(tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    zeros(tmp_path / "config.json")
    assert "a device" in one_line(bounded("inspect", tmp_path), 3)


def test_a_template_without_end_takes_neither_memory_nor_time(tmp_path: Path) -> None:
    model = pico.write_model(tmp_path / "model")
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"chat_template": ENDLESS}), encoding="utf-8")
    ended = bounded("generate", model, "--prompt", "hi", "--max-new-tokens", "1")
    assert "cannot be rendered" in one_line(ended, 3)
