"""A judge behind an OpenAI-compatible service, asked until it answers.

The key is read from the environment into the header of each request, and is nowhere else: no error
quotes a header, what a service says is shown without it, and redirections are not followed.
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

RETRY_STATUSES = frozenset(
    {408, 409, 425, 429, 500, 502, 503, 504, 529}
)  # what another attempt may mend
QUOTA_CODE = "insufficient_quota"  # comes as 429, and waiting does not mend it
AUTH_STATUSES = (401, 403)
MAX_QUOTED_CHARACTERS = 200  # characters of what a service says
RESUME_ADVICE = "run the same command again: the verdicts so far are kept"


class EndpointJudge:
    """A model at a service.

    Args:
        settings: with `url` and `model`.
        pace: the turns of all that ask this service.
    Raises:
        RecipeProblem: no address or model, or a key that cannot be sent there safely.
    """

    def __init__(self, settings: JudgeSettings, pace: RateLimiter | None = None) -> None:
        if settings.url is None or settings.model is None:
            raise RecipeProblem(
                "a judge needs an address and a model", next_step="give both, or annotations"
            )
        self._address = completions_url(settings.url)
        self._key = read_api_key(self._address)
        self._settings = settings
        self._pace = pace or RateLimiter(settings.per_minute)
        fields = {"temperature": 0, "max_tokens": settings.max_tokens, **settings.extra}
        self._fields = {name: value for name, value in fields.items() if value is not None}
        made = json.dumps([settings.model, self._fields], sort_keys=True).encode()
        self.name = f"{settings.model} {PROMPT_HASH}{hashlib.sha256(made).hexdigest()[:8]}"

    def answers(
        self, questions: Sequence[JudgePrompt]
    ) -> Generator[tuple[JudgePrompt, JudgeReply], None, None]:
        """Replies as they come; where one cannot be had, those under way still come before that.

        Raises:
            Interrupted: the service fails again and again, or wants a long rest.
            EngineProblem: it refuses what it is asked.
        """
        pool, over = ThreadPoolExecutor(self._settings.parallel), Event()
        fault: ToolProblem | Interruption | None = None
        alone = httpx2.Limits(max_keepalive_connections=0)  # a deadline ends its own connection
        with httpx2.Client(
            headers=self._headers(), timeout=self._settings.timeout, limits=alone
        ) as client:
            try:
                asked = {pool.submit(self._ask, client, each, over): each for each in questions}
                for future in as_completed(asked):
                    try:
                        reply = future.result()
                    except (ToolProblem, Interruption) as error:
                        fault = error
                        continue
                    if reply is not None:
                        yield asked[future], reply
            finally:
                over.set()
                pool.shutdown(cancel_futures=True)
        if fault is not None:
            raise fault

    def _ask(self, client: httpx2.Client, question: JudgePrompt, over: Event) -> JudgeReply | None:
        """The reply, or None if all is over before it is asked; what cannot be mended ends all."""
        try:
            for failures in range(1, self._settings.attempts + 1):
                if not self._pace.acquire(over):
                    return None
                reply = self._request(client, question)
                if isinstance(reply, JudgeReply):
                    return reply
                self._back_off(reply, failures)
        except (ToolProblem, Interruption):
            over.set()
            raise
        return None

    def _back_off(self, fault: EndpointFault, failures: int) -> None:
        """Let all wait, as long as the service asks or the failures demand.

        Raises:
            Interrupted: that is too long, or too many.
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
        self._pace.pause(wait)

    def _request(self, client: httpx2.Client, question: JudgePrompt) -> JudgeReply | EndpointFault:
        try:
            status, after, body = self._post(client, question)
        except httpx2.RequestError as error:
            return EndpointFault(type(error).__name__)
        except DeadlineExceeded:
            return EndpointFault(f"no whole answer in {self._settings.timeout:g} s")
        if len(body) > MAX_JUDGE_ANSWER_BYTES:
            return EndpointFault(f"more than {MAX_JUDGE_ANSWER_BYTES} bytes")
        if status in RETRY_STATUSES and parse_error(body).get("code") != QUOTA_CODE:
            return EndpointFault(f"HTTP {status}", parse_retry_after(after))
        if status != 200:
            raise self._explain_status(status, str(parse_error(body).get("message", "")))
        return parse_completion(body)

    def _post(self, client: httpx2.Client, question: JudgePrompt) -> tuple[int, str, bytes]:
        """Status, Retry-After, and the body up to its limit, from which the key is taken out."""
        asked = {"model": self._settings.model, "messages": question.messages(), **self._fields}
        body = b""
        with (
            Deadline(self._settings.timeout) as deadline,
            client.stream(
                "POST", self._address, content=json.dumps(asked), extensions=deadline.extensions
            ) as response,
        ):
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_JUDGE_ANSWER_BYTES:
                    break
        if self._key:
            body = body.replace(self._key.get_secret_value().encode(), b"***")
        return response.status_code, response.headers.get("Retry-After", ""), body

    def _explain_status(self, status: int, said: str) -> ToolProblem:
        if status in AUTH_STATUSES and self._key:
            return ToolProblem(
                f"{self._host} refuses the key in {KEY_VARIABLE}", next_step="correct it"
            )
        if status in AUTH_STATUSES:
            return ToolProblem(f"{self._host} wants a key", next_step=f"set {KEY_VARIABLE}")
        said = " ".join(escape_controls(said).split())[:MAX_QUOTED_CHARACTERS]
        return ToolProblem(
            f"{self._host} answers HTTP {status}" + (f": {said}" if said else ""),
            next_step="correct the address, the model or the extra fields of the judge",
        )

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        return {"Content-Type": "application/json", **key}

    @property
    def _host(self) -> str:
        return f"the judge at {self._address.host}"
