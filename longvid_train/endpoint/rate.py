"""Ceilings on requests and tokens over any 60 seconds, shared by all threads of a client."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60.0


@dataclass
class Reservation:
    """One request's place in the window; ``tokens`` is an estimate until its reply is known."""

    at_s: float
    tokens: int


class RateLimit:
    """A sliding window: a request waits until it fits beside those of the last 60 seconds.

    A request larger than the whole token ceiling passes alone, when the window is empty.
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        """Count with ``clock`` (seconds, never back) and wait with ``sleep``."""
        self._max_requests = requests_per_minute
        self._max_tokens = tokens_per_minute
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._window: deque[Reservation] = deque()
        self._paused_until_s = float("-inf")

    def acquire(self, tokens: int) -> Reservation:
        """Wait until a request of about ``tokens`` tokens fits, and count it."""
        while True:
            with self._lock:
                now_s = self._clock()
                wait_s = self._wait_s(now_s, tokens)
                if wait_s <= 0:
                    reservation = Reservation(now_s, tokens)
                    self._window.append(reservation)
                    return reservation
            self._sleep(wait_s)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Replace a reservation's estimate by the real number of tokens."""
        with self._lock:
            reservation.tokens = tokens

    def pause(self, seconds: float) -> None:
        """Let no request through for so long: the endpoint said when to come back."""
        with self._lock:
            self._paused_until_s = max(self._paused_until_s, self._clock() + seconds)

    def _wait_s(self, now_s: float, tokens: int) -> float:
        while self._window and self._window[0].at_s + WINDOW_S <= now_s:
            self._window.popleft()
        wait_s = self._paused_until_s - now_s
        kept = list(self._window)
        if self._max_requests is not None and len(kept) >= self._max_requests:
            wait_s = max(wait_s, kept[len(kept) - self._max_requests].at_s + WINDOW_S - now_s)
        if self._max_tokens is not None:
            used = sum(reservation.tokens for reservation in kept)
            for reservation in kept:
                if used + tokens <= self._max_tokens:
                    break
                used -= reservation.tokens
                wait_s = max(wait_s, reservation.at_s + WINDOW_S - now_s)
        return wait_s
