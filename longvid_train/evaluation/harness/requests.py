"""lmms-eval's two forms of a request to one of ours: words, and videos and images in order. lmms-eval is not needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from longvid_train.data.row_checks import PLACEHOLDER
from longvid_train.errors import UserError


@dataclass(frozen=True)
class VideoPart:
    """A video file and the part of it that is shown."""

    path: str
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class HarnessRequest:
    """Media in the order shown, and the words behind them."""

    media: tuple[VideoPart | Image.Image, ...]
    text: str


def simple_request(context: str, visuals: Sequence[Any] | None) -> HarnessRequest:
    """A request of the simple interface: a context, and what ``doc_to_visual`` gave.

    Raises:
        UserError: a visual is neither a path nor a picture.
    """
    return HarnessRequest(tuple(_medium(visual) for visual in visuals or ()), _words(context))


def chat_request(messages: Sequence[Mapping[str, Any]]) -> HarnessRequest:
    """A request of the chat interface: one user message, perhaps behind a system message whose words go first.

    Raises:
        UserError: further messages, or content that is no text, image or video.
    """
    roles = [str(message["role"]) for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise UserError(f"the task sends messages of {roles}; this model takes one user message, and a system message")
    media: list[VideoPart | Image.Image] = []
    texts: list[str] = []
    for part in (part for message in messages for part in message["content"]):
        if part["type"] == "text":
            texts.append(_words(part["text"]))
        elif part["type"] == "video" and isinstance(part["url"], str):
            media.append(VideoPart(part["url"], part.get("start_time") or 0.0, part.get("end_time")))
        elif part["type"] in ("image", "video"):
            media.append(_medium(part["url"]))
        else:
            raise UserError(f"the task sends {part['type']}; this model is shown text, images and videos")
    return HarnessRequest(tuple(media), "\n".join(text for text in texts if text))


def _medium(visual: Any) -> VideoPart | Image.Image:
    if isinstance(visual, str):
        return VideoPart(visual)
    if isinstance(visual, Image.Image):
        return visual
    raise UserError(f"the task shows a {type(visual).__name__}; this model is shown paths of videos and pictures")


def _words(text: str) -> str:
    """The words without marks for media, which go in front here."""
    return PLACEHOLDER.sub("", text).strip()
