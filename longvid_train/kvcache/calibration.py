"""Calibration without files: whole rows of a model's input to statistics, a quantizer and its verdict.

    with installed(model, extension):          # the window the quantizer will be used under
        calibrated = calibrate(model, preset("lloyd2"), rows, held_out, prefill_chunk=1024)
    save_quantizer(folder, calibrated.quantizer, record)

A row is one prompt with its answer, as training reads it. ``S`` tokens of a row, ``H`` language-model width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from longvid_train.errors import UserError
from longvid_train.kvcache.attention import rotation_of
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.gate import DEFAULT_THRESHOLDS, GateThresholds, Verdict, compare_row, judge
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.quantizer import Quantizer, cache_shape
from longvid_train.kvcache.rows import CalibrationRow
from longvid_train.kvcache.statistics import Statistics


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What a calibration made.

    Attributes:
        quantizer: bound to the rotation that the model had.
        statistics: it was fitted to.
        verdict: of the safety gate.
    """

    quantizer: Quantizer
    statistics: Statistics
    verdict: Verdict


@torch.no_grad()
def calibrate(
    model: Any,
    policy: CachePolicy,
    rows: Iterable[CalibrationRow],
    held_out: Iterable[CalibrationRow],
    *,
    prefill_chunk: int,
    sample_tokens: int = 1024,
    seed: int = 0,
    thresholds: GateThresholds = DEFAULT_THRESHOLDS,
) -> Calibrated:
    """Fit a quantizer to ``rows`` and judge it on ``held_out``; both are read once, one row at a time.

    Args:
        model: transformers' model in eval mode, under the window the quantizer is for.
        policy: the settings.
        rows: the calibration set; their numbers differ.
        held_out: further rows.
        prefill_chunk: positions that pass the decoder at once in the gate.
        sample_tokens: tokens kept for fitting.
        seed: chooses them.
        thresholds: of the gate. The verdict is returned, a refusal does not raise.

    Raises:
        UserError: too few tokens, a number that is not finite, a policy that the model does not allow, or held-out rows
            that cannot be judged.
    """
    shape = cache_shape(model.config)
    policy.check_shape(shape.layers, shape.head_dim)
    statistics = Statistics(shape, sample_tokens=sample_tokens, skip_tokens=policy.sink_tokens, seed=seed)
    with observing(model, statistics):
        for row in rows:
            observe_row(model, statistics, row)
    quantizer = fit_quantizer(policy, statistics, rotation_of(model))
    compared = [compare_row(model, quantizer, row, prefill_chunk=prefill_chunk) for row in held_out]
    return Calibrated(quantizer, statistics, judge(compared, thresholds))


@torch.no_grad()
def observe_row(model: Any, statistics: Statistics, row: CalibrationRow) -> None:
    """Pass one row through the decoder, inside of `observing`.

    Raises:
        UserError: a key or value is not finite; naming the row and the layer.
    """
    mask = torch.ones(row.visual.shape, dtype=torch.int64, device=row.embeddings.device)
    statistics.begin([row.number], mask, row.visual)
    try:
        model.get_decoder()(inputs_embeds=row.embeddings, attention_mask=mask, use_cache=False)
    except UserError as error:
        raise UserError(f"calibration sample '{row.name}': {error}") from error
