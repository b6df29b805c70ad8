"""How a text is cut into windows, and which predictions count: what a perplexity depends on.

    documents   each document by itself, in disjoint windows; each conversation in its own window
    gptq        the joined text in disjoint windows of 2048 tokens, as in the GPTQ papers
    llama.cpp   the joined text in windows of 512 tokens, of which the second half counts
    lm-eval     rolling windows over each document, every token of it once; per word and byte, too

Llama-2-7B has a perplexity of 5.47 on WikiText-2 by `gptq` and 8.79 per word by `lm-eval`: numbers
of different protocols cannot be compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from camelpress.core.documents.dataset_formats import Document
from camelpress.core.documents.document_reader import encode_document
from camelpress.core.errors import RecipeProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.text_bound import require_short_text
from camelpress.core.text.tulu_format import encode_with_loss_mask

WHITESPACE = re.compile(r"\s+")
DOCUMENT_SEPARATOR = "\n\n"  # between documents, as the papers join the rows of WikiText-2
FEWER_ROWS = "give fewer of its rows, or use --protocol documents"


class TokenWindow(NamedTuple):
    """Tokens that are seen together.

    `counted` marks the tokens whose predictions count, never the first. Errors go together within
    a cluster: it is the document, or the window where a text is one document or was joined.
    """

    ids: list[int]
    score_mask: list[bool]
    cluster: int


class WindowRequest(NamedTuple):
    """What is to be cut."""

    path: Path
    documents: Sequence[Document]
    tokenizer: Tokenizer
    window_length: int  # tokens that a model sees at once
    max_tokens: int | None
    assistant_only: bool


class WindowedText(NamedTuple):
    """The windows, and the text whose words and bytes count; none where they do not."""

    windows: list[TokenWindow]
    counted_text: Sequence[str] = ()


class ScoringProtocol(NamedTuple):
    """One way to cut a text.

    Args:
        cut: the windows of a request.
        length: tokens of a window; None where it is the model's positions.
        plain: whether conversations have no place in it.
        windows: how many whole windows a text must have; 0 where two tokens are enough.
        told: in words, with a place for the length.
    """

    cut: Callable[[WindowRequest], WindowedText]
    window_length: int | None
    is_plain_text_only: bool
    min_windows: int
    description: str


def cut_documents(request: WindowRequest) -> WindowedText:
    """Plain text in disjoint windows, each conversation a window of its own that is cut."""
    windows = []
    left = request.max_tokens if request.max_tokens is not None else 2**62
    for number, document in enumerate(request.documents):
        ids, counted = _encode_with_mask(document, request)
        for start in range(0, len(ids), request.window_length):
            piece = slice(start, min(start + request.window_length, start + left))
            if len(ids[piece]) > 1:
                cluster = number if len(request.documents) > 1 else start
                windows.append(_make_window(ids[piece], counted[piece], cluster))
                left -= len(ids[piece])
    return WindowedText(windows)


def cut_gptq(request: WindowRequest) -> WindowedText:
    """Disjoint windows of the joined text; what is left at its end is not scored.

    Source:
        IST-DASLab/gptq 4fe02addc, llama.py (llama_eval) and datautils.py.
    """
    ids = _encode_joined(request)
    pieces = [
        ids[start:][: request.window_length] for start in range(0, len(ids), request.window_length)
    ]
    return WindowedText(
        [
            _make_window(piece, [True] * len(piece), number)
            for number, piece in enumerate(pieces)
            if len(piece) == request.window_length
        ]
    )


def cut_llama_cpp(request: WindowRequest) -> WindowedText:
    """Windows of the joined text, of which the second half counts.

    The first token of each window gives way to BOS where the tokenizer sets one; a newline at the
    end of the file is not read; a text of less than two windows is refused.

    Source:
        ggml-org/llama.cpp 050fc7f32, tools/perplexity/perplexity.cpp (perplexity) and
        common/arg.cpp (--file).
    """
    *most, last = (str(document) for document in request.documents)
    ids = _encode_joined(request._replace(documents=[*most, last.removesuffix("\n")]))
    length, tokenizer = request.window_length, request.tokenizer
    begun = tokenizer.encode_document("")[:1]
    bos = begun if begun == [tokenizer.bos] else []
    half = [place > length // 2 for place in range(length)]
    starts = range(0, len(ids) - length + 1, length)
    if len(ids) < 2 * length:
        return WindowedText([])
    return WindowedText(
        [
            TokenWindow([*bos, *ids[start + len(bos) : start + length]], half, number)
            for number, start in enumerate(starts)
        ]
    )


def cut_lm_eval(request: WindowRequest) -> WindowedText:
    """Rolling windows of each document: every token is predicted once, the first one from BOS.

    All windows but the last are disjoint; the last reaches back, so that it is full. Documents are
    taken whole: those that fit in `max_tokens`.

    Raises:
        RecipeProblem: the tokenizer has neither BOS nor EOS, or no document fits.
    Source:
        EleutherAI/lm-evaluation-harness 0.4.13, lm_eval/utils.py (get_rolling_token_windows) and
        models/huggingface.py (loglikelihood_rolling).
    """
    tokenizer = request.tokenizer
    prefix = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
    if prefix is None:
        raise RecipeProblem(
            "the tokenizer has neither BOS nor EOS, from which lm-eval predicts a first token",
            next_step="set bos_token in its config",
        )
    texts = [str(document) for document in request.documents]
    encoded = [tokenizer.encode_document(text) for text in texts]
    if request.max_tokens is not None:
        sums = accumulate(len(ids) for ids in encoded)
        fitting = sum(total <= request.max_tokens for total in sums)
        if not fitting:
            raise RecipeProblem(
                f"no document of {len(encoded[0])} tokens fits in --max-tokens "
                f"{request.max_tokens}, and lm-eval counts the words of whole ones",
                next_step=f"allow {len(encoded[0])} tokens",
            )
        texts, encoded = texts[:fitting], encoded[:fitting]
    windows = [
        TokenWindow(ids, counted, number if len(texts) > 1 else place)
        for number, each in enumerate(encoded)
        for place, (ids, counted) in enumerate(
            _rolling_windows([prefix, *each], request.window_length)
        )
    ]
    return WindowedText(windows, texts)


def _rolling_windows(ids: list[int], length: int) -> Iterator[tuple[list[int], list[bool]]]:
    """Windows of one more than `length` ids, as the last is only predicted."""
    for done in range(1, len(ids), length):
        end = min(done + length, len(ids))
        start = max(0, end - length - 1)
        yield ids[start:end], [place >= done for place in range(start, end)]


def _encode_joined(request: WindowRequest) -> list[int]:
    text = DOCUMENT_SEPARATOR.join(str(document) for document in request.documents)
    require_short_text(f"{request.path} with its rows joined", text, next_step=FEWER_ROWS)
    return request.tokenizer.encode_document(text)[: request.max_tokens]


def _encode_with_mask(document: Document, request: WindowRequest) -> tuple[list[int], list[bool]]:
    if isinstance(document, str):
        ids = encode_document(document, request.tokenizer)
        return ids, [True] * len(ids)
    ids, answers = encode_with_loss_mask(document, request.tokenizer)
    counted = answers if request.assistant_only else [True] * len(ids)
    return ids[: request.window_length], counted[: request.window_length]


def _make_window(ids: list[int], counted: list[bool], cluster: int) -> TokenWindow:
    return TokenWindow(ids, [False, *counted[1:]], cluster)


# fmt: off
PROTOCOLS = {
    "documents": ScoringProtocol(
        cut_documents, 2048, False, 0,
        "plain text in disjoint windows of {length} tokens, each conversation a sequence of its "
        "own in the Tulu format cut at that length; every token after the first of a sequence is "
        "scored",
    ),
    "gptq": ScoringProtocol(
        cut_gptq, 2048, True, 1,
        "as in the GPTQ papers: the text, joined with blank lines, in disjoint windows of {length} "
        "tokens; every token after the first of a window is scored",
    ),
    "llama.cpp": ScoringProtocol(
        cut_llama_cpp, 512, True, 2,
        "as llama-perplexity: the text in windows of {length} tokens, each begun by BOS where the "
        "tokenizer sets one; the second half of each is scored",
    ),
    "lm-eval": ScoringProtocol(
        cut_lm_eval, None, True, 0,
        "as lm-evaluation-harness: rolling windows of {length} tokens over each document; every "
        "token is scored once, the first after BOS",
    ),
}
# fmt: on
