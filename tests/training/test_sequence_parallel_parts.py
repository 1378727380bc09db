"""How a sequence is cut into parts, and what is refused before weights load; no second process."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn
from transformers import LlamaConfig, LlamaModel

from longvid_train import cli
from longvid_train.errors import UserError
from longvid_train.models.supervised_loss import supervised_loss_sum
from longvid_train.training.cli import zero_stage
from longvid_train.training.strategies.sequence import (
    SequenceZeroStrategy,
    check_sequence_parallel,
    counts_rows,
    shard_of,
)
from longvid_train.training.strategies.sequence_shard import SequenceShard, next_tokens, packed_mask, shard_loss_sum
from longvid_train.types import IGNORE_INDEX

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
CONFIG = CONFIGS / "sequence_parallel_zero2.yaml"


def shards(size: int) -> list[SequenceShard]:
    return [SequenceShard(rank=rank, size=size) for rank in range(size)]


@given(size=st.integers(2, 9), rows=st.integers(1, 3), length=st.integers(1, 40))
def test_parts_are_equal_and_joined_they_are_the_sequence_and_padding(size: int, rows: int, length: int) -> None:
    values = torch.arange(rows * length * 2).reshape(rows, length, 2)
    parts = [shard.part(values, -1) for shard in shards(size)]
    assert {part.shape for part in parts} == {(rows, -(-length // size), 2)}
    joined = torch.cat(parts, dim=1)
    assert torch.equal(joined[:, :length], values)
    assert (joined[:, length:] == -1).all()
    assert joined.shape[1] - length < size, "no part is larger than it must be"


@given(size=st.integers(2, 9), samples=st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_positions_are_counted_on_behind_the_last_sample_until_parts_are_equal(size: int, samples: list[int]) -> None:
    own = [place for sample in samples for place in range(sample)]
    for shard in shards(size):
        (positions,) = shard.continued(torch.tensor([own])).tolist()
        assert positions[: len(own)] == own
        assert positions[len(own) :] == list(range(samples[-1], samples[-1] + len(positions) - len(own)))
        assert len(positions) == -(-len(own) // size) * size


def test_the_target_of_a_place_is_the_label_of_the_next() -> None:
    labels = torch.tensor([[IGNORE_INDEX, 5, 6], [7, IGNORE_INDEX, 8]])
    assert next_tokens(labels).tolist() == [[5, 6, IGNORE_INDEX], [IGNORE_INDEX, 8, IGNORE_INDEX]]


class _Tokenwise(nn.Module):
    """A language model whose tokens know their own embedding and position only, so parts need no exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        use_cache: bool,
        attention_mask: torch.Tensor | None = None,
    ) -> SimpleNamespace:
        assert not use_cache
        assert attention_mask is None
        return SimpleNamespace(last_hidden_state=self.mix(inputs_embeds) * (1 + position_ids[..., None]))


@given(size=st.integers(2, 5), length=st.integers(2, 12), seed=st.integers(0, 99))
def test_losses_of_the_parts_add_up_to_that_of_the_whole(size: int, length: int, seed: int) -> None:
    torch.manual_seed(seed)
    decoder, head = _Tokenwise().double(), nn.Linear(4, 7).double()
    embeds = torch.randn(2, length, 4, dtype=torch.float64)
    labels = torch.randint(0, 7, (2, length)).masked_fill(torch.rand(2, length) < 0.5, IGNORE_INDEX)
    positions = torch.arange(length).expand(2, -1)
    whole, count = supervised_loss_sum(decoder(embeds, positions, use_cache=False).last_hidden_state, labels, head)
    parts = [shard_loss_sum(shard, decoder, head, embeds, labels) for shard in shards(size)]
    assert sum(int(targets) for _, targets in parts) == int(count)
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    assert all(loss.requires_grad for loss, _ in parts), "also where nothing is supervised: all ranks need one graph"


class _Launched(LightningEnvironment):
    """One of several processes, of which only this one exists."""

    def __init__(self, rank: int, processes: int) -> None:
        super().__init__()
        self._global_rank, self._world_size = rank, processes


