"""Answers of LLaMA-VIDs to the same questions, each method of a claim a model of its own.

Clips are rendered once, and pass the vision tower once: it is frozen in every stage, so that the models of a claim
share it. Questions pass a model in left-padded batches, as ``longvid ask`` asks them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from longvid_train.errors import UserError
from longvid_train.evaluation.claims.answering import Answered, scored
from longvid_train.evaluation.claims.asking import ask_encoded, encoded_clips
from longvid_train.evaluation.claims.held_out import HeldOut
from longvid_train.evaluation.claims.methods import Method
from longvid_train.generate.chat import Conversation, VideoChat
from longvid_train.models.fingerprint import file_digests

NEW_TOKENS = 16
"""Longest answer, as in the quickstart's third stage."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The models of a claim that compares models.

    Attributes:
        files: those that must exist, given the folder of the nano models.
        folders: of the models and of their parts, by their names in that folder.
        load: the model of a method, given that folder and the method's name.
    """

    files: Callable[[Path], tuple[Path, ...]]
    folders: tuple[str, ...]
    load: Callable[[Path, str], VideoChat]

    def check(self, models: Path) -> None:
        """Refuse a folder that lacks one of the models.

        Raises:
            UserError: a file is missing.
        """
        for file in self.files(models):
            if not file.is_file():
                raise UserError(f"{file} does not exist; name the folder of the nano models with --models")

    def digests(self, models: Path) -> dict[str, str]:
        """SHA-256 of every file of the models, by its path under ``models``."""
        return {
            f"{folder}/{path}": digest
            for folder in self.folders
            for path, digest in file_digests(models / folder).items()
        }


class ComparedAnswers:
    """Answers of every model to the questions about one set of clips after the other.

    Args:
        compared: the models.
        models: folder of the nano models.
        held_out: questions of a number of frames and a seed.
    """

    def __init__(self, compared: Compared, models: Path, held_out: Callable[[int, int], tuple[HeldOut, ...]]) -> None:
        self._compared, self._models, self._held_out = compared, models, held_out
        self._chats: dict[str, VideoChat] = {}
        self._shown: tuple[tuple[int, int], tuple[HeldOut, ...], list[Conversation]] | None = None

    def __call__(self, method: Method, frames: int, seed: int) -> list[Answered]:
        """Clip after clip, question after question."""
        chat = self._chat(method.name)
        if self._shown is None or self._shown[0] != (frames, seed):
            clips = self._held_out(frames, seed)
            self._shown = (frames, seed), clips, encoded_clips(chat, clips)
        _, clips, talks = self._shown
        return [
            replace(scored(one, question, answer.answer), visual_tokens=answer.visual_tokens)
            for one, question, answer, _ in ask_encoded(chat, clips, talks, new_tokens=NEW_TOKENS)
        ]

    def _chat(self, name: str) -> VideoChat:
        if name not in self._chats:
            chat = self._compared.load(self._models, name)
            for other in self._chats.values():
                _check_same_tower(chat, other)
            self._chats[name] = chat
        return self._chats[name]


def _check_same_tower(chat: VideoChat, other: VideoChat) -> None:
    mine, theirs = (one.model.vision_tower.state_dict() for one in (chat, other))
    if mine.keys() != theirs.keys() or not all(torch.equal(mine[name], theirs[name]) for name in mine):
        raise UserError(
            f"{chat.name} and {other.name} have different vision towers; compare models that were trained from one "
            "start, whose tower is frozen"
        )
