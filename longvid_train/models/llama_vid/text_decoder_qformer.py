"""LLaMA-VID's default text decoder: a Q-Former whose learned queries read the frame under the user's prompt (Sec. 3.1).

``n`` frame-prompt pairs, ``P`` patches, ``C`` tower width, ``M`` queries, ``Q`` Q-Former width, ``Lp`` prompt tokens.
"""

import torch
from torch import nn
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

VISION_NORM_EPS = 1e-5
QUERY_INIT_STD = 0.02


class QFormerTextDecoder(nn.Module):
    """A LayerNorm over the vision tokens, learned queries, and InstructBLIP's Q-Former.

    Args:
        config: the Q-Former's configuration; ``encoder_hidden_size`` is the width it cross-attends to.
        vision_width: ``C``. If it differs from ``encoder_hidden_size``, a linear map comes before the LayerNorm
            (the public checkpoints' ``vlm_att_bert_proj``: a CLIP tower with an EVA-pretrained Q-Former).
        num_queries: ``M``.
    """

    def __init__(self, config: InstructBlipQFormerConfig, *, vision_width: int, num_queries: int) -> None:
        super().__init__()
        self.config = config
        self.vision_width = vision_width
        self.vision_projector: nn.Module = nn.Identity()
        if vision_width != config.encoder_hidden_size:
            self.vision_projector = nn.Linear(vision_width, config.encoder_hidden_size)
        self.vision_norm = nn.LayerNorm(config.encoder_hidden_size, eps=VISION_NORM_EPS)
        self.queries = nn.Parameter(torch.empty(1, num_queries, config.hidden_size).normal_(std=QUERY_INIT_STD))
        self.qformer = InstructBlipQFormerModel(config)

    def forward(
        self, features: torch.Tensor, prompt_input_ids: torch.Tensor, prompt_attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Ask each frame its prompt.

        Args:
            features: ``(n, 1 + P, C)``, CLS first; the Q-Former sees CLS too.
            prompt_input_ids: ``(n, Lp)`` int64.
            prompt_attention_mask: ``(n, Lp)`` int64, 1 on real tokens.

        Returns:
            The ``(n, M, Q)`` query outputs, and ``None``: every query counts.
        """
        pairs, count = features.shape[0], self.queries.shape[1]
        queries = self.queries.expand(pairs, -1, -1)
        mask = torch.cat([prompt_attention_mask.new_ones(pairs, count), prompt_attention_mask], dim=1)
        vision = self.vision_norm(self.vision_projector(features.to(self.vision_norm.weight.dtype)))
        states = self.qformer(
            input_ids=prompt_input_ids, attention_mask=mask, query_embeds=queries, encoder_hidden_states=vision
        )
        return states.last_hidden_state[:, :count], None
