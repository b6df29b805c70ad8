r"""The golden test: completions a model is known to have given, scored under the recovered one.

A recovered model that is the published one finds its own completions likely and, where they were
decoded greedily, continues each as it stands. Prompts are in the form of training, without blanks
around the content (`core.prompt`). The published completions of Tulu were asked for a little
differently, the prompt's last newline kept, and probably in 8 bits and without BOS, so that even
the right model need not agree on every token.

Source: allenai/open-instruct 9ebcb582c, human_eval/data/eval_instances_tulu_1.jsonl and
eval/creative_tasks/predict.py. Ours differs from eval/creative_tasks/perplexity_eval.py, which
raises 2 to a mean of natural logarithms.
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

MAX_EXP_ARGUMENT = 700.0  # of a float
WORST_COMPLETIONS = 5  # completions that are named


@dataclass(frozen=True)
class KnownCompletion:
    """A prompt and its completion as ids."""

    number: int  # in the file, from 1
    ids: list[int]
    first_scored: int  # place of the first id that the completion decides


@dataclass(frozen=True)
class CompletionSet:
    """A model that is ready to score, and the completions of a file."""

    model: StreamedModel
    completions: list[KnownCompletion]  # those whose prompts leave room for them
    left_out: int  # the others


def read_corpus_of_answers(prompts: Path) -> Corpus:
    """Reads a file of known completions; no model is needed.

    Args:
        prompts: conversations that end in an answer, in any layout of `core.documents`.
    Raises:
        RecipeProblem: the file cannot be read, a row or turn of it would be left out, or it holds
            something else or an empty completion.
    """
    corpus = read_corpus(prompts)
    if corpus.first_omission:
        place, omission = corpus.first_omission
        raise RecipeProblem(
            f"{place} cannot be scored because {omission.reason}",
            next_step="mend or remove that row",
        )
    for number, document in enumerate(corpus.documents, start=1):
        _require_answer(f"{prompts}: conversation {number}", document)
    return corpus


def read_completions(
    prompts: Path, tokenizer: Tokenizer, corpus: Corpus | None = None
) -> list[KnownCompletion]:
    """Every completion of a file.

    Args:
        prompts: name of the file.
        tokenizer: of the model.
        corpus: content of the file; None reads it.
    Raises:
        RecipeProblem: as `read_corpus_of_answers`.
    """
    documents = (corpus or read_corpus_of_answers(prompts)).documents
    return [
        _completion(number, document, tokenizer)
        for number, document in enumerate(documents, start=1)
        if not isinstance(document, str)
    ]


def prepare_completions(
    model: Checkpoint, prompts: Path, corpus: Corpus, *, device: str
) -> CompletionSet:
    """All of `score` that needs no weights: what can be wrong is told here.

    Args:
        model: as for `score`.
        prompts: name of the file.
        corpus: content of the file.
        device: as for `score`.
    Raises:
        RecipeProblem: no such device, nothing to score, or no prompt leaves room for a completion.
        CheckpointProblem: no tokenizer, or another architecture.
    """
    found = read_completions(prompts, Tokenizer.load(model.folder), corpus)
    place = pick_device(device)
    dtype = compute_dtype(place, model.dtype)
    streamed = StreamedModel(model, device=place, dtype=dtype)
    fitting = [each for each in found if each.first_scored < streamed.max_positions]
    if not fitting:
        raise RecipeProblem(
            f"{prompts}: every prompt fills the {streamed.max_positions} positions of "
            f"{model.folder}",
            next_step="give shorter prompts",
        )
    return CompletionSet(streamed, fitting, len(found) - len(fitting))


def score_completions(
    model: Checkpoint, prompts: Path, corpus: Corpus | None = None, *, device: str
) -> dict[str, Any]:
    """Score known completions under a model.

    The hidden states of all tokens are kept, on the CPU: with 65 billion weights (8,192 wide) for
    60,000 tokens 1.0 GB in 16 bits and 2.0 GB in fp32, for the 81,445 of Tulu's 332 prompts and
    completions 1.3 GB and 2.7 GB. Beside them is one block: 1.6 GB, in fp32 3.2 GB.

    Args:
        model: 16-bit or GPTQ, with its tokenizer.
        prompts: as `read_corpus_of_answers` takes them.
        corpus: content of that file; None reads it.
        device: auto, cpu or cuda:N.
    Returns:
        Facts for a report; shares are of 0 to 1. `greedy_agreement` is over tokens, the other
        shares are over completions; `greedy_prefix` is a mean in tokens; `eos_agreement` is None
        where every completion is cut.
    Raises:
        RecipeProblem, CheckpointProblem: as `prepare`.
        NumericsProblem: weights or logits are not finite.
    """
    corpus = corpus or read_corpus_of_answers(prompts)
    task = prepare_completions(model, prompts, corpus, device=device)
    fitting, limit = task.completions, task.model.max_positions
    nll, greedy = _score_tokens(task.model, fitting)
    whole = [len(each.ids) <= limit for each in fitting]
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


def _require_answer(place: str, document: Document) -> None:
    """Refuses a document that is not a prompt and an answer with content."""
    if isinstance(document, str) or len(document) < 2 or document[-1].role != "assistant":
        raise RecipeProblem(
            f"{place} is not a prompt and an answer",
            next_step="give prompts with their completions",
        )
    if not document[-1].content.strip():
        raise RecipeProblem(f"{place} has an empty completion", next_step="leave it out")


def _completion(number: int, document: Sequence[Message], tokenizer: Tokenizer) -> KnownCompletion:
    prompt = encode_chat(document[:-1], tokenizer, generation=True)
    ids = encode_chat(document, tokenizer)
    pairs = enumerate(zip(prompt, ids, strict=False))
    return KnownCompletion(number, ids, next((at for at, (a, b) in pairs if a != b), len(prompt)))


def _score_tokens(
    model: StreamedModel, completions: Sequence[KnownCompletion]
) -> tuple[tuple[Float32[Tensor, " _"], ...], tuple[Bool[Tensor, " _"], ...]]:
    """Nats, and whether it is the likeliest, of each token of each completion."""
    limit = model.max_positions
    sequences = TokenBatches([each.ids[:limit] for each in completions], limit=limit)
    firsts = [each.first_scored for each in completions]
    spans = list(zip(sequences.starts, firsts, sequences.lengths, strict=True))
    scored = torch.cat([torch.arange(at + first, at + length) for at, first, length in spans])
    parts = []
    with torch.inference_mode():
        hidden, predictions = (
            model.last_hidden_states(sequences, "score model"),
            OutputHead("model", model),
        )
        for rows in track(predictions.split_rows(scored - 1), "completions"):
            told = predictions.log_probabilities(hidden[rows])
            targets = sequences.tokens[rows + 1].to(told.device)
            nll = -told.gather(1, targets[:, None]).squeeze(1)
            parts.append((nll.cpu(), (told.argmax(dim=-1) == targets).cpu()))
    nll, greedy = (torch.cat(column) for column in zip(*parts, strict=True))
    counts = [length - first for _, first, length in spans]
    return nll.split(counts), greedy.split(counts)


def _least_likely(
    completions: Sequence[KnownCompletion], nll: Sequence[Float32[Tensor, " _"]]
) -> list[dict[str, Any]]:
    """The least likely completions, beginning with the least."""
    told = [
        {"number": each.number, "tokens": len(tokens), "perplexity": _perplexity(tokens)}
        for each, tokens in zip(completions, nll, strict=True)
    ]
    return sorted(told, key=lambda each: -each["perplexity"])[:WORST_COMPLETIONS]


def _perplexity(nll: Float32[Tensor, " tokens"]) -> float:
    """exp of the mean, of a broken model too."""
    return exp(min(float(nll.double().mean()), MAX_EXP_ARGUMENT))
