"""Questions to parsed answers: cache, limits, back-off and repeated questions around one transport."""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import tenacity

from longvid_train.endpoint.cache import ReplyCache
from longvid_train.endpoint.messages import Answer, Conversation, Failure, Message, OffFormatError, Reply
from longvid_train.endpoint.rate import RateLimit
from longvid_train.endpoint.settings import EndpointSettings
from longvid_train.endpoint.spending import Ledger, Spending
from longvid_train.endpoint.transport import PassingError, RefusedError, Transport
from longvid_train.errors import UserError

T = TypeVar("T")

_BYTES_PER_TOKEN = 3
"""For the token ceiling, before a reply is counted: English takes about four bytes a token, so this errs upwards."""
_MESSAGE_TOKENS = 8
_FIRST_WAIT_S = 1.0
_QUEUED_PER_WORKER = 2
_REFUSED_FROM_THE_START = 20
"""Questions refused before any reply came that tell a wrong setting from questions that are each too long."""


class ChatClient:
    """Asks one chat model; use it as a context manager. Every method may be called from any thread.

    A question is asked again when its reply is off format: the reply and the parser's message follow the question, so
    each try is another request with its own place in the cache, and a repeated run takes the same way for free.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """Read the key from the environment and open the cache.

        Args:
            settings: the endpoint.
            clock: seconds that never go back.
            sleep: how to wait; None waits on the wall clock, and wakes at once when a run is given up.

        Raises:
            UserError: the environment variable of the key is not set, or cannot be a key.
        """
        self._settings = settings
        self._given_up_run = threading.Event()
        self._sleep = sleep or self._wait
        self._cache = ReplyCache(Path(settings.cache))
        self._ledger = Ledger(_prices(settings), settings.max_cost_usd)
        self._limit = RateLimit(
            settings.requests_per_minute, settings.tokens_per_minute, clock=clock, sleep=self._sleep
        )
        self._transport = Transport(settings.base_url, _api_key(settings.api_key_env), settings.timeout_s)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._transport.close()

    @property
    def spending(self) -> Spending:
        """What this client has asked for and paid so far."""
        return self._ledger.totals()

    def ask(self, conversation: Conversation, parse: Callable[[str], T]) -> Answer[T] | Failure:
        """One question's answer, from the cache or from the endpoint.

        Args:
            conversation: the messages; the last is the user's.
            parse: turns a reply into its value, or raises `OffFormatError`.

        Raises:
            UserError: the endpoint is down, refuses the key or the model or all of the first questions, or the budget
                is used up.
        """
        messages, failure = tuple(conversation), Failure("off_format", "", 0)
        for tries in range(1, self._settings.format_tries + 1):
            try:
                reply = self._reply(messages)
            except RefusedError as error:
                failure = self._given_up(Failure("refused", str(error), tries))
                self._check_not_all_refused(failure)
                return failure
            if reply.finish_reason == "content_filter":
                return self._given_up(Failure("refused", "the endpoint's content filter withheld the reply", tries))
            try:
                _check_whole(reply)
                value = parse(reply.text)
            except OffFormatError as error:
                failure = Failure("cut_off" if reply.finish_reason == "length" else "off_format", str(error), tries)
                messages = (*messages, *_correction(reply, str(error)))
                continue
            self._ledger.answered()
            return Answer(value, reply.text, reply.model, tries)
        return self._given_up(failure)

    def ask_all(
        self, conversations: Iterable[Conversation], parse: Callable[[str], T]
    ) -> Iterator[Answer[T] | Failure]:
        """Answers in the order of the questions; otherwise as `run_all`."""
        return self.run_all(partial(self.ask, conversation, parse) for conversation in conversations)

    def run_all(self, jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Run jobs that ask this client, ``concurrency`` at once, and yield what they return in their order.

        Jobs are drawn as they are needed, so there may be any number of them. When one fails, those that wait for
        another attempt are given up at once; requests under way are waited for, since they are paid.

        Raises:
            UserError: as `ask`; jobs that have not started are dropped, answers so far are in the cache.
        """
        workers = self._settings.concurrency
        under_way: deque[Future[T]] = deque()
        try:
            with ThreadPoolExecutor(workers, thread_name_prefix="endpoint") as pool:
                try:
                    for job in jobs:
                        under_way.append(pool.submit(job))
                        if len(under_way) >= _QUEUED_PER_WORKER * workers:
                            yield under_way.popleft().result()
                    while under_way:
                        yield under_way.popleft().result()
                except BaseException:
                    self._given_up_run.set()
                    raise
                finally:
                    for future in under_way:
                        future.cancel()
        finally:
            self._given_up_run.clear()

    def _wait(self, seconds: float) -> None:
        if self._given_up_run.wait(seconds):
            raise UserError("the run was given up while this request waited; run again to go on")

    def _reply(self, messages: Conversation) -> Reply:
        model, parameters = self._settings.model, self._settings.parameters
        kept = self._cache.get(model, messages, parameters)
        if kept is not None:
            self._ledger.cached()
            return kept
        self._ledger.check_budget()
        reply = self._sent(messages)
        self._ledger.paid(reply)
        self._cache.put(model, messages, parameters, reply)
        return reply

    def _sent(self, messages: Conversation) -> Reply:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(PassingError),
            stop=tenacity.stop_after_attempt(self._settings.max_attempts),
            wait=self._wait_s,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(self._attempt, messages)
        except PassingError as error:
            raise UserError(
                f"endpoint '{self._settings.base_url}' gave no reply in {self._settings.max_attempts} attempts "
                f"(last: {error}); replies so far are in '{self._settings.cache}': run again to go on"
            ) from error

    def _attempt(self, messages: Conversation) -> Reply:
        reservation = self._limit.acquire(_estimated_tokens(messages) + (self._settings.max_tokens or 0))
        try:
            reply = self._transport.send(self._settings.model, messages, self._settings.parameters)
        except PassingError as error:
            self._ledger.retried(error.what)
            raise self._too_long_a_wait(error) or error from error
        if reply.prompt_tokens is not None and reply.completion_tokens is not None:
            self._limit.settle(reservation, reply.prompt_tokens + reply.completion_tokens)
        return reply

    def _too_long_a_wait(self, error: PassingError) -> UserError | None:
        wait_s = error.retry_after_s
        if wait_s is None or wait_s <= self._settings.max_wait_s:
            return None
        return UserError(
            f"endpoint '{self._settings.base_url}' asks to come back in {wait_s:.0f} s ({error}), longer than "
            f"max_wait_s {self._settings.max_wait_s:g}; replies so far are in '{self._settings.cache}': run again then"
        )

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        """Seconds before the next attempt: what the endpoint asked for, or doubling with full jitter."""
        longest_s = self._settings.max_wait_s
        jitter = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=longest_s)
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, PassingError) and error.retry_after_s is not None:
            self._limit.pause(error.retry_after_s)
            return error.retry_after_s + min(_FIRST_WAIT_S, jitter(state))
        return jitter(state)

    def _check_not_all_refused(self, last: Failure) -> None:
        """End a run in which no request got a reply: then it is no question that the endpoint refuses, but a setting.

        A kept reply to the same model with the same parameters counts too: a run that goes on is not ended by it.
        """
        totals = self._ledger.totals()
        refused = totals.failures["refused"]
        if refused < _REFUSED_FROM_THE_START or totals.sent or totals.from_cache:
            return
        sent = ", ".join(("model", *self._settings.parameters))
        raise UserError(
            f"endpoint '{self._settings.base_url}' refuses all of the first {refused} questions (last: {last.detail}); "
            f"change or leave out the setting it names (sent: {sent}), or ask a model that takes such questions"
        )

    def _given_up(self, failure: Failure) -> Failure:
        self._ledger.failed(failure.reason)
        return failure


