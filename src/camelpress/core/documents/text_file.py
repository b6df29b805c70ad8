"""Reads text files in UTF-8, or any Unicode encoding with a byte order mark; gzip is accepted."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import os
import stat
import zlib
from pathlib import Path
from typing import NamedTuple

from camelpress.core.errors import RecipeProblem
from camelpress.core.files.text_recognizer import require_text_bytes

GZIP_MAGIC = b"\x1f\x8b"
MAX_BYTES = 2**32  # bytes per file
MAX_UNPACKED_BYTES = 2**30  # bytes of an unpacked text
BYTE_ORDER_MARKS = (  # mark, codec; longer marks first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class TextFile(NamedTuple):
    """Text of a file, and the SHA-256 of its bytes before unpacking."""

    text: str
    sha256: str


def read_text_file(path: Path) -> TextFile:
    """Reads a text file, without its byte order mark.

    Raises:
        RecipeProblem: the file does not exist, is empty, is not readable, is no text, or is in
            another encoding.
    """
    content = _read(path)
    digest = hashlib.sha256(content).hexdigest()
    if content.startswith(GZIP_MAGIC) or path.suffix.casefold() == ".gz":
        content = _unpack(path, content)
    require_text_bytes(path, content)
    return TextFile(_decode(path, content), digest)


def _read(path: Path) -> bytes:
    try:
        _require_regular(path, path.stat())
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecipeProblem(f"{path} does not exist", next_step="check its name") from error
    except PermissionError as error:
        raise RecipeProblem(
            f"{path} may not be read ({error.strerror})",
            next_step="change its permissions, or give a copy of it",
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeProblem(
            f"{path} cannot be read ({reason})", next_step="check its name, and its disk"
        ) from error
    if not content:
        raise RecipeProblem(f"{path} is empty", next_step="give a file with text")
    return content


def _require_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise RecipeProblem(f"{path} is a folder", next_step="give a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise RecipeProblem(f"{path} is no regular file", next_step="save the text as a file")
    if status.st_size > MAX_BYTES:
        raise RecipeProblem(
            f"{path} has more than {MAX_BYTES // 2**30} GiB", next_step="give a part of it"
        )


def _unpack(path: Path, content: bytes) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            unpacked = file.read(MAX_UNPACKED_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RecipeProblem(
            f"{path} is no whole gzip file ({type(error).__name__})",
            next_step="download it again, or give it unpacked",
        ) from error
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise RecipeProblem(
            f"{path} unpacks to more than {MAX_UNPACKED_BYTES // 2**30} GiB",
            next_step="unpack it and give a part of it",
        )
    return unpacked


def _decode(path: Path, content: bytes) -> str:
    codec = next((codec for mark, codec in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(codec)
    except UnicodeDecodeError as error:
        raise RecipeProblem(
            f"{path} is not {codec.removesuffix('-sig').upper()} text (byte {error.start:,} is "
            f"0x{content[error.start]:02x})",
            next_step="save it as UTF-8",
        ) from error
    if "\0" in text:
        raise RecipeProblem(
            f"{path} holds NUL characters: it is no text, or UTF-16 without a byte order mark",
            next_step="save it as UTF-8",
        )
    return text
