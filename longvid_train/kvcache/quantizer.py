"""A policy with its parameters: what a calibration makes, a checkpoint stores and a cache is built from."""

from dataclasses import dataclass
from typing import Any

import torch

from longvid_train.errors import UserError
from longvid_train.kvcache.codec import Codec
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What a model keeps of every token.

    Attributes:
        layers: attention layers.
        heads: key-value heads of each.
        head_dim: numbers of a key, and of a value.
    """

    layers: int
    heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.heads} heads of {self.head_dim}"


def cache_shape(config: Any) -> CacheShape:
    """The shape of a transformers model's cache, from its config, composite or not.

    Raises:
        UserError: some layers do not attend to all tokens.
    """
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UserError(
            f"{text.model_type} has layers of {', '.join(sorted(kinds))}; "
            "the quantized cache is for full attention only"
        )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return CacheShape(layers=text.num_hidden_layers, heads=text.num_key_value_heads, head_dim=head_dim)


@dataclass(frozen=True, eq=False)
class LayerParameters:
    """Static parameters of one layer by name; empty where a scheme has none."""

    keys: dict[str, torch.Tensor]
    values: dict[str, torch.Tensor]


@dataclass(frozen=True)
class LayerError:
    """Root of squared error over squared size of the calibration sample; keys are weighted by ``E[q_d^2]``."""

    keys: float
    values: float


@dataclass(frozen=True)
class LayerLargest:
    """The largest numbers of a layer by size, over all calibration tokens; what another engine's scales need."""

    keys: float
    values: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantizer:
    """See the module.

    Attributes:
        policy: the settings.
        shape: of the model's cache.
        rotation: of the model, as it was calibrated; ``None`` where nothing depends on it.
        layers: parameters, one entry a layer.
        errors: of the calibration sample, one entry a layer; empty for a policy without calibration.
        largest: of the calibration set, one entry a layer; empty without calibration.
    """

    policy: CachePolicy
    shape: CacheShape
    rotation: Rotation | None
    layers: tuple[LayerParameters, ...]
    errors: tuple[LayerError, ...] = ()
    largest: tuple[LayerLargest, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a policy the model does not allow."""
        self.policy.check_shape(self.shape.layers, self.shape.head_dim)
        assert len(self.layers) == self.shape.layers
        assert not self.errors or len(self.errors) == self.shape.layers
        assert not self.largest or len(self.largest) == self.shape.layers

    def schemes(self, layer: int) -> tuple[Scheme, Scheme]:
        """Schemes of keys and values of a layer."""
        return self.policy.schemes(layer, self.shape.layers)

    def codecs(self, layer: int) -> tuple[Codec, Codec]:
        """Codecs of keys and values of a layer."""
        keys, values = self.schemes(layer)
        parameters = self.layers[layer]
        return keys.codec(parameters.keys, rotation=self.rotation), values.codec(parameters.values, rotation=None)


def uncalibrated(policy: CachePolicy, shape: CacheShape, rotation: Rotation | None = None) -> Quantizer:
    """The quantizer of a policy without static parameters.

    Raises:
        UserError: the policy has some.
    """
    if policy.calibrated:
        named = [scheme.kind for scheme in (policy.keys, policy.values) if scheme.calibrated]
        raise UserError(f"scheme '{named[0]}' has static parameters; calibrate it, or use dynamic_groups")
    nothing = tuple(LayerParameters({}, {}) for _ in range(shape.layers))
    return Quantizer(policy=policy, shape=shape, rotation=rotation, layers=nothing)
