"""Stages: which parameters train, by name; everything else is frozen and stays in eval mode.

LLaMA-VID trains in three stages (arXiv 2311.17043, Table 7). The patterns of each are in ``LLAMA_VID_STAGES``. The
public code decides by substrings of a flag and leaves the dropout of a frozen Q-Former on; here a pattern must match
and frozen means eval.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from longvid_train.errors import UserError, nearest

EXCLUDE = "!"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What trains.

    Attributes:
        name: a word for logs and the run record, e.g. ``"alignment"``.
        trainable: shell-style globs (``*`` also spans dots, case counts) over parameter names or the module paths above
        them:
            ``language_model``, ``language_model.*`` and ``*.self_attn.q_proj`` all work. A pattern that starts with
            ``!`` takes away what it matches from the others. Every pattern must match at least one parameter.
    """

    name: str
    trainable: list[str]


LLAMA_VID_STAGES = {
    1: Stage(name="alignment", trainable=["context_attention", "content_projector"]),
    2: Stage(name="instruction", trainable=["*", "!vision_tower"]),
    3: Stage(name="long_video", trainable=["language_model", "content_projector"]),
}
"""The paper's three stages. Stage 1 with a freshly initialised BERT text decoder trains ``text_decoder`` as well."""


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What ``apply_stage`` did: element counts and the module paths that are wholly frozen (outermost only)."""

    trainable_parameters: int
    frozen_parameters: int
    frozen_modules: tuple[str, ...]


def apply_stage(model: nn.Module, stage: Stage) -> StageReport:
    """Set ``requires_grad`` of every parameter of ``model`` by the stage's patterns and put wholly frozen modules in
    eval mode.

    A tied parameter trains if any of its names is selected.

    Raises:
        UserError: a pattern matches no parameter, or nothing is left to train.
    """
    mark_trainable(model, stage)
    if not any(value.requires_grad for value in model.parameters()):
        raise UserError(
            f"stage '{stage.name}' trains nothing: trainable is {stage.trainable}; name at least one module"
        )
    return settle(model)


def mark_trainable(model: nn.Module, stage: Stage) -> None:
    """Set ``requires_grad`` of every parameter of ``model`` by the stage's patterns, which may leave nothing.

    Raises:
        UserError: a pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    selected = select_names(names, stage.trainable, owner=f"stage '{stage.name}'", kind="parameter")
    trainable = {id(value) for name, value in model.named_parameters(remove_duplicate=False) if name in selected}
    for value in model.parameters():
        value.requires_grad_(id(value) in trainable)


def settle(model: nn.Module) -> StageReport:
    """Put wholly frozen modules in eval mode and count."""
    for _, module in frozen_modules(model):
        module.eval()
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    return StageReport(
        trainable_parameters=sum(size for size, trains in sizes if trains),
        frozen_parameters=sum(size for size, trains in sizes if not trains),
        frozen_modules=tuple(path for path, _ in frozen_modules(model)),
    )


def frozen_modules(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield ``(path, module)`` of the outermost modules that own parameters none of which trains."""
    own = list(model.parameters())
    if not own:
        return
    if not any(value.requires_grad for value in own):
        yield path, model
        return
    for name, child in model.named_children():
        yield from frozen_modules(child, f"{path}.{name}" if path else name)


def recompute_frozen_layers(model: nn.Module) -> None:
    """Let gradient checkpointing recompute frozen layers too; gradients pass through a frozen language model.

    transformers recomputes a layer only while the layer's own ``training`` flag is set, and reads the flag for nothing
    else; the modules inside keep theirs, so that dropout stays off.
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def select_names(names: Sequence[str], patterns: Sequence[str], *, owner: str, kind: str) -> set[str]:
    """Return the dotted names that the patterns select by themselves or by a module path above them (see `Stage`).

    Args:
        names: of parameters or of modules.
        patterns: globs; ``!`` takes away.
        owner: whose patterns they are, for messages.
        kind: what the names are, for messages.

    Raises:
        UserError: a pattern matches nothing.
    """
    included: set[str] = set()
    excluded: set[str] = set()
    for pattern in patterns:
        glob = pattern.removeprefix(EXCLUDE)
        matched = {name for name in names if any(fnmatchcase(path, glob) for path in _paths(name))}
        if not matched:
            raise UserError(f"{owner}: pattern '{pattern}' matches no {kind}{_hint(glob, names)}")
        (excluded if pattern.startswith(EXCLUDE) else included).update(matched)
    return included - excluded


def _paths(name: str) -> list[str]:
    """Return the parameter's name and the path of every module above it: ``a.b.weight`` -> ``a.b.weight, a.b, a``."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _hint(glob: str, names: Sequence[str]) -> str:
    paths = sorted({path for name in names for path in _paths(name)})
    roots = sorted({name.split(".")[0] for name in names})
    hint = nearest(glob, paths) or nearest(glob.split(".")[0], roots) or ";"
    return f"{hint} the model's modules are {', '.join(roots)}"
