"""Extend a model's window for the length of a ``with`` block, and leave the model as it was, bit for bit.

``prepare`` computes what a window would do to a model and changes nothing; ``installed`` puts it in; ``extended`` is
both. The installed frequencies are exactly those that transformers' ``longrope`` computes from the factors, so that an
exported model (`export`) computes the same bits.

Keys are cached already rotated, so a cache must see one set of frequencies for its whole life. A cache that holds
tokens is marked with the frequencies it was filled under and refused under any others; an unmarked one was filled by
the model as it is. Outside of ``installed`` nothing watches: continue a marked cache under the same window only.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from longvid_train.errors import UserError
from longvid_train.rope.rotary import INSTALLED_MARK, Rotary, checkpoint_words, find_rotary, starting_point
from longvid_train.rope.scale import Extent, TokenCounts, TrainedWindows, extent_of
from longvid_train.rope.window import Window

CACHE_MARK = "rope_fingerprint"
"""Attribute of a cache: the frequencies it was filled under. Copies of a cache keep it."""

Fingerprint = tuple[bytes, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Extension:
    """What one window does to one model for one input.

    Attributes:
        window: the settings.
        extent: scale factor and reach.
        inv_freq: ``(d/2,)`` float32 on the CPU, the frequencies to install.
        attention_scaling: factor on cos and sin.
        factors: ``(d/2,)`` float32 divisors of the unscaled frequencies; ``None`` where the checkpoint's own stay.
        description: lines for the user: what was done and what to know about it.
    """

    window: Window
    extent: Extent
    inv_freq: torch.Tensor
    attention_scaling: float
    factors: torch.Tensor | None
    description: tuple[str, ...]

    @property
    def scale(self) -> float:
        """``s``."""
        return self.extent.scale

    @property
    def fingerprint(self) -> Fingerprint:
        """Equal for equal rotations."""
        return _fingerprint(self.inv_freq, self.attention_scaling)


def prepare(model: nn.Module, window: Window, *, counts: TokenCounts, trained: TrainedWindows) -> Extension:
    """Compute what ``window`` does to ``model`` for an input; the model is not changed.

    Args:
        model: any transformers model with one rotary embedding, composite or not.
        window: the method and its settings.
        counts: tokens of the input.
        trained: windows the backbone was trained on.

    Raises:
        UserError: the input is over the extended window, the window does not fit the model, or the model has no rotary
            embedding that can be extended.
    """
    extent = extent_of(window, counts, trained)
    rotary = find_rotary(model)
    if extent.scale == 1 and window.checkpoint_scaling == "compose":
        return Extension(
            window=window,
            extent=extent,
            inv_freq=rotary.inv_freq,
            attention_scaling=rotary.attention_scaling,
            factors=None,
            description=(_summary(window, extent), *_checkpoint_notes(window, extent, rotary)),
        )
    theta, scaling = starting_point(rotary, window.checkpoint_scaling)
    rescaled = window.rescale(theta, extent.scale, extent.trained_tokens)
    factors = (1.0 / (rescaled * rotary.powers.double())).float()
    return Extension(
        window=window,
        extent=extent,
        inv_freq=1.0 / (factors * rotary.powers),
        attention_scaling=scaling * window.attention_scaling(extent.scale),
        factors=factors,
        description=(
            _summary(window, extent),
            *_checkpoint_notes(window, extent, rotary),
            *window.notes(theta, extent.scale, extent.trained_tokens),
        ),
    )


@contextmanager
def installed(model: nn.Module, extension: Extension, *, cache: Any = None) -> Iterator[Extension]:
    """Run the body with ``extension`` in ``model``; afterwards, also if the body raises, the model is as it was.

    The frequencies stay float32 and unrounded in the body, whatever ``model.half()`` or ``.to`` does to the buffer.

    Args:
        model: the one ``extension`` was prepared for.
        extension: from `prepare`.
        cache: a cache the body will continue, checked before anything is changed.

    Raises:
        UserError: a cache was filled under other frequencies (on entry, or when the body passes it to the model), or
            another window is installed already.
    """
    rotary = find_rotary(model)
    if hasattr(rotary.module, INSTALLED_MARK):
        raise UserError("another window is installed on this model; leave its block first, windows do not nest")
    own = _fingerprint(rotary.inv_freq, rotary.attention_scaling)
    _check_cache(cache, extension.fingerprint, own)
    if extension.factors is None and rotary.changes:
        yield extension  # transformers moves these frequencies itself; there is nothing to hold still
        return
    decoder = model.get_submodule(rotary.name.rpartition(".")[0])
    with ExitStack() as restoring:
        restoring.callback(_put_back(rotary.module))
        _put_in(rotary.module, extension)
        for handle in (
            rotary.module.register_forward_pre_hook(_hold_frequencies(extension)),
            decoder.register_forward_pre_hook(_watch_cache(extension.fingerprint, own), with_kwargs=True),
            decoder.register_forward_hook(_mark_returned_cache(extension.fingerprint)),
        ):
            restoring.callback(handle.remove)
        yield extension


@contextmanager
def extended(
    model: nn.Module, window: Window, *, counts: TokenCounts, trained: TrainedWindows, cache: Any = None
) -> Iterator[Extension]:
    """`prepare` and `installed` in one: see there."""
    with installed(model, prepare(model, window, counts=counts, trained=trained), cache=cache) as extension:
        yield extension


def _put_in(module: Any, extension: Extension) -> None:
    module.inv_freq = extension.inv_freq.to(module.inv_freq.device, copy=True)
    module.attention_scaling = extension.attention_scaling
    module.rope_type = "default"  # keeps transformers from recomputing the frequencies in forward
    setattr(module, INSTALLED_MARK, module.inv_freq)


def _put_back(module: Any) -> Callable[[], None]:
    inv_freq, scaling, rope_type = module.inv_freq, module.attention_scaling, module.rope_type

    def put_back() -> None:
        module.inv_freq, module.attention_scaling, module.rope_type = inv_freq, scaling, rope_type
        delattr(module, INSTALLED_MARK)

    return put_back


def _hold_frequencies(extension: Extension) -> Callable[..., None]:
    """A cast or a move replaces the buffer: put the exact values back on its device before they are used."""

    def hold(module: Any, _args: Any) -> None:
        if module.inv_freq is not getattr(module, INSTALLED_MARK):
            _put_in(module, extension)

    return hold


def _watch_cache(wanted: Fingerprint, own: Fingerprint) -> Callable[..., None]:
    def watch(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for cache in _caches([*args, *kwargs.values()]):
            _check_cache(cache, wanted, own)
            setattr(cache, CACHE_MARK, wanted)

    return watch


def _mark_returned_cache(wanted: Fingerprint) -> Callable[..., None]:
    """A model that gets no cache makes one itself."""

    def mark(_module: Any, _args: Any, output: Any) -> None:
        for cache in _caches(output.values() if isinstance(output, dict) else output):
            setattr(cache, CACHE_MARK, wanted)

    return mark


def _caches(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, Cache)]


def _check_cache(cache: Any, wanted: Fingerprint, own: Fingerprint) -> None:
    length = 0 if cache is None else int(cache.get_seq_length())
    if length and getattr(cache, CACHE_MARK, own) != wanted:
        raise UserError(
            f"the cache holds {length} keys that were rotated under another window; start with an empty "
            "cache, or continue it under the window it was filled under"
        )


def _fingerprint(inv_freq: torch.Tensor, attention_scaling: float) -> Fingerprint:
    return inv_freq.numpy().tobytes(), attention_scaling


def _summary(window: Window, extent: Extent) -> str:
    what = "visual tokens" if window.measure == "visual" else "tokens"
    measured = f"{extent.measured_tokens} {what} on a window of {extent.trained_tokens}"
    if extent.scale == 1:
        beyond = window.extrapolates and extent.measured_tokens > extent.trained_tokens
        return f"{window.kind}: {measured}, {'extrapolated' if beyond else 's = 1, nothing is extended'}"
    temperature = f", attention temperature {window.attention_scaling(extent.scale):.4g}" if window.temperature else ""
    return f"{window.kind}: {measured}, s = {extent.scale:.4g}{temperature}"


def _checkpoint_notes(window: Window, extent: Extent, rotary: Rotary) -> list[str]:
    if not rotary.scaled:
        return []
    found = f"the checkpoint scales its rotary positions itself ({checkpoint_words(rotary)})"
    if window.checkpoint_scaling == "replace":
        return [f"{found}: replaced, the window starts from the unscaled frequencies"]
    if extent.scale == 1:
        return [f"{found}: kept as it is"]
    return [f"{found}: composed, the window of {extent.trained_tokens} tokens is extended on top of it"]