@pytest.fixture(scope="module")
def decoder() -> LlamaModel:
    """A language model in float64, with transformers' SDPA."""
    config = LlamaConfig(vocab_size=7, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return LlamaModel(config).double().eval()


@given(samples=st.lists(st.integers(1, 6), min_size=1, max_size=4), size=st.integers(2, 5))
def test_samples_of_a_packed_row_see_themselves_alone(decoder: LlamaModel, samples: list[int], size: int) -> None:
    """Also the last one, behind which stands what makes equal parts."""
    shard = SequenceShard(rank=0, size=size)
    positions = shard.continued(torch.tensor([[place for sample in samples for place in range(sample)]]))
    embeds = torch.randn(*positions.shape, 8, dtype=torch.float64)
    mask = packed_mask(decoder, positions, embeds.dtype)
    assert (mask is None) == (len(samples) == 1), "one sample needs no mask of S x S"
    start = 0
    with torch.no_grad():
        packed = decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
        for sample in samples:
            alone = decoder(inputs_embeds=embeds[:, start : start + sample]).last_hidden_state
            torch.testing.assert_close(packed[:, start : start + sample], alone)
            start += sample


def test_flash_attention_tells_samples_apart_by_their_positions() -> None:
    decoder = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flash_attention_2"))
    assert packed_mask(decoder, torch.tensor([[0, 1, 0, 1]]), torch.float32) is None


def test_ranks_of_one_group_read_the_same_rows_and_one_of_them_counts_them() -> None:
    strategy = SequenceZeroStrategy(stage=2, sequence_parallel_size=2)
    shares, counted = [], []
    for rank in range(6):
        strategy.cluster_environment = _Launched(rank, 6)
        shares.append(strategy.distributed_sampler_kwargs)
        counted.append(counts_rows(strategy))
    assert [share["rank"] for share in shares] == [0, 0, 1, 1, 2, 2]
    assert {share["num_replicas"] for share in shares} == {3}
    assert counted == [True, False] * 3
    assert counts_rows(DDPStrategy())
    assert shard_of(DDPStrategy()) is None
    assert shard_of(strategy) is None, "outside of a training step sequences are whole"


def test_commands_that_do_not_train_give_each_rank_rows_of_its_own() -> None:
    strategy = SequenceZeroStrategy(stage=2, sequence_parallel_size=2)
    strategy.cluster_environment = _Launched(3, 6)
    for command, share in ((TrainerFn.FITTING, (1, 3)), (TrainerFn.VALIDATING, (3, 6))):
        module: Any = SimpleNamespace(trainer=SimpleNamespace(state=SimpleNamespace(fn=command)))
        strategy.connect(module)
        assert tuple(strategy.distributed_sampler_kwargs[name] for name in ("rank", "num_replicas")) == share


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_overlay_changes_the_strategy_alone(stage: int) -> None:
    settings = yaml.safe_load((CONFIGS / f"sequence_parallel_zero{stage}.yaml").read_text())
    (strategy,) = settings.pop("trainer").values()
    assert settings == {}
    assert strategy["class_path"] == f"{SequenceZeroStrategy.__module__}.{SequenceZeroStrategy.__name__}"
    assert zero_stage(strategy) == stage, "its checkpoints are continued as ZeRO's"
    assert zero_stage({**strategy, "class_path": "pytorch_lightning.strategies.DDPStrategy"}) is None
    built = SequenceZeroStrategy(**strategy["init_args"])
    assert (built.stage, built.sequence_parallel_size) == (stage, 2)
    assert isinstance(built.config, dict)
    assert built.config["zero_optimization"]["stage"] == stage
    assert built.config["communication_data_type"] == "fp32"


def config_of(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"num_attention_heads": 8, "num_key_value_heads": 2} | changes))


@pytest.mark.parametrize(
    ("size", "config", "message"),
    [
        (3, config_of(), r"size 3: .* 8 attention heads \(2 key-value heads\).*use one of 2, 4, 8$"),
        (4, config_of(num_attention_heads=12, num_key_value_heads=6), "use one of 2, 3, 6, 12"),
        (2, config_of(layer_types=["full_attention", "sliding_attention"]), "layers of sliding_attention"),
        (2, config_of(rope_parameters={"rope_type": "longrope"}), "positions of type 'longrope'"),
    ],
)
def test_what_cannot_be_divided_is_refused(size: int, config: SimpleNamespace, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_sequence_parallel(size, config)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_heads_that_can_be_shared_are_not_refused(size: int) -> None:
    config = config_of(layer_types=["full_attention"], rope_parameters={"rope_type": "linear", "factor": 16.0})
    check_sequence_parallel(size, config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "sequence_parallel_size is 2, which does not divide the run's 1 process (trainer.devices x"),
        (
            ["--trainer.strategy.init_args.sequence_parallel_size=1"],
            "sequence_parallel_size is 1; it must be 2 or more",
        ),
    ],
)
def test_processes_that_form_no_group_end_the_run_before_weights_load(
    words: list[str], message: str, fit_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fit", "--config", str(fit_config()), "--config", str(CONFIG), *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longvid: ")]
    assert message in line


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_heads_that_cannot_be_shared_end_all_processes_with_one_line(
    fit_config: Callable[..., Path],
    start_fit: Callable[..., "subprocess.Popen[str]"],
    finish_fit: Callable[["subprocess.Popen[str]"], tuple[int, list[str]]],
) -> None:
    words = ["--trainer.devices", "3", "--trainer.strategy.init_args.sequence_parallel_size=3"]
    process = start_fit("--config", str(fit_config()), "--config", str(CONFIG), *words)
    status, (line,) = finish_fit(process)
    assert status == 2
    assert "2 attention heads (2 key-value heads) cannot be shared equally by 3 processes; use one of 2" in line
