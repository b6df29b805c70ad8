"""A tokenizer of LLaMA's kind: tokenizer.model, and every other file made from it.

The other files of 2023 are not to be trusted: special tokens that are "" send fast tokenizers
into endless recursion, and without tokenizer.json transformers 5 puts no BOS in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, decoders, models, normalizers, processors

from camelpress.convert.vocabulary import (
    ADDED,
    CONFIG,
    FAST,
    LISTS,
    MAP,
    MODEL,
    Json,
    Told,
    Vocabulary,
    entry,
)
from camelpress.core.bounds import MAX_PIECE_CHARACTERS, MAX_PIECES, MAX_TOKENIZER_MODEL_BYTES
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files import read_regular

BLANK = "\u2581"
ENDLESS = 10**9  # a longer model_max_length means: not known
SETTINGS: Json = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": True,  # else a role marker after BOS is 29966, not 529 as in training
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "padding_side": "left",
}
PROBES = (  # texts that kinds of SentencePiece models cut differently
    *("", " ", "\n", " Hello", "Hello  world ", "<|user|>\nHello", "1234567", "\t x\0"),
    *("\ufb01 \u2460 e\u0301 \u00e9", "\u9be8 \U0001f40b \u200b", "x" + " " * 40 + "y"),
)


def read(told: Told) -> tuple[tokenizers.Tokenizer, dict[str, int]] | None:
    """The tokenizer of tokenizer.model, and which of its pieces are bos, eos and unk.

    Returns:
        None where there is no such file, or where it is of another kind and tokenizer.json is
        there to be used instead.
    Raises:
        CheckpointProblem: the file is damaged, it is of another kind and stands alone, or
            tokenizer.json has another vocabulary.
    """
    path = told.folder / MODEL
    if not path.is_file():
        return None
    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(read_regular(path, MAX_TOKENIZER_MODEL_BYTES))
        _require_sane_pieces(model)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointProblem(
            f"{path} is not a SentencePiece model ({_first_line(error)})",
            next_step="download it again",
        ) from error
    special = {"bos": model.bos_id(), "eos": model.eos_id(), "unk": model.unk_id()}
    made = _made(model) if min(special.values()) >= 0 else None
    if made is not None:
        _require_same(told, made.get_vocab(with_added_tokens=False))
        return made, special
    if told.fast:
        return None
    raise CheckpointProblem(
        f"{path} is not of LLaMA's kind, and there is no {FAST} beside it",
        next_step=f"add the {FAST} of this model",
    )


def _first_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


def _require_sane_pieces(model: SentencePieceProcessor) -> None:
    """Raises ValueError where a piece is no text, or pieces are too many or too long to be used."""
    count = model.get_piece_size()
    if count > MAX_PIECES:
        raise ValueError(f"it has {count:,} pieces, {MAX_PIECES:,} are the limit")
    longest = max((len(model.id_to_piece(number)) for number in range(count)), default=0)
    if longest > MAX_PIECE_CHARACTERS:
        raise ValueError(f"it has a piece of {longest:,} characters")


def files(
    told: Told,
    vocabulary: Vocabulary,
    made: tokenizers.Tokenizer,
    special: Mapping[str, int],
    template: Any,
    config: Mapping[str, Any],
) -> dict[str, bytes | Json]:
    """All files that loaders of transformers 4 and 5, fast and slow, look for.

    Args:
        told: gives tokenizer.model and `model_max_length`.
        vocabulary: what is added to `made`.
        made: as `read` gives it.
        special: bos, eos, unk and pad.
        template: of chats; it goes into tokenizer_config.json, which all loaders read.
        config: of the model; no text may be longer than its `max_position_embeddings`.
    """
    for token in vocabulary.added.values():
        (made.add_special_tokens if token.special else made.add_tokens)([token])
    bos = vocabulary.texts[special["bos"]]
    made.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"],
        pair=[bos, "$A", f"{bos}:1", "$B:1"],
        special_tokens=[(bos, special["bos"])],
    )
    names: Json = {f"{role}_token": vocabulary.texts[number] for role, number in special.items()}
    more = [
        token.content
        for number, token in vocabulary.added.items()
        if token.special and number not in special.values()
    ]
    names |= {LISTS[0]: more} if more else {}
    decoder = made.get_added_tokens_decoder()
    lengths = (told.config.get("model_max_length"), config.get("max_position_embeddings"))
    sane = [length for length in lengths if type(length) is int and 0 < length < ENDLESS]
    small: dict[str, Json] = {
        CONFIG: SETTINGS
        | ({"model_max_length": min(sane)} if sane else {})
        | ({"chat_template": template} if template else {})
        | names
        | {"added_tokens_decoder": {str(n): entry(decoder[n]) for n in sorted(decoder)}},
        MAP: names,
        ADDED: {token.content: number for number, token in vocabulary.added.items()},
    }
    return {
        MODEL: (told.folder / MODEL).read_bytes(),
        FAST: made.to_str(pretty=True).encode(),
        **{name: content for name, content in small.items() if content},
    }


def _made(model: SentencePieceProcessor) -> tokenizers.Tokenizer | None:
    """A tokenizer with the ids of a SentencePiece model; None where these would differ.

    A merge has the rank of the piece that it makes. The blank in front comes from a normalizer,
    as SentencePiece has it: the pre-tokenizer of transformers 5 puts none before another blank.
    """
    ids = range(model.get_piece_size())
    pieces = [model.id_to_piece(number) for number in ids]
    words = {piece: number for number, piece in enumerate(pieces)}
    special = [number for number in ids if model.is_control(number) or model.is_unknown(number)]
    normal = [number for number in ids if number not in special and not model.is_byte(number)]
    merges = [
        halves
        for number in sorted(normal, key=model.get_score, reverse=True)
        for halves in _halves(pieces[number], words)
    ]
    made = tokenizers.Tokenizer(
        models.BPE(
            words, merges, unk_token=pieces[model.unk_id()], fuse_unk=True, byte_fallback=True
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)]
    )
    undo = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)])
    texts = [*PROBES, *(pieces[number] for number in normal)]
    encoded = made.encode_batch(texts, add_special_tokens=False)
    if [one.ids for one in encoded] != model.encode(texts):
        return None
    made.add_special_tokens(
        [AddedToken(pieces[n], special=True, normalized=False) for n in special]
    )
    return made


def _halves(piece: str, words: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(piece)):
        if piece[:cut] in words and piece[cut:] in words:
            yield piece[:cut], piece[cut:]


def _require_same(told: Told, words: Mapping[str, int]) -> None:
    """Refuse two vocabularies in one folder: nothing says which one the weights belong to."""
    model = told.fast.get("model")
    found = model.get("vocab") if isinstance(model, dict) else None
    if told.fast and found != words:
        size = len(found) if isinstance(found, (dict, list)) else 0
        raise CheckpointProblem(
            f"{told.folder / FAST} has a vocabulary of {size}, not the {len(words)} of {MODEL}",
            next_step="remove the one that does not belong to these weights",
        )
