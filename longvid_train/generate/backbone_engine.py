"""The engine of the backbones: the visual tokens of a plan are made once and serve every question."""

from collections.abc import Iterable

import torch

from longvid_train.data.conversation import MediumLayout
from longvid_train.generate.backbone_prompting import BackbonePrompting
from longvid_train.generate.engine import Asked, Engine, EngineOptions
from longvid_train.models.backbones.load import AnyBackbone
from longvid_train.models.backbones.video import FRAME_CHUNK, streamed_tokens


class BackboneEngine(Engine):
    """See `Engine`.

    Args:
        backbone: loaded.
        prompting: of the same checkpoint.
        options: see `EngineOptions`.
    """

    def __init__(self, backbone: AnyBackbone, prompting: BackbonePrompting, options: EngineOptions) -> None:
        super().__init__(backbone.model, prompting, options)
        self.backbone = backbone
        self._prompting = prompting

    @property
    def frame_chunk(self) -> int:
        """As set, or `FRAME_CHUNK`."""
        return self.options.frame_chunk or FRAME_CHUNK

    @torch.no_grad()
    def keep(self, chunks: Iterable[torch.Tensor], layout: MediumLayout) -> torch.Tensor:
        """``(T, H)``: the visual tokens of the medium's plan."""
        return streamed_tokens(
            self.backbone,
            chunks,
            self._prompting.plan(layout),
            frame_chunk=self.frame_chunk,
            store_device=self.store_device,
        )

    def visual_tokens(self, asked: Asked) -> torch.Tensor:
        """``(T, H)``: those of the media, one showing after the other."""
        if len(asked.shown) == 1:
            return asked.kept[asked.shown[0]]
        embedding = self.model.get_input_embeddings().weight
        return torch.cat([embedding.new_empty(0, embedding.shape[1]), *(asked.kept[number] for number in asked.shown)])
