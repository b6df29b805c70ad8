"""Programs of a model in a sandbox: right ones pass, wrong ones say why, and none runs without."""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
import sys
from fractions import Fraction
from itertools import combinations
from math import comb, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelpress.core.errors import RecipeProblem, ToolProblem
from camelpress.validate.sandbox import execution as running
from camelpress.validate.sandbox import isolation
from camelpress.validate.sandbox.execution import run_programs
from camelpress.validate.sandbox.guest import seccomp
from camelpress.validate.sandbox.guest.plain_values import OpaqueValue, decode_value, encode_value
from camelpress.validate.sandbox.pass_at_k import pass_at_k
from camelpress.validate.sandbox.program_check import Program, ProgramResult
from camelpress.validate.sandbox.program_limits import ProgramLimits
from hostile_programs import program
from refusal import refusal
from sandboxes import needs_bubblewrap

ROOT = Path(__file__).parents[2]
DATA = ROOT / os.environ.get("CAMELPRESS_DATA", "../shared/data")
HUMANEVAL = DATA / "eval/codex_humaneval/HumanEval.jsonl.gz"
LIMITS = ProgramLimits()
CONTAINED = ("--network none", "--read-only", "--cap-drop ALL", "--user 65534", "--pids-limit")
REFUSED = ("clone", "clone3", "execve", "socket", "prctl", "seccomp", "ptrace", "kill")


@needs_bubblewrap
@pytest.mark.skipif(
    not HUMANEVAL.is_file(),
    reason=f"{HUMANEVAL} is not there; CAMELPRESS_DATA names the folder of real data",
)
def test_all_canonical_solutions_pass_and_empty_ones_do_not() -> None:
    rows = [json.loads(line) for line in gzip.open(HUMANEVAL, "rt", encoding="utf-8")]
    assert len(rows) == 164
    told = run_programs([_canonical(row) for row in rows], LIMITS)
    assert {row["task_id"]: each.reason for row, each in zip(rows, told, strict=True)} == {
        row["task_id"]: "" for row in rows
    }
    assert all(each.passed for each in told)
    empty = run_programs(
        [_canonical({**row, "canonical_solution": ""}) for row in rows[::20]], LIMITS
    )
    assert not any(each.passed for each in empty)


def _canonical(row: dict[str, str]) -> Program:
    keys = ("task_id", "prompt", "canonical_solution", "entry_point", "test")
    return Program(*(row[key] for key in keys))


@needs_bubblewrap
def test_why_a_program_failed_is_told() -> None:
    told = {
        "    return x + x\n": ProgramResult(True),
        "    return 5\n": ProgramResult(False, "AssertionError"),
        "    return undefined\n": ProgramResult(
            False, "CandidateError: NameError: name 'undefined' is not defined"
        ),
        "    return (\n": ProgramResult(
            False, "CandidateError: SyntaxError: '(' was never closed (<completion>, line 3)"
        ),
        "    raise ValueError('a\\x1b[2Jb\\nc')\n": ProgramResult(
            False, "CandidateError: ValueError: a␛[2Jb c"
        ),
        "    import sys; sys.exit(3)\n": ProgramResult(
            False, "ended without an answer (exit status 3)"
        ),
        "    while True: pass\n": ProgramResult(False, "computed for more than 1 s"),
        "    return 'x' * 5000\n": ProgramResult(False, "answered with more than 4,096 bytes"),
        "    return [0] * 2**28\n": ProgramResult(False, "CandidateError: MemoryError"),
    }
    limits = ProgramLimits(seconds=1, patience=60, answer=4096)
    assert run_programs([program(each) for each in told], limits) == list(told.values())
    waiting = program("    import time; time.sleep(99)\n")
    assert run_programs([waiting], ProgramLimits(patience=2)) == [
        ProgramResult(False, "did not answer within 2 s")
    ]


@needs_bubblewrap
def test_values_cross_as_what_they_are() -> None:
    answers: dict[str, Any] = {
        "{1: 'a', (2, 3): {4}}": {1: "a", (2, 3): {4}},
        "(True, None, 1.5, 2**70, b'\\xff', 1j, frozenset([1]))": (
            (True, None, 1.5, 2**70, b"\xff", 1j, frozenset([1]))
        ),
        "__import__('collections').Counter('aab')": {"a": 2, "b": 1},
        "'\\ud800 \\n \\x00'": "\ud800 \n \x00",
        "{}.keys()": set(),
        "float('inf')": float("inf"),
    }
    tests = [
        Program(
            "f", "def f():\n    ''\n", f"    return {answer}\n", "f",
            f"def check(candidate):\n    told = candidate()\n"
            f"    assert told == {expected!r} and type(told) is {type(expected).__name__}, told\n",
        )
        for answer, expected in ((key, _spelt(value)) for key, value in answers.items())
    ]  # fmt: skip
    assert run_programs(tests, LIMITS) == [ProgramResult(True)] * len(tests)


