"""A checkpoint as lm-evaluation-harness asks a model: likelihoods and completions.

Likelihoods walk through the blocks with all requests at once, so the model need not fit anywhere.
Completions take a whole model with keys and values where it fits, else the same walk.
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

ENCODE_CACHE_SIZE = (
    32  # texts whose ids are remembered, for all choices of a question have one context
)
MAX_EXTRA_TOKENS = 4  # tokens that a text may have more than bytes: BOS, a first blank


class NumberedRequest(NamedTuple):
    """A request, and the how many-th of its kind it is."""

    request: Instance
    repetition: int


class AnswerCost(NamedTuple):
    """What it took to answer requests."""

    uncached_share: float  # of them that were not known
    fixed_seconds: float  # seconds that more requests beside would not have added to


AnswerRequests = Callable[[Sequence[NumberedRequest]], Iterator[tuple[int, Any]]]


class CamelpressLM(TemplateLM):
    """One model behind the interface.

    Args:
        respondent: the model.
        answers: of this model.
        columns: what tasks say of themselves: if their prompts get a BOS, and if they may be longer
            than the model's positions; of others the usual is taken.
        completer: of prompts.
    """

    def __init__(
        self,
        respondent: GenerationModel,
        answers: ResponseCache,
        columns: Mapping[str, BenchmarkSpec],
        completer: Generator,
    ) -> None:
        super().__init__()
        self._label = respondent.label
        self._origin = respondent.checkpoint.source_name
        self._streamed = respondent.model
        self._words = respondent.tokenizer
        self._completer = completer
        self._answers = answers
        self._columns = columns
        self._bos = True
        self._encoded = lru_cache(ENCODE_CACHE_SIZE)(self._encode)
        self._asked = 0  # requests that were not known

    @property
    def eot_token_id(self) -> int:
        """EOS, where the tokenizer has one."""
        return 0 if self._words.eos is None else self._words.eos

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is taken for."""
        return self.eot_token_id if self._words.bos is None else self._words.bos

    @property
    def tokenizer_name(self) -> str:
        """Of no use: requests are not kept by lm-evaluation-harness."""
        return self._origin

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a prompt: special tokens in it count; with the tokenizer's BOS or without."""
        begins = string.startswith(self._words.decode([self.prefix_token_id]))
        bos = (self._bos and not begins) if add_special_tokens is None else add_special_tokens
        return [*self._encoded(string, bos)]

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the likeliest, token by token."""
        return [(log, greedy) for log, greedy in self._respond(requests, self._score)]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-probability of each text, in disjoint windows."""
        return self._respond(requests, self._score_rolling)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """A completion of each prompt."""
        return self._respond(requests, self._complete)

    def fill_cache(self, requests: Sequence[Instance]) -> AnswerCost:
        """Answer requests of any kind, so that each is known when a task asks for it."""
        before, overhead = self._asked, self._completer.fixed_seconds
        for kind in dict.fromkeys(request.request_type for request in requests):
            same = [request for request in requests if request.request_type == kind]
            repeated = [request for request in same for _ in range(request.repeats or 1)]
            getattr(self, kind)(repeated)
        asked = sum(each.repeats or 1 for each in requests)
        share = (self._asked - before) / max(1, asked)
        return AnswerCost(share, self._completer.fixed_seconds - overhead)

    def release(self) -> None:
        """Forget the model, if it is in memory as a whole."""
        self._completer.release()

    def require_positions(self, requests: Sequence[Instance]) -> None:
        """See that each prompt fits into the model's positions, and is to be answered as we do.

        Raises:
            RecipeProblem: one does not, and how many tokens it has; it is longer than a tokenizer
                may read at once; or beams are asked for.
        """
        for request in requests:
            self._require_short(request)
            tokens = self._required_positions(request)
            if tokens > self._max_positions(request):
                raise RecipeProblem(
                    f"the {self._label} has {self._streamed.max_positions:,} positions, and "
                    "the task "
                    f"{request.task_name} asks for {tokens:,} with its item {request.doc_id}",
                    next_step="leave that task out, or take models with a longer context",
                )

    def _require_short(self, request: Instance) -> None:
        """Checks that a tokenizer may read a request at once."""
        texts = [part for part in request.args if isinstance(part, str)]
        item = f"the item {request.doc_id} of the task {request.task_name}"
        require_short_text(item, *texts, next_step="leave that task out, or shorten its item")

    def _required_positions(self, request: Instance) -> int:
        """Positions that a request takes, or fewer than there are."""
        if request.request_type == "loglikelihood_rolling":
            return 0  # in windows
        if request.request_type == "generate_until":
            SamplingParams.of(request.args[1], request.task_name)
        text = request.args[0] + (
            request.args[1] if request.request_type == "loglikelihood" else ""
        )
        if len(text.encode()) + MAX_EXTRA_TOKENS <= self._streamed.max_positions:
            return 0  # no token is shorter than a byte
        if request.request_type == "loglikelihood":
            return len(self._encode_request(request).input_ids)
        return len(self._prompt(request)) + 1

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        """Nothing asks for this: `loglikelihood` encodes by task."""
        raise NotImplementedError

    def _encode(self, text: str, bos: bool) -> list[int]:
        return self._words.encode_document(text) if bos else self._words.encode_template_text(text)

    def _respond(self, requests: Sequence[Instance], work: AnswerRequests) -> list[Any]:
        asked = self._number_repetitions(requests)
        keys = [self._answers.key(one.request.task_name, self._cache_request(one)) for one in asked]
        kinds = [one.request.request_type for one in asked]
        places = [
            place
            for place, (key, kind) in enumerate(zip(keys, kinds, strict=True))
            if not self._answers.has(key, kind)
        ]
        self._asked += len(places)
        if places:
            for number, answer in work([asked[place] for place in places]):
                self._answers.add(keys[places[number]], answer)
        return [self._answers[key] for key in keys]

    def _number_repetitions(self, requests: Sequence[Instance]) -> list[NumberedRequest]:
        """Where the same is asked several times, which time it is."""
        times: Counter[str] = Counter()
        asked = []
        for request in requests:
            same = sha256_json([request.task_name, request.request_type, *request.args])
            times[same] += 1
            asked.append(NumberedRequest(request, times[same]))
        return asked

    def _cache_request(self, asked: NumberedRequest) -> list[object]:
        """All that an answer depends on but the model."""
        request = asked.request
        return [request.request_type, self._add_bos(request), asked.repetition, *request.args]

    def _add_bos(self, request: Instance) -> bool:
        column = self._columns.get(request.task_name or "")
        return column is None or column.add_bos

    def _max_positions(self, request: Instance) -> int:
        """Positions that a request may take: the model's, or any number where a protocol did so."""
        column = self._columns.get(request.task_name or "")
        positions = self._streamed.max_positions
        beyond = (
            column is not None
            and column.protocol_context is not None
            and positions >= column.protocol_context
        )
        return UNLIMITED_TOKENS if beyond else positions

    def _score(self, asked: Sequence[NumberedRequest]) -> Iterator[tuple[int, Any]]:
        pairs = [self._encode_request(one.request) for one in asked]
        for place, found in continuation_likelihoods(self._label, self._streamed, pairs):
            yield place, [found.log_prob, found.is_greedy]

    def _score_rolling(self, asked: Sequence[NumberedRequest]) -> Iterator[tuple[int, Any]]:
        pairs, owner = [], []
        for place, (request, _) in enumerate(asked):
            self._bos = self._add_bos(request)
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._streamed.max_positions,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append(ContextContinuation(context, continuation))
                owner.append(place)
        total = [0.0] * len(asked)
        for number, found in continuation_likelihoods(self._label, self._streamed, pairs):
            total[owner[number]] += found.log_prob
        yield from enumerate(total)

    def _encode_request(self, request: Instance) -> ContextContinuation:
        self._bos = self._add_bos(request)
        context, continuation = request.args
        if context:
            return ContextContinuation(*self._encode_pair(context, continuation))
        ids = self.tok_encode(continuation, add_special_tokens=False)
        begun = ids[0] == self.prefix_token_id
        return (
            ContextContinuation(ids[:1], ids[1:])
            if begun
            else ContextContinuation([self.prefix_token_id], ids)
        )

    def _prompt(self, request: Instance) -> list[int]:
        self._bos = self._add_bos(request)
        return self.tok_encode(request.args[0])

    def _complete(self, asked: Sequence[NumberedRequest]) -> Iterator[tuple[int, str]]:
        wanted = []
        for one in asked:
            request = one.request
            column = self._columns.get(request.task_name or "")
            paragraph = column is not None and column.first_paragraph_only
            how = replace(
                SamplingParams.of(request.args[1], request.task_name), stop_at_paragraph=paragraph
            )
            seed = sha256_json(self._cache_request(one))  # the same for all models
            wanted.append(
                GenerationRequest(
                    TokenPrompt(self._prompt(request), seed), how, self._max_positions(request)
                )
            )
        yield from self._completer.generate(wanted)
