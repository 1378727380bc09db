"""What a run asked for and what it paid, counted over all its threads."""

import threading
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from longvid_train.endpoint.messages import Reply
from longvid_train.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Totals of one run.

    Attributes:
        sent: requests that got a reply.
        from_cache: replies read from the cache instead.
        retries: failed sendings by what failed, e.g. ``{"status 429": 2, "timeout": 1}``.
        answers: questions answered in the form asked for.
        failures: questions given up, by reason.
        prompt_tokens: tokens of all requests that got a reply.
        completion_tokens: tokens of all those replies.
        uncounted: replies whose tokens the endpoint did not count; the tokens and the cost leave them out.
        cost_usd: cost of those tokens, None without prices.
    """

    sent: int
    from_cache: int
    retries: dict[str, int]
    answers: int
    failures: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    uncounted: int
    cost_usd: float | None

    def as_json(self) -> dict[str, Any]:
        """The totals as one JSON object."""
        return asdict(self)


class Ledger:
    """Counts for one client; every method may be called from any thread."""

    def __init__(self, prices_usd_per_million: tuple[float, float] | None, max_cost_usd: float | None) -> None:
        """Count with prices of (prompt, completion) tokens, or tokens only."""
        self._prices = prices_usd_per_million
        self._max_cost_usd = max_cost_usd
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def paid(self, reply: Reply) -> None:
        """A request was sent and answered."""
        with self._lock:
            self._counts["sent"] += 1
            if reply.prompt_tokens is None or reply.completion_tokens is None:
                self._counts["uncounted"] += 1
                return
            self._counts["prompt_tokens"] += reply.prompt_tokens
            self._counts["completion_tokens"] += reply.completion_tokens

    def cached(self) -> None:
        """A reply came from the cache."""
        with self._lock:
            self._counts["from_cache"] += 1

    def retried(self, what: str) -> None:
        """A sending failed and may be repeated."""
        with self._lock:
            self._retries[what] += 1

    def answered(self) -> None:
        """A question got an answer of its form."""
        with self._lock:
            self._counts["answers"] += 1

    def failed(self, reason: str) -> None:
        """A question was given up."""
        with self._lock:
            self._failures[reason] += 1

    def check_budget(self) -> None:
        """Refuse another request once the budget is used up.

        Raises:
            UserError: the cost has reached ``max_cost_usd``.
        """
        if self._max_cost_usd is None:
            return
        with self._lock:
            cost = self._cost_usd()
        if cost is not None and cost >= self._max_cost_usd:
            raise UserError(
                f"the replies of this run cost {cost:.4f} USD, which reaches max_cost_usd {self._max_cost_usd}; they "
                "are kept in the cache: raise it and run again to go on"
            )

    def totals(self) -> Spending:
        """The counts so far."""
        with self._lock:
            return Spending(
                sent=self._counts["sent"],
                from_cache=self._counts["from_cache"],
                retries=dict(sorted(self._retries.items())),
                answers=self._counts["answers"],
                failures=dict(sorted(self._failures.items())),
                prompt_tokens=self._counts["prompt_tokens"],
                completion_tokens=self._counts["completion_tokens"],
                uncounted=self._counts["uncounted"],
                cost_usd=self._cost_usd(),
            )

    def _cost_usd(self) -> float | None:
        if self._prices is None:
            return None
        prompt, completion = self._prices
        return (self._counts["prompt_tokens"] * prompt + self._counts["completion_tokens"] * completion) / 1e6
