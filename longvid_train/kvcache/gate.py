"""The safety gate of a calibration: held-out rows through the quantized cache, against full precision.

Both read the same prompt and then the row's own answer, a token at a time (teacher forcing), so that every position is
compared behind the same words. The quantized side is what inference runs: the prompt in chunks into a
`QuantizedKVCache`, then single steps on the codes. ``A`` tokens of an answer, ``V`` vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from longvid_train.errors import UserError
from longvid_train.kvcache.attention import attending_on_codes
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.quantizer import Quantizer
from longvid_train.kvcache.rows import CalibrationRow

MOST_ANSWER_TOKENS = 64
"""Tokens of an answer that are compared at most."""

LARGEST_KL = 1000.0
"""Counted where the quantized side is not finite, which JSON could not hold."""

NEEDLE = "needle"
"""Kind of the questions about one moment of the video, which a lossy cache loses first."""


@dataclass(frozen=True, kw_only=True)
class GateThresholds:
    """What a quantizer must keep. docs/calibration.md says where the defaults come from.

    Attributes:
        mean_kl: largest mean over all positions of ``KL(full || quantized)``, in nats.
        max_kl: largest of a single position.
        top1_agreement: least share of positions where both have the same likeliest token.
        needle_drop: largest part of the needle accuracy of full precision that may be lost. One answer never decides:
            with few questions a single tie that falls the other way is more than any sensible part.
        rows: held-out rows without which no verdict is given.
    """

    mean_kl: float = 0.1
    max_kl: float = 10.0
    top1_agreement: float = 0.9
    needle_drop: float = 0.05
    rows: int = 8

    def __post_init__(self) -> None:
        """Refuse what no quantizer, or every one, satisfies."""
        for name in ("mean_kl", "max_kl"):
            if not getattr(self, name) > 0:
                raise UserError(f"gate.{name} is {getattr(self, name)}; it must be above 0 nats")
        for name in ("top1_agreement", "needle_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"gate.{name} is {getattr(self, name)}; it must be from 0 to 1")
        if self.rows < 1:
            raise UserError(f"gate.rows is {self.rows}; it must be at least 1")


DEFAULT_THRESHOLDS = GateThresholds()


@dataclass(frozen=True, kw_only=True)
class RowComparison:
    """One held-out row.

    Attributes:
        number: of the row.
        name: of the row.
        kind: of its question; empty where no answer is known.
        kl: of each position of the answer, in nats.
        agreed: whether both have the same likeliest token, at each position.
        right: whether every token of the answer is the likeliest, in full precision: greedy decoding gives it then.
        kept_right: the same of the quantized cache.
        coded_tokens: tokens that were coded when the answer began.
    """

    number: int
    name: str
    kind: str
    kl: tuple[float, ...]
    agreed: tuple[bool, ...]
    right: bool
    kept_right: bool
    coded_tokens: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate found.

    Attributes:
        passed: every threshold is kept.
        reasons: what is not kept, one line each.
        forced: saved although it did not pass.
        rows: rows compared.
        positions: answer tokens compared.
        coded_tokens: mean over the rows of the tokens that were coded when the answer began.
        mean_kl: over all positions, in nats.
        max_kl: of one position.
        worst_row: the row that holds it.
        top1_agreement: share of positions.
        accuracy: by kind of question, of full precision and of the quantized cache, and how many rows; ``"all"`` is all
            rows of known answer.
        thresholds: that were asked for.
    """

    passed: bool
    reasons: tuple[str, ...]
    forced: bool
    rows: int
    positions: int
    coded_tokens: float
    mean_kl: float
    max_kl: float
    worst_row: str
    top1_agreement: float
    accuracy: dict[str, dict[str, float]]
    thresholds: GateThresholds

    def summary(self) -> str:
        """The numbers in one line."""
        kinds = [f"{kind} {one['full']:.3f} -> {one['quantized']:.3f}" for kind, one in self.accuracy.items()]
        return (
            f"{self.rows} held-out rows, {self.positions} positions behind {self.coded_tokens:.0f} coded tokens: KL "
            f"{self.mean_kl:.3g} nats (most {self.max_kl:.3g}), top-1 agreement {self.top1_agreement:.3f}"
            + (f"; right answers: {', '.join(kinds)}" if kinds else "")
        )

    def values(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"reasons": list(self.reasons)}


@torch.no_grad()
def compare_row(model: Any, quantizer: Quantizer, row: CalibrationRow, *, prefill_chunk: int) -> RowComparison:
    """Read a row in full precision and through a quantized cache.

    Args:
        model: in eval mode, under the window of the quantizer.
        quantizer: to judge.
        row: with its answer.
        prefill_chunk: positions of the prompt that pass the decoder at once.

    Raises:
        UserError: the quantizer is for another model or rotation, or the logits of full precision are not finite.
    """
    wanted = _answer_ids(row).to(row.embeddings.device)
    plain = DynamicCache(config=model.config.get_text_config(decoder=True))
    _prefill(model, plain, row, prefill_chunk)
    full = _answer_logits(model, plain, row, len(wanted), at_once=len(wanted))
    if not full.isfinite().all():
        raise UserError(
            f"held-out row '{row.name}': logits of full precision hold NaN or infinity; calibrate in a dtype the model "
            "was trained in, e.g. bfloat16"
        )
    del plain
    cache = QuantizedKVCache(quantizer)
    if quantizer.policy.separate_visual:
        cache.describe(visual=row.visual[:, : row.answer[0] - 1])
    with attending_on_codes(model):
        _prefill(model, cache, row, prefill_chunk)
        coded = cache.used_bytes().coded_numbers
        quantized = _answer_logits(model, cache, row, len(wanted), at_once=1)
    shape = quantizer.shape
    return RowComparison(
        number=row.number,
        name=row.name,
        kind=row.kind,
        kl=tuple(_kl(full, quantized).tolist()),
        agreed=tuple((full.argmax(-1) == quantized.argmax(-1)).tolist()),
        right=bool((full.argmax(-1) == wanted).all()),
        kept_right=bool((quantized.argmax(-1) == wanted).all()),
        coded_tokens=coded // (2 * shape.layers * shape.heads * shape.head_dim),
    )


