"""Which frames of a question's media are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

from longvid_train.data.manifest import MediaType, Turn
from longvid_train.data.windows import windowed
from longvid_train.errors import UserError
from longvid_train.evaluation.local.questions import Question
from longvid_train.evaluation.local.settings import EvaluationSettings
from longvid_train.generate.media import Medium, ReadOptions, check_frame_counts, open_image, open_video, probe_video
from longvid_train.generate.prompting import Prompting, first_question, largest, next_question
from longvid_train.video import FramesPerSecond, Sampling, UniformFrames, VideoInfo, frame_count

DEFAULT_FPS = 1.0
"""LLaMA-VID's, where nothing else is said (paper Sec. 4.1)."""


@dataclass(frozen=True, kw_only=True)
class Showing:
    """How media are opened for a model.

    Attributes:
        prompting: of the model under its adaptation.
        settings: of the evaluation; its ``frames`` and ``fps`` go before the adaptation's.
        read: how files are read.
    """

    prompting: Prompting
    settings: EvaluationSettings
    read: ReadOptions

    def open(self, question: Question, text: str) -> tuple[Medium, ...]:
        """Open a question's media; containers are probed, nothing is decoded.

        Without a number of frames in settings and adaptation, a model shows as many as it was trained on; LLaMA-VID 1 a
        second, or as many as its window has room for.

        Args:
            question: whose media.
            text: the words that will be asked.

        Raises:
            UserError: a file cannot be read, or has too few frames for the model.
        """
        infos = {
            medium.path: probe_video(question.folder / medium.path, self.read)
            for medium in question.media
            if medium.type == "video"
        }
        sampling = self._stated()
        opened = self._opened(question, infos, sampling or FramesPerSecond(fps=DEFAULT_FPS))
        if sampling is None and infos and not self._fits(question, text, opened):
            longest = max(len(medium.timestamps_s) for medium in opened)

            def capped(count: int) -> tuple[Medium, ...]:
                return self._opened(question, infos, FramesPerSecond(fps=DEFAULT_FPS, max_frames=count))

            most = largest(lambda count: self._fits(question, text, capped(count)), longest)
            opened = capped(most) if most else opened
        check_frame_counts(opened, self.read)
        return opened

    def _stated(self) -> Sampling | None:
        """Of the settings, else of the adaptation, else of the model's training."""
        for source in (self.settings, self.prompting.adaptation):
            if source.fps is not None:
                return FramesPerSecond(fps=source.fps, max_frames=source.frames)
            if source.frames is not None:
                return UniformFrames(count=source.frames, at_most=True)
        trained = self.prompting.trained_frames
        return None if trained is None else UniformFrames(count=trained, at_most=True)

    def _opened(self, question: Question, infos: dict[str, VideoInfo], sampling: Sampling) -> tuple[Medium, ...]:
        opened = []
        for medium in question.media:
            if medium.type == "image":
                opened.append(open_image(question.folder / medium.path))
                continue
            info = infos[medium.path]
            shown = self._whole_groups(windowed(sampling, medium), info)
            subtitles = medium.subtitles if self.settings.subtitles else None
            place = None if subtitles is None else question.folder / subtitles
            opened.append(open_video(info, shown, subtitles=place, reader=self.read.reader))
        return tuple(opened)

    def _whole_groups(self, sampling: Sampling, info: VideoInfo) -> Sampling:
        """A tower that sees frames together takes whole groups of them."""
        step = self.prompting.joint_frames
        if step == 1:
            return sampling
        found = frame_count(sampling, info)
        whole = found // step * step
        if not whole:
            raise UserError(
                f"{info.path}: {found} frames to show, but the model sees {step} together; leave the row out"
            )
        return (
            sampling if whole == found else UniformFrames(count=whole, start_s=sampling.start_s, end_s=sampling.end_s)
        )

    def _fits(self, question: Question, text: str, media: Sequence[Medium]) -> bool:
        turns = turns_of(question, text, [medium.type for medium in media])
        try:
            self.prompting.extent(turns, [medium.layout for medium in media], self.settings.max_new_tokens)
        except UserError:
            return False
        return True


def turns_of(question: Question, text: str, media: Sequence[MediaType]) -> tuple[Turn, ...]:
    """The conversation up to a question, whose words are ``text``: earlier turns have their right answers.

    Raises:
        UserError: the placeholders are not the media in their order.
    """
    turns: list[Turn] = []
    for asked, answer in question.history:
        turns += [next_question(asked) if turns else first_question(asked, media), Turn("assistant", answer)]
    return (*turns, next_question(text) if turns else first_question(text, media))
