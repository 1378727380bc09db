"""How long training waits for its next batch, as Lightning's loop sees it."""

from collections.abc import Callable

from pytorch_lightning.profilers import Profiler

FETCH = "[_TrainingEpochLoop].train_dataloader_next"
"""Lightning's name of the action that asks the training loader for a batch (its profilers report it)."""


EPOCH = "run_training_epoch"
"""Lightning's name of a whole epoch; before its first ``FETCH`` the loader is told to begin."""


class PassingProfiler(Profiler):
    """A profiler that passes everything on to the one that was there before.

    Args:
        inner: the profiler to pass on to.
    """

    def __init__(self, inner: Profiler) -> None:
        super().__init__()
        self.inner = inner

    def start(self, action_name: str) -> None:
        """Begin an action."""
        self.inner.start(action_name)

    def stop(self, action_name: str) -> None:
        """End an action."""
        self.inner.stop(action_name)

    def summary(self) -> str:
        """The report of the profiler that was there."""
        return str(self.inner.summary())

    def describe(self) -> None:
        """Report."""
        self.inner.describe()

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Set up."""
        self.inner.setup(stage, local_rank, log_dir)

    def teardown(self, stage: str | None) -> None:
        """Close files."""
        self.inner.teardown(stage)


class FetchTimer(PassingProfiler):
    """A profiler that adds up the time of ``FETCH``.

    With ``num_workers`` 0 this is the time of decoding and preprocessing; with workers it is what they did not hide.
    Validation, checkpoints and callbacks are not in it.

    Args:
        inner: the profiler to pass on to.
        clock: seconds.

    Attributes:
        ended_s: when the last fetch ended, on ``clock``.
    """

    def __init__(self, inner: Profiler, clock: Callable[[], float]) -> None:
        super().__init__(inner)
        self._clock = clock
        self.ended_s = 0.0
        self._started_s = 0.0
        self._waited_s = 0.0

    def start(self, action_name: str) -> None:
        """Begin an action."""
        super().start(action_name)
        if action_name == FETCH:
            self._started_s = self._clock()

    def stop(self, action_name: str) -> None:
        """End an action."""
        if action_name == FETCH:
            self.ended_s = self._clock()
            self._waited_s += self.ended_s - self._started_s
        super().stop(action_name)

    def take(self) -> float:
        """Return the seconds waited since the last call."""
        taken, self._waited_s = self._waited_s, 0.0
        return taken
