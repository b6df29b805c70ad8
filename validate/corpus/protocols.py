"""Cuts a text into windows and marks the scored predictions; a perplexity depends on both.

    documents   each document by itself in disjoint windows; each conversation in its own window
    gptq        the joined text in disjoint windows of 2048 tokens, as in the GPTQ papers
    llama.cpp   the joined text in windows of 512 tokens; only the second half of each is scored
    lm-eval     rolling windows over each document, every token scored once; also per word and byte

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
DOCUMENT_SEPARATOR = "\n\n"  # joins documents, like the rows of WikiText-2 in the papers
FEWER_ROWS = "give fewer of its rows, or use --protocol documents"


class TokenWindow(NamedTuple):
    """A window of tokens for one forward pass.

    `score_mask` marks the tokens with a scored prediction, never the first. `cluster` numbers the
    document of the window, or the window itself if the text is one document or was joined: errors
    within a cluster are correlated.
    """

    ids: list[int]
    score_mask: list[bool]
    cluster: int


class WindowRequest(NamedTuple):
    """Input of a protocol: documents, tokenizer and limits."""

    path: Path
    documents: Sequence[Document]
    tokenizer: Tokenizer
    window_length: int  # tokens per forward pass
    max_tokens: int | None
    assistant_only: bool


class WindowedText(NamedTuple):
    """Windows of a text, and the strings whose words and bytes are counted, if any."""

    windows: list[TokenWindow]
    counted_text: Sequence[str] = ()


class ScoringProtocol(NamedTuple):
    """A protocol for cutting and scoring a text.

    Args:
        cut: function from a request to its windows.
        window_length: tokens per window; None for all positions of the model.
        is_plain_text_only: True if the protocol takes no conversations.
        min_windows: whole windows required of a text; 0 if two tokens are enough.
        description: sentence for reports, with a placeholder for the length.
    """

    cut: Callable[[WindowRequest], WindowedText]
    window_length: int | None
    is_plain_text_only: bool
    min_windows: int
    description: str


def cut_documents(request: WindowRequest) -> WindowedText:
    """Cuts plain text into disjoint windows and truncates each conversation to one window."""
    windows = []
    tokens_left = request.max_tokens if request.max_tokens is not None else 2**62
    for number, document in enumerate(request.documents):
        ids, mask = _encode_with_mask(document, request)
        for start in range(0, len(ids), request.window_length):
            span = slice(start, min(start + request.window_length, start + tokens_left))
            if len(ids[span]) > 1:
                cluster = number if len(request.documents) > 1 else start
                windows.append(_make_window(ids[span], mask[span], cluster))
                tokens_left -= len(ids[span])
    return WindowedText(windows)


def cut_gptq(request: WindowRequest) -> WindowedText:
    """Cuts the joined text into disjoint windows and drops the incomplete last one.

    Source:
        IST-DASLab/gptq 4fe02addc, llama.py (llama_eval) and datautils.py.
    """
    ids = _encode_joined(request)
    windows = [
        ids[start:][: request.window_length] for start in range(0, len(ids), request.window_length)
    ]
    return WindowedText(
        [
            _make_window(window, [True] * len(window), number)
            for number, window in enumerate(windows)
            if len(window) == request.window_length
        ]
    )


def cut_llama_cpp(request: WindowRequest) -> WindowedText:
    """Cuts the joined text into disjoint windows and scores the second half of each.

    BOS replaces the first token of each window if the tokenizer sets one. A newline at the end of
    the file is dropped. A text shorter than two windows has no windows.

    Source:
        ggml-org/llama.cpp 050fc7f32, tools/perplexity/perplexity.cpp (perplexity) and
        common/arg.cpp (--file).
    """
    *documents, last = (str(document) for document in request.documents)
    ids = _encode_joined(request._replace(documents=[*documents, last.removesuffix("\n")]))
    length, tokenizer = request.window_length, request.tokenizer
    first_ids = tokenizer.encode_document("")[:1]
    bos = first_ids if first_ids == [tokenizer.bos] else []
    score_mask = [index > length // 2 for index in range(length)]
    starts = range(0, len(ids) - length + 1, length)
    if len(ids) < 2 * length:
        return WindowedText([])
    return WindowedText(
        [
            TokenWindow([*bos, *ids[start + len(bos) : start + length]], score_mask, number)
            for number, start in enumerate(starts)
        ]
    )


def cut_lm_eval(request: WindowRequest) -> WindowedText:
    """Cuts each document into rolling windows that score every token once, the first after BOS.

    All windows but the last are disjoint; the last overlaps its predecessor, so that it is full.
    Only whole documents are taken, as many as fit in `max_tokens`.

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
            "the tokenizer has neither BOS nor EOS, and lm-eval predicts the first token from it",
            next_step="set bos_token in its config",
        )
    texts = [str(document) for document in request.documents]
    encoded = [tokenizer.encode_document(text) for text in texts]
    if request.max_tokens is not None:
        sums = accumulate(len(window_ids) for window_ids in encoded)
        document_count = sum(total <= request.max_tokens for total in sums)
        if not document_count:
            raise RecipeProblem(
                f"no document of {len(encoded[0])} tokens fits in --max-tokens "
                f"{request.max_tokens}, and lm-eval counts the words of whole ones",
                next_step=f"allow {len(encoded[0])} tokens",
            )
        texts, encoded = texts[:document_count], encoded[:document_count]
    windows = [
        TokenWindow(window_ids, mask, number if len(texts) > 1 else index)
        for number, ids in enumerate(encoded)
        for index, (window_ids, mask) in enumerate(
            _rolling_windows([prefix, *ids], request.window_length)
        )
    ]
    return WindowedText(windows, texts)


def _rolling_windows(ids: list[int], length: int) -> Iterator[tuple[list[int], list[bool]]]:
    """Yields windows of up to `length` + 1 ids and their masks; the last id is only predicted."""
    for first_target in range(1, len(ids), length):
        end = min(first_target + length, len(ids))
        start = max(0, end - length - 1)
        yield ids[start:end], [index >= first_target for index in range(start, end)]


def _encode_joined(request: WindowRequest) -> list[int]:
    text = DOCUMENT_SEPARATOR.join(str(document) for document in request.documents)
    require_short_text(f"{request.path} with its rows joined", text, next_step=FEWER_ROWS)
    return request.tokenizer.encode_document(text)[: request.max_tokens]


def _encode_with_mask(document: Document, request: WindowRequest) -> tuple[list[int], list[bool]]:
    if isinstance(document, str):
        ids = encode_document(document, request.tokenizer)
        return ids, [True] * len(ids)
    ids, answers = encode_with_loss_mask(document, request.tokenizer)
    mask = answers if request.assistant_only else [True] * len(ids)
    return ids[: request.window_length], mask[: request.window_length]


def _make_window(ids: list[int], mask: list[bool], cluster: int) -> TokenWindow:
    return TokenWindow(ids, [False, *mask[1:]], cluster)


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
        "as llama-perplexity: the text in windows of {length} tokens, each starting with BOS if "
        "the tokenizer sets one; the second half of each is scored",
    ),
    "lm-eval": ScoringProtocol(
        cut_lm_eval, None, True, 0,
        "as lm-evaluation-harness: rolling windows of {length} tokens over each document; every "
        "token is scored once, the first after BOS",
    ),
}
# fmt: on
