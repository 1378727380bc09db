"""One HTTP request to ``/chat/completions`` and what its failure means: worth another attempt, or not."""

import email.utils
import functools
import json
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx2

from longvid_train.endpoint.messages import Message, Parameters, Reply
from longvid_train.errors import UserError

MAX_BODY_BYTES = 16 * 2**20
_SHOWN_CHARS = 300
_PASSING_STATUSES = frozenset({408, 409, 425, 429})
_QUESTION_STATUSES = frozenset({400, 413, 422})


class PassingError(Exception):
    """A failure that another attempt may not meet.

    Attributes:
        what: its kind, for counting, e.g. ``"status 429"``.
        retry_after_s: when the endpoint asked to come back, in seconds from now, or None.
    """

    def __init__(self, what: str, detail: str = "", retry_after_s: float | None = None) -> None:
        """A failure of kind ``what``."""
        super().__init__(f"{what}: {detail}" if detail else what)
        self.what = what
        self.retry_after_s = retry_after_s


class RefusedError(Exception):
    """The endpoint calls this very question invalid; another attempt would meet the same."""


class Transport:
    """Sends requests to one endpoint; may be used from any thread."""

    def __init__(
        self, base_url: str, api_key: str | None, timeout_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Send to ``base_url`` with ``api_key`` as bearer token; a request may take ``timeout_s`` in all."""
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._clock = clock
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._client = httpx2.Client(
            timeout=timeout_s, headers=headers, limits=httpx2.Limits(max_connections=None), verify=_certificates()
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def send(self, model: str, messages: Sequence[Message], parameters: Parameters) -> Reply:
        """Send one request.

        Raises:
            PassingError: a timeout, a lost connection, a status that says "later", or a body that is not a reply.
            RefusedError: the endpoint refuses this question.
            UserError: the endpoint refuses every question: a wrong address, key or model.
        """
        body = {"model": model, "messages": [message.as_json() for message in messages], **parameters}
        try:
            status, headers, raw = self._post(body)
        except httpx2.TimeoutException as error:
            raise PassingError("timeout", f"no whole reply within {self._timeout_s:g} s") from error
        except httpx2.UnsupportedProtocol as error:
            raise UserError(f"endpoint '{self._url}': {error}") from error
        except httpx2.TransportError as error:
            raise PassingError("connection", self._redacted(str(error) or type(error).__name__)) from error
        except httpx2.DecodingError as error:
            raise PassingError("malformed reply", "the body cannot be decompressed") from error
        if status == 200:
            return parse_reply(raw)
        raise self._refusal(status, headers, raw)

    def _post(self, body: dict[str, Any]) -> tuple[int, httpx2.Headers, bytes]:
        """Post within the time and size allowed for the whole exchange, also when the server drips its reply."""
        deadline_s = self._clock() + self._timeout_s
        with self._client.stream("POST", self._url, json=body) as response:
            received = bytearray()
            for chunk in response.iter_bytes():
                received += chunk
                if len(received) > MAX_BODY_BYTES:
                    raise PassingError("malformed reply", f"the body is longer than {MAX_BODY_BYTES} bytes")
                if self._clock() > deadline_s:
                    raise PassingError("timeout", f"no whole reply within {self._timeout_s:g} s")
            return response.status_code, response.headers, bytes(received)

    def _refusal(self, status: int, headers: httpx2.Headers, raw: bytes) -> Exception:
        said = self._redacted(" ".join(raw.decode("utf-8", errors="replace").split()))[:_SHOWN_CHARS]
        if status in _PASSING_STATUSES or status >= 500:
            return PassingError(f"status {status}", said, retry_after_s(headers.get("retry-after")))
        if status in _QUESTION_STATUSES:
            return RefusedError(f"status {status}: {said}")
        if 300 <= status < 400:
            said = f"it redirects to '{headers.get('location', '')}'"
        return UserError(
            f"endpoint '{self._url}' refuses with status {status} ({said}); check base_url, model and the API key"
        )

    def _redacted(self, text: str) -> str:
        return text.replace(self._api_key, "***") if self._api_key else text


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The system's certificates, read once a process: that takes a third of a second."""
    return httpx2.create_ssl_context()


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number, or an HTTP date; None if absent or neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def parse_reply(raw: bytes) -> Reply:
    """The first choice of a chat completion.

    Raises:
        PassingError: the body is not JSON, or not a chat completion.
    """
    try:
        body = json.loads(raw)
        choice = body["choices"][0]
        text = choice["message"]["content"]
        usage = body.get("usage") or {}
        reply = Reply(
            text="" if text is None else text,
            finish_reason=choice.get("finish_reason") or "",
            model=body.get("model") or "",
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )
        texts = (reply.text, reply.finish_reason, reply.model)
        for one in texts:  # they are kept as UTF-8
            one.encode("utf-8")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise PassingError("malformed reply", f"not a chat completion ({type(error).__name__})") from error
    counts = (reply.prompt_tokens, reply.completion_tokens)
    if not all(_is_count(count) for count in counts):
        raise PassingError("malformed reply", "a field of the chat completion has the wrong type")
    return reply


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
