"""Hashes: the published test vectors, and what changes them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.files import file_hashes
from camelpress.core.files.file_hashes import (
    FileHashCache,
    checkpoint_digest,
    checkpoint_file_hashes,
    checksum_lines,
    file_manifest,
    sha256_file,
    sha256_json,
)

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of three kinds, one of them in a folder."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_bytes(b"abc")
    (tmp_path / "a-b.txt").write_bytes(b"")
    (tmp_path / "z.txt").write_bytes(b"z")
    return tmp_path


# --- one hash -----------------------------------------------------------------------------------


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a named pipe, not a regular file") as error:
        sha256_file(tmp_path / "pipe")
    assert error.value.filename == str(tmp_path / "pipe")


def test_a_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    for content, digest in ((b"abc", ABC), (b"", EMPTY)):
        (tmp_path / "x").write_bytes(content)
        assert sha256_file(tmp_path / "x") == digest


def test_plain_data_has_one_hash_whatever_the_order_of_keys() -> None:
    assert sha256_json({"a": 1, "b": [Path("x"), None]}) == sha256_json({"b": ["x", None], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": "1"})


# --- a manifest ---------------------------------------------------------------------------------


def test_a_manifest_is_in_the_order_of_names(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = file_manifest(files, relative_to=folder)
    assert list(found) == ["a-b.txt", "a/b.txt", "z.txt"]
    assert found["a/b.txt"] == ABC
    assert list(file_manifest(reversed(files), relative_to=folder)) == list(found)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum here")
def test_sha256sum_accepts_a_manifest(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    text = checksum_lines(file_manifest(files, relative_to=folder))
    command = ["sha256sum", "--check", "--strict", "-"]
    done = subprocess.run(command, input=text, cwd=folder, text=True, capture_output=True)
    assert done.stdout == "a-b.txt: OK\na/b.txt: OK\nz.txt: OK\n"
    assert done.returncode == 0


# --- a checkpoint -------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path, base: Path) -> Path:
    shutil.copytree(base, tmp_path / "model")
    return tmp_path / "model"


def test_a_model_is_its_weights_config_and_tokenizer(model: Path) -> None:
    assert list(checkpoint_file_hashes(model)) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_copy_of_a_model_has_its_digest(model: Path, base: Path) -> None:
    assert checkpoint_digest(model) == checkpoint_digest(base)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "additional_chat_templates/x.jinja",
    ],
)
def test_a_changed_model_has_another_digest(model: Path, base: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    with (model / name).open("ab") as file:
        file.write(b" ")
    assert checkpoint_digest(model) != checkpoint_digest(base)


@pytest.mark.parametrize("name", ["recover-report.json", "README.md", "SHA256SUMS", "LICENSE"])
def test_what_is_said_about_a_model_does_not_change_its_digest(
    model: Path, base: Path, name: str
) -> None:
    (model / name).write_text("told")
    assert checkpoint_digest(model) == checkpoint_digest(base)


# --- remembered hashes --------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were really read."""
    names: list[str] = []

    def noted(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(file_hashes, "sha256_file", noted)
    return names


def test_an_unchanged_file_is_read_once(folder: Path, read: list[str]) -> None:
    known: dict[str, Any] = {}
    assert FileHashCache(known).file_digest(folder / "z.txt") == FileHashCache(known).file_digest(
        folder / "z.txt"
    )
    assert read == ["z.txt"]


def test_a_file_of_another_size_is_read_again(folder: Path, read: list[str]) -> None:
    hashes = FileHashCache({})
    before = hashes.file_digest(folder / "z.txt")
    (folder / "z.txt").write_bytes(b"zz")
    assert hashes.file_digest(folder / "z.txt") != before
    assert read == ["z.txt", "z.txt"]


def test_a_file_of_another_time_is_read_again(folder: Path, read: list[str]) -> None:
    hashes = FileHashCache({})
    before = hashes.file_digest(folder / "z.txt")
    (folder / "z.txt").write_bytes(b"y")
    os.utime(folder / "z.txt", ns=(0, 0))
    assert hashes.file_digest(folder / "z.txt") != before
    assert read == ["z.txt", "z.txt"]


@pytest.mark.parametrize("way", ["in place", "by another file"])
def test_a_file_of_the_same_size_and_time_is_read_again(
    folder: Path, read: list[str], way: str
) -> None:
    """What `cp -p`, `touch -r` and `rsync -t` leave."""
    path, hashes = folder / "z.txt", FileHashCache({})
    before, times = hashes.file_digest(path), path.stat()
    if way == "in place":
        path.write_bytes(b"y")
    else:
        (folder / "new").write_bytes(b"y")
        (folder / "new").rename(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert hashes.file_digest(path) == sha256_file(path) != before


def test_a_change_within_a_tick_of_the_clock_is_seen(folder: Path) -> None:
    path, hashes = folder / "z.txt", FileHashCache({})
    for number in range(20):
        path.write_bytes(b"%02d" % number)
        assert hashes.file_digest(path) == hashlib.sha256(b"%02d" % number).hexdigest()


@pytest.mark.parametrize("kept", [[1, 2, "0" * 64], {}, "x", None, [1, 2, 3, 4, None], []])
def test_a_hash_of_another_shape_is_not_believed(folder: Path, kept: Any) -> None:
    known = {str((folder / "z.txt").resolve()): kept}
    assert FileHashCache(known).file_digest(folder / "z.txt") == sha256_file(folder / "z.txt")


def test_two_ways_to_a_file_are_one(folder: Path, read: list[str]) -> None:
    (folder / "link.txt").symlink_to("z.txt")
    hashes = FileHashCache({})
    assert hashes.file_digest(folder / "link.txt") == hashes.file_digest(folder / "z.txt")
    assert read == ["link.txt"]


def test_a_tree_is_all_that_is_in_it(folder: Path) -> None:
    before = FileHashCache({}).tree_digest(folder)
    assert FileHashCache({}).tree_digest(folder) == before
    (folder / "a" / "b.txt").rename(folder / "a" / "c.txt")
    assert FileHashCache({}).tree_digest(folder) != before


def test_the_tree_of_a_file_is_its_hash(folder: Path) -> None:
    assert FileHashCache({}).tree_digest(folder / "a" / "b.txt") == ABC


def test_the_tree_of_nothing_is_empty(tmp_path: Path) -> None:
    assert FileHashCache({}).tree_digest(tmp_path / "no") == ""
    (tmp_path / "empty").mkdir()
    assert FileHashCache({}).tree_digest(tmp_path / "empty") != ""
