"""A login in an address that is given as a place is shown nowhere, also where nothing is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from camelpress.core.runtime.secrets_redaction import redact_secrets
from command import Ended, Run

LOGIN = "https://reader:s3cr3t-word@hub.example/org/model"
WORDS = ("s3cr3t-word", "reader:")

# fmt: off
COMMANDS = {  # {place}: the address, {model}: a checkpoint that is there, {out}: a place to write
    "inspect":           ("inspect", "{place}"),
    "for engines":       ("inspect", "{place}", "--for", "all"),
    "recover base":      ("recover", "{place}", "{model}", "{out}"),
    "recover diff":      ("recover", "{model}", "{place}", "{out}"),
    "quantize":          ("quantize", "{place}", "{out}"),
    "calibration":       ("quantize", "{model}", "{out}", "--calibration", "{place}"),
    "reference":         ("validate", "{place}", "{model}", "--text", "x"),
    "candidate":         ("validate", "{model}", "{place}", "--text", "x"),
    "text":              ("validate", "{model}", "{near}", "--text", "{place}", "--out", "{out}"),
    "data":              ("validate", "{model}", "{near}", "--tasks", "tulu",
                          "--data-dir", "{place}", "--out", "{out}"),
    "judge":             ("validate", "{model}", "{near}", "--tasks", "tulu_alpaca_farm",
                          "--judge-url", "{place}", "--judge-model", "m", "--out", "{out}"),
    "store":             ("store", "{place}", "{out}", "--text", "x"),
    "publish":           ("publish", "{place}", "--report", "x", "--to", "{out}",
                          "--license", "mit"),
    "report":            ("publish", "{model}", "--report", "{place}", "--to", "{out}",
                          "--license", "mit"),
    "to":                ("publish", "{model}", "--report", "x", "--to", "{place}",
                          "--license", "mit"),
    "card of an input":  ("publish", "{model}", "--report", "x", "--to", "{out}",
                          "--license", "mit", "--gated-like", "{place}"),
    "export":            ("export", "{place}", "{out}", "--to", "gptq"),
    "gate":              ("gate", "{place}"),
    "flips":             ("flips", "{place}"),
    "verify":            ("verify", "{place}"),
    "verify hub":        ("verify", "hf:{place}"),
    "diff":              ("diff", "{place}", "{model}"),
    "card":              ("card", "{place}"),
    "generate":          ("generate", "{place}", "--prompt", "x"),
    "recipe":            ("run", "{place}"),
    "override":          ("run", "{place}", "-o", "base={place}"),
    "one argument more": ("inspect", "{model}", "{place}"),
    "no such command":   ("{place}",),
    "no such option":    ("inspect", "--{place}"),
    "no number":         ("quantize", "{model}", "{out}", "--bits", "{place}"),
}
# fmt: on


@pytest.mark.parametrize("command", ["inspect", "verify", "recover base", "reference", "text"])
def test_a_login_before_a_repository_is_hidden(
    run: Run, base: Path, tuned: Path, tmp_path: Path, command: str
) -> None:
    place = "hf:reader:s3cr3t-word@org/model"
    words = {"place": place, "model": base, "near": tuned, "out": tmp_path / "out"}
    ended = run(*(word.format(**words) for word in COMMANDS[command]), "--debug", "--json")
    assert ended.code in (2, 3), ended.err
    require_hidden(ended)


def require_hidden(ended: Ended) -> None:
    for word in WORDS:
        assert word not in ended.out, ended.out
        assert word not in "".join(ended.err.split()), ended.err


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_shows_it(run: Run, base: Path, tuned: Path, tmp_path: Path, name: str) -> None:
    words = {"place": LOGIN, "model": base, "near": tuned, "out": tmp_path / "out"}
    command = [word.format(**words) for word in COMMANDS[name]]
    ended = run(*command, "--debug", "--json", "--verbose")
    assert ended.code in (2, 3), ended.err
    require_hidden(ended)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_dry_run_does_not_show_it(
    run: Run, base: Path, prose: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    content = {
        "base": LOGIN,
        "diff": f"{LOGIN}-diff",
        "out": str(tmp_path / "out"),
        "quantize": {"calibration": [f"{LOGIN}/calibration.jsonl"]},
        "validate": {"text": [f"{LOGIN}/held-out.txt", str(prose)]},
        "publish": {"license": "mit", "name": f"see {LOGIN}"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    ended = run("run", tmp_path / "recipe.yaml", "--dry-run", *options)
    assert ended.code == 0, ended.err
    require_hidden(ended)
    shown = " ".join(ended.out.split())
    assert "[a login in a URL]" in shown
    if options:
        assert len(json.loads(ended.out)["steps"]) == 4


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://me:pass@host/x", True),
        ("https:/me:pass@host/x", True),
        ("/data/here/https:/me:pass@host/x", True),
        ("http://pass@host", True),
        ("https://me:pa@pass@host/x", True),
        ("https://me:pass@[::1]:8080/x", True),
        ("ftp://me:pass@host", True),
        ("s3:/me:pass@host", True),
        ("https://host/x?access_token=passpass&page=2", True),
        ("https://host/x?page=2&X-Amz-Signature=passpass", True),
        ("hf:me:pass@host/name", True),
        ("hf:me:pass@x@host/name@main:file.jsonl", True),
        ("the model hf:me:pass@host/name", True),
        ("https://host/x?page=passpass", False),
        ("hf:org/name:file.jsonl", False),
        ("hf:org/name@main:me@host.jsonl", False),
        ("hf:org/name@main", False),
        ("https://huggingface.co/org/name@main", False),
        ("org/name@0123abc:file.jsonl", False),
        ("me@host", False),
    ],
)
def test_a_login_is_known_by_its_place_in_an_address(text: str, hidden: bool) -> None:
    assert ("pass" in text and "pass" not in redact_secrets(text)) is hidden
    assert hidden or redact_secrets(text) == text
    assert "host" not in text or "host" in redact_secrets(text)
