"""Memory and time of one training step on each of ``G`` devices, under DDP or DeepSpeed's ZeRO.

Bytes a parameter (arXiv 1910.02054, Sec. 3.1; Adam): ZeRO keeps 2 of bfloat16 weights, and of what trains 2 of
gradients and 12 of float32 weights and two moments. Stage 1 divides the 12 by ``G``, stage 2 the gradients too, stage 3
the weights too. Stage 0 is DDP with float32 weights (``precision: bf16-mixed``): 4 of weights, and 12 of what trains.
"""

from dataclasses import dataclass

from longvid_train.cost.decoder import DecoderShape
from longvid_train.cost.hardware import Hardware
from longvid_train.errors import UserError

ZERO_STAGES = (0, 1, 2, 3)
LOGIT_BYTES = 2 + 4 + 4
"""Of one logit in the loss: as the head makes it, in float32, and its gradient."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What trains, on how many devices.

    Attributes:
        parameters: all of them.
        trainable: those that train.
        sequence_tokens: of one row.
        rows: of a micro-batch on one device.
        flops: forward and backward of a micro-batch, recomputation not counted.
        vision_bytes: activations of the vision part of a micro-batch.
        supervised_chunk: logits that exist at once, in positions.
        gpus: ``G``.
        zero: 0 for DDP, else DeepSpeed's stage.
        gradient_checkpointing: only each layer's input is kept.
    """

    parameters: int
    trainable: int
    sequence_tokens: int
    rows: int
    flops: int
    vision_bytes: int
    supervised_chunk: int
    gpus: int
    zero: int
    gradient_checkpointing: bool = True

    def __post_init__(self) -> None:
        """Refuse what no cluster has."""
        if self.zero not in ZERO_STAGES:
            raise UserError(f"zero is {self.zero}; use 0 (DDP), 1, 2 or 3")
        if self.gpus < 1:
            raise UserError(f"gpus is {self.gpus}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """What one device needs.

    Attributes:
        weight_bytes: parameters as the forward pass reads them.
        gradient_bytes: of what trains.
        optimizer_bytes: float32 copies and Adam's moments.
        activation_bytes: kept for the backward pass, and one layer's at its height.
        total_bytes: all of them.
        step_flops: of a micro-batch, all passes but recomputation.
        step_ms: at the device's peak rate; divide by the utilisation you expect (0.3 to 0.5 is usual).
    """

    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    total_bytes: int
    step_flops: int
    step_ms: float


def training_cost(shape: DecoderShape, job: TrainingJob, hardware: Hardware) -> TrainingCost:
    """Plan a micro-batch on one of the devices."""
    weights, gradients, optimizer = _state_bytes(job)
    activations = _activation_bytes(shape, job) + job.vision_bytes
    return TrainingCost(
        weight_bytes=weights,
        gradient_bytes=gradients,
        optimizer_bytes=optimizer,
        activation_bytes=activations,
        total_bytes=weights + gradients + optimizer + activations,
        step_flops=job.flops,
        step_ms=1e3 * job.flops / hardware.flops_per_s,
    )


def _state_bytes(job: TrainingJob) -> tuple[int, int, int]:
    if job.zero == 0:
        return 4 * job.parameters, 4 * job.trainable, 8 * job.trainable
    shared = job.gpus
    weights = -(-2 * job.parameters // (shared if job.zero == 3 else 1))
    gradients = -(-2 * job.trainable // (shared if job.zero >= 2 else 1))
    return weights, gradients, -(-12 * job.trainable // shared)


def _activation_bytes(shape: DecoderShape, job: TrainingJob) -> int:
    """Inputs of the layers in 16 bits, one layer's inner activations (all layers' without checkpointing), logits.

    A layer keeps for its backward pass: two norms' inputs and outputs, queries, keys, values and their mix, and four
    of the MLP's inner activations (both branches, the activated gate, the product). Attention kernels keep no scores.
    """
    tokens = job.rows * job.sequence_tokens
    inner = 4 * shape.width + 2 * shape.query_width + 2 * shape.kv_width + 4 * shape.intermediate
    kept = shape.layers * shape.width + inner if job.gradient_checkpointing else shape.layers * inner
    logits = min(tokens, job.supervised_chunk) * shape.vocabulary * LOGIT_BYTES
    return 2 * tokens * kept + logits
