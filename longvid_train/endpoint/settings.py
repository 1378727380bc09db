"""Which endpoint, how it samples, how fast it may be asked, and what it costs."""

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httpx2

from longvid_train.endpoint.messages import Parameters
from longvid_train.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """One chat model behind an OpenAI-compatible endpoint.

    Attributes:
        base_url: address in front of ``/chat/completions``, e.g. ``https://api.openai.com/v1``.
        model: name of the model there.
        cache: folder of replies by content, shared between runs.
        api_key_env: environment variable that holds the key; empty for a server without keys. The key itself is never
            a setting, never written and never logged.
        temperature: sampling temperature; None leaves it to the endpoint.
        max_tokens: ceiling on the tokens of a reply; None leaves it to the endpoint.
        seed: seed of sampling, where the endpoint knows one.
        timeout_s: seconds one request may take in all.
        max_attempts: times one request is sent before the endpoint counts as down.
        max_wait_s: longest wait between two attempts; an endpoint that asks for more counts as down.
        format_tries: replies asked for until one has the form asked for.
        concurrency: requests under way at once.
        requests_per_minute: ceiling over any 60 s; None has none.
        tokens_per_minute: ceiling over any 60 s, prompt and reply together; None has none.
        usd_per_million_prompt_tokens: price, to count the cost; None counts tokens only.
        usd_per_million_completion_tokens: price of the reply's tokens.
        max_cost_usd: stop before the first request after the cost of this run has reached this; needs both prices.
    """

    base_url: str
    model: str
    cache: str
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    timeout_s: float = 300.0
    max_attempts: int = 8
    max_wait_s: float = 120.0
    format_tries: int = 3
    concurrency: int = 4
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    usd_per_million_prompt_tokens: float | None = None
    usd_per_million_completion_tokens: float | None = None
    max_cost_usd: float | None = None

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UserError: a value is out of its range; the message names it.
        """
        self._check_address()
        for name in ("max_attempts", "format_tries", "concurrency", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} {value} must be at least 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens {self.max_tokens} must be at least 1")
        for name in ("timeout_s", "max_wait_s"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} {getattr(self, name)} must be above 0")
        self._check_prices()

    @property
    def parameters(self) -> Parameters:
        """Sampling parameters that are set."""
        named = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed}
        return {name: value for name, value in named.items() if value is not None}

    def _check_address(self) -> None:
        parts = _split(self.base_url)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            shown = _without_user(self.base_url)
            raise UserError(f"base_url '{shown}' is not an http address; write e.g. https://api.openai.com/v1")
        if parts.username or parts.password:
            raise UserError("base_url holds a user name or password; put the key into an environment variable instead")
        if "?" in self.base_url or "#" in self.base_url:
            raise UserError(
                "base_url holds a '?' or '#'; leave out what follows, since /chat/completions is put behind"
            )
        if not self.model.strip():
            raise UserError("model is blank; name the endpoint's model")

    def _check_prices(self) -> None:
        names = ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens")
        prices = [getattr(self, name) for name in names]
        for name, price in zip(names, prices, strict=True):
            if price is not None and price < 0:
                raise UserError(f"{name} {price} must be 0 or more")
        if prices.count(None) == 1:
            raise UserError(f"{names[prices.index(None)]} is missing; give both prices or none")
        if self.max_cost_usd is not None and None in prices:
            raise UserError(f"max_cost_usd {self.max_cost_usd} needs the prices; give {names[0]} and {names[1]}")


def _split(address: str) -> SplitResult | None:
    """The parts of an address; None where it has none that a request could be sent to."""
    try:
        parts = urlsplit(address)
        host = httpx2.URL(address).host
        if parts.port == 0 or not host or any(character.isspace() for character in parts.netloc):
            return None
    except (ValueError, httpx2.InvalidURL):
        return None
    return parts


def _without_user(address: str) -> str:
    """The address as it may be shown: what stands before an ``@`` may be a password."""
    before, _, rest = address.rpartition("@")
    return f"***@{rest}" if before else rest
