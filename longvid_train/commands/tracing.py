"""``longvid ask --trace``: a page and its JSON for every answer, beside each other in one folder."""

from pathlib import Path

from longvid_train.errors import UserError
from longvid_train.evaluation.trace_page import write_trace_page
from longvid_train.generate.answer import Answer
from longvid_train.generate.chat import Conversation, VideoChat
from longvid_train.generate.context_trace import ContextTrace, context_traces
from longvid_train.generate.llama_vid_prompting import LlamaVidPrompting
from longvid_train.generate.media import Medium, ReadOptions
from longvid_train.generate.prompting import Prompting
from longvid_train.generate.seen import seen_frames
from longvid_train.generate.zoom.trace import ZoomTrace


def check_traceable(prompting: Prompting, folder: Path) -> None:
    """Refuse what leaves no trace and what would replace one, before weights load.

    Raises:
        UserError: neither a zoom nor context tokens, ``folder`` is a file, or it holds a trace.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--trace {folder} is a file; name a folder")
    earlier = sorted(folder.glob("trace*.json"))
    if earlier:
        raise UserError(f"--trace {folder} holds the trace of an earlier answer ({earlier[0].name}); name a new folder")
    if prompting.adaptation.zoom is not None:
        return
    if not isinstance(prompting, LlamaVidPrompting) or not prompting.processor.reads_patches:
        raise UserError(
            f"--trace {folder}: there is nothing to trace; give an adaptation that zooms, or a LLaMA-VID with context "
            "tokens"
        )


class Tracer:
    """Writes the trace of one answer after the other.

    Args:
        chat: the model.
        read: how files are read.
        folder: of the pages; made where it is missing.
    """

    def __init__(self, chat: VideoChat, read: ReadOptions, folder: Path) -> None:
        self._chat = chat
        self._read = read
        self._folder = folder
        self._answers = 0

    def write(self, talk: Conversation, answer: Answer) -> list[Path]:
        """Write the last answer's: ``trace.html``, then ``trace_2.html`` and so on; one a medium shown.

        Raises:
            UserError: a file cannot be decoded again, or nothing was shown.
        """
        self._answers += 1
        name = "trace" if self._answers == 1 else f"trace_{self._answers}"
        if answer.trace is not None:
            return [self._page(answer.trace, talk.media[0], [one.frame for one in answer.trace.overview], name)]
        media = {medium.path: medium for medium in talk.media}
        return [
            self._page(
                trace,
                media[trace.medium],
                [one.frame for one in trace.frames],
                name if number == 1 else f"{name}_medium_{number}",
            )
            for number, trace in enumerate(context_traces(self._chat, talk), start=1)
        ]

    def _page(self, trace: ZoomTrace | ContextTrace, medium: Medium, frames: list[int], name: str) -> Path:
        pictures = seen_frames(medium, self._chat.engine, self._read, frames)
        return write_trace_page(trace, pictures, self._folder, name=name)
