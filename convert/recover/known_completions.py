r"""Scores known completions of the published model under the recovered one, as a golden test.

A correctly recovered model finds its own completions likely and, if they were decoded greedily,
reproduces each token. Prompts have the form of training, with content stripped of blanks
(`core.text.tulu_format`). The published completions of Tulu were sampled a little differently: with
the last newline of the prompt, and probably in 8 bits and without BOS. Even the right model
therefore need not agree on every token.

Source: allenai/open-instruct 9ebcb582c, human_eval/data/eval_instances_tulu_1.jsonl and
eval/creative_tasks/predict.py. Its eval/creative_tasks/perplexity_eval.py raises 2 to a mean of
natural logarithms; this module raises e.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.documents.dataset_formats import Document
from camelpress.core.documents.document_reader import Corpus, read_corpus
from camelpress.core.errors import RecipeProblem
from camelpress.core.progress import track
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import Message, encode_chat
from camelpress.inference.model.output_head import OutputHead
from camelpress.inference.model.streamed_model import StreamedModel, compute_dtype, pick_device
from camelpress.inference.model.token_batches import TokenBatches

MAX_EXP_ARGUMENT = 700.0  # nats; exp of it is still a finite float64
WORST_COMPLETIONS = 5  # least likely completions listed in the report


@dataclass(frozen=True)
class KnownCompletion:
    """Token ids of a prompt and its completion."""

    number: int  # position in the file, from 1
    ids: list[int]
    first_scored: int  # index of the first id of the completion


@dataclass(frozen=True)
class CompletionSet:
    """A model ready to score, and the completions of a file."""

    model: StreamedModel
    completions: list[KnownCompletion]  # completions with room after their prompts
    left_out: int  # completions without room


def read_completion_corpus(prompts: Path) -> Corpus:
    """Reads a file of known completions, without a model.

    Args:
        prompts: file of conversations with a final answer, in any layout of `core.documents`.
    Raises:
        RecipeProblem: the file cannot be read, a row or turn is unusable, a document is not a
            conversation, or a completion is empty.
    """
    corpus = read_corpus(prompts)
    if corpus.first_omission:
        label, omission = corpus.first_omission
        raise RecipeProblem(
            f"{label} cannot be scored because {omission.reason}",
            next_step="mend or remove that row",
        )
    for number, document in enumerate(corpus.documents, start=1):
        _require_answer(f"{prompts}: conversation {number}", document)
    return corpus


def read_completions(
    prompts: Path, tokenizer: Tokenizer, corpus: Corpus | None = None
) -> list[KnownCompletion]:
    """Encodes every completion of a file.

    Args:
        prompts: path of the file.
        tokenizer: tokenizer of the model.
        corpus: content of the file; None: read it.
    Raises:
        RecipeProblem: as in `read_completion_corpus`.
    """
    documents = (corpus or read_completion_corpus(prompts)).documents
    return [
        _completion(number, document, tokenizer)
        for number, document in enumerate(documents, start=1)
        if not isinstance(document, str)
    ]


def prepare_completions(
    model: Checkpoint, prompts: Path, corpus: Corpus, *, device: str
) -> CompletionSet:
    """Prepares scoring without reading weights, so that problems show before hours of work.

    Args:
        model: 16-bit or GPTQ checkpoint with its tokenizer.
        prompts: path of the file.
        corpus: content of the file.
        device: auto, cpu or cuda:N.
    Raises:
        RecipeProblem: the device does not exist, or no prompt leaves room for a completion.
        CheckpointProblem: the tokenizer is missing, or the architecture is not supported.
    """
    completions = read_completions(prompts, Tokenizer.load(model.folder), corpus)
    torch_device = pick_device(device)
    dtype = compute_dtype(torch_device, model.dtype)
    streamed = StreamedModel(model, device=torch_device, dtype=dtype)
    fitting = [
        completion for completion in completions if completion.first_scored < streamed.max_positions
    ]
    if not fitting:
        raise RecipeProblem(
            f"{prompts}: every prompt fills the {streamed.max_positions} positions of "
            f"{model.folder}",
            next_step="give shorter prompts",
        )
    return CompletionSet(streamed, fitting, len(completions) - len(fitting))


def score_completions(
    model: Checkpoint, prompts: Path, corpus: Corpus | None = None, *, device: str
) -> dict[str, Any]:
    """Scores known completions under a model.

    The hidden states of all tokens stay in CPU memory. With 65 billion weights (8,192 wide), 60,000
    tokens need 1.0 GB in 16 bits and 2.0 GB in fp32; the 81,445 tokens of Tulu's 332 prompts and
    completions need 1.3 GB and 2.7 GB. One block adds 1.6 GB, in fp32 3.2 GB.

    Args:
        model: 16-bit or GPTQ checkpoint with its tokenizer.
        prompts: file for `read_completion_corpus`.
        corpus: content of that file; None: read it.
        device: auto, cpu or cuda:N.
    Returns:
        Facts for a report; shares lie between 0 and 1. `greedy_agreement` is a share of tokens, the
        other shares are of completions; `greedy_prefix` is a mean in tokens; `eos_agreement` is
        None if every completion is cut.
    Raises:
        RecipeProblem, CheckpointProblem: as in `prepare_completions`.
        NumericsProblem: weights or logits are not finite.
    """
    corpus = corpus or read_completion_corpus(prompts)
    task = prepare_completions(model, prompts, corpus, device=device)
    fitting, limit = task.completions, task.model.max_positions
    nll, greedy = _score_tokens(task.model, fitting)
    whole = [len(completion.ids) <= limit for completion in fitting]
    ends = [bool(tokens[-1]) for tokens in compress(greedy, whole)]
    return {
        "file": prompts.name,
        "sha256": corpus.sha256,
        "protocol": f"Tulu format, completion and EOS scored, cut at {limit} tokens; "
        f"{dtype_name(task.model.dtype)} on {task.model.device.type}",
        "completions": len(fitting),
        "cut": len(fitting) - len(ends),
        "left_out": task.left_out,
        "tokens": sum(map(len, nll)),
        "perplexity": _perplexity(torch.cat(nll)),
        "greedy_agreement": float(torch.cat(greedy).double().mean()),
        "greedy_completions": fmean([bool(tokens.all()) for tokens in greedy]),
        "greedy_prefix": fmean([int(tokens.cumprod(0).sum()) for tokens in greedy]),
        "eos_agreement": fmean(ends) if ends else None,
        "worst": _least_likely(fitting, nll),
    }


def _require_answer(label: str, document: Document) -> None:
    """Raises RecipeProblem unless a document is a prompt with an answer that is not blank."""
    if isinstance(document, str) or len(document) < 2 or document[-1].role != "assistant":
        raise RecipeProblem(
            f"{label} is not a prompt and an answer",
            next_step="give prompts with their completions",
        )
    if not document[-1].content.strip():
        raise RecipeProblem(f"{label} has an empty completion", next_step="leave it out")


def _completion(number: int, document: Sequence[Message], tokenizer: Tokenizer) -> KnownCompletion:
    prompt = encode_chat(document[:-1], tokenizer, generation=True)
    ids = encode_chat(document, tokenizer)
    pairs = enumerate(zip(prompt, ids, strict=False))
    return KnownCompletion(
        number, ids, next((index for index, (a, b) in pairs if a != b), len(prompt))
    )


def _score_tokens(
    model: StreamedModel, completions: Sequence[KnownCompletion]
) -> tuple[tuple[Float32[Tensor, " _"], ...], tuple[Bool[Tensor, " _"], ...]]:
    """Returns the loss in nats and the greedy agreement of each token, per completion."""
    limit = model.max_positions
    batches = TokenBatches([completion.ids[:limit] for completion in completions], limit=limit)
    firsts = [completion.first_scored for completion in completions]
    spans = list(zip(batches.starts, firsts, batches.lengths, strict=True))
    scored = torch.cat(
        [torch.arange(start + first, start + length) for start, first, length in spans]
    )
    chunks = []
    with torch.inference_mode():
        hidden = model.last_hidden_states(batches, "score model")
        output_head = OutputHead("model", model)
        for rows in track(output_head.split_rows(scored - 1), "completions"):
            log_probs = output_head.log_probabilities(hidden[rows])
            targets = batches.tokens[rows + 1].to(log_probs.device)
            nll = -log_probs.gather(1, targets[:, None]).squeeze(1)
            chunks.append((nll.cpu(), (log_probs.argmax(dim=-1) == targets).cpu()))
    nll, greedy = (torch.cat(column) for column in zip(*chunks, strict=True))
    counts = [length - first for _, first, length in spans]
    return nll.split(counts), greedy.split(counts)


def _least_likely(
    completions: Sequence[KnownCompletion], nll: Sequence[Float32[Tensor, " _"]]
) -> list[dict[str, Any]]:
    """Returns the least likely completions, the least likely first."""
    rows = [
        {"number": completion.number, "tokens": len(tokens), "perplexity": _perplexity(tokens)}
        for completion, tokens in zip(completions, nll, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["perplexity"])[:WORST_COMPLETIONS]


def _perplexity(nll: Float32[Tensor, " tokens"]) -> float:
    """Returns exp of the mean loss, capped so that a broken model gives a finite number."""
    return exp(min(float(nll.double().mean()), MAX_EXP_ARGUMENT))
