"""What is no text is named for what it is, with a step that makes text of it."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from camelpress.core.documents import text_file
from camelpress.core.documents.document_reader import read_corpus, read_documents
from camelpress.core.errors import RecipeProblem

ROWS = "instruction{0}input{0}output\nName a river{0}{0}The Nile\nDo{0}{0}Done\n"
ROOT = os.geteuid() == 0
PAGE = "a web page, not the file itself"


def problem_of(path: Path) -> RecipeProblem:
    with pytest.raises(RecipeProblem) as problem:
        read_documents(path)
    assert problem.value.exit_code == 2
    assert len(str(problem.value).splitlines()) == 1
    return problem.value


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "sea")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize(
    ("content", "kind", "step"),
    [
        (b"PAR1\x15\x04", "a Parquet file, and no text", "read_parquet(FILE)"),
        (b"ARROW1\0\0", "an Arrow file, and no text", "read_feather(FILE)"),
        (b"\xff\xff\xff\xff\x10\0\0\0", "an Arrow stream, and no text", "Dataset.from_file(FILE)"),
        (zipped(), "a zip archive, and no text", "unpack it"),
        (tarred(), "a tar archive", "unpack it"),
        (gzip.compress(tarred(), mtime=0), "a tar archive", "unpack it"),
        (gzip.compress(gzip.compress(b"sea", mtime=0), mtime=0), "a gzip archive", "unpack it"),
        (bz2.compress(b"sea"), "a bzip2 archive", "unpack it (bunzip2"),
        (lzma.compress(b"sea"), "an xz archive", "unpack it (xz -d)"),
        (b"\x28\xb5\x2f\xfd\0", "a Zstandard archive", "unpack it (zstd -d)"),
        (b"7z\xbc\xaf\x27\x1c\0", "a 7-Zip archive", "unpack it"),
        (b"Rar!\x1a\x07\0", "a RAR archive", "unpack it"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file of Keras or TensorFlow", "its texts as JSON lines"),
        (b"GGUF\x03\0\0\0", "a GGUF file of llama.cpp", "give a text, JSON or JSON lines file"),
        (b"%PDF-1.7\n", "a PDF document, and no text", "save its text as UTF-8"),
        (b"<!DOCTYPE html>\n<html></html>", PAGE, "download the file itself"),
        (b"\xef\xbb\xbf\n<html lang='en'>", PAGE, "save the text of the page"),
        (b"<!-- saved -->\n<body>", PAGE, "download the file itself"),
        (b"<?xml version='1.0'?>", "XML, and no text", "extract its text"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
            "a Git LFS pointer for 7 bytes, not the file itself",
            "git lfs pull",
        ),
    ],
)
def test_another_format_is_named(
    tmp_path: Path, name: str, content: bytes, kind: str, step: str
) -> None:
    (tmp_path / name).write_bytes(content)
    problem = problem_of(tmp_path / name)
    assert problem.message == f"{tmp_path / name} is {kind}"
    assert step in problem.next_step


@pytest.mark.parametrize(
    "text", ["GGUF is a format of llama.cpp.", "Rar! cried the lion.", "<headline> The sea"]
)
def test_a_text_that_begins_like_another_format_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert read_documents(tmp_path / "a.txt") == [text]


@pytest.mark.parametrize(
    ("name", "content", "kind", "step"),
    [
        ("a.csv", ROWS.format(","), "CSV", "pandas.read_csv(FILE)"),
        ("a.csv", "one, two\n", "CSV", "pandas.read_csv(FILE)"),
        ("a.txt", ROWS.format(","), "CSV", "pandas.read_csv(FILE)"),
        ("a.txt", '"prompt","completion"\n"a, b","c"\n', "CSV", "pandas.read_csv(FILE)"),
        ("a.txt", ROWS.format(";"), "CSV", "pandas.read_csv(FILE, sep=';')"),
        ("a.CSV", "one, two\n", "CSV", "pandas.read_csv(FILE)"),
        ("a.tsv", "a\tb\n", "TSV", "pandas.read_table(FILE)"),
        ("a.txt", ROWS.format("\t"), "TSV", "pandas.read_table(FILE)"),
        ("a.txt", "Is it?\tyes\nWas it?\tno\nWill it?\tno\n", "TSV", "pandas.read_table(FILE)"),
    ],
)
def test_a_table_is_no_prose(tmp_path: Path, name: str, content: str, kind: str, step: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    problem = problem_of(tmp_path / name)
    assert problem.message == f"{tmp_path / name} is {kind}, a table, and no text"
    assert step in problem.next_step


@pytest.mark.parametrize("content", ["{'text': 'a'}\n", "[{'text': 'a'},\n {'text': 'b'}]\n"])
def test_a_python_literal_is_no_prose(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    problem = problem_of(tmp_path / "a.txt")
    assert problem.message == f"{tmp_path / 'a.txt'} is a Python literal, not JSON, and no text"
    assert problem.next_step == "write it with json.dumps"


ROW = '{"text": "the whale"}'


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a", "a.jsonl"])
@pytest.mark.parametrize(
    ("content", "kind", "step"),
    [
        (f"// my rows\n{ROW}\n{ROW}\n", "with // comments", "remove the comment lines"),
        (f"\n  // one\n// two\n[{ROW},\n  // three\n{ROW}]\n", "with // comments", "comment"),
        (f"```json\n{ROW}\n```\n", "inside Markdown fences", "remove the lines of the fences"),
        (f"```\n[{ROW},\n{ROW}]\n```", "inside Markdown fences", "fences"),
        (f"\n~~~ jsonl\n{ROW}\n~~~\n\n```\n{ROW}\n```\n", "inside Markdown fences", "fences"),
        (f"```json\n{ROW}\n{ROW}\n", "inside Markdown fences", "fences"),
    ],
)
def test_wrapped_json_is_no_prose(
    tmp_path: Path, name: str, content: str, kind: str, step: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    problem = problem_of(path)
    assert problem.message == f"{path} is JSON {kind}, and no text"
    assert step in problem.next_step


@pytest.mark.parametrize(
    "content",
    [
        f"A row is written so:\n\n```json\n{ROW}\n```\n",
        f"```json\n{ROW}\n```\n\nThis is a row.\n",
        "```python\nprint([1, 2])\n```\n",
        "// a comment of C\nint main() { return 0; }\n",
        f"// the whale\nCall me Ishmael.\n{ROW}\nSome years ago.\n",
        "// nothing but a comment\n",
        "```\n```\n",
    ],
)
def test_prose_with_json_or_comments_in_it_is_prose(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    assert read_documents(tmp_path / "a.txt") == [content]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.txt"
    assert str(problem_of(path)) == f"{path} does not exist; check its name"
    (tmp_path / "a.txt").write_text("sea", encoding="utf-8")
    path = tmp_path / "a.txt" / "b.txt"
    assert str(problem_of(path)) == f"{path} does not exist; check its name"


def test_a_folder_is_named(tmp_path: Path) -> None:
    assert str(problem_of(tmp_path)) == f"{tmp_path} is a folder; give a file in it"


def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    problem = problem_of(tmp_path / "pipe")
    assert str(problem) == f"{tmp_path / 'pipe'} is no regular file; save the text as a file"


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert (
        str(problem_of(tmp_path / "a.txt"))
        == f"{tmp_path / 'a.txt'} is empty; give a file with text"
    )


@pytest.mark.skipif(ROOT, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("sea", encoding="utf-8")
    path.chmod(0)
    problem = problem_of(path)
    assert problem.message == f"{path} may not be read (Permission denied)"


@pytest.mark.parametrize("name", ["a\0.txt", "a" * 5000])
def test_a_name_that_no_file_can_have_is_named(tmp_path: Path, name: str) -> None:
    assert problem_of(tmp_path / name).message.startswith(f"{tmp_path}/a")


def test_another_encoding_is_named_with_its_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    problem = problem_of(path)
    assert str(problem) == f"{path} is not UTF-8 text (byte 2 is 0xef); save it as UTF-8"


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf_16_without_a_mark_is_no_text(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a river\n".encode(codec))
    problem = problem_of(path)
    assert "holds NUL characters" in problem.message
    assert problem.next_step == "save it as UTF-8"


def test_a_text_that_grows_when_it_is_unpacked_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "MAX_UNPACKED_BYTES", 1000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"a" * 1000))
    assert read_documents(tmp_path / "a.gz") == ["a" * 1000]
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"a" * 1001))
    assert problem_of(tmp_path / "b.gz").next_step == "unpack it and give a part of it"


def test_the_size_of_a_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(text_file.MAX_BYTES + 1)
    assert str(problem_of(path)) == f"{path} has more than 4 GiB; give a part of it"


def test_the_hash_is_of_the_bytes_that_were_read(tmp_path: Path) -> None:
    content = gzip.compress(b"sea")
    (tmp_path / "a.gz").write_bytes(content)
    assert read_corpus(tmp_path / "a.gz").sha256 == hashlib.sha256(content).hexdigest()
