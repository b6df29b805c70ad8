"""Adapts a checkpoint to lm-evaluation-harness: likelihoods and completions.

Likelihoods stream through the decoder blocks with all requests at once, so the model need not fit
into memory. Completions use a resident model with a KV cache if it fits, else the same stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import sha256_json
from camelpress.core.text.text_bound import require_short_text
from camelpress.inference.generation.generator import (
    UNLIMITED_TOKENS,
    GenerationModel,
    GenerationRequest,
    Generator,
)
from camelpress.inference.generation.likelihood import ContextContinuation, continuation_likelihoods
from camelpress.inference.generation.sampling import SamplingParams, TokenPrompt
from camelpress.validate.benchmarks.response_cache import ResponseCache
from camelpress.validate.benchmarks.task_catalogue import BenchmarkSpec

ENCODE_CACHE_SIZE = 32  # cached encodings; all choices of a question share one context
MAX_EXTRA_TOKENS = 4  # maximum excess of tokens over bytes: BOS, a leading blank


class NumberedRequest(NamedTuple):
    """A request with its repetition number, from 1."""

    request: Instance
    repetition: int


class AnswerCost(NamedTuple):
    """The cost of answering a batch of requests."""

    uncached_share: float  # share of requests without a stored answer
    fixed_seconds: float  # batch-size-independent part of the time, s


AnswerRequests = Callable[[Sequence[NumberedRequest]], Iterator[tuple[int, Any]]]


class CamelpressLM(TemplateLM):
    """One model behind the interface of lm-evaluation-harness.

    Args:
        model: the model with its tokenizer.
        cache: stored answers of this model.
        specs: task specifications by name, for BOS and prompts beyond the model's positions;
            other tasks use the defaults.
        generator: generator of completions.
    """

    def __init__(
        self,
        model: GenerationModel,
        cache: ResponseCache,
        specs: Mapping[str, BenchmarkSpec],
        generator: Generator,
    ) -> None:
        super().__init__()
        self._label = model.label
        self._source_name = model.checkpoint.source_name
        self._streamed_model = model.model
        self._tokenizer = model.tokenizer
        self._generator = generator
        self._cache = cache
        self._specs = specs
        self._bos = True
        self._cached_encode = lru_cache(ENCODE_CACHE_SIZE)(self._encode)
        self._n_uncached = 0  # requests without a stored answer

    @property
    def eot_token_id(self) -> int:
        """Returns the EOS id, or 0 without an EOS token."""
        return 0 if self._tokenizer.eos is None else self._tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        """Returns the id used as empty context: BOS, else EOS."""
        return self.eot_token_id if self._tokenizer.bos is None else self._tokenizer.bos

    @property
    def tokenizer_name(self) -> str:
        """Returns the checkpoint source; lm-evaluation-harness requires a tokenizer name."""
        return self._source_name

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Encodes a prompt, special tokens included, with or without BOS."""
        has_bos = string.startswith(self._tokenizer.decode([self.prefix_token_id]))
        bos = (self._bos and not has_bos) if add_special_tokens is None else add_special_tokens
        return [*self._cached_encode(string, bos)]

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Returns log-probability and greedy match of each continuation."""
        return [(log, greedy) for log, greedy in self._respond(requests, self._score)]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Returns the log-probability of each text, in disjoint windows."""
        return self._respond(requests, self._score_rolling)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """Returns a completion of each prompt."""
        return self._respond(requests, self._complete)

    def fill_cache(self, requests: Sequence[Instance]) -> AnswerCost:
        """Answers requests of any type and stores the answers for the tasks."""
        uncached_before, fixed_before = self._n_uncached, self._generator.fixed_seconds
        for request_type in dict.fromkeys(request.request_type for request in requests):
            typed_requests = [
                request for request in requests if request.request_type == request_type
            ]
            repeated_requests = [
                request for request in typed_requests for _ in range(request.repeats or 1)
            ]
            getattr(self, request_type)(repeated_requests)
        n_requests = sum(request.repeats or 1 for request in requests)
        share = (self._n_uncached - uncached_before) / max(1, n_requests)
        return AnswerCost(share, self._generator.fixed_seconds - fixed_before)

    def release(self) -> None:
        """Releases a resident model."""
        self._generator.release()

    def require_positions(self, requests: Sequence[Instance]) -> None:
        """Checks the length and the sampling parameters of each request.

        Raises:
            RecipeProblem: A prompt exceeds the model's positions or the tokenizer's input limit,
                or a request needs beam search.
        """
        for request in requests:
            self._require_short(request)
            tokens = self._required_positions(request)
            if tokens > self._max_positions(request):
                raise RecipeProblem(
                    f"the {self._label} has {self._streamed_model.max_positions:,} positions, and "
                    "the task "
                    f"{request.task_name} asks for {tokens:,} with its item {request.doc_id}",
                    next_step="leave that task out, or use models with a longer context",
                )

    def _require_short(self, request: Instance) -> None:
        """Checks a request against the input limit of the tokenizer."""
        texts = [part for part in request.args if isinstance(part, str)]
        item = f"the item {request.doc_id} of the task {request.task_name}"
        require_short_text(item, *texts, next_step="leave that task out, or shorten its item")

    def _required_positions(self, request: Instance) -> int:
        """Returns the positions of a request; 0 for a request certain to fit."""
        if request.request_type == "loglikelihood_rolling":
            return 0  # scored in windows
        if request.request_type == "generate_until":
            SamplingParams.of(request.args[1], request.task_name)
        text = request.args[0] + (
            request.args[1] if request.request_type == "loglikelihood" else ""
        )
        if len(text.encode()) + MAX_EXTRA_TOKENS <= self._streamed_model.max_positions:
            return 0  # no token is shorter than a byte
        if request.request_type == "loglikelihood":
            return len(self._encode_request(request).input_ids)
        return len(self._prompt(request)) + 1

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        """Is never called: `loglikelihood` encodes by task."""
        raise NotImplementedError

    def _encode(self, text: str, bos: bool) -> list[int]:
        return (
            self._tokenizer.encode_document(text)
            if bos
            else self._tokenizer.encode_template_text(text)
        )

    def _respond(self, requests: Sequence[Instance], answer_requests: AnswerRequests) -> list[Any]:
        numbered_requests = self._number_repetitions(requests)
        keys = [
            self._cache.key(item.request.task_name, self._cache_request(item))
            for item in numbered_requests
        ]
        types = [item.request.request_type for item in numbered_requests]
        missing_indices = [
            index
            for index, (key, request_type) in enumerate(zip(keys, types, strict=True))
            if not self._cache.has(key, request_type)
        ]
        self._n_uncached += len(missing_indices)
        if missing_indices:
            for number, answer in answer_requests(
                [numbered_requests[index] for index in missing_indices]
            ):
                self._cache.add(keys[missing_indices[number]], answer)
        return [self._cache[key] for key in keys]

    def _number_repetitions(self, requests: Sequence[Instance]) -> list[NumberedRequest]:
        """Numbers equal requests by repetition, from 1."""
        counts: Counter[str] = Counter()
        numbered_requests = []
        for request in requests:
            digest = sha256_json([request.task_name, request.request_type, *request.args])
            counts[digest] += 1
            numbered_requests.append(NumberedRequest(request, counts[digest]))
        return numbered_requests

    def _cache_request(self, numbered_request: NumberedRequest) -> list[object]:
        """Returns the inputs of an answer except the model, as a cache key."""
        request = numbered_request.request
        return [
            request.request_type,
            self._add_bos(request),
            numbered_request.repetition,
            *request.args,
        ]

    def _add_bos(self, request: Instance) -> bool:
        spec = self._specs.get(request.task_name or "")
        return spec is None or spec.add_bos

    def _max_positions(self, request: Instance) -> int:
        """Returns the position limit of a request; some protocols exceed the model's limit."""
        spec = self._specs.get(request.task_name or "")
        positions = self._streamed_model.max_positions
        is_unlimited = (
            spec is not None
            and spec.protocol_context is not None
            and positions >= spec.protocol_context
        )
        return UNLIMITED_TOKENS if is_unlimited else positions

    def _score(self, requests: Sequence[NumberedRequest]) -> Iterator[tuple[int, Any]]:
        pairs = [self._encode_request(item.request) for item in requests]
        for index, likelihood in continuation_likelihoods(self._label, self._streamed_model, pairs):
            yield index, [likelihood.log_prob, likelihood.is_greedy]

    def _score_rolling(self, requests: Sequence[NumberedRequest]) -> Iterator[tuple[int, Any]]:
        pairs, request_indices = [], []
        for index, (request, _) in enumerate(requests):
            self._bos = self._add_bos(request)
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._streamed_model.max_positions,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append(ContextContinuation(context, continuation))
                request_indices.append(index)
        totals = [0.0] * len(requests)
        for number, likelihood in continuation_likelihoods(
            self._label, self._streamed_model, pairs
        ):
            totals[request_indices[number]] += likelihood.log_prob
        yield from enumerate(totals)

    def _encode_request(self, request: Instance) -> ContextContinuation:
        self._bos = self._add_bos(request)
        context, continuation = request.args
        if context:
            return ContextContinuation(*self._encode_pair(context, continuation))
        ids = self.tok_encode(continuation, add_special_tokens=False)
        has_prefix = ids[0] == self.prefix_token_id
        return (
            ContextContinuation(ids[:1], ids[1:])
            if has_prefix
            else ContextContinuation([self.prefix_token_id], ids)
        )

    def _prompt(self, request: Instance) -> list[int]:
        self._bos = self._add_bos(request)
        return self.tok_encode(request.args[0])

    def _complete(self, numbered_requests: Sequence[NumberedRequest]) -> Iterator[tuple[int, str]]:
        generation_requests = []
        for item in numbered_requests:
            request = item.request
            spec = self._specs.get(request.task_name or "")
            stop_at_paragraph = spec is not None and spec.first_paragraph_only
            sampling = replace(
                SamplingParams.of(request.args[1], request.task_name),
                stop_at_paragraph=stop_at_paragraph,
            )
            seed = sha256_json(self._cache_request(item))  # equal for all models
            generation_requests.append(
                GenerationRequest(
                    TokenPrompt(self._prompt(request), seed), sampling, self._max_positions(request)
                )
            )
        yield from self._generator.generate(generation_requests)
