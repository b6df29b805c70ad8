"""Signatures: ours are checked by model signing's own command, and a changed byte by ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from camelpress.core.errors import RecipeProblem, ToolProblem
from camelpress.core.files.file_hashes import checksum_lines, file_manifest
from camelpress.core.runtime import optional_packages
from camelpress.publish.release import signing
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict
from ec_key import write_key

Publisher = Callable[..., tuple[Path, Report]]


@pytest.fixture
def signed(publish: Publisher, tmp_path: Path) -> Path:
    pytest.importorskip("model_signing", reason="needs camelpress[sign]")
    return publish(sign_with=str(write_key(tmp_path / "key.pem")))[0]


def problems(folder: Path, key: Path | None = None) -> list[str]:
    found: list[str] = verify_release(folder, public_key=key).facts.record["problems"]
    return found


def seal_again(folder: Path) -> None:
    """What somebody does who changes a file and its checksum."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text(checksum_lines(file_manifest(paths, relative_to=folder)))


def test_model_signings_own_command_takes_the_signature(signed: Path) -> None:
    command = [
        sys.executable, "-m", "model_signing", "verify", "key", str(signed),
        "--signature", str(signed / "model.sig"), "--public_key", str(signed / "model.pub"),
        "--ignore-paths", str(signed / "SHA256SUMS"),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert ended.returncode == 0, ended.stderr
    (signed / "config.json").write_bytes((signed / "config.json").read_bytes() + b" ")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_a_signed_release_passes_and_says_by_whom(signed: Path, tmp_path: Path) -> None:
    report = verify_release(signed)
    assert (report.verdict, report.facts.record["signed"]) == (Verdict.PASS, "by the key model.pub")
    assert verify_release(signed, public_key=signed / "model.pub").verdict is Verdict.PASS
    assert "key.pem" not in (signed / "provenance.json").read_text()
    assert b"PRIVATE" not in b"".join(p.read_bytes() for p in signed.rglob("*") if p.is_file())


def test_a_changed_byte_in_any_file_is_found(signed: Path) -> None:
    for path in sorted(path for path in signed.rglob("*") if path.is_file()):
        before = path.read_bytes()
        path.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
        assert problems(signed), path.name
        path.write_bytes(before)
    assert not problems(signed)


def test_files_that_were_changed_with_their_checksums_are_found(signed: Path) -> None:
    notice = signed / "NOTICE"
    notice.write_text(notice.read_text() + "and more\n")
    seal_again(signed)
    assert problems(signed)[-1] == (
        "model.sig does not vouch for these files with the key model.pub (NOTICE changed since)"
    )


def test_a_signature_of_somebody_else_is_found(signed: Path, tmp_path: Path) -> None:
    signing.write_public_key(tmp_path, write_key(tmp_path / "other.pem"))
    found = problems(signed, tmp_path / "model.pub")
    assert len(found) == 1
    assert "with the key model.pub" in found[0]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"verificationMaterial": {}}', "\x00"])
def test_a_damaged_signature_is_a_fault_and_no_crash(signed: Path, content: str) -> None:
    (signed / "model.sig").write_text(content)
    seal_again(signed)
    assert len(problems(signed)) == 1


def test_an_unsigned_release_is_no_pass_for_who_asks_for_a_key(
    publish: Publisher, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing", reason="needs camelpress[sign]")
    out, _ = publish()
    assert problems(out, tmp_path / "key.pub") == ["there is no signature, model.sig"]


@pytest.mark.parametrize("content", ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n", None])
def test_a_key_that_is_none_is_told(
    publish: Publisher, tmp_path: Path, content: str | None
) -> None:
    pytest.importorskip("model_signing", reason="needs camelpress[sign]")
    if content is not None:
        (tmp_path / "key.pem").write_text(content)
    with pytest.raises(RecipeProblem, match="cannot be read as a private key in PEM"):
        publish(sign_with=str(tmp_path / "key.pem"))
    assert not (tmp_path / "release").exists()


def test_a_key_that_is_a_pipe_is_not_waited_for(publish: Publisher, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="needs camelpress[sign]")
    os.mkfifo(tmp_path / "key.pem")
    with pytest.raises(RecipeProblem, match="cannot be read as a private key in PEM"):
        publish(sign_with=str(tmp_path / "key.pem"))


def test_without_the_package_one_line_says_how_to_get_it(
    publish: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda _name: None)
    with pytest.raises(ToolProblem, match=r'pip install "camelpress\[sign\]"'):
        publish(sign_with=str(tmp_path / "key.pem"))
