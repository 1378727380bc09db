"""Only strategies under which the loss is the promised one may train."""

import pytest
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from longvid_train.errors import UserError
from longvid_train.training.base import check_strategy


def test_single_device_and_ddp_train() -> None:
    check_strategy(SingleDeviceStrategy("cpu"))
    check_strategy(DDPStrategy())


def test_a_strategy_that_owns_the_gradients_is_refused() -> None:
    with pytest.raises(UserError, match=r"FSDPStrategy.*use 'auto' or 'ddp'"):
        check_strategy(FSDPStrategy())
