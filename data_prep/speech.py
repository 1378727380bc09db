"""Speech to text for videos without subtitles, by faster-whisper: the optional extra ``speech``."""

import functools
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid_train.errors import UserError
from longvid_train.files import write_text

PACKAGE = "faster_whisper"


@dataclass(frozen=True)
class Spoken:
    """A piece of speech.

    Attributes:
        start_s: start in seconds.
        end_s: end in seconds.
        text: what is said.
    """

    start_s: float
    end_s: float
    text: str


def require_speech_to_text() -> None:
    """Check that the extra is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError("--speech-to-text needs faster-whisper; install it with: pip install 'longvid-train[speech]'")


def write_transcript(video: Path, subtitles: Path, model: str, language: str | None) -> None:
    """Transcribe ``video`` into the ``.srt`` file ``subtitles``, atomically.

    Args:
        video: a file with an audio stream.
        subtitles: the file to write.
        model: a size such as ``"small"``, or a folder with a CTranslate2 model.
        language: two-letter code of the speech; None lets the model tell.

    Raises:
        UserError: the video has no sound that can be decoded.
    """
    segments = _transcribed(video, model, language)
    write_text(subtitles, srt_text(segments))


def srt_text(pieces: Iterable[Spoken]) -> str:
    """The pieces as SubRip text, blank ones left out; a piece never ends before it starts."""
    spoken = [piece for piece in pieces if piece.text.strip()]
    return "\n".join(_block(number, piece) for number, piece in enumerate(spoken, start=1))


def _transcribed(video: Path, model: str, language: str | None) -> Sequence[Spoken]:
    import av

    try:
        segments, _ = _model(model).transcribe(str(video), language=language)
        return [Spoken(segment.start, segment.end, segment.text) for segment in segments]
    except (av.error.FFmpegError, IndexError) as error:  # IndexError: the file has no audio stream
        raise UserError(
            f"{video}: no sound that can be decoded ({error}); leave out --speech-to-text for it"
        ) from error


@functools.cache
def _model(name: str) -> Any:
    import faster_whisper

    return faster_whisper.WhisperModel(name)


def _block(number: int, piece: Spoken) -> str:
    times = f"{_stamp(piece.start_s)} --> {_stamp(max(piece.start_s, piece.end_s))}"
    return f"{number}\n{times}\n{' '.join(piece.text.split())}\n"


def _stamp(time_s: float) -> str:
    milliseconds = round(time_s * 1000)
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d},{milliseconds:03d}"
