"""A checkpoint, recognised by its ``config.json``, to how it is asked (no weights) and to a loaded engine."""

from pathlib import Path

import torch

from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.templates import template_by_name
from longvid_train.errors import UserError
from longvid_train.generate.backbone_engine import BackboneEngine
from longvid_train.generate.backbone_prompting import BackbonePrompting
from longvid_train.generate.engine import Engine, EngineOptions
from longvid_train.generate.llama_vid_engine import LlamaVidEngine
from longvid_train.generate.llama_vid_prompting import LlamaVidPrompting
from longvid_train.generate.prompting import Prompting
from longvid_train.generate.zoom.engine import ZoomEngine
from longvid_train.generate.zoom.prompting import ZoomPrompting
from longvid_train.models.adapter import Adapter
from longvid_train.models.backbones.adapted import BackboneAdapter, load_adapted_backbone
from longvid_train.models.backbones.llama_vid import LlamaVid
from longvid_train.models.backbones.load import load_backbone, read_config
from longvid_train.models.llama_vid.adapted import load_adapted
from longvid_train.models.llama_vid.loading import load_llama_vid


def read_prompting(
    source: str | Path,
    *,
    adaptation: Adaptation | None = None,
    adapter: Adapter | BackboneAdapter | None = None,
    template: str | None = None,
    prompt: str | None = None,
) -> Prompting:
    """Read everything about a checkpoint that can be known without weights.

    Args:
        source: a folder, or a hub id (``str``).
        adaptation: default: that of the adapter's training, else the model as it is. With a backbone's adapter it may
            differ from that of the training in the cache only.
        adapter: trained on the checkpoint.
        template: of a LLaMA-VID: name of a chat template; default: the one it was trained with.
        prompt: of a backbone: instead of its chat template; holds its placeholder and ``{question}`` once each.

    Raises:
        UserError: no such checkpoint, another architecture, a missing file, an option that this architecture does not
            have, or an adaptation that is for other models, does not fit or is not that of the adapter's training.
    """
    kind, _ = read_config(source)
    zooms = adaptation is not None and adaptation.zoom is not None
    if issubclass(kind, LlamaVid):
        if zooms:
            raise UserError(
                f"{source} is a LLaMA-VID, whose frames have as many tokens at any resolution: there is no overview to "
                "zoom into; leave zoom out"
            )
        assert not isinstance(adapter, BackboneAdapter), "an adapter of another architecture has another base model"
        if prompt is not None:
            raise UserError("--prompt has no effect: a LLaMA-VID has templates; choose one with --template")
        chosen = None if template is None else template_by_name(template)
        return LlamaVidPrompting.from_folder(source, adapter=adapter, adaptation=adaptation, template=chosen)
    if template is not None:
        raise UserError(
            f"--template {template} has no effect: {source} brings its own chat template; to ask in other words, give "
            "--prompt"
        )
    if isinstance(adapter, BackboneAdapter):
        if adaptation is not None:
            adapter.check_adaptation(adaptation, "--adaptation")
        adaptation = adaptation or adapter.adaptation
    folder = None if adapter is None else adapter.folder
    asked = ZoomPrompting if zooms else BackbonePrompting
    return asked.from_source(source, adaptation=adaptation, adapter=folder, prompt=prompt)


def load_engine(
    source: str | Path,
    prompting: Prompting,
    *,
    adapter: Adapter | BackboneAdapter | None = None,
    device: torch.device,
    dtype: torch.dtype | str = "auto",
    options: EngineOptions = EngineOptions(),  # noqa: B008 - frozen
) -> Engine:
    """Load the weights of a checkpoint.

    Args:
        source: what ``prompting`` was read from.
        prompting: from `read_prompting`.
        adapter: trained on the checkpoint.
        device: where the model goes.
        dtype: of the weights in memory; ``"auto"`` keeps the checkpoint's.
        options: see `EngineOptions`.

    Raises:
        UserError: weights that do not fit.
    """
    if isinstance(prompting, BackbonePrompting):
        if isinstance(adapter, BackboneAdapter):
            backbone = load_adapted_backbone(source, adapter, dtype=dtype)
        else:
            backbone = load_backbone(source, dtype=dtype)
        backbone.model.to(device)
        if isinstance(prompting, ZoomPrompting):
            return ZoomEngine(backbone, prompting, options)
        return BackboneEngine(backbone, prompting, options)
    assert not isinstance(adapter, BackboneAdapter), "an adapter of another architecture has another base model"
    model = load_llama_vid(source, dtype=dtype) if adapter is None else load_adapted(source, adapter, dtype=dtype)
    return LlamaVidEngine(model.to(device), prompting, options)