class _Infinity(float):
    def __repr__(self) -> str:
        return "float('inf')"


_Infinity.__name__ = "float"


def _spelt(value: Any) -> Any:
    return _Infinity(value) if value == float("inf") else value


@needs_bubblewrap
def test_helpers_of_the_prompt_are_those_of_the_prompt() -> None:
    """A completion cannot redefine what the test calls beside it."""
    prompt = "def helper(x):\n    return x + 1\n\n\ndef f(x):\n    '''What helper undoes.'''\n"
    test = "def check(candidate):\n    assert candidate(helper(6)) == 6\n    assert f(1) == 0\n"
    right, forged = "    return x - 1\n", "    return x\n\n\ndef helper(x):\n    return x\n"
    told = run_programs([Program("f", prompt, each, "f", test) for each in (right, forged)], LIMITS)
    assert [each.passed for each in told] == [True, False]


@needs_bubblewrap
def test_a_test_that_draws_draws_the_same_for_all() -> None:
    test = (
        "def check(candidate):\n    import random\n"
        "    assert candidate([random.random() for _ in range(3)]) is None\n"
    )
    raising = "    raise ValueError(x)\n"
    other = "    if x: raise ValueError(x)\n"
    programs = [Program("f", "def f(x):\n    ''\n", body, "f", test) for body in (raising, other)]
    told = run_programs(programs, LIMITS)
    assert told[0].reason == told[1].reason and "0.8444" in told[0].reason


@needs_bubblewrap
def test_a_test_that_does_not_run_is_no_score() -> None:
    broken = Program("HumanEval/1000", "def f():\n    ''\n", "    return 1\n", "f", "def check(")
    with refusal(
        RecipeProblem,
        "the test of HumanEval/1000 does not run: SyntaxError: '(' was never closed "
        "(<test>, line 1)",
        next_step="correct or remove that problem",
        out=None,
        exit_code=2,
    ):
        run_programs([broken], LIMITS)


def test_equal_programs_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def judged(
        program: Program, sandbox: isolation.Sandbox, limits: ProgramLimits
    ) -> ProgramResult:
        seen.append(program.completion)
        return ProgramResult(program.completion == "b")

    monkeypatch.setattr(running, "check_program", judged)
    monkeypatch.setattr(running, "find_sandbox", lambda limits: isolation.Sandbox("none", ()))
    told = run_programs([program(each) for each in "abcabba"], LIMITS)
    assert [each.passed for each in told] == [each == "b" for each in "abcabba"]
    assert sorted(seen) == ["a", "b", "c"]


def test_no_program_is_no_work() -> None:
    assert run_programs([], LIMITS) == []


def test_without_a_sandbox_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with refusal(
        ToolProblem,
        "model-written programs run in a sandbox only, and none works on this machine "
        "(neither bubblewrap nor podman nor docker is installed)",
        next_step=isolation.INSTALL_ADVICE,
        out=None,
    ):
        run_programs([program("    return x * 2\n")], LIMITS)
    assert re.fullmatch(
        r"install bubblewrap \(Debian: apt install bubblewrap\), or pull "
        r"docker\.io/library/python:3\.\d+-slim with podman or docker",
        isolation.INSTALL_ADVICE,
    )


def test_sandboxes_that_do_not_start_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bwrap", "docker"):
        _command(tmp_path / name, "import sys; sys.exit(7)")
    monkeypatch.setenv("PATH", str(tmp_path))
    with refusal(
        ToolProblem,
        "model-written programs run in a sandbox only, and none works on this machine "
        "(a bubblewrap sandbox did not start (exit status 7), "
        "a docker sandbox did not start (exit status 7))",
        next_step=isolation.INSTALL_ADVICE,
        out=None,
    ):
        run_programs([program("    return x * 2\n")], LIMITS)


