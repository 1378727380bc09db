"""AdamW's groups and the learning-rate schedule, by their numbers."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from longvid_train.errors import UserError
from longvid_train.training.base import check_accumulation, total_steps
from longvid_train.training.optimizer import (
    OptimizerConfig,
    build_adamw,
    cosine_factor,
    cosine_schedule,
    parameter_groups,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.queries = nn.Parameter(torch.zeros(1, 3, 4))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_only_matrices_decay() -> None:
    net = Net()
    decayed, rest = parameter_groups(net, 0.1)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert [value is net.linear.weight for value in decayed["params"]] == [True]
    names = {id(value): name for name, value in net.named_parameters()}
    assert {names[id(value)] for value in rest["params"]} == {
        "embed.weight",
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "queries",
    }


def test_warm_up_rises_linearly_and_the_cosine_ends_at_zero() -> None:
    factors = [cosine_factor(step, warmup_steps=4, total_steps=12) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5)
    assert factors[12] == pytest.approx(0.0)


@given(st.integers(1, 500), st.floats(0, 0.99))
def test_every_step_has_a_positive_rate_below_the_peak(total: int, ratio: float) -> None:
    warmup = math.ceil(ratio * total)
    factors = [cosine_factor(step, warmup_steps=warmup, total_steps=total) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1.0
    assert sum(later > earlier for earlier, later in itertools.pairwise(factors)) == max(0, warmup - 1)


def test_schedule_drives_the_optimizer() -> None:
    optimizer = build_adamw(Net(), OptimizerConfig(lr=2.0))
    schedule = cosine_schedule(optimizer, warmup_ratio=0.1, total_steps=20)
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"lr": float("nan")}, {"lr": 1, "weight_decay": -1}])
def test_impossible_settings_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="optimizer"):
        OptimizerConfig(**settings)


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"), [(3, -1, 30), (None, 7, 7), (-1, 7, 7), (3, 7, 7), (1, 50, 10)]
)
def test_a_run_ends_at_its_first_limit(epochs: int | None, steps: int, expected: int) -> None:
    assert total_steps(10, epochs, steps) == expected


@pytest.mark.parametrize(("epochs", "steps"), [(None, -1), (-1, -1), (0, -1), (2, 0)])
def test_a_run_without_end_or_steps_is_refused(epochs: int | None, steps: int) -> None:
    with pytest.raises(UserError, match="max_epochs"):
        total_steps(10, epochs, steps)


def test_accumulation_longer_than_an_epoch_is_refused() -> None:
    check_accumulation(4, 4)
    with pytest.raises(UserError, match="3 batches on each rank, fewer than accumulate_grad_batches = 4"):
        check_accumulation(3, 4)
