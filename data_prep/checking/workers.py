"""A function over many items in several processes: results in order, few items waiting, the caller's memory bounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from longvid_train.pool import worker_pool

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4
"""Items that wait per process."""


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    processes: int,
    *,
    setup: Callable[..., None] | None = None,
    setup_arguments: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """``function(item)`` for every item, in the order of the items; one process works in this process.

    An exception of ``function`` comes out where its result would have. ``setup`` is called once in each other process.
    The other processes end when this one does, also when it is killed.
    """
    if processes == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with worker_pool(processes, setup, setup_arguments) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= processes * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
