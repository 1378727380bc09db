"""What goes to a chat model and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str

    def as_json(self) -> dict[str, str]:
        """The message as the API writes it."""
        return {"role": self.role, "content": self.content}


Conversation = tuple[Message, ...]
"""The messages of one request, oldest first."""


class OffFormatError(ValueError):
    """A reply does not have the form its question asked for; the message says what to write instead.

    A parser raises it. The client then asks again with the reply and this message behind the question.
    """


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One completion as the endpoint gave it.

    Attributes:
        text: content of the message, empty if there was none.
        finish_reason: why the model stopped, e.g. ``"stop"`` or ``"length"``; empty if the endpoint did not say.
        model: the model that answered, by its own name; empty if the endpoint did not say.
        prompt_tokens: tokens of the request, None if the endpoint did not count.
        completion_tokens: tokens of the reply, None if the endpoint did not count.
    """

    text: str
    finish_reason: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A reply that has the form asked for.

    Attributes:
        value: what the parser made of it.
        text: the reply itself.
        model: the model that answered, by its own name.
        tries: replies asked for, the accepted one included.
    """

    value: T
    text: str
    model: str
    tries: int


@dataclass(frozen=True)
class Failure:
    """A question that got no answer of the form asked for, after every try that was allowed.

    Attributes:
        reason: ``"off_format"``, ``"cut_off"`` (the reply reached the limit of tokens) or ``"refused"`` (the endpoint's
            content filter, or a question it calls invalid, such as one longer than the model's window).
        detail: what was wrong with the last reply.
        tries: replies asked for.
    """

    reason: Literal["off_format", "cut_off", "refused"]
    detail: str
    tries: int


Parameters = Mapping[str, float | int]
"""Sampling parameters of a request by their API names; those the endpoint is to choose are left out."""
