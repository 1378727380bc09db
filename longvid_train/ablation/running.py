"""All runs of a grid, several at once; one that fails is noted, and the others go on."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from longvid_train.ablation.making import Maker, StepFailedError
from longvid_train.ablation.plan import Run
from longvid_train.ablation.scores import Scored, read_scored
from longvid_train.errors import UserError


@dataclass(frozen=True)
class Failed:
    """Why a run has no result."""

    reason: str


def run_all(
    runs: Sequence[Run],
    maker: Maker,
    *,
    processes: int,
    on_end: Callable[[Run, tuple[Scored, ...] | Failed], None],
) -> None:
    """Run what is given, and hand over each result or failure as it comes, in the calling thread.

    An exception in the calling thread, an interruption among them, stops the commands before it goes on.

    Args:
        runs: to run.
        maker: makes their steps.
        processes: runs at once.
        on_end: gets every run once.
    """
    with ThreadPoolExecutor(max_workers=processes, thread_name_prefix="ablate") as pool:
        futures = {pool.submit(_run, run, maker): run for run in runs}
        try:
            remaining: set[Future[tuple[Scored, ...] | Failed]] = set(futures)
            while remaining:
                done, remaining = wait(remaining, return_when=FIRST_COMPLETED)
                for future in done:
                    on_end(futures[future], future.result())
        except BaseException:
            for future in futures:
                future.cancel()
            maker.stop()
            raise


def _run(run: Run, maker: Maker) -> tuple[Scored, ...] | Failed:
    try:
        return read_scored(run.result.kind, maker.make(run.result, run.title))
    except (StepFailedError, UserError) as error:
        return Failed(str(error))


class Progress:
    """One line on stderr for every run that ends.

    Args:
        total: runs in all.
        done: of them before this start.
        say: prints a line.
    """

    def __init__(self, total: int, done: int, say: Callable[[str], None]) -> None:
        self._total, self._done, self._say = total, done, say
        self._started_s, self._ended_here = time.monotonic(), 0

    def ended(self, title: str, outcome: str) -> None:
        """Say how a run ended, and how long the rest may take."""
        self._done += 1
        self._ended_here += 1
        left = self._total - self._done
        each_s = (time.monotonic() - self._started_s) / self._ended_here
        rest = f"; about {left * each_s / 60:.0f} min left" if left else ""
        self._say(f"{title}: {outcome} ({self._done} of {self._total} runs{rest})")
