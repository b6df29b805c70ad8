"""What calibrates and what is held out: python -m benchmarks.quantize.texts MODEL DATA OUT

Calibration is Tulu chat packed end to end and cut into windows of full length, the same ids for
every tool: `calibration.txt` for camelpress, with special tokens written out, and `tokens.json`
for the others. That both are the same is checked here. Held out are articles, web pages and
answers of Tulu 65B, a token sequence for each document: `held-out.json`. A document that shares
13 words in a row with the calibration is passed over.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from camelpress.core.documents.dataset_formats import Document
from camelpress.core.documents.document_reader import encode_document, read_documents
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import Message, chat_segments, encode_chat

CALIBRATION = (
    "calibration/alpaca_en_demo.json",
    "calibration/code_alpaca_2k.json",
    "calibration/dpo_en_demo_chosen.jsonl",
)
ARTICLES, PAGES, CHAT = "text/wiki.utf8", "text/c4_demo.jsonl", "tulu/eval_instances_tulu_1.jsonl"
SEED = 0
SHARED_WORDS = 13


def packed(
    conversations: Iterable[Sequence[Message]], tokenizer: Tokenizer, samples: int, length: int
) -> tuple[str, list[list[int]]]:
    """Conversations end to end as a text, and its ids in exactly `samples` windows.

    Conversations are passed over where text and ids would differ, as with a special token spelt
    out in them, and where they would make a window too many.

    Raises:
        SystemExit: they do not suffice, or the text as a whole has other ids.
    """
    text, stream = "", list[int]()
    for messages in conversations:
        own, ids = _written(messages, tokenizer), encode_chat(messages, tokenizer)
        fits = len(stream) + len(ids) < (samples + 1) * length
        if fits and _ids(own, tokenizer) == ids:
            text += own
            stream += ids
        if len(stream) >= samples * length:
            break
    else:
        raise SystemExit(f"calibration holds {len(stream)} tokens, fewer than {samples} x {length}")
    if _ids(text, tokenizer) != stream:
        raise SystemExit("the calibration text has other ids than its conversations")
    windows = [stream[start : start + length] for start in range(0, samples * length, length)]
    return _own_bos(text, tokenizer), windows


def held_out(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    seen: set[str],
    *,
    tokens: int,
    length: int,
) -> list[list[int]]:
    """Sequences of at most `length`, one for each document, until there are `tokens` of them.

    Args:
        seen: runs of words that no document may hold.
    """
    found: list[list[int]] = []
    for document in documents:
        left = tokens - sum(map(len, found))
        if left < 2:
            break
        ids = encode_document(document, tokenizer)[: min(length, left)]
        if len(ids) > 1 and not seen & set(runs(_plain(document))):
            found.append(ids)
    return found


def runs(text: str) -> Iterator[str]:
    """Every 13 words in a row, case and punctuation ignored."""
    words = re.findall(r"\w+", text.lower())
    for start in range(len(words) - SHARED_WORDS + 1):
        yield " ".join(words[start : start + SHARED_WORDS])


def articles(text: str) -> list[str]:
    """The articles between `<doc>` and `</doc>`."""
    found = re.findall(r"^<doc [^\n]*>\n(.*?)^</doc>$", text, re.MULTILINE | re.DOTALL)
    return [article.strip() for article in found]


def write(folder: Path, model: Path, data: Path, *, samples: int, length: int, tokens: int) -> None:
    """Make the three files in `folder`."""
    tokenizer = Tokenizer.load(model)
    chats = [document for name in CALIBRATION for document in read_documents(data / name)]
    text, windows = packed(
        (chat for chat in _shuffled(chats) if not isinstance(chat, str)), tokenizer, samples, length
    )
    seen = set(runs(text))
    sources: dict[str, Sequence[Document]] = {
        "articles": articles((data / ARTICLES).read_text(encoding="utf-8")),
        "web pages": read_documents(data / PAGES),
        "Tulu chat": read_documents(data / CHAT),
    }
    held = {
        name: held_out(_shuffled(documents), tokenizer, seen, tokens=tokens, length=length)
        for name, documents in sources.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "calibration.txt").write_text(text, encoding="utf-8")
    (folder / "tokens.json").write_text(json.dumps(windows), encoding="utf-8")
    (folder / "held-out.json").write_text(json.dumps(held), encoding="utf-8")


def _written(messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    """A conversation as text, special tokens written out."""
    begin, end = (
        "" if token is None else tokenizer.decode([token])
        for token in (tokenizer.bos, tokenizer.eos)
    )
    return begin + "".join(part.text + end * part.has_eos for part in chat_segments(messages))


def _ids(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode_document(_own_bos(text, tokenizer))


def _own_bos(text: str, tokenizer: Tokenizer) -> str:
    """Without the first BOS where the tokenizer puts one in front by itself."""
    if tokenizer.bos is None or tokenizer.encode_document("")[:1] != [tokenizer.bos]:
        return text
    return text.removeprefix(tokenizer.decode([tokenizer.bos]))


def _plain(document: Document) -> str:
    if isinstance(document, str):
        return document
    return " ".join(message.content for message in document)


def _shuffled(documents: Sequence[Document]) -> list[Document]:
    return random.Random(SEED).sample(documents, len(documents))


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description="Make calibration and held-out texts.")
    for name in ("model", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--sequence-length", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="of each held-out text")
    given = parser.parse_args()
    write(
        given.out,
        given.model,
        given.data,
        samples=given.samples,
        length=given.sequence_length,
        tokens=given.tokens,
    )


if __name__ == "__main__":
    main()
