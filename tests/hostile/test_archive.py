"""Pickled weights in archives that torch would not have written like this."""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import damage
import stages
import weights
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, Problem

Refused = Callable[..., None]
Records = dict[str, bytes]

NEW = (".format_version", ".storage_alignment")  # which torch writes since 2.7 and reads like a law
DISTRUST = "do not trust this file, or download it again"
REWRITE = "load it by torch.load(FILE, weights_only=True) and save that by torch.save"


@pytest.fixture
def broken(diff: Path, tmp_path: Path) -> Path:
    """The diff as one pickle."""
    folder = damage.copied(diff, tmp_path / "broken")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def file(broken: Path) -> Path:
    """It."""
    return broken / "pytorch_model.bin"


def records(file: Path) -> Records:
    with zipfile.ZipFile(file) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def write(file: Path, content: Iterable[tuple[str, bytes]], *, packed: str = "nothing") -> None:
    """An archive by Python's library; names that end in `packed` are deflated."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content:
            how = zipfile.ZIP_DEFLATED if name.endswith(packed) else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=how)


def without_new(content: Records) -> Records:
    """As torch wrote archives until 2.6."""
    return {name: data for name, data in content.items() if not name.endswith(NEW)}


def ending(content: Records, end: str) -> str:
    return next(name for name in content if name.endswith(end))


@pytest.mark.parametrize("packed", ["data/0", "data/3", "data.pkl"])
@pytest.mark.parametrize("keep", [dict, without_new])
def test_a_compressed_record_is_refused(
    base: Path, broken: Path, file: Path, refused: Refused, packed: str,
    keep: Callable[[Records], Records],
) -> None:  # fmt: skip
    write(file, keep(records(file)).items(), packed=packed)
    refused(
        base,
        broken,
        CheckpointProblem,
        f"{file} is not laid out as torch does it now: it is compressed",
        next_step=REWRITE,
    )


def test_an_archive_that_was_packed_again_is_read_right(
    base: Path, tuned: Path, broken: Path, file: Path, out: Path
) -> None:
    write(file, records(file).items())
    stages.recover(base, broken, out)
    assert weights.same(weights.read(out), weights.read(tuned))


@pytest.mark.parametrize("extra", ["archive/../../../evil", "archive/data/../../evil"])
def test_records_of_older_archives_are_found_wherever_they_are(
    base: Path, tuned: Path, broken: Path, file: Path, tmp_path: Path, out: Path, extra: str
) -> None:
    root = ending(records(file), "data.pkl").partition("/")[0]
    content = without_new(records(file)) | {extra.replace("archive", root): b"evil"}
    write(file, sorted(content.items(), key=lambda item: item[0][::-1]))
    before = {path for path in tmp_path.parent.rglob("*") if "evil" in path.name}
    stages.recover(base, broken, out)
    assert weights.same(weights.read(out), weights.read(tuned))
    assert {path for path in tmp_path.parent.rglob("*") if "evil" in path.name} == before


def test_records_in_another_order_are_not_mixed_up(
    base: Path, tuned: Path, broken: Path, file: Path, out: Path
) -> None:
    content = list(records(file).items())
    first, second = (
        next(at for at, (name, _) in enumerate(content) if name.endswith(f"data/{key}"))
        for key in (3, 4)
    )
    content[first], content[second] = content[second], content[first]
    write(file, content)
    stages.recover(base, broken, out)
    assert weights.same(weights.read(out), weights.read(tuned))


def test_weights_of_a_big_endian_machine_are_refused(
    base: Path, broken: Path, file: Path, refused: Refused
) -> None:
    content = records(file)
    write(file, (content | {ending(content, "byteorder"): b"big"}).items())
    refused(
        base,
        broken,
        CheckpointProblem,
        f"{file} is not laid out as torch does it now: it is big-endian",
        next_step=REWRITE,
    )


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + b"more"])
def test_a_record_of_another_size_is_refused(
    base: Path, broken: Path, file: Path, refused: Refused, change: Callable[[bytes], bytes]
) -> None:
    content = without_new(records(file))
    name = ending(content, "data/5")
    write(file, (content | {name: change(content[name])}).items())
    refused(
        base,
        broken,
        CheckpointProblem,
        re.compile(
            re.escape(f"{file} cannot be read as plain weights (record 5 has ")
            + r"\d+ bytes, not \d+ torch\.float32\)"
        ),
        next_step=DISTRUST,
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["byteorder", "BYTEORDER", "data/1"])
def test_two_records_of_one_name_are_refused(
    base: Path, broken: Path, file: Path, refused: Refused, again: str
) -> None:
    content = records(file)
    root = ending(content, "data.pkl").partition("/")[0]
    write(file, [*content.items(), (f"{root}/{again}", b"big")])
    refused(
        base,
        broken,
        CheckpointProblem,
        f"{file} cannot be read as plain weights (it has two records {again.lower()!r})",
        next_step=DISTRUST,
    )


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("another record", "File name in directory '{0}1' and header b'{0}0' differ."),
        ("within a record", "Bad magic number for file header"),
        ("beyond the file", "Truncated file header"),
    ],
)
def test_a_directory_that_lies_is_refused(
    base: Path, broken: Path, file: Path, refused: Refused, place: str, reason: str
) -> None:
    write(file, without_new(records(file)).items())
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        directory = archive.start_dir
    name = ending(records(file), "data/1")
    offset = {
        "another record": entries[name[:-1] + "0"].header_offset,
        "within a record": entries[name].header_offset + 8,
        "beyond the file": 10**9,
    }[place]
    content = bytearray(file.read_bytes())
    entry = content.index(name.encode(), directory) - 46
    struct.pack_into("<I", content, entry + 42, offset)
    file.write_bytes(content)
    refused(
        base,
        broken,
        CheckpointProblem,
        f"{file} cannot be read as plain weights ({reason.format(name[:-1])})",
        next_step=DISTRUST,
    )


def test_an_archive_after_something_else_is_refused(
    base: Path, broken: Path, file: Path, refused: Refused
) -> None:
    file.write_bytes(b"#!/bin/sh\n" + file.read_bytes())
    refused(
        base,
        broken,
        CheckpointProblem,
        f"{file} cannot be read as plain weights (it is not an archive of torch)",
        next_step=DISTRUST,
    )


def test_a_file_from_before_torch_1_6_is_not_called_hostile(
    base: Path, broken: Path, file: Path, refused: Refused, tuned: Path, out: Path
) -> None:
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    refused(
        base,
        broken,
        CheckpointProblem,
        f"{file} is not laid out as torch does it now: it is from before torch 1.6",
        next_step=REWRITE,
    )
    torch.save(torch.load(file, weights_only=True), file)
    stages.recover(base, broken, out)
    assert weights.same(weights.read(out), weights.read(tuned))


@given(st.data(), st.booleans())
@settings(deadline=None, max_examples=200, derandomize=True)
def test_any_damage_is_refused_in_one_line_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, legacy: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged archives"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    file = folder / "pytorch_model.bin"
    matrix = torch.arange(48.0).reshape(6, 8)
    tensors = {"a": matrix, "b": matrix.T, "c": torch.nn.Parameter(matrix[1:].clone())}
    torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        opened = Checkpoint.open(folder)
        for name in opened.tensors:
            opened.read(name)
    except Problem as problem:
        assert len(str(problem).splitlines()) == 1
        assert len(str(problem)) < len(str(file)) + 400