def judge(compared: Sequence[RowComparison], thresholds: GateThresholds) -> Verdict:
    """Put the rows together, in the order of their numbers, and hold them against the thresholds.

    Raises:
        UserError: too few rows, or none with a coded token: nothing was compared then.
    """
    rows = sorted(compared, key=lambda one: one.number)
    if len(rows) < thresholds.rows:
        raise UserError(
            f"{len(rows)} held-out rows, and the gate asks for at least {thresholds.rows} (gate.rows); hold out more"
        )
    if not any(row.coded_tokens for row in rows):
        raise UserError(
            "no token of any held-out row was coded: their prompts fit the sink and recent windows, which stay in full "
            "precision; use longer videos, or lower sink_tokens and recent_tokens"
        )
    kls = [(kl, row.name) for row in rows for kl in row.kl]
    agreed = [one for row in rows for one in row.agreed]
    found = Verdict(
        passed=True,
        reasons=(),
        forced=False,
        rows=len(rows),
        positions=len(kls),
        coded_tokens=sum(row.coded_tokens for row in rows) / len(rows),
        mean_kl=math.fsum(kl for kl, _ in kls) / len(kls),
        max_kl=max(kls)[0],
        worst_row=max(kls)[1],
        top1_agreement=sum(agreed) / len(agreed),
        accuracy=_accuracy(rows),
        thresholds=thresholds,
    )
    reasons = tuple(_reasons(found))
    return replace(found, passed=not reasons, reasons=reasons)


def _reasons(found: Verdict) -> Iterator[str]:
    limits = found.thresholds
    for name in ("mean_kl", "max_kl"):
        value, most = getattr(found, name), getattr(limits, name)
        if value > most:
            yield f"{name} is {value:.3g} nats, at most {most:g} are allowed"
    if found.top1_agreement < limits.top1_agreement:
        yield f"top1_agreement is {found.top1_agreement:.3f}, at least {limits.top1_agreement:g} is asked for"
    needle = found.accuracy.get(NEEDLE)
    if needle is None:
        return
    right, kept = (round(needle[side] * needle["rows"]) for side in ("full", "quantized"))
    if right - kept > max(1.0, right * limits.needle_drop):
        yield (
            f"needle accuracy falls from {needle['full']:.3f} to {needle['quantized']:.3f} ({right - kept} of {right} "
            f"answers), more than {limits.needle_drop:.0%} of it (needle_drop)"
        )


def _accuracy(rows: Sequence[RowComparison]) -> dict[str, dict[str, float]]:
    known = [row for row in rows if row.kind]
    kinds = {kind: [row for row in known if row.kind == kind] for kind in sorted({row.kind for row in known})}
    return {
        kind: {
            "full": sum(row.right for row in of_kind) / len(of_kind),
            "quantized": sum(row.kept_right for row in of_kind) / len(of_kind),
            "rows": len(of_kind),
        }
        for kind, of_kind in ({"all": known} | kinds).items()
        if of_kind
    }


def _answer_ids(row: CalibrationRow) -> torch.Tensor:
    """The tokens that are compared."""
    start, end = row.answer
    return row.input_ids[start : min(end, start + MOST_ANSWER_TOKENS)]


def _prefill(model: Any, cache: Cache, row: CalibrationRow, chunk: int) -> None:
    """Read all in front of the position that predicts the answer's first token."""
    last = row.answer[0] - 1
    for start in range(0, last, chunk):
        _states(model, cache, row, start, min(start + chunk, last))


def _answer_logits(model: Any, cache: Cache, row: CalibrationRow, tokens: int, *, at_once: int) -> torch.Tensor:
    """``(A, V)`` float64: what stands in front of each token of the answer predicts."""
    first = row.answer[0] - 1
    head = model.get_output_embeddings()
    states = [
        _states(model, cache, row, start, min(start + at_once, first + tokens))
        for start in range(first, first + tokens, at_once)
    ]
    logits: torch.Tensor = head(torch.cat(states, dim=1))[0].double()
    return logits


def _states(model: Any, cache: Cache, row: CalibrationRow, start: int, end: int) -> torch.Tensor:
    device = row.embeddings.device
    states: torch.Tensor = model.get_decoder()(
        inputs_embeds=row.embeddings[:, start:end],
        attention_mask=torch.ones(1, end, dtype=torch.int64, device=device),
        position_ids=torch.arange(start, end, device=device)[None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return states


def _kl(full: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """``(A,)``: ``KL(full || quantized)`` of ``(A, V)`` logits, in nats, from 0 to `LARGEST_KL`."""
    p, q = full.log_softmax(-1), quantized.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).nan_to_num(LARGEST_KL).clamp(0, LARGEST_KL)
