"""The overlays of configs/deepspeed, and what DeepSpeed is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning.strategies import DDPStrategy

from longvid_train import cli
from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.loading import LoadingOptions
from longvid_train.errors import UserError
from longvid_train.rope.yarn import YarnWindow
from longvid_train.training.backbones import check_equal_passes
from longvid_train.training.strategies.zero import ZeroStrategy
from longvid_train.training.strategies.zero_config import zero_config

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
STRATEGY = "longvid_train.training.strategies.zero.ZeroStrategy"
SIZES = {"bucket_elements": 10, "prefetch_elements": 20}
WANTED = {
    "zero1": (1, None, None),
    "zero2": (2, None, None),
    "zero3": (3, None, None),
    "zero1_offload": (1, "cpu", None),
    "zero2_offload": (2, "cpu", None),
    "zero3_offload": (3, "cpu", "cpu"),
}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return found


def test_every_overlay_is_known_and_changes_the_trainer_alone() -> None:
    names = {path.stem for path in CONFIGS.iterdir()}
    assert names == {*WANTED, "bf16", *(f"sequence_parallel_zero{stage}" for stage in (1, 2, 3))}
    assert [set(read(name)) for name in names] == [{"trainer"}] * len(names)
    assert read("bf16") == {"trainer": {"precision": "bf16-mixed"}}


@pytest.mark.parametrize("name", WANTED)
def test_an_overlay_makes_the_stage_it_is_named_for(name: str) -> None:
    settings = read(name)["trainer"]["strategy"]
    assert settings["class_path"] == STRATEGY
    config = ZeroStrategy(**settings["init_args"]).config
    stage, optimizer, weights = WANTED[name]
    zero = config["zero_optimization"]
    assert zero["stage"] == stage
    assert zero.get("offload_optimizer", {}).get("device") == optimizer
    assert zero.get("offload_param", {}).get("device") == weights


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_buckets_and_batch_size_reach_deepspeed(stage: int) -> None:
    config = zero_config(stage, "none", **SIZES)
    zero = config["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"]) == (10, 10)
    assert zero.get("stage3_prefetch_bucket_size") == (20 if stage == 3 else None)
    assert config["train_micro_batch_size_per_gpu"] == 1, "else Lightning opens the loader before its state is restored"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": 0}, "stage is 0; it must be 1, 2 or 3"),
        (
            {"stage": 2, "offload": "disk"},
            "offload is 'disk'; it must be one of none, optimizer, optimizer_and_weights",
        ),
        ({"stage": 2, "offload": "optimizer_and_weights"}, "needs stage 3, not 2; use 'optimizer'"),
        ({"stage": 2, "bucket_elements": 0}, "bucket_elements is 0; it must be at least 1"),
        ({"stage": 3, "prefetch_elements": -1}, "prefetch_elements is -1; it must be at least 1"),
        ({"stage": 1, "timeout_s": 0}, "timeout_s is 0; it must be at least 1"),
    ],
)
def test_what_zero_cannot_do_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ZeroStrategy(**settings).check_settings()


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("fit", ["--trainer.precision", "16-mixed"], "trainer.precision is 16-mixed; under ZeroStrategy it must be"),
        ("fit", ["--trainer.gradient_clip_algorithm", "value"], "DeepSpeed clips by 'norm' only"),
        ("fit", ["--trainer.strategy.init_args.bucket_elements", "0"], "trainer.strategy bucket_elements is 0;"),
        ("validate", ["--trainer.strategy.init_args.offload", "optimizer_and_weights"], "needs stage 3, not 2; use"),
        ("test", ["--trainer.precision", "16-true"], "trainer.precision is 16-true; under ZeroStrategy it must be"),
    ],
)
def test_a_run_that_zero_cannot_keep_its_promises_for_ends_before_weights_load(
    command: str, words: list[str], message: str, fit_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", str(fit_config()), "--config", str(CONFIGS / "zero2.yaml"), *words]
    assert cli.main([command, *given]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longvid: ")]
    assert message in line


def test_a_backbone_at_stage_3_takes_one_row_at_a_time_under_an_extended_window() -> None:
    extended, plain = Adaptation(window=YarnWindow()), Adaptation()
    one, several = LoadingOptions(), LoadingOptions(batch_size=2)
    with pytest.raises(UserError, match=r"stage 3 under window 'yarn'.*batch_size to 1.*or use stage 2"):
        check_equal_passes(ZeroStrategy(stage=3), extended, several)
    with pytest.raises(UserError, match="batch_size to 1"):
        check_equal_passes(ZeroStrategy(stage=3), extended, LoadingOptions(max_tokens_per_batch=4096))
    check_equal_passes(ZeroStrategy(stage=3), extended, one)
    check_equal_passes(ZeroStrategy(stage=3), plain, several)
    check_equal_passes(ZeroStrategy(stage=2), extended, several)
    check_equal_passes(DDPStrategy(), extended, several)
