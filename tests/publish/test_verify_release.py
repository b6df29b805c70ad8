from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_hashes import CHECKSUM_FILE, checksum_lines, file_manifest
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict

Publisher = Callable[..., tuple[Path, Report]]


@pytest.fixture
def release(publish: Publisher) -> Path:
    return publish()[0]


def problems(folder: Path) -> list[str]:
    report = verify_release(folder)
    found: list[str] = report.facts.record["problems"]
    assert (report.verdict is Verdict.FAIL) == bool(found)
    return found


def seal_again(folder: Path) -> None:
    """What somebody does who changes a file and its checksum."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUM_FILE]
    (folder / CHECKSUM_FILE).write_text(checksum_lines(file_manifest(paths, relative_to=folder)))


def add_line(folder: Path, name: str) -> None:
    path = folder / CHECKSUM_FILE
    path.write_text(path.read_text() + f"{'0' * 64}  {name}\n")


def test_an_untouched_release_passes(release: Path) -> None:
    report = verify_release(release)
    assert report.verdict is Verdict.PASS
    assert report.facts.record == {"files": 17, "signed": "no", "problems": []}


def test_a_changed_byte_in_any_file_is_found(release: Path) -> None:
    for path in sorted(path for path in release.rglob("*") if path.is_file()):
        before = path.read_bytes()
        for place in {0, len(before) // 2, len(before) - 1}:
            path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
            found = problems(release)
            name = path.relative_to(release).as_posix()
            assert found, name
            assert path.name == CHECKSUM_FILE or any(
                f"'{name}' has changed" in fault for fault in found
            )
        path.write_bytes(before)
    assert not problems(release)


def test_missing_and_unlisted_files_are_named(release: Path) -> None:
    (release / "tokenizer.json").unlink()
    (release / "validation" / "extra.txt").write_text("")
    (release / "payload").symlink_to(release / "validation", target_is_directory=True)
    assert problems(release) == [
        "'tokenizer.json' is missing",
        "'payload' is not listed",
        "'validation/extra.txt' is not listed",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/hostname",
        "validation/../../outside",
        "C:/x",
        "a\\..\\b",
        "./config.json",
    ],
)
def test_a_manifest_does_not_lead_out(release: Path, name: str) -> None:
    (release.parent / "outside").write_text("")
    add_line(release, name)
    assert problems(release) == [f"{CHECKSUM_FILE} line 18 leads out of the folder: {name!r}"]


def test_a_link_does_not_lead_out(release: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_bytes((release / "config.json").read_bytes())
    (release / "config.json").unlink()
    (release / "config.json").symlink_to(tmp_path / "elsewhere.json")
    assert problems(release) == ["'config.json' is a link, or lies behind one"]


def test_a_link_within_the_folder_is_refused_too(release: Path) -> None:
    (release / "config.json").rename(release / "real")
    (release / "config.json").symlink_to("real")
    assert problems(release) == [
        "'config.json' is a link, or lies behind one",
        "'real' is not listed",
    ]


def test_a_folder_that_is_a_link_is_refused(release: Path, tmp_path: Path) -> None:
    (release / "validation").rename(tmp_path / "elsewhere")
    (release / "validation").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = problems(release)
    assert "'validation/report.json' is a link, or lies behind one" in found
    assert "'validation' is not listed" in found


def test_a_manifest_that_is_a_link_is_refused(release: Path, tmp_path: Path) -> None:
    (release / CHECKSUM_FILE).rename(tmp_path / "sums")
    (release / CHECKSUM_FILE).symlink_to(tmp_path / "sums")
    assert problems(release) == [f"{CHECKSUM_FILE!r} is a link"]


def test_the_folder_itself_may_be_reached_by_a_link(release: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(release, target_is_directory=True)
    assert problems(tmp_path / "latest") == []


@pytest.mark.parametrize(
    "name",
    [
        ".hidden",
        "validation/.hidden",
        "deep/er/and/deeper/model.bin",
        ".git/config",
        ".cache/pip/wheel",
        ".cache/huggingface/model.safetensors",
        ".cache/huggingface/download/model.safetensors",
        ".cache/huggingface/download/deep/pytorch_model.bin",
        ".cache/huggingface/trees/deep/list.json",
        ".cache/huggingface/trees/code.py",
        "deep/.cache/huggingface/download/x.metadata",
        "deep/.gitattributes",
        "SHA256SUMS.txt",
        "validation/SHA256SUMS",
    ],
)
def test_a_file_that_nobody_listed_is_named_wherever_it_lies(release: Path, name: str) -> None:
    (release / name).parent.mkdir(parents=True, exist_ok=True)
    (release / name).write_text("x")
    assert problems(release) == [f"{name!r} is not listed"]


def test_no_link_passes_for_what_the_hub_puts_there(release: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (release / ".gitattributes").symlink_to(tmp_path / "secret")
    notes = release / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "NOTICE.metadata").symlink_to(tmp_path / "secret")
    os.mkfifo(notes / "x.lock")
    assert sorted(problems(release)) == [
        "'.cache/huggingface/download/NOTICE.metadata' is not listed",
        "'.cache/huggingface/download/x.lock' is not listed",
        "'.gitattributes' is not listed",
    ]


def test_a_link_to_itself_is_a_fault_and_no_crash(release: Path) -> None:
    (release / "NOTICE").unlink()
    (release / "NOTICE").symlink_to("NOTICE")
    assert len(problems(release)) == 1


def test_a_pipe_is_not_waited_for(release: Path) -> None:
    (release / "NOTICE").unlink()
    os.mkfifo(release / "NOTICE")
    assert problems(release) == ["'NOTICE' is missing"]


def test_checksums_that_never_end_are_not_read(release: Path) -> None:
    (release / CHECKSUM_FILE).unlink()
    (release / CHECKSUM_FILE).symlink_to("/dev/zero")
    with pytest.raises(CheckpointProblem, match="cannot be read"):
        verify_release(release)


@pytest.mark.parametrize("line", ["", "no hash", f"{'0' * 63}  x", f"{'0' * 64}  config.json"])
def test_a_line_that_says_nothing_new_is_a_fault(release: Path, line: str) -> None:
    path = release / CHECKSUM_FILE
    path.write_text(path.read_text() + line + "\n")
    assert problems(release) == [f"{CHECKSUM_FILE} line 18 is not a hash and a new name"]


def test_an_empty_manifest_is_no_pass(release: Path) -> None:
    (release / CHECKSUM_FILE).write_text("")
    assert f"{CHECKSUM_FILE} lists nothing" in problems(release)


def test_without_a_manifest_there_is_nothing_to_verify(release: Path) -> None:
    (release / CHECKSUM_FILE).unlink()
    with pytest.raises(CheckpointProblem, match=f"{CHECKSUM_FILE} cannot be read; give a folder"):
        verify_release(release)


def test_a_card_that_contradicts_the_config_is_found(release: Path) -> None:
    card = release / "README.md"
    card.write_text(card.read_text().replace("group_size: 32", "group_size: 128"))
    seal_again(release)
    assert problems(release) == [
        "README.md says group_size 128, the files say 32",
        "'README.md' is not the file that provenance.json lists",
    ]


def test_a_card_that_claims_another_verdict_is_found(release: Path) -> None:
    report = release / "validation" / "report.json"
    report.write_text(report.read_text().replace('"verdict": "PASS"', '"verdict": "FAIL"'))
    seal_again(release)
    assert problems(release) == [
        "README.md says verdict 'PASS', the files say 'FAIL'",
        "'validation/report.json' is not the file that provenance.json lists",
    ]


@pytest.mark.parametrize(
    ("name", "change"),
    [("NOTICE", "changed"), ("validation/report.md", "removed"), ("more.txt", "added")],
)
def test_files_and_checksums_that_were_changed_together_are_found(
    release: Path, name: str, change: str
) -> None:
    if change == "removed":
        (release / name).unlink()
    else:
        (release / name).write_text("another")
    seal_again(release)
    assert problems(release) == [f"{name!r} is not the file that provenance.json lists"]


def test_what_a_download_leaves_beside_it_does_no_harm(release: Path) -> None:
    (release / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (release / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (release / ".cache" / "huggingface" / "download" / "NOTICE.metadata").write_text("x")
    (release / ".cache" / "huggingface" / "trees").mkdir()
    (release / ".cache" / "huggingface" / "trees" / f"{'0' * 40}.json").write_text("{}")
    (release / ".cache" / "huggingface" / ".gitignore").write_text("*")
    assert problems(release) == []
    (release / ".cache" / "other").write_text("x")
    assert problems(release) == ["'.cache/other' is not listed"]


@pytest.mark.parametrize("front", ["", "---\n- a list\n---\n", "---\n!!python/none x: [\n---\n"])
def test_a_card_without_its_front_matter_is_found(release: Path, front: str) -> None:
    (release / "README.md").write_text(front)
    seal_again(release)
    assert problems(release)


def test_other_weights_with_matching_checksums_are_found(release: Path) -> None:
    weights = release / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    (release / "adapter.safetensors").write_bytes(weights.read_bytes())
    (release / "tokenizer.json").unlink()
    seal_again(release)
    assert problems(release) == [
        "'adapter.safetensors' is not what was validated",
        "'model.safetensors' is not what was validated",
        "'tokenizer.json' is not what was validated",
    ]


def test_provenance_of_another_model_is_found(release: Path) -> None:
    path = release / "provenance.json"
    content = json.loads(path.read_text())
    content["facts"]["model"]["config.json"] = "0" * 64
    path.write_text(json.dumps(content))
    seal_again(release)
    assert problems(release) == [
        "provenance.json describes another model than the one that was validated"
    ]


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"stage": "publish"}', "\xff"])
def test_provenance_that_is_none_is_found(release: Path, content: str) -> None:
    (release / "provenance.json").write_bytes(content.encode("latin-1"))
    seal_again(release)
    assert len(problems(release)) == 1
