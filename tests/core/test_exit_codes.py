"""Exit code 1 means that a gate failed; whatever else ends a process has another one."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import camelpress
from camelpress.core.exit_codes import ExitCode
from camelpress.reporting.facts_model import FactsModel
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Check, Verdict
from redirected import CLOSED, FULL, GONE, ends_of

PASSED, FAILED = "passed", "failed"
COMMANDS = {
    "pass": ("gate", PASSED),
    "pass as JSON": ("gate", PASSED, "--json", "-q"),
    "fail as JSON": ("gate", FAILED, "--json"),
    "version": ("--version",),
    "help": ("gate", "--help"),
    "usage": ("gate", PASSED, "--nonsense"),
    "problem": ("inspect", "nowhere"),
    "problem as JSON": ("inspect", "nowhere", "--json"),
}
USAGE = ("usage",)
PROBLEMS = ("problem", "problem as JSON")
STREAMS: dict[str, tuple[dict[int, str], int]] = {  # with the code where a result is lost
    "none": ({}, 0),
    "full stdout": ({1: FULL}, 3),
    "full stderr": ({2: FULL}, 0),
    "both full": ({1: FULL, 2: FULL}, 3),
    "closed stdout": ({1: CLOSED}, 3),
    "all closed": ({0: CLOSED, 1: CLOSED, 2: CLOSED}, 3),
    "reader that left": ({1: GONE}, 141),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that passes its gate, and one that does not."""
    folder = tmp_path_factory.mktemp("reports")
    for name, limit, verdict in ((PASSED, 2.0, Verdict.PASS), (FAILED, 0.001, Verdict.FAIL)):
        (folder / name).mkdir()
        model = {"path": "m", "architecture": "L", "parameters": 1, "dtype": "float16", "bytes": 2}
        part = {
            "tokens": 900, "sequences": 40, "reference_perplexity": 3.5,
            "candidate_perplexity": 3.6, "perplexity_ratio": 1.02,
            "perplexity_ratio_interval": [1.01, 1.03], "kl_mean": 0.01,
            "kl_mean_interval": [0.009, 0.011], "top1_agreement": 0.97,
            "top1_agreement_interval": [0.96, 0.98],
        }  # fmt: skip
        facts = part | {
            "protocol": "documents", "reference": model, "candidate": model,
            "kl_percentiles": {"99": 0.1},
            "kl_histogram": {"edges": [0.0, 0.1, 1.0], "counts": [800, 100]},
            "by_position": {"edges": [0.0, 1.0], "kl_mean": [0.01], "tokens": [900.0],
                            "log_ratio": [0.0]},
            "early": None, "texts": [{"name": "novel", **part}],
        }  # fmt: skip
        gate = {name: None for name in ("perplexity_ratio", "top1_agreement", "non_finite")}
        check = Check(
            name="kl_mean", verdict=verdict, estimate=0.01, interval=(0.009, 0.011),
            threshold=limit, direction="max", n=900, clusters=40, reason="measured",
        )  # fmt: skip
        Report(
            stage="validate",
            inputs={"reference": "r" * 64, "candidate": "c" * 64},
            settings={"gate": gate | {"kl_mean": {"max": limit}}},
            facts=FactsModel.build(facts),
            checks=(check,),
            verdict=verdict,
        ).write(folder / name / "report.json")
    return folder


@pytest.fixture(scope="module")
def ends(reports: Path) -> dict[tuple[str, str], tuple[int, str]]:
    """What comes of every command with every state of the streams."""
    pairs = [(name, stream) for name in COMMANDS for stream in STREAMS]
    cases = [{"words": COMMANDS[name], "streams": STREAMS[stream][0]} for name, stream in pairs]
    return dict(zip(pairs, ends_of(cases, reports), strict=True))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_stream_that_fails_is_no_verdict(
    ends: dict[tuple[str, str], tuple[int, str]], name: str, stream: str
) -> None:
    states, lost = STREAMS[stream]
    code, said = ends[name, stream]
    expected = 2 if name in USAGE else 3 if name in PROBLEMS else 1 if "fail" in name else 0
    has_result = name not in (*USAGE, "problem")
    assert code == (lost if lost and has_result else expected), said
    assert "Traceback" not in said and "Exception ignored" not in said
    if lost == 3 and has_result and 2 not in states:
        reason = "No space left on device" if states[1] == FULL else "Bad file descriptor"
        assert said.endswith(
            f"error: standard output cannot be written: {reason}; free some space there, or "
            "redirect the output to another disk\n"
        )


@pytest.mark.parametrize(("redirection", "code"), [(">/dev/full", 3), (">&-", 3), ("| true", 141)])
def test_a_shell_sees_the_same(reports: Path, redirection: str, code: int) -> None:
    words = f"{sys.executable} -m camelpress gate {FAILED} --json {redirection}"
    script = f"{words}\nexit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, cwd=reports
    )
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr


def test_json_of_a_failed_gate_is_whole(reports: Path) -> None:
    command = [sys.executable, "-m", "camelpress", "gate", FAILED, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=reports)
    assert (ended.returncode, json.loads(ended.stdout)["verdict"]) == (1, "FAIL")


def test_a_run_whose_messages_are_lost_ends_well_and_says_so_by_its_code(
    base: Path, tmp_path: Path
) -> None:
    words = ["quantize", str(base), "q", "--method", "rtn", "--group-size", "32"]
    ((code, _),) = ends_of([{"words": words, "streams": {2: FULL}}], tmp_path)
    assert code == 3
    assert (tmp_path / "q" / "model.safetensors").is_file()


