"""LLaMA-VID's light text decoder: fresh BERT decoder layers whose text positions are the queries (Sec. 3.1, Table 5).

``n`` frame-prompt pairs, ``P`` patches, ``C`` tower width, ``Q`` BERT width, ``Lp`` prompt tokens.
"""

import torch
from torch import nn
from transformers import BertConfig, BertModel


class BertTextDecoder(nn.Module):
    """A linear map of the vision tokens to BERT's width, and BERT with cross-attention in every layer.

    As in the public code, this variant sees the patches without CLS and has no LayerNorm before the cross-attention;
    unlike it, padding never counts.

    Args:
        config: BERT's configuration with ``is_decoder`` and ``add_cross_attention``.
        vision_width: ``C``.
    """

    def __init__(self, config: BertConfig, *, vision_width: int) -> None:
        super().__init__()
        self.config = config
        self.vision_width = vision_width
        self.vision_projector = nn.Linear(vision_width, config.hidden_size)
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(
        self, features: torch.Tensor, prompt_input_ids: torch.Tensor, prompt_attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Ask each frame its prompt.

        Args:
            features: ``(n, 1 + P, C)``, CLS first; it is not looked at.
            prompt_input_ids: ``(n, Lp)`` int64.
            prompt_attention_mask: ``(n, Lp)`` int64, 1 on real tokens.

        Returns:
            The ``(n, Lp, Q)`` outputs at the text positions, and the mask of those that are real.
        """
        vision = self.vision_projector(features[:, 1:].to(self.vision_projector.weight.dtype))
        states = self.bert(
            input_ids=prompt_input_ids,
            attention_mask=prompt_attention_mask,
            encoder_hidden_states=vision,
            use_cache=False,
        )
        return states.last_hidden_state, prompt_attention_mask
