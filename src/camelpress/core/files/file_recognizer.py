"""Recognizes a file of another kind than its name suggests, from its first bytes.

Readers call this before they advise another download, since another download of a Git LFS pointer,
a web page or an XOR diff gives the same file.

Source: git-lfs/git-lfs v3.5, docs/spec.md; ggml-org/ggml, docs/gguf.md; openai/tiktoken 0.9,
tiktoken/load.py (one base64 token and its rank per line); OpenAssistant's xor_codec.py (each byte
of the tuned model's file XOR the byte of the base's file).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.regular_files import open_regular

HEAD_BYTES = 2**16  # bytes read from the beginning of a file
POINTER_BYTES = 1024  # bytes of a Git LFS pointer, limit of its specification
LINK_BYTES = 512  # bytes of a symbolic link copied as a text file, upper limit
SAMPLES = 16  # positions in a file searched for nonzero bytes
SAMPLE_BYTES = 4096  # bytes read at each position

LFS_POINTER = re.compile(rb"version https://(?:git-lfs\.github|hawser\.github)\.com/spec/")
POINTER_SIZE = re.compile(rb"^size (\d{1,19})\s*$", re.MULTILINE)
TIKTOKEN_START = re.compile(rb"[A-Za-z0-9+/]+={0,2} 0\r?\n[A-Za-z0-9+/]+={0,2} 1\r?\n")
TIKTOKEN = re.compile(rb"(?:[A-Za-z0-9+/]+={0,2} \d+\r?\n){2}")
WEB_PAGE = re.compile(rb"\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body|\?xml)\b", re.I | re.S)
SERVER_REFUSAL = re.compile(
    rb"(?:Entry not found|Repository not found|Invalid (?:username or password|credentials)"
    rb"|Unauthorized|Not Found)[.\s]*\Z"
    rb'|Access to model \S{1,200} is restricted|\s*\{\s*"error"\s*:',
    re.IGNORECASE,
)
ROW = re.compile(rb'\s*\{\s*["}]')  # start of a JSON object; it may have a field `error`
COPIED_LINK = re.compile(rb"(?:\.\./)+(?:[\w.-]+/)*[\w.-]+\s*")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # UTF-8
PICKLE = re.compile(rb"PK[\s\S]{28}[^/]{1,200}/data\.pkl")  # first entry of a torch.save archive
HDF5_ADVICE = "export its weights as safetensors, or its texts as JSON lines"  # next step for HDF5
TEXT_ADVICE = "give a text, JSON or JSON lines file"  # next step for other formats
PAGE_SUFFIXES = (".html", ".htm")  # suffixes of genuine web pages
GGUF = (b"GGUF", b"lmgg", b"fmgg", b"tjgg", b"algg")
ZIP, SAFETENSORS = b"PK\x03\x04", re.compile(rb"[\s\S]{8}\{", re.ASCII)
ARCHIVES = {  # first bytes: format, unpack command
    b"\x1f\x8b": ("a gzip archive", "gunzip or tar -xzf"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard archive", "zstd -d"),
    b"\xfd7zXZ\x00": ("an xz archive", "xz -d"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "7z x"),
    b"BZh91AY&SY": ("a bzip2 archive", "bunzip2 or tar -xjf"),
    b"Rar!\x1a\x07": ("a RAR archive", "unrar x"),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file of Keras or TensorFlow", ""),
}


class Recognition(NamedTuple):
    """A recognized input of another kind: a message and a next step."""

    message: str
    next_step: str

    def problem(self) -> CheckpointProblem:
        """Returns the recognition as an exception."""
        return CheckpointProblem(self.message, next_step=self.next_step)


Recognizer = Callable[[Path, bytes, int], Recognition | None]  # arguments: path, first bytes, size


def unreadable_file_problem(
    path: Path, reason: str, *, next_step: str = "download it again"
) -> CheckpointProblem:
    """Returns the problem of a file refused by its parser.

    Args:
        path: File.
        reason: Message of the parser, used if the content is not recognized.
        next_step: Advice for `reason`.
    """
    recognition = recognize_file(path)
    if recognition is not None:
        return recognition.problem()
    return CheckpointProblem(reason, next_step=next_step)


def recognize_file(path: Path) -> Recognition | None:
    """Recognizes the content of a file; None if it is unknown or unreadable."""
    return _recognize(path, FILE_RECOGNIZERS)


def recognize_substitute(path: Path) -> Recognition | None:
    """Recognizes the result of a failed download or copy: pointer, page, refusal or link."""
    if path.suffix.casefold() in PAGE_SUFFIXES:
        return None
    return _recognize(path, SUBSTITUTES)


def recognize_text(path: Path, content: bytes) -> Recognition | None:
    """Recognizes non-text content in a file read as a text."""
    head = content[:HEAD_BYTES]
    if ROW.match(head.removeprefix(BYTE_ORDER_MARK)):
        return None
    for recognize, next_step in TEXT_RECOGNIZERS:
        recognition = recognize(path, head, len(content))
        if recognition is not None:
            return recognition._replace(next_step=next_step or recognition.next_step)
    return None


def _recognize(path: Path, recognizers: Iterable[Recognizer]) -> Recognition | None:
    try:
        with open_regular(path) as file:
            head, size = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
    except OSError:
        return None
    return _first_recognition(path, head, size, recognizers)


def _first_recognition(
    path: Path, head: bytes, size: int, recognizers: Iterable[Recognizer]
) -> Recognition | None:
    recognitions = (recognize(path, head, size) for recognize in recognizers)
    return next((recognition for recognition in recognitions if recognition), None)


def _empty(path: Path, head: bytes, size: int) -> Recognition | None:
    if size:
        return None
    return Recognition(f"{path} is empty (0 bytes)", "download it again")


def _pointer(path: Path, head: bytes, size: int) -> Recognition | None:
    if size > POINTER_BYTES or not LFS_POINTER.match(head):
        return None
    match = POINTER_SIZE.search(head)
    size_label = f" for {int(match[1]):,} bytes" if match else ""
    return Recognition(
        f"{path} is a Git LFS pointer{size_label}, not the file itself",
        f"run git lfs pull in {path.parent}, or download {path.name} with the hub's client",
    )


def _page(path: Path, head: bytes, size: int) -> Recognition | None:
    if not WEB_PAGE.match(head.removeprefix(BYTE_ORDER_MARK)):
        return None
    return Recognition(f"{path} is a web page, not the file itself", _download_advice(path))


def _refusal(path: Path, head: bytes, size: int) -> Recognition | None:
    text = head.removeprefix(BYTE_ORDER_MARK)
    if size > SAMPLE_BYTES or not SERVER_REFUSAL.match(text):
        return None
    answer = text.decode("utf-8", "replace").strip().partition("\n")[0][:80]
    return Recognition(
        f"{path} is a server's refusal, not the file itself ({answer!r})", _download_advice(path)
    )


def _download_advice(path: Path) -> str:
    return (
        f"download {path.name} again with the hub's client, logged in with an account that may "
        "read the repository (hf auth login, then hf download ORG/NAME)"
    )


def _gguf(path: Path, head: bytes, size: int) -> Recognition | None:
    if not head.startswith(GGUF) or b"\0" not in head[4:8]:  # version or size follows the magic
        return None
    return Recognition(
        f"{path} is a GGUF file of llama.cpp",
        "give the 16-bit Hugging Face checkpoint that it was made from",
    )


def _tiktoken(path: Path, head: bytes, size: int) -> Recognition | None:
    if not TIKTOKEN.match(head):
        return None
    return Recognition(
        f"{path} is a tiktoken vocabulary (Llama 3), not a SentencePiece model",
        "put the tokenizer.json and tokenizer_config.json of the Hugging Face repository of this "
        "model beside it",
    )


def _tiktoken_from_zero(path: Path, head: bytes, size: int) -> Recognition | None:
    """Recognizes a whole tiktoken vocabulary, unlike a list of words and counts."""
    if not TIKTOKEN_START.match(head):
        return None
    return Recognition(f"{path} is a tiktoken vocabulary (Llama 3), and no text", TEXT_ADVICE)


def _weights(path: Path, head: bytes, size: int) -> Recognition | None:
    if _is_safetensors(head, size):
        kind = "a safetensors file"
    elif head.startswith(ZIP) and PICKLE.match(head):
        kind = "a file of torch.save"
    else:
        return None
    return Recognition(f"{path} is {kind}, and no text", TEXT_ADVICE)


def _link(path: Path, head: bytes, size: int) -> Recognition | None:
    """Recognizes a symbolic link stored as a text file by an archive or a copy."""
    if size > LINK_BYTES or not COPIED_LINK.fullmatch(head):
        return None
    target = head.decode().strip()
    return Recognition(
        f"{path} is a link to {target} that was copied as text, not the file itself",
        "copy the folder with its links followed (cp -rL), or download it again",
    )


def _zeros(path: Path, head: bytes, size: int) -> Recognition | None:
    if not _has_zero_start(path, head):
        return None
    if _has_content(path, head, size) or any(
        _has_content(file, file_head, file_size)
        for file, file_head, file_size in _files_with_zero_start(path.parent)
    ):
        return Recognition(
            f"{path} begins with zero bytes, as a file of an XOR diff does (OpenAssistant)",
            "undo it with the xor_codec.py of its authors and the exact base files that they name; "
            "the result is the whole tuned model, and recover is not needed",
        )
    return Recognition(
        f"{path} holds nothing but zero bytes ({size:,}): its download did not finish",
        "download it again",
    )


def _has_zero_start(path: Path, head: bytes) -> bool:
    """Returns True if a file begins with zero bytes, like the XOR of two files of its format.

    The header length at the start of a safetensors file is skipped, since it may differ.
    """
    start = 8 if path.suffix == ".safetensors" else 0
    stop = {".safetensors": 16, ".json": 1}.get(
        path.suffix, 4
    )  # files of one format agree up to here
    return len(head) >= stop and not head[start:stop].strip(b"\0")


def _files_with_zero_start(folder: Path) -> list[tuple[Path, bytes, int]]:
    """Lists path, head and size of weight and tokenizer files with zero bytes at the start."""
    files = []
    for path in sorted(folder.glob("*")):
        if path.suffix in (".bin", ".safetensors", ".model") and path.is_file():
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
            if _has_zero_start(path, head):
                files.append((path, head, path.stat().st_size))
    return files


def _has_content(path: Path, head: bytes, size: int) -> bool:
    """Returns True if the beginning or a sampled position of a file has a nonzero byte."""
    if head.strip(b"\0"):
        return True
    with path.open("rb") as file:
        for sample in range(SAMPLES):
            file.seek(size * sample // SAMPLES)
            if file.read(SAMPLE_BYTES).strip(b"\0"):
                return True
    return False


def _wrong_suffix(path: Path, head: bytes, size: int) -> Recognition | None:
    if path.suffix == ".safetensors" and head.startswith(ZIP):
        return Recognition(
            f"{path} is a file of torch.save under the name of a safetensors file",
            f"rename it to {path.with_suffix('.bin').name}, or pytorch_model.bin if it is the "
            "only one",
        )
    if path.suffix in (".bin", ".pth", ".pt") and _is_safetensors(head, size):
        return Recognition(
            f"{path} is a safetensors file under the name of a file of torch.save",
            f"rename it to {path.with_suffix('.safetensors').name}, or model.safetensors if it is "
            "the only one",
        )
    return None


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return bool(SAFETENSORS.match(head)) and 8 + length <= size


def _archive(path: Path, head: bytes, size: int) -> Recognition | None:
    for magic, (kind, command) in ARCHIVES.items():
        if head.startswith(magic):
            step = f"unpack it ({command})" if command else HDF5_ADVICE
            return Recognition(f"{path} is {kind}", step)
    if head[257:262] == b"ustar":
        return Recognition(f"{path} is a tar archive", f"unpack it (tar -xf {path.name})")
    return None


SUBSTITUTES: tuple[Recognizer, ...] = (_pointer, _page, _refusal, _link)
FILE_RECOGNIZERS: tuple[Recognizer, ...] = (
    _empty,
    _pointer,
    _page,
    _refusal,
    _gguf,
    _tiktoken,
    _link,
    _wrong_suffix,
    _archive,
    _zeros,
)
TEXT_RECOGNIZERS: tuple[tuple[Recognizer, str], ...] = (  # next step; "": that of the recognizer
    (_pointer, ""),
    (_page, "download the file itself, or save the text of the page"),
    (_weights, ""),
    (_refusal, ""),
    (_gguf, TEXT_ADVICE),
    (_tiktoken_from_zero, ""),
    (_link, ""),
    (_archive, ""),
)
