"""What calibration remembers of keys, values and queries: bounded memory, one pass, and exact merging.

Two kinds of statistics, neither of which depends on the order in which tokens come or on which process saw them: the
smallest and largest value of every channel, and a bottom-k sample (Cohen and Kaplan, 2007). Every token has a
priority, a hash of the seed, its calibration sample and its place in it; the ``sample_tokens`` tokens of least priority
are kept whole, from all layers, and everything else is computed from them in one fixed order. So one process and two
give the same bytes. ``B`` rows, ``S`` tokens, ``N`` kept tokens, ``H`` key-value heads, ``Hq`` query
heads, ``D`` head dim.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.kvcache.codec import KINDS, TEXT, VISUAL
from longvid_train.kvcache.quantizer import CacheShape
from longvid_train.kvcache.scheme import Sample

LEAST_TOKENS = 64
"""Tokens without which no range can be trusted."""

_VECTORS = ("keys", "values", "energy")


@dataclass(frozen=True, eq=False)
class _Choice:
    """Which tokens of a forward pass join the sample, and the order of the new sample.

    Attributes:
        rows: of the tokens that join.
        columns: of the tokens that join.
        order: indices into the old sample followed by those tokens.
        mask: ``(B, S)`` bool, tokens that are not padding.
        seen: ``(B, S)`` bool, tokens that count at all.
        kinds: ``(B, S)`` uint8.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    order: torch.Tensor
    mask: torch.Tensor
    seen: torch.Tensor
    kinds: torch.Tensor


