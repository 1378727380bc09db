"""A rank's part of a sequence: how it is cut, and the loss over it.

``B`` rows, ``S`` tokens a row, ``L`` tokens of a part, ``F`` frames, ``H`` language-model width.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.nn.functional import pad
from transformers.masking_utils import create_causal_mask

from longvid_train.models.supervised_loss import aligned_loss_sum
from longvid_train.types import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class SequenceShard:
    """One part of ``size`` equal ones, in the order of the ranks.

    Attributes:
        rank: the part.
        size: how many there are.
        group: the ranks that hold them; None for arithmetic alone.
    """

    rank: int
    size: int
    group: ProcessGroup | None = None

    def part(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """``(B, S, ...)`` to this rank's ``(B, L, ...)``, ``L = ceil(S / size)``; ``fill`` stands behind the end."""
        length = self.part_length(values.shape[1])
        missing = length * self.size - values.shape[1]
        whole = pad(values, (0, 0) * (values.ndim - 2) + (0, missing), value=fill)
        return whole[:, self.rank * length : (self.rank + 1) * length]

    def part_length(self, length: int) -> int:
        """Tokens of a part of a sequence of ``length``."""
        return -(-length // self.size)

    def continued(self, positions: torch.Tensor) -> torch.Tensor:
        """``(B, S)`` int64 positions of whole sequences, counted on behind their end until the parts are equal."""
        missing = self.part_length(positions.shape[1]) * self.size - positions.shape[1]
        behind = torch.arange(1, missing + 1, device=positions.device)
        return torch.cat([positions, positions[:, -1:] + behind], dim=1)

    def gathered(self, encode: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
        """Encode a share of ``(F, ...)`` frames on each rank and give all of them the whole, without gradients.

        Args:
            encode: maps ``(f, ...)`` to ``(f, ...)``, each frame alone; a gradient must not be needed.
            frames: the same on each rank.
        """
        share = -(-len(frames) // self.size)
        own = torch.arange(self.rank * share, (self.rank + 1) * share).clamp(max=len(frames) - 1)
        encoded = encode(frames[own.to(frames.device)]).contiguous()
        assert not encoded.requires_grad, "gradients do not pass from rank to rank here"
        shares = [torch.empty_like(encoded) for _ in range(self.size)]
        torch.distributed.all_gather(shares, encoded, group=self.group)
        return torch.cat(shares)[: len(frames)]

    def check_same_rows(self, input_ids: torch.Tensor, sample_ids: list[str]) -> None:
        """Stop where the ranks of a group hold different rows: one of them skipped a row that it could not read.

        Args:
            input_ids: ``(B, S)`` int64.
            sample_ids: of the rows.

        Raises:
            RuntimeError: on every rank of the group.
        """
        own = torch.tensor([*input_ids.shape, zlib.crc32(input_ids.cpu().numpy().tobytes())], device=input_ids.device)
        others = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(others, own, group=self.group)
        if any(not torch.equal(own, other) for other in others):
            raise RuntimeError(
                f"the processes that share a sequence read different rows (here {', '.join(sample_ids)}): one of them "
                "skipped a row that it could not read; remove it from the manifest (the log names it)"
            )


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """``(B, S)`` labels to the target of each place, the label of the next one; the last place has none."""
    return pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def packed_mask(decoder: Any, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask that transformers makes in one process for samples one behind the other in a row.

    Args:
        decoder: a transformers language model.
        positions: ``(1, S)`` int64, which start at 0 with each sample.
        dtype: of the embeddings.

    Returns:
        ``(1, 1, S, S)``; None where the row is one sample, or the attention function tells samples apart by their
        positions (flash attention).
    """
    # Only the shape, type and device of the embeddings are looked at.
    blank = torch.empty(*positions.shape, 0, dtype=dtype, device=positions.device)
    mask: torch.Tensor | None = create_causal_mask(
        config=decoder.config, inputs_embeds=blank, attention_mask=None, past_key_values=None, position_ids=positions
    )
    return mask


def shard_loss_sum(
    shard: SequenceShard,
    decoder: nn.Module,
    lm_head: nn.Module,
    inputs_embeds: torch.Tensor,
    labels: torch.Tensor,
    position_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of ``supervised_loss_sum`` that this rank's tokens predict; the sum over the group is the whole.

    Padding stands on the right, so real tokens never see it: neither that of the batch nor what makes equal parts.
    The latter belongs to the last sample of a packed row.

    Args:
        shard: the part; the decoder's attention must be that of ``SequenceAttention``.
        decoder: transformers' language model without its head.
        lm_head: its head.
        inputs_embeds: ``(B, S, H)`` of the whole rows, visual tokens in their places.
        labels: ``(B, S)`` int64 of the whole rows.
        position_ids: ``(1, S)`` int64 of a packed row; without them a row is one sequence.

    Returns:
        The float32 scalar sum and the int64 scalar count of this rank's targets.
    """
    rows, length = labels.shape
    own = torch.arange(length, device=labels.device)[None] if position_ids is None else position_ids
    positions = shard.continued(own)
    states = decoder(
        inputs_embeds=shard.part(inputs_embeds, 0.0),
        attention_mask=None if position_ids is None else packed_mask(decoder, positions, inputs_embeds.dtype),
        position_ids=shard.part(positions, 0).expand(rows, -1),
        use_cache=False,
    ).last_hidden_state
    return aligned_loss_sum(states, shard.part(next_tokens(labels), IGNORE_INDEX), lm_head)