def test_a_file_never_gets_the_descriptor_of_a_closed_stream(base: Path, tmp_path: Path) -> None:
    words = ["quantize", str(base), "q", "--method", "rtn", "--group-size", "32"]
    closed = dict.fromkeys((0, 1, 2), CLOSED)
    ((code, _),) = ends_of([{"words": words, "streams": closed}], tmp_path)
    assert code == 3
    report = json.loads((tmp_path / "q" / "quantize-report.json").read_text(encoding="utf-8"))
    assert report["stage"] == "quantize"


ENDS = {  # how the work of a command ends: code that raises it
    "panic": "raise type('PanicException', (BaseException,), {'__module__': 'pyo3'})('index 7')",
    "library exit": "raise SystemExit(1)",
    "library exit with words": "raise SystemExit('usage: vllm')",
    "clean library exit": "raise SystemExit(0)",
    "memory": "raise MemoryError",
    "recursion": "def down(): down()\ndown()",
    "bug": "1 / 0",
    "assertion": "raise AssertionError",
    "end of input": "raise EOFError",
    "pipe of a child": "raise BrokenPipeError(32, 'Broken pipe')",
    "generator exit": "raise GeneratorExit",
    "typer exit": "import typer\nraise typer.Exit(1)",
    "abort": "import typer\nraise typer.Abort",
    "group": "raise ExceptionGroup('two', [ValueError(1), OSError(28, 'full')])",
}


NAMELESS = "raise type('Nameless', (BaseException,), {})('of no module, as Python wants it')"
OTHERS = {  # with options, or with a code of their own
    "nameless": (NAMELESS, ()),
    "library exit in detail": (ENDS["library exit"], ("--debug",)),
    "ctrl-c": ("raise KeyboardInterrupt", ()),
}


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """How a command ends whose work is replaced by some code."""
    works = {name: (code, ()) for name, code in ENDS.items()} | OTHERS
    cases = [
        {"words": ["inspect", "nowhere", *options], "streams": {}, "code": code}
        for code, options in works.values()
    ]
    return dict(zip(works, ends_of(cases, tmp_path_factory.mktemp("ways")), strict=True))


@pytest.mark.parametrize("name", ENDS)
def test_no_error_ends_like_a_verdict(ways: dict[str, tuple[int, str]], name: str) -> None:
    code, said = ways[name]
    assert code == 3, said
    assert said


def test_an_error_that_cannot_be_shown_is_no_verdict(ways: dict[str, tuple[int, str]]) -> None:
    assert ways["nameless"][0] == 3


def test_a_library_that_ends_the_program_is_one_line(ways: dict[str, tuple[int, str]]) -> None:
    assert ways["library exit"] == (
        3,
        "error: a library ended the program (1); run the same command with --debug for details\n",
    )
    assert "Traceback" in ways["library exit in detail"][1]


def test_ctrl_c_keeps_its_code(ways: dict[str, tuple[int, str]]) -> None:
    assert ways["ctrl-c"][0] == 130


@pytest.mark.parametrize(
    "harm", ["raise MemoryError", "raise ImportError('numpy')", "raise EOFError"]
)
def test_what_fails_while_it_is_imported_is_no_verdict(tmp_path: Path, harm: str) -> None:
    (tmp_path / "typer.py").write_text(f"{harm}\n", encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(
        [sys.executable, "-m", "camelpress", "--version"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert ended.returncode == 3
    assert "Traceback" in ended.stderr


def test_a_shell_that_cannot_be_completed_is_no_verdict() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "camelpress"],
        capture_output=True,
        check=False,
        env=os.environ | {"_CAMELPRESS_COMPLETE": "complete_nosuchshell"},
    )
    assert ended.returncode != 1


def test_the_codes_that_scripts_rely_on() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0, "GATE_FAILED": 1, "USAGE": 2, "PROBLEM": 3, "INCONCLUSIVE": 4,
        "TRY_AGAIN": 75, "CTRL_C": 130, "SIGPIPE": 141,
    }  # fmt: skip
    assert {verdict: verdict.exit_code for verdict in Verdict} == {
        Verdict.PASS: ExitCode.DONE, Verdict.FAIL: ExitCode.GATE_FAILED,
        Verdict.INCONCLUSIVE: ExitCode.INCONCLUSIVE, Verdict.ERROR: ExitCode.PROBLEM,
    }  # fmt: skip


def typed_codes(path: Path) -> Iterator[int]:
    """Yields the lines of a module that end a process, or name its end, with a number."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="exit" | "_exit" | "Exit") | ast.Name(id="SystemExit"),
                args=[ast.Constant(value=int())],
            ):
                yield node.lineno
            case (
                ast.Assign(targets=[ast.Name(id="exit_code")], value=ast.Constant(value=int()))
                | ast.keyword(arg="exit_code", value=ast.Constant(value=int()))
            ):
                yield node.lineno


def test_no_module_types_the_number_of_an_exit_code(tmp_path: Path) -> None:
    typed = "import sys\nexit_code = 3\nsys.exit(1)\nproblem(exit_code=2)\n"
    (tmp_path / "module.py").write_text(typed, encoding="utf-8")
    assert [*typed_codes(tmp_path / "module.py")] == [2, 3, 4]
    modules = [path for folder in camelpress.__path__ for path in source_files(Path(folder))]
    assert len(modules) > 100
    assert not [f"{path}:{line}" for path in modules for line in typed_codes(path)]


def source_files(package: Path) -> Iterator[Path]:
    """Yields the modules of a package, those behind its links too; guests of a sandbox aside."""
    for folder in (package, *(link.resolve() for link in package.iterdir() if link.is_symlink())):
        yield from (path for path in folder.rglob("*.py") if "guest" not in path.parts)
