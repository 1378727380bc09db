"""The engine of LLaMA-VID: tower features are kept, for every question has context tokens of its own."""

from collections.abc import Iterable

import torch

from longvid_train.data.conversation import MediumLayout
from longvid_train.data.processing import joined_prompts
from longvid_train.generate.engine import Asked, Engine


class LlamaVidEngine(Engine):
    """See `Engine`."""

    @property
    def frame_chunk(self) -> int:
        """As set, or the model's."""
        return self.options.frame_chunk or int(self.model.config.frame_chunk)

    @torch.no_grad()
    def keep(self, chunks: Iterable[torch.Tensor], layout: MediumLayout) -> torch.Tensor:
        """``(N, 1 + P, C)``: tower features, CLS first."""
        features: torch.Tensor | None = None
        done = 0
        for pixels in chunks:
            encoded = self.model.encode_frames(pixels.to(device=self.device, dtype=self.model.dtype))
            if features is None:
                features = encoded.new_empty((layout.frame_count, *encoded.shape[1:]), device=self.store_device)
            features[done : done + len(encoded)] = encoded
            done += len(encoded)
        assert features is not None and done == layout.frame_count
        return features

    def visual_tokens(self, asked: Asked) -> torch.Tensor:
        """``(T, H)``: context and content tokens of every showing, guided by its question."""
        sample = asked.sample
        if not len(sample.spans):
            width = self.model.config.text_config.hidden_size
            return torch.empty(0, width, dtype=self.model.dtype, device=self.device)
        prompts, row_of_prompt = joined_prompts(sample.prompts)
        ids, mask = self.prompting.processor.encode_prompts(prompts)
        spans = sample.spans.clone()
        spans[:, 2] = torch.tensor(row_of_prompt)[spans[:, 2]]
        features = asked.kept[0] if len(asked.kept) == 1 else torch.cat(asked.kept)
        tokens: torch.Tensor = self.model.visual_tokens(
            features, spans, sample.content_grids, ids.to(self.device), mask.to(self.device)
        )
        return tokens
