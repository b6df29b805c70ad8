"""Chat templates of strangers: the text of transformers, or one line in bounded time and memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import pico
from camelpress.core.errors import TemplateProblem
from camelpress.core.input_limits import MAX_RENDERED_CHARACTERS, MAX_TEMPLATE_CHARACTERS
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.template_renderer import render_template

TURNS = [{"role": "user", "content": "the whale \ud83d é"}, {"role": "assistant", "content": "sea"}]
GOOD = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}{{ eos_token }}"
)
BAD = {
    "{{ 1/0 }}": "ZeroDivisionError: division by zero",
    "{% if %}": "Expected an expression, got 'end of statement block'",
    "{{ raise_exception('only users') }}": "only users",
    "{{ 'a' * 10**12 }}": "MemoryError",
    "{{ '%099999999999d' % 1 }}": "",
    "{{ 'a'.ljust(10**12) }}": "MemoryError",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError: ",
    "{{ [] < 1 }}": "TypeError: ",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "access to attribute",
    "{{ range(10**9) }}": "OverflowError: Range too big",
    f"{{{{ 'a' * {MAX_RENDERED_CHARACTERS + 1} }}}}": "its text has more than 16,777,216",
    "x" * (MAX_TEMPLATE_CHARACTERS + 1): "it is longer than 1,048,576 characters",
}


def test_the_text_is_that_of_transformers(tmp_path: Path) -> None:
    model = pico.write_model(tmp_path / "model")
    loaded = Tokenizer.load(model)
    oracle: Any = AutoTokenizer.from_pretrained(model)
    expected = oracle.apply_chat_template(
        TURNS, chat_template=GOOD, add_generation_prompt=True, tokenize=False
    )
    assert loaded.render_chat(TURNS, GOOD) == expected


@pytest.mark.parametrize("template", BAD, ids=lambda template: template[:40])
def test_a_bad_template_is_one_line(template: str) -> None:
    with pytest.raises(ValueError) as raised:
        render_template(template, TURNS, {})
    assert BAD[template] in str(raised.value)
    assert render_template("{{ messages[0].role }}", TURNS, {}) == "user"  # the next one is fine


def test_a_template_that_never_ends_is_ended_and_not_tried_again() -> None:
    for _ in range(20):
        with pytest.raises(ValueError, match="it takes more than 5 seconds or 1,024 MiB"):
            render_template("{{ 10 ** (10 ** 9) }}", TURNS, {})
    assert render_template("{{ messages[0].role }}", TURNS, {}) == "user"


def test_the_problem_of_a_tokenizer_names_the_fault(tmp_path: Path) -> None:
    loaded = Tokenizer.load(pico.write_model(tmp_path / "model"))
    with pytest.raises(TemplateProblem) as raised:
        loaded.render_chat(TURNS, "{{ 1/0 }}")
    assert raised.value.reason == "ZeroDivisionError: division by zero"
    with pytest.raises(TemplateProblem):  # it has none
        loaded.render_chat(TURNS)


def test_the_child_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    from camelpress.core.text import template_renderer

    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    child = template_renderer._TemplateWorker()
    process = child._start()
    environment = Path(f"/proc/{process.pid}/environ")
    while not (variables := environment.read_bytes()):  # empty while the program is loaded
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert b"HF_TOKEN" not in variables
    assert b"PYTHONPATH" in variables
