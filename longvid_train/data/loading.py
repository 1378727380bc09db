"""How batches are made: the keys of ``data.loading``."""

from dataclasses import astuple, dataclass

from longvid_train.data.order import IMAGE, TEXT, VIDEO
from longvid_train.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModalityWeights:
    """How often an epoch visits rows by what they show, times their manifest's weight; 0 leaves a kind out.

    Attributes:
        text: rows without media.
        image: rows with images and no video.
        video: rows with a video.
    """

    text: float = 1.0
    image: float = 1.0
    video: float = 1.0

    def __post_init__(self) -> None:
        """Refuse negative weights."""
        for name in ("text", "image", "video"):
            if not getattr(self, name) >= 0:
                raise UserError(f"loading.modality_weights.{name} is {getattr(self, name)}; it must be at least 0")

    def of(self, modality: int) -> float:
        """Weight of a row's modality."""
        return {TEXT: self.text, IMAGE: self.image, VIDEO: self.video}[modality]

    def decide(self) -> bool:
        """Whether any weight differs from 1."""
        return astuple(self) != (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How batches are made.

    Attributes:
        batch_size: rows of a training batch on one rank.
        max_tokens_per_batch: instead of ``batch_size``: tokens of a training batch on one rank, padding included unless
            ``packing``. Reads every row and container header once at the start.
        global_batch_size: rows of an optimiser step over all ranks; sets ``trainer.accumulate_grad_batches`` to
            ``global_batch_size / (batch_size * ranks)``. None leaves the trainer's.
        packing: put the rows of a training batch one behind the other in one sequence without padding.
        eval_batch_size: rows of a validation or test batch on one rank.
        num_workers: processes that read ahead on each rank; 0 reads in the training process.
        prefetch_factor: batches that each of them reads ahead.
        group_by_length: put rows of like length into a training batch (reads every row and container header once at
            the start). A token budget always does.
        group_by_modality: put rows of one modality (text, images, video) into a training batch: text alone runs no
            vision.
        modality_weights: how often an epoch visits rows by what they show.
        pin_memory: page-locked batches, which a GPU copies while it computes; None: when training on one.
        seed: decides the order of rows and random placeholder positions.
    """

    batch_size: int = 1
    max_tokens_per_batch: int | None = None
    global_batch_size: int | None = None
    packing: bool = False
    eval_batch_size: int = 1
    num_workers: int = 0
    prefetch_factor: int = 2
    group_by_length: bool = False
    group_by_modality: bool = False
    modality_weights: ModalityWeights = ModalityWeights()
    pin_memory: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that make no batch and options that contradict each other."""
        for name, least in (
            ("batch_size", 1),
            ("max_tokens_per_batch", 1),
            ("global_batch_size", 1),
            ("eval_batch_size", 1),
            ("num_workers", 0),
            ("prefetch_factor", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
        if self.max_tokens_per_batch is not None:
            for name in ("batch_size", "global_batch_size"):
                if getattr(self, name) not in (1, None):
                    raise UserError(
                        f"loading.{name} is {getattr(self, name)} and max_tokens_per_batch is "
                        f"{self.max_tokens_per_batch}: batches are counted in rows or in tokens; remove one of them"
                    )


def accumulation_steps(global_batch_size: int, batch_size: int, world_size: int) -> int:
    """Micro-batches of an optimiser step of ``global_batch_size`` rows.

    Raises:
        UserError: it is no multiple of ``batch_size * world_size``.
    """
    at_once = batch_size * world_size
    steps, rest = divmod(global_batch_size, at_once)
    if rest == 0:
        return steps
    on_rank, odd = divmod(global_batch_size, world_size)
    fitting = [size for size in range(1, min(batch_size, on_rank) + 1) if on_rank % size == 0]
    remedy = (
        f"use a multiple of {at_once}"
        if odd
        else f"use batch_size {fitting[-1]}, or a global_batch_size that is a multiple of {at_once}"
    )
    raise UserError(
        f"loading.global_batch_size {global_batch_size} cannot be divided into batches of {batch_size} rows on "
        f"{world_size} rank{'s' if world_size > 1 else ''} ({at_once} rows at once); {remedy}"
    )
