"""Only strategies under which the loss is the promised one may train."""

import pytest
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy

from longvid_train.errors import UserError
from longvid_train.training.base import check_strategy
from longvid_train.training.strategies.zero import ZeroStrategy


def test_single_device_ddp_and_zero_train() -> None:
    check_strategy(SingleDeviceStrategy("cpu"))
    check_strategy(DDPStrategy())
    check_strategy(ZeroStrategy(stage=3))


def test_lightnings_own_deepspeed_is_refused_although_it_is_a_ddp_strategy() -> None:
    with pytest.raises(UserError, match=r"DeepSpeedStrategy.*configs/deepspeed/zero2\.yaml"):
        check_strategy(DeepSpeedStrategy())


def test_a_strategy_that_owns_the_gradients_is_refused() -> None:
    with pytest.raises(UserError, match=r"FSDPStrategy.*use 'auto', 'ddp' or"):
        check_strategy(FSDPStrategy())
