"""DeepSpeed's Ulysses attention (arXiv 2309.14509, 2506.13996) in a language model's layers, while a context lasts.

Each rank of a group holds a part of the sequence. In front of attention an all-to-all gives it the whole sequence for
its share of the heads, and behind it another one gives its part back for all heads; everything else in a layer works
on each token alone. The exchange is DeepSpeed's ``UlyssesSPAttentionHF`` around the model's own attention function.
Samples packed in one row are kept apart by what is whole there: a mask that was made for the whole row, or for flash
attention the position ids, which the exchange gathers.

What is not used of DeepSpeed, and why: ``register_with_transformers`` replaces the attention function for every model
in the process, so that the vision tower's and the text decoder's attention would be taken for parts of a sequence too;
here only the language model's config names the exchange. ``UlyssesSPDataLoaderAdapter`` cuts each tensor of a batch
along its second axis, which frames and prompts do not have, and its place in an epoch cannot be saved.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed import ProcessGroup
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION_NAME = "longvid_ulysses"
"""Of the exchange among transformers' attention functions, and of the model's own masks beside it."""


class _Shape(NamedTuple):
    rows: int
    heads: int
    kv_heads: int
    head_size: int


class SequenceAttention:
    """The attention function of a rank that holds a part of each sequence.

    Args:
        group: ranks that hold the parts, in their order.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._built: dict[tuple[str, _Shape], Any] = {}

    @contextmanager
    def installed(self, decoder: Any) -> Iterator[None]:
        """Within, the layers of ``decoder`` attend over whole sequences; enter it for the backward pass too, which
        recomputes layers under gradient checkpointing.

        Args:
            decoder: a transformers language model without its head. It is called with this rank's part of the sequence
                and of its positions, and with no mask or that of the whole sequence, ``(1, 1, S, S)``.
        """
        core: str = decoder.config._attn_implementation
        assert core != "eager", "eager attention makes a mask of its part of the sequence"

        def attend(
            module: nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            mask: torch.Tensor | None,
            **options: Any,
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            return self._attend(core, module, query, key, value, mask, **options)

        AttentionInterface.register(ATTENTION_NAME, attend)
        AttentionMaskInterface.register(ATTENTION_NAME, ALL_MASK_ATTENTION_FUNCTIONS[core])
        with ExitStack() as restoring:
            restoring.callback(decoder.set_attn_implementation, core)
            decoder.set_attn_implementation(ATTENTION_NAME)
            yield

    def _attend(
        self,
        core: str,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows, heads, length, head_size = query.shape
        whole = length * self._group.size()
        assert mask is None or mask.shape[-2:] == (whole, whole), "a mask is of the whole sequence"
        exchange = self._exchange(core, _Shape(rows, heads, key.shape[1], head_size))
        groups = module.num_key_value_groups
        try:
            attended: tuple[torch.Tensor, torch.Tensor | None] = exchange(module, query, key, value, mask, **options)
        finally:
            # DeepSpeed sets it to the share of the rank where key-value heads are fewer than ranks, and leaves it so.
            module.num_key_value_groups = groups
        return attended

    def _exchange(self, core: str, shape: _Shape) -> Any:
        """DeepSpeed's object is made for one number of rows."""
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        if (core, shape) not in self._built:
            self._built[core, shape] = UlyssesSPAttentionHF(
                ALL_ATTENTION_FUNCTIONS[core],
                batch_size=shape.rows,
                attn_head_count=shape.heads,
                attn_head_size=shape.head_size,
                kv_head_count=shape.kv_heads,
                num_hidden_layers=0,  # of its debugging mode
                process_group=self._group,
                seq_length_is_variable=True,
            )
        return self._built[core, shape]