def test_a_container_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a docker that keeps its arguments and runs what it is given (harmless here) as it is."""
    _command(
        tmp_path / "docker",
        f"import json, os, sys\n"
        f"open({str(tmp_path / 'said')!r}, 'a').write(json.dumps(sys.argv[1:]) + chr(10))\n"
        f"at = sys.argv.index('python')\n"
        f"code = sys.argv[-1].replace({isolation.GUEST_SCRIPTS!r}, "
        f"{str(isolation.GUEST_FOLDER)!r})\n"
        f"os.environ['PYTHONPATH'] = {str(ROOT / 'src')!r}\n"
        f"os.execv({sys.executable!r}, ['python', *sys.argv[at + 1:-1], code])",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    told = run_programs([program("    return x * 2\n"), program("    return x\n")], LIMITS)
    assert told == [ProgramResult(True), ProgramResult(False, "AssertionError")]
    lines = (tmp_path / "said").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6  # the proof, and two programs, two sides each
    for line in lines:
        said = json.loads(line)
        image = said.index(isolation.IMAGE)
        assert said[0] == "run"
        assert said[image + 1 : image + 5] == ["timeout", "--signal", "KILL", "15"]
        for option in CONTAINED:
            assert option in " ".join(said[:image])


def _command(path: Path, code: str) -> None:
    path.write_text(f"#!{sys.executable}\n{code}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False),
    lambda each: st.lists(each) | st.lists(each).map(tuple),
    max_leaves=20,
)  # fmt: skip
HASHABLE = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers())


@settings(max_examples=50, deadline=None)
@given(PLAIN | st.sets(HASHABLE) | st.frozensets(HASHABLE) | st.dictionaries(HASHABLE, PLAIN))
def test_plain_values_come_back(value: Any) -> None:
    back = decode_value(json.loads(json.dumps(encode_value(value))))
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, set | frozenset)


def test_other_values_come_as_what_they_can_be_used_for() -> None:
    class Equal(list[int]):
        def __eq__(self, other: object) -> bool:
            return True

        def __len__(self) -> int:
            return 9

    def over(value: Any) -> Any:
        return decode_value(json.loads(json.dumps(encode_value(value))))

    assert over(Equal([1])) == [1] and over(Equal([1])) != [2]
    assert list(over(each for each in "ab")) == ["a", "b"] and over(iter("ab")) != ["a", "b"]
    assert type(over(Fraction(1, 2))) is OpaqueValue and over(Fraction(1, 2)) != Fraction(1, 2)
    assert over(nan) != over(nan)


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(),
                    lambda each: st.lists(each) | st.dictionaries(st.text(), each)))  # fmt: skip
def test_anything_else_is_refused_or_plain(tree: Any) -> None:
    try:
        decode_value(tree)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass


def test_the_numbers_of_system_calls_are_the_kernels() -> None:
    headers = {
        1: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        2: Path("/usr/include/asm-generic/unistd.h"),
    }
    for column, header in headers.items():
        if not header.is_file():
            pytest.skip(f"{header} is not there (apt install linux-libc-dev)")
        text = header.read_text(encoding="utf-8")
        known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text))
        known["newfstatat"] = known.get("newfstatat", known.get("fstatat", ""))
        for row in seccomp.ALLOWED_SYSCALLS:
            if row[column] is not None:
                assert known[str(row[0])] == str(row[column]), row
    assert not {*REFUSED} & {row[0] for row in seccomp.ALLOWED_SYSCALLS}


def test_an_unknown_machine_is_not_confined() -> None:
    with pytest.raises(OSError, match="the table has no system call numbers for riscv64"):
        seccomp.build_filter("riscv64")


def _counts(most: int) -> st.SearchStrategy[tuple[int, int, int]]:
    """Completions, those of them that passed, and k."""
    return st.integers(1, most).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))
    )


@given(_counts(9))
def test_pass_at_k_is_the_share_of_choices_that_hold_a_pass(numbers: tuple[int, int, int]) -> None:
    n, passed, k = numbers
    choices = list(combinations([True] * passed + [False] * (n - passed), k))
    share = sum(map(any, choices)) / len(choices)
    assert pass_at_k(n, passed, k) == pytest.approx(share, abs=1e-12)


@given(_counts(400))
def test_pass_at_k_is_the_formula_in_whole_numbers(numbers: tuple[int, int, int]) -> None:
    n, passed, k = numbers
    exact = 1 - Fraction(comb(n - passed, k), comb(n, k))
    assert pass_at_k(n, passed, k) == pytest.approx(float(exact), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("k", [0, 21])
def test_pass_at_k_needs_k_completions(k: int) -> None:
    with refusal(
        RecipeProblem,
        f"pass@{k} cannot be estimated from 20 completions of a problem",
        next_step="give a k from 1 to 20, or sample more completions",
        out=None,
        exit_code=2,
    ):
        pass_at_k(20, 3, k)