class Statistics:
    """See the module.

    Args:
        shape: of the model's cache.
        sample_tokens: tokens to keep, from all layers: ``layers N H D`` numbers each of keys, values and energies.
        skip_tokens: first tokens of every row to leave out: those a cache will keep as sinks.
        seed: of the priorities.
    """

    def __init__(self, shape: CacheShape, *, sample_tokens: int = 1024, skip_tokens: int = 4, seed: int = 0) -> None:
        if sample_tokens < LEAST_TOKENS:
            raise UserError(f"sample_tokens is {sample_tokens}; keep at least {LEAST_TOKENS}, e.g. 1024")
        self.shape = shape
        self.sample_tokens, self.skip_tokens, self.seed = sample_tokens, skip_tokens, seed
        self.samples: set[int] = set()
        self.tokens = torch.zeros(KINDS, dtype=torch.int64)
        channels = (shape.layers, KINDS, shape.heads, shape.head_dim)
        self._low = {name: torch.full(channels, torch.inf) for name in ("keys", "values")}
        self._high = {name: torch.full(channels, -torch.inf) for name in ("keys", "values")}
        self._largest = {name: torch.zeros(shape.layers) for name in ("keys", "values")}
        self._index = np.zeros((0, 4), dtype=np.uint64)
        empty = torch.zeros(0, shape.heads, shape.head_dim)
        self._kept = [dict.fromkeys(_VECTORS, empty) for _ in range(shape.layers)]
        self._choice: _Choice | None = None
        self._waiting: set[int] = set()

    def begin(
        self, sample_ids: Sequence[int], attention_mask: torch.Tensor, visual: torch.Tensor | None = None
    ) -> None:
        """Announce the next forward pass.

        Args:
            sample_ids: of the rows in the calibration set.
            attention_mask: ``(B, S)``, 0 at padding.
            visual: ``(B, S)`` bool; ``None`` is all text.

        Raises:
            UserError: a sample was seen before.
        """
        self._check_complete()
        self._join_samples(set(sample_ids), len(sample_ids))
        mask = attention_mask.bool().cpu()
        place = mask.cumsum(-1) - 1
        seen = mask & (place >= self.skip_tokens)
        kinds = torch.full(mask.shape, TEXT, dtype=torch.uint8)
        if visual is not None:
            kinds[visual.bool().cpu()] = VISUAL
        rows, columns = seen.nonzero(as_tuple=True)
        ids = np.asarray(sample_ids, dtype=np.uint64)[rows.numpy()]
        places = place[rows, columns].numpy().astype(np.uint64)
        told = kinds[rows, columns]
        self.tokens += torch.bincount(told.long(), minlength=KINDS)
        index = np.stack([_priority(self.seed, ids, places), ids, places, told.numpy().astype(np.uint64)], axis=1)
        best = _in_order(index)[: self.sample_tokens]
        index, rows, columns = index[best], rows[best], columns[best]
        joined = np.concatenate([self._index, index])
        order = _in_order(joined)[: self.sample_tokens]
        self._index = joined[order]
        self._choice = _Choice(rows, columns, torch.from_numpy(order), mask, seen, kinds)
        self._waiting = set(range(self.shape.layers))

    def check_positions(self, positions: torch.Tensor) -> None:
        """Refuse rotary positions ``(B or 1, S)`` that do not count the tokens of every row from 0.

        Raises:
            UserError: as with a batch padded on the left whose ``position_ids`` were not given.
        """
        assert self._choice is not None and self._waiting, "a forward pass is announced with begin"
        mask = self._choice.mask
        if ((positions.cpu() != mask.cumsum(-1) - 1) & mask).any():
            raise UserError(
                "positions must count the tokens of every row from 0; give position_ids for a batch padded on the left"
            )

    def observe(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take one layer of the announced forward pass.

        Args:
            layer: index.
            query: ``(B, Hq, S, D)``, rotated.
            keys: ``(B, H, S, D)``, rotated.
            values: ``(B, H, S, D)``.

        Raises:
            UserError: a number is not finite.
        """
        choice = self._choice
        assert choice is not None and layer in self._waiting, f"layer {layer} was not announced"
        self._waiting.discard(layer)
        for name, x in (("keys", keys), ("values", values)):
            self._widen(name, layer, x, choice)
            size = x.transpose(1, 2)[choice.mask.to(x.device)].float().abs().max().cpu()
            self._largest[name][layer] = torch.maximum(self._largest[name][layer], size)
        grouped = torch.unflatten(query, 1, (keys.shape[1], -1))
        joining = {
            "keys": _chosen(keys, choice),
            "values": _chosen(values, choice),
            "energy": _chosen(grouped, choice).double().square().mean(-2).float(),
        }
        kept = self._kept[layer]
        self._kept[layer] = {
            name: torch.cat([kept[name].to(new.dtype), new])[choice.order] for name, new in joining.items()
        }

    def merge(self, others: Iterable["Statistics"]) -> None:
        """Add what other processes saw; the result does not depend on who saw what.

        Raises:
            UserError: two of them saw the same sample.
        """
        for other in others:
            self._check_complete()
            other._check_complete()
            assert self._settings() == other._settings(), "statistics of one calibration have the same settings"
            self._join_samples(other.samples, len(other.samples))
            self.tokens += other.tokens
            joined = np.concatenate([self._index, other._index])
            order = torch.from_numpy(_in_order(joined)[: self.sample_tokens])
            self._index = joined[order.numpy()]
            for name in self._low:
                self._low[name] = torch.minimum(self._low[name], other._low[name])
                self._high[name] = torch.maximum(self._high[name], other._high[name])
                self._largest[name] = torch.maximum(self._largest[name], other._largest[name])
            for layer, (own, theirs) in enumerate(zip(self._kept, other._kept, strict=True)):
                self._kept[layer] = {name: torch.cat([own[name], theirs[name]])[order] for name in _VECTORS}

    def largest(self, layer: int) -> tuple[float, float]:
        """The largest key and value of a layer by size, over all tokens, the first ones of a prompt included."""
        self._check_complete()
        return float(self._largest["keys"][layer]), float(self._largest["values"][layer])

    def layer_samples(self, layer: int) -> tuple[Sample, Sample]:
        """The samples of keys and values of a layer.

        Raises:
            UserError: too few tokens were seen.
        """
        self._check_complete()
        if int(self.tokens.sum()) < LEAST_TOKENS:
            raise UserError(
                f"the calibration set has {int(self.tokens.sum())} tokens after the first {self.skip_tokens} of each "
                f"prompt; at least {LEAST_TOKENS} are needed, some thousands are better"
            )
        kept = self._kept[layer]
        energy = kept["energy"].double().mean(0)
        weights = {"keys": energy, "values": torch.ones_like(energy)}
        positions, kinds = (torch.from_numpy(self._index[:, column].astype(np.int64)) for column in (2, 3))
        keys, values = (
            Sample(
                name=f"layer {layer} {name}",
                vectors=kept[name],
                positions=positions,
                kinds=kinds.to(torch.uint8),
                low=self._low[name][layer],
                high=self._high[name][layer],
                weights=weights[name],
            )
            for name in ("keys", "values")
        )
        return keys, values

    def state(self) -> dict[str, torch.Tensor]:
        """Everything, as tensors: to send to another process, or to save and go on later."""
        self._check_complete()
        state = {
            "settings": torch.tensor(self._settings()),
            "samples": torch.tensor(sorted(self.samples), dtype=torch.int64),
            "tokens": self.tokens.clone(),
            "index": torch.from_numpy(self._index.astype(np.int64)),
        }
        for name in self._low:
            state[f"low.{name}"], state[f"high.{name}"] = self._low[name].clone(), self._high[name].clone()
            state[f"largest.{name}"] = self._largest[name].clone()
        for layer, kept in enumerate(self._kept):
            state |= {f"kept.{layer}.{name}": kept[name].clone() for name in _VECTORS}
        return state

    @classmethod
    def from_state(cls, state: dict[str, torch.Tensor]) -> Self:
        """The inverse of `state`."""
        layers, heads, head_dim, sample_tokens, skip_tokens, seed = state["settings"].tolist()
        shape = CacheShape(layers=layers, heads=heads, head_dim=head_dim)
        statistics = cls(shape, sample_tokens=sample_tokens, skip_tokens=skip_tokens, seed=seed)
        statistics.samples = set(state["samples"].tolist())
        statistics.tokens = state["tokens"].clone()
        statistics._index = state["index"].numpy().astype(np.uint64)
        for name in statistics._low:
            statistics._low[name], statistics._high[name] = state[f"low.{name}"], state[f"high.{name}"]
            statistics._largest[name] = state[f"largest.{name}"]
        statistics._kept = [{name: state[f"kept.{layer}.{name}"] for name in _VECTORS} for layer in range(layers)]
        return statistics

    def _settings(self) -> list[int]:
        shape = self.shape
        return [shape.layers, shape.heads, shape.head_dim, self.sample_tokens, self.skip_tokens, self.seed]

    def _check_complete(self) -> None:
        assert not self._waiting, f"layers {sorted(self._waiting)} of the last forward pass were not observed"

    def _join_samples(self, new: set[int], rows: int) -> None:
        repeated = sorted(self.samples & new)
        if repeated or len(new) < rows:
            which = repeated[0] if repeated else "of one batch"
            raise UserError(
                f"calibration sample {which} was observed twice; give every process samples of its own, without padding"
            )
        self.samples |= new

    def _widen(self, name: str, layer: int, x: torch.Tensor, choice: _Choice) -> None:
        for kind in range(KINDS):
            chosen = (choice.seen & (choice.kinds == kind)).to(x.device)
            if not chosen.any():
                continue
            vectors = x.transpose(1, 2)[chosen].float()
            low, high = vectors.amin(0).cpu(), vectors.amax(0).cpu()
            if not (low.isfinite().all() and high.isfinite().all()):
                raise UserError(
                    f"layer {layer}: {name} hold NaN or infinity; calibrate in a dtype the model was trained in, "
                    "e.g. bfloat16"
                )
            self._low[name][layer, kind] = torch.minimum(self._low[name][layer, kind], low)
            self._high[name][layer, kind] = torch.maximum(self._high[name][layer, kind], high)


def _chosen(x: torch.Tensor, choice: _Choice) -> torch.Tensor:
    """``(B, H, ..., S, D)`` to ``(n, H, ..., D)`` at the tokens that join, on the CPU."""
    tokens_first = x.movedim(-2, 1)
    return tokens_first[choice.rows.to(x.device), choice.columns.to(x.device)].cpu()


def _in_order(index: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Indices of the rows by priority, then sample, then place."""
    return np.lexsort((index[:, 2], index[:, 1], index[:, 0]))


def _priority(seed: int, ids: NDArray[np.uint64], places: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash in 63 bits (SplitMix64, Steele et al. 2014), so that it fits a signed integer."""
    mixed = _splitmix(np.full_like(ids, seed))
    return _splitmix(_splitmix(mixed ^ ids) ^ places) >> np.uint64(1)


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
