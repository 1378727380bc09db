"""An evaluation from its settings to predictions on disk: in this process, in several, or in the ranks of torchrun."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing as mp
from torch.multiprocessing.spawn import ProcessException, spawn

from longvid_train.errors import UserError
from longvid_train.evaluation.local.answering import Answering, generation_options, leave_out
from longvid_train.evaluation.local.batches import share
from longvid_train.evaluation.local.identity import RECORD_FILE, Asked, identity_of, open_record
from longvid_train.evaluation.local.loading import engine_options, read_model
from longvid_train.evaluation.local.lock import sole_use
from longvid_train.evaluation.local.predictions import LineLog, read_left_out, read_predictions
from longvid_train.evaluation.local.questions import Question, read_questions
from longvid_train.evaluation.local.settings import EvaluationSettings
from longvid_train.evaluation.local.showing import Showing
from longvid_train.generate.chat import resolve_device, resolve_dtype
from longvid_train.generate.media import ReadOptions
from longvid_train.launcher import BY_TORCHRUN, ELASTIC, check_number, check_set

PREDICTIONS_FILE = "predictions.jsonl"
LEFT_OUT_FILE = "left_out.jsonl"
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STARTED = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Number of processes, as torchrun, srun and mpirun tell it to each."""
LONGEST_WAIT = timedelta(days=7)
"""Ranks that are done wait for the slowest, whose videos may be longer by hours; torchrun ends all if one dies."""
_SAY_EVERY_S = 10.0
_USER_ERROR = 2


@dataclass(frozen=True)
class Rank:
    """One of the processes that answer."""

    number: int = 0
    of: int = 1


