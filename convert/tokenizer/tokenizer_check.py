"""Checks tokenizer files by loading them and comparing their ids."""

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
        files: name to content, with a config.json that states the model type.
        folder: folder named in errors.
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
    """Returns role to id of bos, eos and pad, after checking the id of every added token.

    Raises:
        CheckpointProblem: an added token has another id than planned, or an id exceeds the rows.
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
    """Checks that the tokenizer built by transformers gives the ids of SentencePiece.

    Raises:
        CheckpointProblem: a text gets other ids.
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
    """Counts texts with other ids than transformers reads from the source's own files.

    Returns:
        numbers of compared texts and of mismatches; None if transformers cannot load the source's
        files.
    """
    texts = _comparison_texts(vocabulary)
    try:
        original = load_tokenizer(files, folder)
        count = sum(_ids(original, text) != _ids(loaded, text) for text in texts)
    except Exception as error:
        if (
            not isinstance(error, (CheckpointProblem, *TOKENIZER_ERRORS))
            and type(error) is not Exception
        ):
            raise
        return None
    return {"texts": len(texts), "mismatches": count}


def _comparison_texts(vocabulary: Vocabulary) -> list[str]:
    """Returns texts for comparing two loaded tokenizers, some with special tokens among words."""
    tokens = {token.content for token in (vocabulary.matched_words | vocabulary.added).values()}
    framed = [f"a{token}b {token} c {token}{token} {token}d" for token in sorted(tokens)]
    return [
        *tokenizer_corpus.CORPUS_TEXTS,
        *tokenizer_corpus.RARE_TEXTS,
        *framed[: tokenizer_corpus.PIECES_PER_TEXT],
    ]


def _ids(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    return tokenizer.encode_document(text), tokenizer.encode(text)
