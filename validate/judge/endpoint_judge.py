"""Requests verdicts from an OpenAI-compatible service, with retries.

The API key goes from the environment into the header of each request only: errors never quote
headers, quoted responses have the key removed, and redirects are not followed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event

import httpx2

from camelpress.core.errors import Interruption, RecipeProblem, ToolProblem
from camelpress.core.input_limits import MAX_JUDGE_ANSWER_BYTES
from camelpress.core.runtime.terminal_text import escape_controls
from camelpress.validate.judge.chat_completion import (
    EndpointFault,
    JudgeReply,
    parse_completion,
    parse_error,
    parse_retry_after,
)
from camelpress.validate.judge.deadline import Deadline, DeadlineExceeded
from camelpress.validate.judge.judge_prompt import PROMPT_HASH, JudgePrompt
from camelpress.validate.judge.judge_settings import JudgeSettings
from camelpress.validate.judge.rate_limit import RateLimiter, backoff_seconds
from camelpress.validate.judge.service_access import KEY_VARIABLE, completions_url, read_api_key

RETRY_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # transient statuses
QUOTA_CODE = "insufficient_quota"  # error code of a permanent 429
AUTH_STATUSES = (401, 403)
MAX_QUOTED_CHARACTERS = 200  # characters of a quoted service message
RESUME_ADVICE = "run the same command again: the verdicts so far are kept"


class EndpointJudge:
    """A judge model behind an OpenAI-compatible service.

    Args:
        settings: settings with `url` and `model`.
        rate_limiter: rate limiter shared by all requests to this service.
    Raises:
        RecipeProblem: The address or the model is missing, or the key cannot be sent safely.
    """

    def __init__(self, settings: JudgeSettings, rate_limiter: RateLimiter | None = None) -> None:
        if settings.url is None or settings.model is None:
            raise RecipeProblem(
                "a judge needs an address and a model", next_step="give both, or annotations"
            )
        self._address = completions_url(settings.url)
        self._key = read_api_key(self._address)
        self._settings = settings
        self._rate_limiter = rate_limiter or RateLimiter(settings.per_minute)
        fields = {"temperature": 0, "max_tokens": settings.max_tokens, **settings.extra}
        self._fields = {name: value for name, value in fields.items() if value is not None}
        identity = json.dumps([settings.model, self._fields], sort_keys=True).encode()
        self.name = f"{settings.model} {PROMPT_HASH}{hashlib.sha256(identity).hexdigest()[:8]}"

    def answers(
        self, questions: Sequence[JudgePrompt]
    ) -> Generator[tuple[JudgePrompt, JudgeReply], None, None]:
        """Yields replies in order of arrival; requests in flight still finish after a failure.

        Raises:
            Interruption: The service fails repeatedly, or demands too long a wait.
            ToolProblem: The service rejects a request.
        """
        pool, stop = ThreadPoolExecutor(self._settings.parallel), Event()
        fault: ToolProblem | Interruption | None = None
        # A deadline shuts down the connection of one request only.
        limits = httpx2.Limits(max_keepalive_connections=0)
        with httpx2.Client(
            headers=self._headers(), timeout=self._settings.timeout, limits=limits
        ) as client:
            try:
                futures = {
                    pool.submit(self._ask, client, question, stop): question
                    for question in questions
                }
                for future in as_completed(futures):
                    try:
                        reply = future.result()
                    except (ToolProblem, Interruption) as error:
                        fault = error
                        continue
                    if reply is not None:
                        yield futures[future], reply
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
        if fault is not None:
            raise fault

    def _ask(self, client: httpx2.Client, question: JudgePrompt, stop: Event) -> JudgeReply | None:
        """Requests one reply with retries; returns None after a stop. A fatal error stops all."""
        try:
            for attempt in range(1, self._settings.attempts + 1):
                if not self._rate_limiter.acquire(stop):
                    return None
                reply = self._request(client, question)
                if isinstance(reply, JudgeReply):
                    return reply
                self._back_off(reply, attempt)
        except (ToolProblem, Interruption):
            stop.set()
            raise
        return None

    def _back_off(self, fault: EndpointFault, failures: int) -> None:
        """Pauses all requests for the demanded wait or the exponential backoff.

        Raises:
            Interruption: The wait is too long, or the attempts are exhausted.
        """
        wait = max(backoff_seconds(failures), fault.retry_after or 0.0)
        if wait > self._settings.longest_wait:
            raise Interruption(
                f"{self._host} asks to wait {wait:.0f} s ({fault.reason})", next_step=RESUME_ADVICE
            )
        if failures == self._settings.attempts:
            raise Interruption(
                f"{self._host} failed {failures} times at one question, "
                f"the last time with {fault.reason}",
                next_step=RESUME_ADVICE,
            )
        self._rate_limiter.pause(wait)

    def _request(self, client: httpx2.Client, question: JudgePrompt) -> JudgeReply | EndpointFault:
        try:
            status, retry_after, body = self._post(client, question)
        except httpx2.RequestError as error:
            return EndpointFault(type(error).__name__)
        except DeadlineExceeded:
            return EndpointFault(f"no whole answer in {self._settings.timeout:g} s")
        if len(body) > MAX_JUDGE_ANSWER_BYTES:
            return EndpointFault(f"more than {MAX_JUDGE_ANSWER_BYTES} bytes")
        if status in RETRY_STATUSES and parse_error(body).get("code") != QUOTA_CODE:
            return EndpointFault(f"HTTP {status}", parse_retry_after(retry_after))
        if status != 200:
            raise self._explain_status(status, str(parse_error(body).get("message", "")))
        return parse_completion(body)

    def _post(self, client: httpx2.Client, question: JudgePrompt) -> tuple[int, str, bytes]:
        """Returns status, Retry-After header and body; cuts the body and removes the key."""
        request = {"model": self._settings.model, "messages": question.messages(), **self._fields}
        body = b""
        with (
            Deadline(self._settings.timeout) as deadline,
            client.stream(
                "POST", self._address, content=json.dumps(request), extensions=deadline.extensions
            ) as response,
        ):
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_JUDGE_ANSWER_BYTES:
                    break
        if self._key:
            body = body.replace(self._key.get_secret_value().encode(), b"***")
        return response.status_code, response.headers.get("Retry-After", ""), body

    def _explain_status(self, status: int, message: str) -> ToolProblem:
        if status in AUTH_STATUSES and self._key:
            return ToolProblem(
                f"{self._host} refuses the key in {KEY_VARIABLE}", next_step="correct it"
            )
        if status in AUTH_STATUSES:
            return ToolProblem(f"{self._host} requires a key", next_step=f"set {KEY_VARIABLE}")
        message = " ".join(escape_controls(message).split())[:MAX_QUOTED_CHARACTERS]
        return ToolProblem(
            f"{self._host} answers HTTP {status}" + (f": {message}" if message else ""),
            next_step="correct the address, the model or the extra fields of the judge",
        )

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        return {"Content-Type": "application/json", **key}

    @property
    def _host(self) -> str:
        return f"the judge at {self._address.host}"