def torchrun_rank() -> Rank | None:
    """The place of this process among torchrun's; ``None`` where it was not started by it.

    Raises:
        UserError: a variable of torchrun is missing or no number, or another launcher started several processes: each
            of them would answer every question.
    """
    if ELASTIC not in os.environ:
        several = next((name for name in STARTED if os.environ.get(name, "1") != "1"), None)
        if several is not None:
            raise UserError(
                f"{several} is '{os.environ[several]}' but {ELASTIC} is not set, so each process would answer every "
                f"question; start them with torchrun, start one with --processes N, or unset {several}"
            )
        return None
    check_set(os.environ, TORCHRUN, sign=ELASTIC, remedy=BY_TORCHRUN)
    for name in ("RANK", "WORLD_SIZE"):
        check_number(os.environ, name)
    return Rank(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def answer_all(settings: EvaluationSettings, out: Path, *, command: str = "") -> int:
    """Answer what is not answered yet, and return how many questions there are.

    Under torchrun every rank calls this; all return when all are done.

    Args:
        settings: of the evaluation.
        out: its folder; an interrupted run goes on there.
        command: for the record.

    Raises:
        UserError: settings, manifests, model and adaptation do not go together, ``out`` holds another run, another
            process is at work there, or more rows than allowed cannot be asked.
    """
    rank = torchrun_rank()
    if rank is None:
        return _answer_here(settings, out, command)
    if settings.processes > 1:
        raise UserError(f"processes is {settings.processes}, but torchrun already started {rank.of}; leave it out")
    dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        with ExitStack() as held:
            _all_or_none(lambda: prepare(settings, out, command, held) if rank.number == 0 else None)
            _all_or_none(lambda: answer_share(settings, out, rank))
        return len(read_questions(settings.manifests, settings.limit)[1])
    finally:
        dist.destroy_process_group()


def _all_or_none(step: Callable[[], object]) -> None:
    """Run one rank's part of a step, wait for the others, and raise a mistake of any of them in all."""
    mistake: str | None = None
    try:
        step()
    except UserError as error:
        mistake = str(error)
    mistakes: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(mistakes, mistake)
    first = next((one for one in mistakes if one is not None), None)
    if first is not None:
        raise UserError(first)


def _answer_here(settings: EvaluationSettings, out: Path, command: str) -> int:
    with ExitStack() as held:
        total, remaining = prepare(settings, out, command, held)
        if remaining and settings.processes > 1:
            _answer_in_processes(settings, out)
        elif remaining:
            answer_share(settings, out, Rank())
    return total


def prepare(settings: EvaluationSettings, out: Path, command: str, held: ExitStack) -> tuple[int, int]:
    """Check everything that can be checked without weights, and make the folder ready; questions, and those left.

    Nobody else gets the folder before ``held`` is closed.
    """
    settings.check_runnable()
    generation_options(settings)
    engine_options(settings)
    resolve_device(settings.device)
    resolve_dtype(settings.dtype)
    manifests, questions = read_questions(settings.manifests, settings.limit)
    model = read_model(settings)
    identity = identity_of(settings, model.source, model.prompting.adaptation, manifests)
    held.enter_context(sole_use(out))
    _check_recorded(out)
    asked = Asked(
        questions=len(questions),
        limit=settings.limit,
        categories=settings.categories,
        duration_edges_s=settings.duration_edges_s,
    )
    open_record(out, identity, asked, {"command": command, "model": str(model.source), "adapter": settings.adapter})
    cut = LineLog(out / PREDICTIONS_FILE).mend()
    if cut:
        _say(
            f"{out / PREDICTIONS_FILE}: an unfinished last line of {cut} bytes was cut off; its question is asked again"
        )
    (out / LEFT_OUT_FILE).unlink(missing_ok=True)
    remaining = _remaining(questions, out)
    if len(remaining) < len(questions):
        _say(f"going on: {len(questions) - len(remaining)} of {len(questions)} questions are answered")
    missing = _missing(remaining, settings)
    _check_missing(missing, settings.max_left_out)
    _leave_out_missing(missing, settings, out)
    return len(questions), len(remaining) - len(missing)


def _check_recorded(out: Path) -> None:
    path = out / PREDICTIONS_FILE
    if path.is_file() and path.stat().st_size and not (out / RECORD_FILE).is_file():
        raise UserError(
            f"{path} holds answers, but {RECORD_FILE} beside it is missing, so nothing tells what was asked and of "
            "which model; put it back, or choose another --out"
        )


def _missing(questions: Sequence[Question], settings: EvaluationSettings) -> list[tuple[Question, Path]]:
    """Questions about files that do not exist, each with the first of them."""
    pairs = ((one, one.missing_file(subtitles=settings.subtitles)) for one in questions)
    return [(one, path) for one, path in pairs if path is not None]


def _leave_out_missing(missing: Sequence[tuple[Question, Path]], settings: EvaluationSettings, out: Path) -> None:
    for question, path in missing:
        leave_out(question, f"{path}: no such file", LineLog(out / LEFT_OUT_FILE), settings.max_left_out)


def _check_missing(missing: Sequence[tuple[Question, Path]], most: int) -> None:
    if len(missing) <= most:
        return
    paths = list(dict.fromkeys(str(path) for _, path in missing))
    named = ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
    raise UserError(
        f"{len(missing)} rows name {len(paths)} files that do not exist ({named}), and max_left_out is {most}: put "
        "them there, or raise it (--max-left-out) to leave these rows out by name"
    )


def _remaining(questions: Sequence[Question], out: Path) -> list[Question]:
    path = out / PREDICTIONS_FILE
    answered = {one.id for one in read_predictions(path)} if path.is_file() else set()
    return [question for question in questions if question.id not in answered]


def answer_share(settings: EvaluationSettings, out: Path, rank: Rank) -> None:
    """Load the model and answer what is left of this process's share.

    The share is of all questions: what is left changes while others answer. Files that were there when the folder was
    made ready may be missing now, or on this machine; their questions are left out by name.

    Raises:
        UserError: more rows than allowed cannot be asked.
    """
    questions = read_questions(settings.manifests, settings.limit)[1]
    shared = [questions[place] for place in share([one.video for one in questions], rank.number, rank.of)]
    left_out = {one.id for one in read_left_out(out / LEFT_OUT_FILE)}
    remaining = [one for one in _remaining(shared, out) if one.id not in left_out]
    missing = _missing(remaining, settings)
    _leave_out_missing(missing, settings, out)
    gone = {one.id for one, _ in missing}
    mine = [one for one in remaining if one.id not in gone]
    if not mine:
        return
    chat = read_model(settings).load(settings, device=_device(settings.device, rank))
    read = ReadOptions(reader=settings.reader, isolated=settings.isolated)
    showing = Showing(prompting=chat.prompting, settings=settings, read=read)
    logs = LineLog(out / PREDICTIONS_FILE), LineLog(out / LEFT_OUT_FILE)
    Answering(chat, showing, settings, *logs).run(mine, _Progress(rank))


def _device(name: str, rank: Rank) -> str:
    """Each process takes a device of its own where there are several."""
    if rank.of == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{rank.number % torch.cuda.device_count()}"


def _answer_in_processes(settings: EvaluationSettings, out: Path) -> None:
    """Start the processes and wait; a failure of one ends all."""
    mistakes: SimpleQueue[str] = mp.get_context("spawn").SimpleQueue()
    try:
        spawn(_worker, args=(settings, out, mistakes), nprocs=settings.processes)  # type: ignore[no-untyped-call]
    except ProcessException:
        if not mistakes.empty():
            raise UserError(mistakes.get()) from None
        raise


def _worker(number: int, settings: EvaluationSettings, out: Path, mistakes: "SimpleQueue[str]") -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // settings.processes))
    try:
        answer_share(settings, out, Rank(number, settings.processes))
    except UserError as error:
        mistakes.put(str(error))
        sys.exit(_USER_ERROR)


class _Progress:
    """A line on stderr every few seconds, and at the end."""

    def __init__(self, rank: Rank) -> None:
        self._name = f"process {rank.number + 1} of {rank.of}: " if rank.of > 1 else ""
        self._said_s = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._said_s >= _SAY_EVERY_S:
            self._said_s = now
            _say(f"{self._name}{done} of {total} questions")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