def _check_whole(reply: Reply) -> None:
    if reply.finish_reason == "length":
        raise OffFormatError("the reply was cut off at the limit of tokens; answer more briefly")


def _correction(reply: Reply, problem: str) -> Sequence[Message]:
    asked = Message("user", f"This reply cannot be used: {problem}. Answer again, in exactly the form asked for.")
    return (Message("assistant", reply.text), asked) if reply.text.strip() else (asked,)


def _estimated_tokens(messages: Conversation) -> int:
    return sum(
        _MESSAGE_TOKENS + math.ceil(len(message.content.encode("utf-8")) / _BYTES_PER_TOKEN) for message in messages
    )


def _prices(settings: EndpointSettings) -> tuple[float, float] | None:
    prompt, completion = settings.usd_per_million_prompt_tokens, settings.usd_per_million_completion_tokens
    return None if prompt is None or completion is None else (prompt, completion)


def _api_key(variable: str) -> str | None:
    if not variable:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"environment variable '{variable}' holds no API key; set it, or say that there is none: api_key_env '', "
            "on the command line an option that ends in -api-key-env ''"
        )
    _check_header_text(key, variable)
    return key


def _check_header_text(key: str, variable: str) -> None:
    odd = next(((place, one) for place, one in enumerate(key, 1) if not (one.isascii() and one.isprintable())), None)
    if odd is not None:
        raise UserError(
            f"environment variable '{variable}' holds an API key whose character {odd[0]} is U+{ord(odd[1]):04X}; "
            "a key is printable ASCII: copy it again, without typographic quotes or line breaks"
        )
