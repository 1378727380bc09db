"""One evaluation: which manifests, which model under which adaptation, how it is asked, how answers are summed up."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from longvid_train.adaptation.records import as_mapping, check_keys, read_record, read_yaml
from longvid_train.errors import UserError
from longvid_train.evaluation.judging.settings import JudgeSettings, read_judge


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Paths are relative to the working folder.

    Attributes:
        manifests: evaluation sets, in order.
        model: folder of a checkpoint, or hub id of a backbone; may be left out where the adapter's record names it.
        adapter: folder of a LoRA adapter.
        adaptation: YAML file: how videos are shown, how the window is extended, how the cache is coded.
        template: LLaMA-VID: another chat template.
        prompt: other models: words instead of the chat template.
        frames: evenly spaced frames of a video, or all of a shorter one; with ``fps`` the most of them.
        fps: frames a second.
        subtitles: show the subtitles that rows name.
        open_suffix: stands behind open questions on a line of its own, e.g. "Answer in one word or phrase."
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        top_p: draw from the likeliest tokens of this probability.
        num_beams: beams of beam search.
        seed: of the draws.
        batch_size: questions answered at once; only questions with prompts of one length and videos shown alike are.
        cached_videos: encoded videos that wait for further questions about them.
        limit: answer only the first rows of each manifest; ``None`` answers all.
        max_left_out: rows that may be left out because a file of them is missing or cannot be shown; more end the run.
        device: ``"auto"``, ``"cpu"`` or a CUDA device.
        dtype: of the weights; ``"auto"`` is the checkpoint's.
        features_on: see ``EngineOptions``.
        prefill_chunk: likewise; ``None`` is its default.
        frame_chunk: likewise.
        reader: ``"auto"``, ``"pyav"`` or ``"decord"``.
        isolated: decode in a killable process of its own.
        processes: processes that answer, each with a copy of the model.
        categories: fields of ``meta`` to break the scores down by; empty takes those usual in benchmarks.
        duration_edges_s: edges of groups of videos by length: ``(15, 60)`` makes up to 15 s, up to 60 s, and longer.
        judge: see `JudgeSettings`; ``None`` asks no judge.
    """

    manifests: tuple[str, ...] = ()
    model: str | None = None
    adapter: str | None = None
    adaptation: str | None = None
    template: str | None = None
    prompt: str | None = None
    frames: int | None = None
    fps: float | None = None
    subtitles: bool = True
    open_suffix: str = ""
    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    seed: int = 0
    batch_size: int = 1
    cached_videos: int = 4
    limit: int | None = None
    max_left_out: int = 0
    device: str = "auto"
    dtype: str = "auto"
    features_on: str = "device"
    prefill_chunk: int | None = None
    frame_chunk: int | None = None
    reader: str = "auto"
    isolated: bool = True
    processes: int = 1
    categories: tuple[str, ...] = ()
    duration_edges_s: tuple[float, ...] = ()
    judge: JudgeSettings | None = None

    def __post_init__(self) -> None:
        """Refuse what no run can satisfy.

        Raises:
            UserError: naming the value.
        """
        for name in ("frames", "limit", "batch_size", "cached_videos", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.max_left_out < 0:
            raise UserError(f"max_left_out is {self.max_left_out}; it must be 0 or more")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise UserError(f"fps is {self.fps}; it must be greater than 0")
        edges = self.duration_edges_s
        if any(edge <= 0 for edge in edges) or any(later <= earlier for earlier, later in pairwise(edges)):
            raise UserError(f"duration_edges_s is {list(edges)}; it must be rising numbers of seconds above 0")

    def check_runnable(self) -> None:
        """Refuse settings that name nothing to ask or nobody to ask.

        Raises:
            UserError: no manifest or no model.
        """
        if not self.manifests:
            raise UserError("no manifest is named; write manifests: [FILE.jsonl], or give --manifest FILE.jsonl")
        if self.model is None and self.adapter is None:
            raise UserError("no model is named; write model: FOLDER, or give --model FOLDER")


def read_settings(path: Path, defaults: Mapping[str, Any] | None = None) -> EvaluationSettings:
    """Read a YAML file.

    Args:
        path: the file.
        defaults: values of keys that it does not name, instead of the defaults of `EvaluationSettings`.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value cannot be used.
    """
    values = read_yaml(path, use="the settings of an evaluation")
    given = {} if values is None else as_mapping(values, str(path))
    return settings_of({**(defaults or {}), **given}, where=str(path))


def settings_of(values: object, *, where: str) -> EvaluationSettings:
    """Read plain values; ``where`` names them in messages.

    Raises:
        UserError: as `read_settings`.
    """
    given = dict(as_mapping(values, where))
    check_keys(given, tuple(one.name for one in fields(EvaluationSettings)), where)
    judge = given.pop("judge", None)
    settings = read_record(EvaluationSettings, given, where)
    return settings if judge is None else replace(settings, judge=read_judge(judge, f"{where}: judge"))
