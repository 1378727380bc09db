"""The rotary embedding of a transformers model: where it is, and the frequencies its checkpoint was trained with.

Frequencies are computed anew from the config, in float32 as transformers does when it builds the model: the module's
own buffer may have been cast by ``model.half()``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longvid_train.errors import UserError
from longvid_train.rope.window import CheckpointScaling

STATIC_TYPES = ("default", "linear", "yarn", "llama3")
"""Rotary types whose frequencies do not depend on the sequence."""

INSTALLED_MARK = "installed_window"
"""Attribute of a rotary embedding while a window is installed on it."""

CHANGING_TYPES = ("dynamic", "longrope")
"""Rotary types that transformers recomputes in ``forward`` from the sequence's length."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotary:
    """One rotary embedding and its frequencies.

    Attributes:
        name: of the module in the model.
        module: the rotary embedding.
        rope_type: in the checkpoint's config.
        powers: ``(d/2,)`` float32 ``b^(2i/d)``; ``1 / powers`` are the unscaled frequencies.
        inv_freq: ``(d/2,)`` float32, as the checkpoint's config gives them for a short sequence.
        attention_scaling: factor on cos and sin, as the config gives it.
        changes: transformers recomputes the frequencies while the model runs.
    """

    name: str
    module: Any
    rope_type: str
    powers: torch.Tensor
    inv_freq: torch.Tensor
    attention_scaling: float
    changes: bool

    @property
    def scaled(self) -> bool:
        """Whether the checkpoint scales its frequencies."""
        return self.rope_type != "default"


def find_rotary(model: nn.Module) -> Rotary:
    """The only rotary embedding of a language model, also inside a composite vision-language model.

    Raises:
        UserError: none or several, or one that is not transformers' standard ``b^(-2i/d)``.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "inv_freq", None), torch.Tensor) and hasattr(module, "attention_scaling")
    ]
    if len(found) != 1:
        where = f": {', '.join(name for name, _ in found)}" if found else ""
        raise UserError(
            f"{type(model).__name__} has {len(found)} rotary embeddings with frequencies{where}; a window can be "
            "extended on models with exactly one, such as Llama, Qwen2 and Mistral"
        )
    return _read(*found[0], model_name=type(model).__name__)


def starting_point(rotary: Rotary, checkpoint_scaling: CheckpointScaling) -> tuple[torch.Tensor, float]:
    """Frequencies ``(d/2,)`` float64 and factor on cos and sin that an extension starts from.

    Raises:
        UserError: composing with frequencies that change while the model runs.
    """
    if checkpoint_scaling == "replace":
        return 1.0 / rotary.powers.double(), 1.0
    if rotary.changes:
        raise UserError(
            f"the checkpoint's rope_type '{rotary.rope_type}' changes its frequencies with the sequence's length, and "
            "an extension cannot build on that; set checkpoint_scaling to 'replace' to start from the unscaled ones"
        )
    return rotary.inv_freq.double(), rotary.attention_scaling


def checkpoint_words(rotary: Rotary) -> str:
    """The checkpoint's own scaling in words, e.g. ``"linear x2.5"``."""
    factor = rotary.module.config.rope_parameters.get("factor")
    return f"{rotary.rope_type} x{factor:g}" if factor else rotary.rope_type


def _read(name: str, module: Any, *, model_name: str) -> Rotary:
    parameters = module.config.rope_parameters
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in STATIC_TYPES + CHANGING_TYPES or "rope_theta" not in parameters:
        raise UserError(
            f"{model_name} has rotary parameters {parameters}; a window can be extended on the types "
            f"{', '.join(STATIC_TYPES + CHANGING_TYPES)} with one rope_theta"
        )
    with torch.device("cpu"):
        unscaled, _ = module.compute_default_rope_parameters(module.config)
        powers = float(parameters["rope_theta"]) ** (
            torch.arange(0, 2 * len(unscaled), 2, dtype=torch.float) / (2 * len(unscaled))
        )
        inv_freq, scaling = (unscaled, 1.0) if rope_type == "default" else ROPE_INIT_FUNCTIONS[rope_type](module.config)
    if not torch.equal(1.0 / powers, unscaled):
        raise UserError(f"the frequencies of {model_name} are not b^(-2i/d); its window cannot be extended")
    rotary = Rotary(
        name=name,
        module=module,
        rope_type=rope_type,
        powers=powers,
        inv_freq=inv_freq,
        attention_scaling=float(scaling),
        changes=_changes(parameters),
    )
    _check_untouched(rotary)
    return rotary


def _changes(parameters: dict[str, Any]) -> bool:
    """``longrope`` with equal factors is fixed: an export of an extension."""
    rope_type = parameters["rope_type"]
    factors_differ = rope_type == "longrope" and parameters["short_factor"] != parameters["long_factor"]
    return bool(rope_type == "dynamic" or factors_differ)


def _check_untouched(rotary: Rotary) -> None:
    """Refuse to build on frequencies that do not follow from the config; those that were merely cast do."""
    current: torch.Tensor = rotary.module.inv_freq
    if rotary.changes or current.is_meta or hasattr(rotary.module, INSTALLED_MARK):
        return
    found = current.detach().cpu().float()
    casts = [rotary.inv_freq.to(dtype).float() for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    if not any(torch.allclose(found, cast, rtol=1e-5, atol=0.0) for cast in casts):
        raise UserError(
            f"the frequencies of {rotary.name or 'the rotary embedding'} do not follow from its config; they were "
            "changed by hand: load the model anew, or put the change into its rope_parameters"
        )
