"""DeepSpeed's JSON of a ZeRO run."""

from typing import Any, Literal, get_args

from longvid_train.errors import UserError

Offload = Literal["none", "optimizer", "optimizer_and_weights"]
STAGES = (1, 2, 3)


def check_zero_settings(
    stage: int, offload: str, *, bucket_elements: int, prefetch_elements: int, timeout_s: int
) -> None:
    """Refuse what DeepSpeed cannot do; the arguments are those of ``ZeroStrategy``.

    Raises:
        UserError: a value outside its range, or weights offloaded below stage 3.
    """
    if stage not in STAGES:
        raise UserError(f"trainer.strategy stage is {stage}; it must be 1, 2 or 3")
    if offload not in get_args(Offload):
        raise UserError(f"trainer.strategy offload is '{offload}'; it must be one of {', '.join(get_args(Offload))}")
    if offload == "optimizer_and_weights" and stage != 3:
        raise UserError(f"trainer.strategy offload 'optimizer_and_weights' needs stage 3, not {stage}; use 'optimizer'")
    sizes = {"bucket_elements": bucket_elements, "prefetch_elements": prefetch_elements, "timeout_s": timeout_s}
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"trainer.strategy {name} is {value}; it must be at least 1")


def zero_config(stage: int, offload: Offload, *, bucket_elements: int, prefetch_elements: int) -> dict[str, Any]:
    """Build the configuration of settings that `check_zero_settings` passes; Lightning adds accumulation, clipping
    and precision."""
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_bucket_size": bucket_elements,
        "allgather_bucket_size": bucket_elements,
    }
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "optimizer_and_weights":
        zero["offload_param"] = {"device": "cpu"}
    if stage == 3:
        zero["stage3_prefetch_bucket_size"] = prefetch_elements
    return {
        # Lightning would otherwise open the training loader to ask for its batch size, and lose its restored state.
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
