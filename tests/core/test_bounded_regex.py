"""Regular expressions of configs: the answers of `re`, within bounds."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest

from camelpress.core.files.bounded_regex import match_regex

NAME = "model.layers.10.self_attn.q_proj"
REAL = [
    r"^model\.layers\.(?:0|10)\.mlp\.down_proj$",
    r"^model\.layers\.(?:0|10)\.self_attn\.q_proj$",
    r".*\.layers\.\d{1,2}\..*",
    r"(?!.*self_attn).*",
    r"^(?!.*(k_proj|v_proj)).*$",
    r".*lm_head",
    r"re.*",
    r"layers\.1[0-9]",
    r"",
    r".*[qk]_proj$",
    r"(?i)MODEL",
]


@pytest.mark.parametrize("pattern", REAL)
@pytest.mark.parametrize("name", [NAME, "lm_head", "", "model.layers.3.mlp.down_proj\n"])
def test_real_expressions_match_as_in_re(pattern: str, name: str) -> None:
    assert match_regex(pattern, name) == bool(re.match(pattern, name))
    assert match_regex(pattern, name, anywhere=True) == bool(re.search(pattern, name))


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "is no regular expression"),
        ("(" * 1000 + ")" * 1000, "is no regular expression"),
        ("a" * 5000, "is longer than 4,096 characters"),
        (r"(?:a{255}){255}", "repeats more than 1,000 times"),
        (r"[a-z]{4000000000}", "has braces that repeat nothing"),
        (r"(?:model){e<=3}", "has braces that repeat nothing"),
        (r"\N{BULLET}", "has braces that repeat nothing"),
        (r"(?<!a+)b", "is no regular expression"),
        (r"(?R)", "is no regular expression"),
    ],
)
def test_an_expression_beyond_the_bounds_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        match_regex(pattern, NAME)


def test_expressions_that_never_end_share_a_bound_on_their_time() -> None:
    program = """
        import resource
        from camelpress.core.files import bounded_regex
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
        refused = 0
        for number in range(100, 200):
            try:
                bounded_regex.match_regex(f"((a|a)+)+[{number}]", "a" * 60 + "!")
            except ValueError:
                refused += 1
        print(refused)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == 100
