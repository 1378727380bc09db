"""From statistics to a quantizer: parameters of every layer, and how far each is from the numbers it was fitted to."""

import torch

from longvid_train.errors import UserError
from longvid_train.kvcache.codec import Places
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.quantizer import LayerError, LayerLargest, LayerParameters, Quantizer
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import Parameters, Sample, Scheme, in_one_row
from longvid_train.kvcache.statistics import Statistics


def fit_quantizer(policy: CachePolicy, statistics: Statistics, rotation: Rotation) -> Quantizer:
    """Fit every layer of a model.

    Args:
        policy: the settings.
        statistics: of the calibration set, merged over all processes.
        rotation: of the model, as it was observed, on any device.

    Returns:
        The quantizer, bound to ``rotation``: static parameters hold for the window they were calibrated under.

    Raises:
        UserError: the statistics are too few, or left out fewer tokens than the policy keeps as sinks.
    """
    shape = statistics.shape
    policy.check_shape(shape.layers, shape.head_dim)
    if statistics.skip_tokens > policy.sink_tokens:
        raise UserError(
            f"the statistics leave out the first {statistics.skip_tokens} tokens of a prompt, but sink_tokens is "
            f"{policy.sink_tokens}, so the others would be coded unseen; observe with skip_tokens: {policy.sink_tokens}"
        )
    rotation = rotation.to("cpu")  # where the samples are
    layers, errors = [], []
    for layer in range(shape.layers):
        schemes, samples = policy.schemes(layer, shape.layers), statistics.layer_samples(layer)
        fitted = [
            scheme.fit(sample, separate=policy.separate_visual, rotation=rotation)
            for scheme, sample in zip(schemes, samples, strict=True)
        ]
        layers.append(LayerParameters(*fitted))
        errors.append(LayerError(*map(_relative_error, schemes, fitted, samples, (rotation, rotation))))
    return Quantizer(
        policy=policy,
        shape=shape,
        rotation=rotation,
        layers=tuple(layers),
        errors=tuple(errors),
        largest=tuple(LayerLargest(*statistics.largest(layer)) for layer in range(shape.layers)),
    )


def _relative_error(scheme: Scheme, parameters: Parameters, sample: Sample, rotation: Rotation) -> float:
    row, positions = in_one_row(sample)
    codec, places = scheme.codec(parameters, rotation=rotation), Places(positions, sample.kinds[None])
    decoded = codec.decode(codec.encode(row, places), places).double()
    weights = sample.weights[:, None, :]
    lost, whole = ((weights * part.square()).sum() for part in (decoded - row, row))
    return float((lost / torch.where(whole > 0, whole, 1.0)).sqrt())
