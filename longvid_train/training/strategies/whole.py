"""Reading weights that a strategy may keep in shards; with other strategies they are whole already."""

from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning.strategies import Strategy

from longvid_train.training.strategies.zero import ZeroStrategy


@contextmanager
def whole_weights(strategy: Strategy) -> Iterator[None]:
    """All weights on each rank within, so that ranks can generate on their own; all ranks enter and leave."""
    if not isinstance(strategy, ZeroStrategy):
        yield
        return
    with strategy.whole_weights():
        yield


@contextmanager
def exported_weights(strategy: Strategy) -> Iterator[None]:
    """Whole float32 weights on rank 0 within, for writing; all ranks enter and leave."""
    if not isinstance(strategy, ZeroStrategy):
        yield
        return
    with strategy.exported_weights():
        yield
