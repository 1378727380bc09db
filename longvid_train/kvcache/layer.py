"""One layer of a quantized cache.

Tokens pass through three states: pending (of the forward pass that runs now), recent (full precision), coded (in
pages, never coded again). `QuantizedLayer.update` takes a layer's new keys and values and hands them back with a
reference to the layer; the attention function computes attention over everything and then calls `settle`, which makes
the pending tokens recent and codes what leaves the recent window. So a prompt is coded layer by layer as it arrives.

``B`` rows, ``Hq`` query heads, ``H`` key-value heads, ``Q`` queries, ``T`` tokens, ``D`` head dim.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from longvid_train.errors import UserError
from longvid_train.kvcache.codec import TEXT, Codec, Places
from longvid_train.kvcache.kernels.choice import MOST_ROWS, Decoding, page_decoder
from longvid_train.kvcache.online_softmax import Partial, partial_attention
from longvid_train.kvcache.pages import PAGE_TOKENS, Page, PageStore
from longvid_train.kvcache.sinks import SinkTokens

QUERY_ROWS = 1024
"""Most query rows (queries times heads of a group) attended at once; bounds the scores of a page."""


class LayerKeys(torch.Tensor):
    """New keys ``(B, H, Q, D)`` that know the cache layer they were given to; results of operations are plain."""

    layer: "QuantizedLayer"
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """What all layers of a cache share: see `CachePolicy` and `QuantizedKVCache`."""

    sink_tokens: int
    recent_tokens: int
    block_tokens: int
    needs_kinds: bool
    offload: bool = False
    page_tokens: int = PAGE_TOKENS
    decoding: Decoding = "auto"


@dataclass(frozen=True, kw_only=True)
class LayerBytes:
    """Allocated bytes of a layer.

    Attributes:
        coded: codes and their metadata in pages.
        exact: sink, recent and pending tokens.
        rows: what is known of rows and tokens: padding, positions, kinds.
        parameters: static parameters.
        coded_tokens: tokens in pages, over all rows.
    """

    coded: int
    exact: int
    rows: int
    parameters: int
    coded_tokens: int


class QuantizedLayer(CacheLayerMixin):
    """See the module.

    Args:
        keys: codec of the keys.
        values: codec of the values.
        settings: windows and blocks.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, keys: Codec, values: Codec, settings: LayerSettings) -> None:
        super().__init__()
        self._key_codec, self._value_codec = keys, values
        self._settings = settings
        self._kinds: torch.Tensor | None = None
        self._padding: torch.Tensor | None = None
        self._first_position: torch.Tensor | None = None
        self._store = self._new_store()
        self._recent: tuple[torch.Tensor, torch.Tensor] = torch.empty(0), torch.empty(0)
        self._pending: tuple[torch.Tensor, torch.Tensor] | None = None

    # What transformers calls.

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take shape, dtype and device from the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key_codec, self._value_codec = self._key_codec.to(self.device), self._value_codec.to(self.device)
        self._store = self._new_store()
        rows = len(key_states)
        self._decoder = page_decoder(
            self._key_codec,
            self._value_codec,
            heads=key_states.shape[1],
            head_dim=key_states.shape[3],
            dtype=self.dtype,
            device=self.device,
            decoding=self._settings.decoding,
        )
        self._padding = _rows_of(self._padding, rows, self.device)
        self._first_position = _rows_of(self._first_position, rows, self.device)
        self._recent = key_states[:, :, :0].clone(), value_states[:, :, :0].clone()
        self._sinks = SinkTokens(self._settings.sink_tokens, self._padding, key_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the new tokens of a forward pass, ``(B, H, Q, D)`` each.

        Returns:
            The same tokens, the keys as `LayerKeys`.

        Raises:
            UserError: the attention of the last forward pass did not know this cache.
        """
        if self._pending is not None:
            raise UserError(
                "the model's attention does not read the quantized cache; run it inside attending_on_codes(model)"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._settings.offload:
            self.prefetch()
        start = self.get_seq_length()
        if start == 0 and self._kinds is None and self._settings.needs_kinds:
            raise UserError("the quantizer tells text from visual tokens; call cache.describe(visual=...) first")
        self._extend_kinds(start + key_states.shape[2], len(key_states))
        self._sinks.take(key_states, value_states, start)
        self._pending = key_states, value_states
        marked = key_states.as_subclass(LayerKeys)
        marked.layer = self
        return marked, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask over the cache and the new tokens, and the index of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens a row, in any state."""
        if not self.is_initialized:
            return 0
        pending = 0 if self._pending is None else self._pending[0].shape[2]
        return self._store.length + self._recent[0].shape[2] + pending

    def get_max_length(self) -> int:
        """There is no limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest ``-tokens_to_remove`` tokens; a positive number is the length to keep, as it once was."""
        length = self.get_seq_length()
        kept = min(tokens_to_remove, length) if tokens_to_remove > 0 else max(length + tokens_to_remove, 0)
        if kept == length:
            return
        self._check_settled()
        in_window = max(kept - self._store.length, 0)
        keys, values = self._recent
        self._recent = keys[:, :, :in_window].clone(), values[:, :, :in_window].clone()
        self._store.crop(min(kept, self._store.length))
        if self._kinds is not None:
            self._kinds = self._kinds[:, :kept].clone()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row ``i`` becomes what row ``beam_idx[i]`` was."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows ``indices``, in that order."""
        self._change_rows(lambda tensor: tensor[indices.to(tensor.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        self._change_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        """Forget all tokens."""
        self._kinds = self._padding = self._first_position = None
        self.is_initialized = False
        self._store = self._new_store()
        self._recent, self._pending = (torch.empty(0), torch.empty(0)), None

    def offload(self) -> None:
        """Move everything to the CPU."""
        self._move("cpu")

    def prefetch(self) -> None:
        """Move everything back to the device of the tokens."""
        if self.is_initialized:
            self._move(self.device)

    # What the cache and the attention function call.

    def begin(
        self, *, kinds: torch.Tensor | None, padding: torch.Tensor | None, first_position: torch.Tensor | None
    ) -> None:
        """Say what is known of the rows before the first token: see `QuantizedKVCache`."""
        assert not self.is_initialized, "rows are described before the first token"
        self._kinds, self._padding, self._first_position = kinds, padding, first_position

    def describe(self, kinds: torch.Tensor | None) -> None:
        """Say of which kind the tokens are, those to come included; held ones stay what they were."""
        self._check_settled()
        self._kinds = kinds

    def is_first(self) -> bool:
        """Whether the pending tokens are the first."""
        return self._pending is not None and self.get_seq_length() == self._pending[0].shape[2]

    def attend(self, query: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
        """Attention of the pending tokens' queries over coded, recent and pending tokens.

        Args:
            query: ``(B, Hq, Q, D)``; query ``i`` belongs to pending token ``i``.
            mask: ``(B or 1, 1, Q, T)`` bool (True is visible) or added to the scores; ``None`` is causal.
            scaling: of the scores.

        Returns:
            ``(B, Hq, Q, D)`` in the query's dtype.
        """
        assert self._pending is not None, "attention comes after update"
        heads, queries = self._pending[0].shape[1], query.shape[2]
        group = query.shape[1] // heads
        if mask is None and queries > 1:
            mask = self._causal_mask(queries, query.device)
        grouped = torch.unflatten(query.float(), 1, (heads, group)) * scaling
        step = max(QUERY_ROWS // group, 1)
        outputs = [
            self._attend_rows(grouped[:, :, :, start : start + step], _mask_rows(mask, start, start + step))
            for start in range(0, queries, step)
        ]
        return torch.cat(outputs, dim=3).flatten(1, 2).to(query.dtype)

    def scores(self, query: torch.Tensor, scaling: float) -> torch.Tensor:
        """Scores of queries against all settled tokens, unmasked; at most a page of keys is decoded at a time.

        Args:
            query: ``(B, Hq, Q, D)``.
            scaling: of the scores.

        Returns:
            ``(B, Hq, Q, T)`` float32.
        """
        self._check_settled()
        if self._settings.offload:
            self.prefetch()
        heads, queries = self._recent[0].shape[1], query.shape[2]
        rows = (torch.unflatten(query.float(), 1, (heads, -1)) * scaling).flatten(2, 3)
        parts, start = [], 0
        for page in self._store.pages:
            parts.append(self._key_codec.scores(rows, page.keys, self._places(start, start + page.length)))
            start += page.length
        parts.append(rows @ self._recent[0].float().transpose(-1, -2))
        scores = self._sinks.restored(torch.cat(parts, dim=-1), rows, coded=start)
        if self._settings.offload:
            self.offload()
        return torch.unflatten(scores, 2, (-1, queries)).flatten(1, 2)

    def settle(self) -> None:
        """Make the pending tokens recent, and code whole blocks of what is beyond the recent window."""
        assert self._pending is not None, "settling comes after update"
        keys, values = (torch.cat(pair, dim=2) for pair in zip(self._recent, self._pending, strict=True))
        self._pending = None
        surplus = keys.shape[2] - self._settings.recent_tokens
        leaving = max(surplus, 0) // self._settings.block_tokens * self._settings.block_tokens
        self._code(keys[:, :, :leaving], values[:, :, :leaving])
        self._recent = keys[:, :, leaving:], values[:, :, leaving:]
        if leaving:
            self._recent = self._recent[0].clone(), self._recent[1].clone()
        if self._settings.offload:
            self.offload()

    def used_bytes(self) -> LayerBytes:
        """Allocated bytes by use."""
        pieces = [*self._recent, *(self._pending or ())] if self.is_initialized else []
        rows = [tensor for tensor in (self._kinds, self._padding, self._first_position) if tensor is not None]
        return LayerBytes(
            coded=self._store.code_bytes(),
            exact=sum(piece.untyped_storage().nbytes() for piece in pieces)
            + (self._sinks.nbytes() if self.is_initialized else 0),
            rows=sum(tensor.untyped_storage().nbytes() for tensor in rows),
            parameters=self._key_codec.parameter_bytes() + self._value_codec.parameter_bytes(),
            coded_tokens=self._store.length * (len(self._recent[0]) if self.is_initialized else 0),
        )

    @property
    def pages(self) -> list[Page]:
        """The coded tokens."""
        return self._store.pages

    # The inside.

    def _new_store(self) -> PageStore:
        return PageStore(
            self._key_codec,
            self._value_codec,
            block_tokens=self._settings.block_tokens,
            page_tokens=self._settings.page_tokens,
        )

    def _extend_kinds(self, length: int, rows: int) -> None:
        """Tokens that were not described are text."""
        if not self._settings.needs_kinds:
            return
        assert self._kinds is not None
        kinds = _rows_of(self._kinds, rows, self.device)
        if kinds.shape[1] < length:
            kinds = torch.nn.functional.pad(kinds, (0, length - kinds.shape[1]), value=TEXT)
        self._kinds = kinds

    def _places(self, start: int, stop: int) -> Places:
        assert self._first_position is not None
        index = torch.arange(start, stop, device=self._first_position.device)
        kinds = None if self._kinds is None else self._kinds[:, start:stop]
        return Places(index + self._first_position[:, None], kinds)

    def _code(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Append tokens to the pages, at most a page at a time."""
        done = 0
        while done < keys.shape[2]:
            stop = min(done + (self._store.room() or self._store.page_tokens), keys.shape[2])
            start = self._store.length
            places = self._places(start, start + stop - done)
            ignored = self._ignored(start, start + stop - done)
            page = Page(
                self._key_codec.encode(_without(keys[:, :, done:stop], ignored, self._key_codec), places),
                self._value_codec.encode(_without(values[:, :, done:stop], ignored, self._value_codec), places),
                stop - done,
            )
            self._store.append(page)
            done = stop

    def _ignored(self, start: int, stop: int) -> torch.Tensor:
        """``(B, T)``: padding and sink tokens, whose codes are never read."""
        assert self._padding is not None
        index = torch.arange(start, stop, device=self._padding.device)
        return (index < self._padding[:, None]) | self._sinks.hidden(start, stop)

    def _attend_rows(self, query: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``(B, H, G, Q, D)`` scaled queries to results of the same shape."""
        group, queries = query.shape[2:4]
        rows = query.flatten(2, 3)
        total = self._attend_exact(rows, mask)
        for part in self._attend_pages(rows, mask, queries):
            total = total.joined(part)
        coded = self._store.length
        if coded and self._settings.sink_tokens:
            total = total.joined(self._attend_sinks(rows, mask, coded))
        return torch.unflatten(total.result(), 2, (group, queries))

    def _attend_exact(self, rows: torch.Tensor, mask: torch.Tensor | None) -> Partial:
        assert self._pending is not None
        keys, values = (torch.cat(pair, dim=2).float() for pair in zip(self._recent, self._pending, strict=True))
        scores = rows @ keys.transpose(-1, -2)
        start = self._store.length
        scores = _masked(scores, None if mask is None else mask[..., start : start + keys.shape[2]])
        return partial_attention(scores, lambda weights: weights @ values)

    def _attend_pages(self, rows: torch.Tensor, mask: torch.Tensor | None, queries: int) -> Iterator[Partial]:
        """All pages at once where the kernels take them, else one after the other."""
        if self._decoder is not None and self.pages and rows.shape[2] <= MOST_ROWS:
            assert self._first_position is not None and self._padding is not None
            yield self._decoder.attend(
                rows,
                self.pages,
                queries=queries,
                mask=mask,
                first_position=self._first_position,
                padding=self._padding,
                sink_tokens=self._settings.sink_tokens,
            )
            return
        start = 0
        for page in self.pages:
            yield self._attend_page(rows, mask, page, start)
            start += page.length

    def _attend_page(self, rows: torch.Tensor, mask: torch.Tensor | None, page: Page, start: int) -> Partial:
        stop = start + page.length
        places = self._places(start, stop)
        scores = self._key_codec.scores(rows, page.keys, places)
        scores = _masked(scores, None if mask is None else mask[..., start:stop])
        hidden = self._sinks.hidden(start, stop)
        scores = scores.masked_fill(hidden[:, None, None, :], -torch.inf)
        return partial_attention(scores, lambda weights: self._value_codec.mix(weights, page.values, places))

    def _attend_sinks(self, rows: torch.Tensor, mask: torch.Tensor | None, coded: int) -> Partial:
        """Sinks that lie in pages; the others are recent or pending and have been counted."""
        sinks, columns = self._sinks, self._sinks.index
        scores = rows @ sinks.keys.float().transpose(-1, -2)
        if mask is not None:
            chosen = columns.clamp(max=mask.shape[-1] - 1)[:, None, None, :].expand(-1, -1, mask.shape[2], -1)
            scores = _masked(scores, mask.expand(len(columns), -1, -1, -1).gather(-1, chosen))
        scores = scores.masked_fill((columns >= coded)[:, None, None, :], -torch.inf)
        return partial_attention(scores, lambda weights: weights @ sinks.values.float())

    def _causal_mask(self, queries: int, device: torch.device) -> torch.Tensor:
        length = self.get_seq_length()
        last_visible = torch.arange(length - queries, length, device=device)
        return (torch.arange(length, device=device) <= last_visible[:, None])[None, None]

    def _check_settled(self) -> None:
        if self._pending is not None:
            raise UserError(
                "the model's attention did not read the quantized cache; run it inside attending_on_codes(model)"
            )

    def _change_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if not self.is_initialized:
            return
        self._check_settled()
        self._map(change)

    def _move(self, device: torch.device | str) -> None:
        if self.is_initialized:
            self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change every tensor that has a row for each row of the batch."""
        assert self._padding is not None and self._first_position is not None
        self._store.map(change)
        self._sinks.map(change)
        self._recent = change(self._recent[0]), change(self._recent[1])
        self._padding, self._first_position = change(self._padding), change(self._first_position)
        if self._kinds is not None:
            self._kinds = change(self._kinds)


def _masked(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Apply ``(B or 1, 1, Q, T)`` to ``(B, H, G Q, T)``."""
    if mask is None:
        return scores
    by_query = torch.unflatten(scores, 2, (-1, mask.shape[2]))
    if mask.dtype == torch.bool:
        return by_query.masked_fill(~mask[:, :, None], -torch.inf).flatten(2, 3)
    return (by_query + mask[:, :, None].float()).flatten(2, 3)


def _mask_rows(mask: torch.Tensor | None, start: int, stop: int) -> torch.Tensor | None:
    return None if mask is None else mask[:, :, start:stop]


def _without(x: torch.Tensor, ignored: torch.Tensor, codec: Codec) -> torch.Tensor:
    """Put the last token of each group in the place of ignored ones, so that they do not widen the range it shares.

    Padding and sinks come first, so the last token of a group is ignored only where the whole group is.
    """
    together = max(codec.strides.values(), default=1)
    if together == 1:
        return x
    index = torch.arange(x.shape[2], device=x.device)
    last = ((index // together + 1) * together - 1).clamp(max=x.shape[2] - 1)
    return torch.where(ignored[:, None, :, None], x[:, :, last], x)


def _rows_of(known: torch.Tensor | None, rows: int, device: torch.device) -> torch.Tensor:
    """What is known of each row, zeros if nothing is; beam search repeats rows between prompt and cache.

    Raises:
        UserError: for another batch.
    """
    if known is None:
        return torch.zeros(rows, dtype=torch.int64, device=device)
    if rows % len(known):
        raise UserError(f"the cache was described for {len(known)} rows and gets {rows}; describe the batch it is for")
    return known.to(device).repeat_interleave(rows // len(known), dim=0)
