"""Sequence parallelism (DeepSpeed's Ulysses) over ZeRO: several ranks train on one sequence, each on a part of it.

``sequence_parallel_size`` neighbouring ranks are a group. They read the same rows, splice the visual tokens into them,
and each gives its part of the embeddings to the language model, whose attention exchanges heads for tokens
(``sequence_attention.py``). The groups are DeepSpeed's (``parallel_state_sp``). Each rank's loss is the sum over its
own targets, so a parameter's gradient is the sum over all ranks, as without sequence parallelism. ZeRO sees
data-parallel ranks, and its average is undone by the loss scale as ever (``zero.py``). It is not given the groups:
their only use there would be to undo part of that average.

Only training steps are cut. Held-out answers and ``val/loss`` are each rank's own, as under ZeRO, and so is all that
``validate``, ``test``, ``predict`` and ``calibrate`` do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.strategies import Strategy

from longvid_train.errors import UserError
from longvid_train.training.strategies.sequence_attention import SequenceAttention
from longvid_train.training.strategies.sequence_shard import SequenceShard
from longvid_train.training.strategies.zero import ZeroStrategy

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""transformers chooses their frequencies by the largest position that it sees, which is another one on each rank."""


class SequenceZeroStrategy(ZeroStrategy):
    """`ZeroStrategy` with each sequence divided among neighbouring ranks; commands that do not train divide none.

    Args:
        sequence_parallel_size: ranks that share a sequence; it divides the number of processes and of attention heads.
        **kwargs: of `ZeroStrategy`.
    """

    strategy_name = "sequence_zero"

    def __init__(self, *, sequence_parallel_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        assert isinstance(self.config, dict)
        # A gradient is the sum over parts of a sequence, and bfloat16 sums lose what one part adds.
        self.config["communication_data_type"] = "fp32"
        self.sequence_parallel_size = sequence_parallel_size
        self._attention: SequenceAttention | None = None
        self._shard: SequenceShard | None = None
        self._active = False

    @property
    def shard(self) -> SequenceShard | None:
        """This rank's part, within a training step's forward and backward pass; None elsewhere."""
        return self._shard if self._active else None

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """Shares of the rows: one for each group of ranks, or without training for each rank."""
        size = self.sequence_parallel_size if self.trains else 1
        return {"num_replicas": self.world_size // size, "rank": self.global_rank // size}

    def setup_environment(self) -> None:
        """See `ZeroStrategy`.

        Raises:
            UserError: also where the processes of a training do not form whole groups.
        """
        if self.trains:
            check_processes(self.num_processes * self.num_nodes, self.sequence_parallel_size)
        super().setup_environment()

    def setup_distributed(self) -> None:
        """Join the process group, and for training make the groups that share a sequence."""
        super().setup_distributed()
        if not self.trains:
            return
        from deepspeed.runtime.sequence_parallel import parallel_state_sp

        parallel_state_sp.initialize_sequence_parallel(sequence_parallel_size=self.sequence_parallel_size)
        group = parallel_state_sp.get_sequence_parallel_group()
        self._attention = SequenceAttention(group)
        self._shard = SequenceShard(
            rank=parallel_state_sp.get_sequence_parallel_rank(), size=self.sequence_parallel_size, group=group
        )

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward pass of a micro-batch on this rank's part."""
        with self._sharing():
            return super().training_step(*args, **kwargs)

    def backward(
        self, closure_loss: torch.Tensor, optimizer: torch.optim.Optimizer | None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """See `ZeroStrategy`; gradient checkpointing repeats layers of the forward pass here."""
        with self._sharing():
            return super().backward(closure_loss, optimizer, *args, **kwargs)

    @contextmanager
    def _sharing(self) -> Iterator[None]:
        assert self._attention is not None, "setup_distributed comes first"
        with self._attention.installed(self.lightning_module.model.get_decoder()):
            self._active = True
            try:
                yield
            finally:
                self._active = False


def shard_of(strategy: Strategy) -> SequenceShard | None:
    """The part of each sequence that this rank trains on; None where it trains on whole ones, or does not train."""
    return strategy.shard if isinstance(strategy, SequenceZeroStrategy) else None


def counts_rows(strategy: Strategy) -> bool:
    """Whether what this rank reads is to be counted: ranks that share sequences read the same rows."""
    if not isinstance(strategy, SequenceZeroStrategy):
        return True
    return strategy.global_rank % strategy.sequence_parallel_size == 0


def check_processes(processes: int, size: int) -> None:
    """Refuse groups that the processes do not fill, and groups of one.

    The constructor does not: what it raises, jsonargparse reports as one of the types that did not fit.

    Raises:
        UserError: ``size`` is below 2, or does not divide ``processes``.
    """
    if size < 2:
        raise UserError(
            f"trainer.strategy sequence_parallel_size is {size}; it must be 2 or more (for whole sequences on each "
            "process use configs/deepspeed/zero2.yaml)"
        )
    if processes % size:
        raise UserError(
            f"trainer.strategy sequence_parallel_size is {size}, which does not divide the run's {processes} "
            f"process{'es' if processes > 1 else ''} (trainer.devices x trainer.num_nodes); set --trainer.devices to a "
            f"multiple of {size}{_or_divisor(processes)}"
        )


def _or_divisor(processes: int) -> str:
    return f", or sequence_parallel_size to a divisor of {processes} from 2 up" if processes > 1 else ""


def check_sequence_parallel(size: int, config: Any) -> None:
    """Refuse, before weights load, a language model whose sequences cannot be divided.

    Args:
        size: ranks that share a sequence.
        config: transformers' config of the language model.

    Raises:
        UserError: heads that the ranks cannot share equally, sliding windows, or rotary positions that depend on a
            part's length.
    """
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % size or (kv_heads % size and size % kv_heads):
        fitting = [n for n in range(2, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
        raise UserError(
            f"trainer.strategy sequence_parallel_size {size}: the language model's {heads} attention heads ({kv_heads} "
            f"key-value heads) cannot be shared equally by {size} processes; use one of {', '.join(map(str, fitting))}"
        )
    windows = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"})
    if windows:
        raise UserError(
            f"sequence parallelism needs full attention and the language model has layers of {', '.join(windows)}; use "
            "configs/deepspeed/zero3.yaml with gradient_checkpointing"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rope in LENGTH_DEPENDENT_ROPE:
        raise UserError(
            f"sequence parallelism cannot use rotary positions of type '{rope}', which change with the length that a "
            "process sees; use a checkpoint with 'default', 'linear', 'yarn' or 'llama3' positions"
        )
