"""Tries tokenizer files out: they have to load, and to give the ids that they should."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from camelpress.convert.tokenizer import tokenizer_corpus
from camelpress.convert.tokenizer.tokenizer_files import NEXT_STEP, Vocabulary
from camelpress.core.errors import CheckpointProblem
from camelpress.core.text.hf_tokenizer import TOKENIZER_ERRORS, Tokenizer


def load_tokenizer(files: Mapping[str, bytes], folder: Path) -> Tokenizer:
    """Loads tokenizer files from a temporary folder.

    Args:
        files: name to content; a config.json with the model's type among them.
        folder: named in errors.
    Raises:
        CheckpointProblem: transformers cannot load them.
    """
    with TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        try:
            return Tokenizer.load(Path(name))
        except CheckpointProblem as error:
            raise CheckpointProblem(
                error.message.replace(name, str(folder)), next_step=error.next_step
            ) from error


def loaded_special_ids(
    loaded: Tokenizer, vocabulary: Vocabulary, rows: int, folder: Path
) -> dict[str, int]:
    """Returns the ids of bos, eos and pad after it checked every added token.

    Raises:
        CheckpointProblem: an added token has another id than planned, or an id has no row.
    """
    try:
        ids = loaded.encode_document("Hello world")
        added = {n: loaded.encode_document(vocabulary.tokens_by_id[n]) for n in vocabulary.added}
    except (TypeError, ValueError) as error:
        raise CheckpointProblem(
            f"{folder} has a tokenizer that cannot encode ({error})", next_step=NEXT_STEP
        ) from error
    lost = {number for number, encoded in added.items() if number not in encoded}
    if lost:
        text = vocabulary.tokens_by_id[min(lost)]
        raise CheckpointProblem(
            f"{folder} has a tokenizer that does not give {text!r} the id {min(lost)} "
            "when it is loaded",
            next_step=NEXT_STEP,
        )
    roles = {"bos": loaded.bos, "eos": loaded.eos, "pad": loaded.pad}
    special = {role: number for role, number in roles.items() if number is not None}
    top = max(len(loaded) - 1, *ids, *special.values())
    if top >= rows:
        raise CheckpointProblem(
            f"{folder} has a tokenizer that gives the id {top} when it is loaded, "
            f"but the embedding has {rows} rows",
            next_step=NEXT_STEP,
        )
    return special


def require_sentencepiece_ids(
    loaded: Tokenizer, sample: Mapping[str, list[int]], folder: Path
) -> None:
    """Checks that transformers builds the tokenizer that was compared with SentencePiece.

    Raises:
        CheckpointProblem: it gives other ids.
    """
    wrong = [text for text, ids in sample.items() if loaded.encode(text) != ids]
    if wrong:
        raise CheckpointProblem(
            f"{folder} has a tokenizer to which transformers gives other ids than SentencePiece, "
            f"on {len(wrong)} of {len(sample)} texts",
            next_step=f"put the tokenizer.json of this model into {folder}",
        )


def count_mismatches(
    loaded: Tokenizer, files: Mapping[str, bytes], vocabulary: Vocabulary, folder: Path
) -> dict[str, int] | None:
    """Counts the texts to which the source's own files give other ids in transformers.

    Returns:
        None where transformers cannot load the source's own files.
    """
    texts = _comparison_texts(vocabulary)
    try:
        own = load_tokenizer(files, folder)
        count = sum(_ids(own, text) != _ids(loaded, text) for text in texts)
    except Exception as error:
        if (
            not isinstance(error, (CheckpointProblem, *TOKENIZER_ERRORS))
            and type(error) is not Exception
        ):
            raise
        return None
    return {"texts": len(texts), "mismatches": count}


def _comparison_texts(vocabulary: Vocabulary) -> list[str]:
    """Returns the texts for comparing two loaded tokenizers, with special tokens among words."""
    tokens = {token.content for token in (vocabulary.matched_words | vocabulary.added).values()}
    framed = [f"a{token}b {token} c {token}{token} {token}d" for token in sorted(tokens)]
    return [
        *tokenizer_corpus.CORPUS_TEXTS,
        *tokenizer_corpus.RARE_TEXTS,
        *framed[: tokenizer_corpus.PIECES_PER_TEXT],
    ]


def _ids(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    return tokenizer.encode_document(text), tokenizer.encode(text)
