"""The contract of the command line: what it prints where, and with which exit code it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import damage
import stages
from command import Run

COMMANDS = (
    "recover", "make-diff", "quantize", "validate", "gate", "publish", "export",
    "run", "rebuild", "demo", "generate", "chat", "inspect", "verify", "diff", "card", "schema",
)  # fmt: skip
SMALL = ("--group-size", "32", "--samples", "4", "--sequence-length", "64")


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_stages_follow_one_another(
    run: Run, base: Path, tuned: Path, chat: Path, prose: Path, tmp_path: Path
) -> None:
    diff, recovered, quantized = tmp_path / "diff", tmp_path / "recovered", tmp_path / "quantized"
    assert run("make-diff", base, tuned, diff).code == 0
    assert run("recover", base, diff, recovered).code == 0
    assert run("quantize", recovered, quantized, "--calibration", chat, *SMALL).code == 0
    gate = tmp_path / "gate.yaml"
    gate.write_text("perplexity_ratio: {max: 2.0}\nkl_mean: {max: 2.0}\ntop1_agreement: null\n")
    judged = run(
        "validate", recovered, quantized, "--text", prose, "--gate", gate,
        "--sequence-length", "32", "--out", tmp_path / "report", "--json",
    )  # fmt: skip
    told = json.loads(judged.out)
    assert (judged.code, told["verdict"]) == (0, "PASS")
    assert {
        "reference_perplexity", "candidate_perplexity", "perplexity_ratio", "kl_mean",
        "top1_agreement", "tokens",
    } <= told.keys()  # fmt: skip
    release = tmp_path / "release"
    published = run(
        "publish", quantized, "--report", tmp_path / "report", "--to", release,
        "--license", "apache-2.0",
    )  # fmt: skip
    assert published.code == 0, published.err
    assert run("verify", release).code == 0


def test_a_store_stands_in_the_references_place(
    run: Run, base: Path, prose: Path, tmp_path: Path
) -> None:
    made = run("store", base, tmp_path / "store", "--text", prose, "--protocol", "gptq")
    assert made.code == 0, made.err
    assert "256 likeliest, 64 of the others" in made.out
    wide = stages.widened(base)
    gate = tmp_path / "gate.yaml"
    gate.write_text("perplexity_ratio: {max: 2.0}\nkl_mean: {max: 2.0}\ntop1_agreement: null\n")
    passed = run(
        "validate", tmp_path / "store", wide, "--gate", gate, "--out", tmp_path / "report", "--json"
    )
    assert (passed.code, json.loads(passed.out)["kl_mean"]) == (0, 0)
    options = ("--protocol", "llama.cpp", "--out", tmp_path / "again")
    other = run("validate", tmp_path / "store", wide, *options)
    assert other.code == 3
    assert other.err.count("\n") == 1
    assert "was made from protocol gptq, not llama.cpp" in other.err


def test_a_failed_gate_ends_with_1(run: Run, base: Path, prose: Path, tmp_path: Path) -> None:
    run("quantize", base, tmp_path / "q", "--method", "rtn", "--bits", "2", "--group-size", "-1")
    ended = run(
        "validate", base, tmp_path / "q", "--text", prose, "--sequence-length", "32",
        "--out", tmp_path / "report", "--json",
    )  # fmt: skip
    assert ended.code == 1
    assert json.loads(ended.out)["verdict"] == "FAIL"


def test_too_little_text_ends_with_4(run: Run, base: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("the whale sees the sea")
    wide = stages.widened(base)
    ended = run("validate", base, wide, "--text", text, "--out", tmp_path / "report")
    assert ended.code == 4
    assert "INCONCLUSIVE" in ended.out


def test_json_is_one_object_and_everything_else_goes_to_stderr(
    run: Run, base: Path, chat: Path, tmp_path: Path
) -> None:
    ended = run("quantize", base, tmp_path / "q", "--calibration", chat, *SMALL, "--json")
    told = json.loads(ended.out)
    assert told["stage"] == "quantize"
    assert len(told["layers"]) == 14
    assert "quantize 2/2" in ended.err


def test_sources_have_weights_and_a_mask_on_the_command_line(
    run: Run, base: Path, chat: Path, prose: Path, tmp_path: Path
) -> None:
    ended = run(
        "quantize", base, tmp_path / "q", "--calibration", f"{chat}=3", "--calibration", prose,
        "--calibration-mask", "assistant", *SMALL, "--json",
    )  # fmt: skip
    told = json.loads(ended.out)["calibration"]
    assert [(file["weight"], file["tokens"]) for file in told["files"]] == [(3.0, 192), (1.0, 64)]
    assert told["counted_tokens"] < told["tokens"]
    refused = run("quantize", base, tmp_path / "r", "--calibration", f"{chat}=0", *SMALL)
    assert refused.code == 2
    assert "calibration.0.weight: Input should be greater than 0" in refused.err


def test_quiet_says_nothing_but_the_result(run: Run, base: Path, tmp_path: Path) -> None:
    ended = run("quantize", base, tmp_path / "q", "--method", "rtn", "--group-size", "32", "-q")
    assert ended.err == ""
    assert "4 bit, group 32" in ended.out


def test_a_problem_is_one_line_without_a_traceback(run: Run, tmp_path: Path) -> None:
    ended = run("quantize", tmp_path / "nowhere", tmp_path / "q")
    assert ended.code == 3
    assert ended.err.strip().count("\n") == 0
    assert "is not a folder; give a Hugging Face checkpoint folder" in ended.err
    assert "Traceback" not in ended.err


def test_debug_shows_the_traceback(run: Run, tmp_path: Path) -> None:
    assert "Traceback" in run("quantize", tmp_path / "nowhere", tmp_path / "q", "--debug").err


def test_a_problem_is_an_object_with_json(run: Run, tmp_path: Path) -> None:
    ended = run("inspect", tmp_path / "nowhere", "--json")
    assert json.loads(ended.out)["exit_code"] == ended.code == 3


def test_wrong_options_end_with_2_and_name_what_is_allowed(
    run: Run, base: Path, tmp_path: Path
) -> None:
    ended = run("quantize", base, tmp_path / "q", "--bits", "5")
    assert ended.code == 2
    assert "bits: Input should be 2, 3, 4 or 8" in ended.err
    assert run("quantize", base).code == 2
    assert run("nonsense").code == 2


def test_an_existing_output_needs_force(run: Run, base: Path, tmp_path: Path) -> None:
    command = ("quantize", base, tmp_path / "q", "--method", "rtn", "--group-size", "32")
    assert run(*command).code == 0
    again = run(*command)
    assert again.code == 3
    assert "exists; name another output, or give --force to replace it" in again.err
    assert run(*command, "--force").code == 0


def test_ctrl_c_ends_with_130(
    run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("camelpress.quantize.run.plan_tensor_slots", interrupt)
    assert run("quantize", base, tmp_path / "q", "--method", "rtn").code == 130
    assert not (tmp_path / "q").exists()


def test_sigterm_ends_with_75_and_leaves_nothing_half_done(base: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom camelpress.quantize import run\n"
        "run.plan_tensor_slots = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "from camelpress.cli.entry_point import main\nmain()"
    )
    ended = fresh("-c", code, "quantize", str(base), str(tmp_path / "q"), "--method", "rtn",
                  "--group-size", "32")  # fmt: skip
    assert ended.returncode == 75, ended.stderr
    assert "run the same command again" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_bug_ends_with_3_and_a_traceback(
    run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camelpress.quantize.run.plan_tensor_slots", lambda *_: 1 / 0)
    ended = run("quantize", base, tmp_path / "q", "--method", "rtn")
    assert ended.code == 3
    assert "ZeroDivisionError" in ended.err


def test_inspect_tells_what_a_checkpoint_is(run: Run, base: Path, tmp_path: Path) -> None:
    run("quantize", base, tmp_path / "q", "--method", "rtn", "--group-size", "32")
    told = json.loads(run("inspect", tmp_path / "q", "--json").out)
    assert told["architecture"] == "LlamaForCausalLM"
    assert (told["bits"], told["group_size"], told["sym"]) == (4, 32, True)
    plain = json.loads(run("inspect", base, "--json").out)
    assert told["parameters"] == plain["parameters"]
    assert plain["tokenizer"]["bos"] == 1
    assert "model.norm.weight  float16 [64]" in run("inspect", base).out


def test_names_in_a_checkpoint_do_nothing_to_a_terminal(
    run: Run, base: Path, tmp_path: Path
) -> None:
    name = "model.\x1b]0;owned\x07[bold]\x9b2J"
    folder = damage.with_tensors(base, tmp_path / "model", {name: torch.zeros(1)})
    shown = run("inspect", folder).out
    assert "model.␛]0;owned␇[bold]\ufffd2J  float32 [1]" in shown
    assert not set(shown) & set("\x1b\x07\x9b")
    told = run("inspect", folder, "--json").out
    assert not set(told) & set("\x1b\x07\x9b")
    assert name in [tensor["name"] for tensor in json.loads(told)["tensors"]]


def test_inspect_asks_engines(run: Run, base: Path, tmp_path: Path) -> None:
    run("quantize", base, tmp_path / "q", "--method", "rtn", "--group-size", "32")
    ended = run("inspect", tmp_path / "q", "--for", "exllama")
    assert ended.code == 0
    assert "never run here" in " ".join(ended.out.split())
    assert ended.out.rstrip().endswith("PASS")
    told = json.loads(run("inspect", tmp_path / "q", "--for", "vllm,marlin", "--json").out)
    assert [engine["name"] for engine in told["engines"]] == ["vLLM", "Marlin"]
    assert (told["bits"], told["verdict"]) == (4, "FAIL")
    assert run("inspect", tmp_path / "q", "--for", "marlin", "--for", "exllama").code == 1
    assert run("inspect", tmp_path / "q", "--for", "llama.cpp").code == 2
    assert run("inspect", base, "--for", "all").code == 3


def test_help_groups_the_commands_and_loads_no_torch() -> None:
    told = fresh("-m", "camelpress", "--help")
    assert told.returncode == 0
    for panel in ("Stages", "The whole pipeline", "Try a model", "Look and check"):
        assert panel in told.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_no_torch(name: str) -> None:
    code = (
        "import sys\nsys.argv = ['camelpress', sys.argv[1], '--help']\n"
        "from camelpress.cli import entry_point\n"
        "try:\n    entry_point.main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)\n"
    )
    told = fresh("-c", code, name)
    assert told.returncode == 0, told.stderr
    assert "--json" in told.stdout
