"""A training loader reads on past the end of an epoch: same batches, same workers, and a resume from any place."""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from longvid_train.data.datamodule import ManifestDataModule
from longvid_train.data.dataset import BadSamples
from longvid_train.data.loader import BatchCollator, ManifestLoader, make_loader
from longvid_train.data.loading import LoadingOptions
from longvid_train.data.order import RowOrder, Stratum
from longvid_train.data.worker_threads import decoding_threads
from longvid_train.errors import UserError
from longvid_train.video import read_clip

MakeModule = Callable[..., ManifestDataModule]
ROWS = 7
BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class RecordedOrder(RowOrder):
    """Notes the epochs it is asked for."""

    asked: ClassVar[list[int]] = []

    def batches(self, epoch: int, rank: int) -> list[list[int]]:
        self.asked.append(epoch)
        return super().batches(epoch, rank)


def rows(count: int = ROWS) -> list[dict[str, Any]]:
    turns = [{"role": "user", "text": "which?"}, {"role": "assistant", "text": "a"}]
    return [{"id": f"{number}", "conversation": turns} for number in range(count)]


def loader(module: ManifestDataModule, **options: Any) -> ManifestLoader:
    RecordedOrder.asked.clear()
    dataset = module.dataset("train")
    order = RecordedOrder(strata=(Stratum(range(len(dataset))),), seed=1, shuffle=True, batch_size=2)
    return make_loader(dataset, order, BatchCollator(module.processor), **options)


def process_ids() -> set[int | None]:
    """Of this process's children; other tests may have left some that nobody has collected yet."""
    return {process.pid for process in multiprocessing.active_children()}


def epoch_of(loader: ManifestLoader, epoch: int) -> list[tuple[str, ...]]:
    loader.sampler.set_epoch(epoch)
    return [tuple(batch["sample_ids"]) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_those_of_a_loader_that_begins_each_anew(make_module: MakeModule, workers: int) -> None:
    module = make_module(rows())
    anew = loader(module)
    expected = [epoch_of(anew, epoch) for epoch in range(3)]
    assert (
        len({tuple(sorted(i for ids in epoch for i in ids)) for epoch in expected}) == 1 < len(set(map(str, expected)))
    )
    earlier, processes = process_ids(), []
    ahead = loader(module, num_workers=workers, epochs=3)
    for epoch in range(3):
        assert epoch_of(ahead, epoch) == expected[epoch]
        processes.append(process_ids() - earlier)
    assert len(processes[0]) == workers
    assert processes == [processes[0], processes[0], set()], "the same workers, which end with the last epoch"


@pytest.mark.parametrize(("epochs", "read_on"), [(0, False), (1, False), (2, True), (None, True)])
def test_the_next_epoch_is_begun_while_this_one_ends(
    make_module: MakeModule, epochs: int | None, read_on: bool
) -> None:
    ahead = loader(make_module(rows()), num_workers=1, prefetch_factor=3, epochs=epochs)
    batches = iter(ahead)
    next(batches)
    assert RecordedOrder.asked == [0], "3 batches ahead of the first are the rest of the epoch"
    next(batches)
    assert RecordedOrder.asked == ([0, 1] if read_on else [0])
    assert (ahead.state_dict()["epoch"], ahead.state_dict()["batches"]) == (0, 2)


def test_without_workers_nothing_is_read_before_it_is_asked_for(make_module: MakeModule) -> None:
    plain = loader(make_module(rows()), epochs=None)
    assert len(epoch_of(plain, 0)) == BATCHES
    assert RecordedOrder.asked == [0]


@pytest.mark.parametrize(("first", "then"), [(2, 0), (0, 1), (1, 1)])
def test_a_resume_from_any_place_gives_what_is_left(make_module: MakeModule, first: int, then: int) -> None:
    """Places in the middle, at the end of an epoch, and behind an end that was read over."""
    module = make_module(rows())
    whole = [ids for epoch in range(3) for ids in epoch_of(loader(module), epoch)]
    ahead = loader(module, num_workers=first, epochs=3)
    states: list[dict[str, Any]] = []
    seen: list[tuple[str, ...]] = []
    for epoch in range(3):
        ahead.sampler.set_epoch(epoch)
        for batch in ahead:
            seen.append(tuple(batch["sample_ids"]))
            states.append(ahead.state_dict())
    assert seen == whole
    for stop in (1, BATCHES - 1, BATCHES, BATCHES + 1, 2 * BATCHES):
        resumed = loader(module, num_workers=then, epochs=3)
        resumed.load_state_dict(states[stop - 1])
        iter(resumed)
        left = [tuple(batch["sample_ids"]) for batch in resumed]
        for epoch in range(stop // BATCHES + 1, 3):
            left += epoch_of(resumed, epoch)
        assert left == whole[stop:], stop


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pass_whose_end_nobody_asks_for_is_followed_by_a_whole_one(make_module: MakeModule, workers: int) -> None:
    """Lightning takes as many batches as there are; it validates twice in an epoch here, then in each one."""
    module = make_module(rows())
    expected = [epoch_of(loader(module), epoch) for epoch in range(3)]
    held_out = loader(module, num_workers=workers, epochs=0)
    for epoch in (0, 0, 1, 2):
        held_out.sampler.set_epoch(epoch)
        taken = islice(iter(held_out), BATCHES)
        assert [tuple(batch["sample_ids"]) for batch in taken] == expected[epoch]


def test_a_jump_to_another_epoch_starts_there(make_module: MakeModule) -> None:
    module = make_module(rows())
    expected = epoch_of(loader(module), 5)
    ahead = loader(module, num_workers=1, epochs=None)
    epoch_of(ahead, 0)
    assert epoch_of(ahead, 5) == expected
    assert epoch_of(ahead, 0) == epoch_of(loader(module), 0)


def test_a_skipped_batch_does_not_shift_the_epoch_s_end(make_module: MakeModule, video_row: Any) -> None:
    given = [video_row(1, "broken.mp4"), video_row(2, "broken.mp4"), *rows(6)]
    module = make_module(given, bad_samples=BadSamples(on_bad_sample="skip"))
    ahead = loader(module, num_workers=1, epochs=2)
    for epoch in range(2):
        found = [sample_id for ids in epoch_of(ahead, epoch) for sample_id in ids]
        assert sorted(found) == [f"{number}" for number in range(6)]
    assert module.counts()["train"].bad_samples == 4


class Nothing(pl.LightningModule):
    """Trains nothing and notes each epoch's rows and workers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, str]] = []
        self.earlier = process_ids()
        self.workers: list[frozenset[int | None]] = []

    def training_step(self, batch: Any) -> torch.Tensor:
        self.seen += [(self.current_epoch, sample_id) for sample_id in batch["sample_ids"]]
        self.workers.append(frozenset(process_ids() - self.earlier))
        return self.weight.sum() * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_run_keeps_its_workers_to_the_end_and_no_longer(make_module: MakeModule, tmp_path: Path) -> None:
    """6 of the 12 batches of three epochs: the run ends in the middle of one."""
    model, module = Nothing(), make_module(rows(), loading={"num_workers": 1})
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        max_steps=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=module)
    assert sorted(int(i) for epoch, i in model.seen if epoch == 0) == list(range(ROWS))
    assert len(set(model.workers)) == 1 and len(model.workers[0]) == 1
    assert process_ids() <= model.earlier


@pytest.mark.parametrize(
    ("given", "device", "pinned"),
    [(None, "cuda", True), (None, "cpu", False), (False, "cuda", False), (True, "cpu", True)],
)
def test_batches_are_pinned_for_a_gpu_unless_told_otherwise(
    make_module: MakeModule, given: bool | None, device: str, pinned: bool
) -> None:
    module = make_module(rows(), loading={"pin_memory": given, "num_workers": 1, "prefetch_factor": 5})
    strategy = SimpleNamespace(root_device=torch.device(device))
    module.trainer = SimpleNamespace(
        strategy=strategy, global_rank=0, world_size=1, max_epochs=4, distributed_sampler_kwargs=None
    )
    made = module.train_dataloader()
    assert (made.pin_memory, made.prefetch_factor) == (pinned, 5)
    assert made.sampler.is_read_ahead(3) and not made.sampler.is_read_ahead(4)


@pytest.mark.gpu
def test_every_tensor_of_a_batch_is_pinned_and_copied_without_waiting(make_module: MakeModule, video_row: Any) -> None:
    module = make_module([video_row(number) for number in range(4)], loading={"num_workers": 1, "pin_memory": True})
    batch = next(iter(module.train_dataloader()))
    tensors = [value for part in (batch["text"], batch["visual"]) for value in part.values()]
    assert len(tensors) == 8 and all(tensor.is_pinned() for tensor in tensors)
    moved = pl.LightningModule().transfer_batch_to_device(batch, torch.device("cuda"), 0)
    torch.cuda.synchronize()
    assert torch.equal(moved["visual"]["pixel_values"].cpu(), batch["visual"]["pixel_values"])
    assert moved["sample_ids"] == batch["sample_ids"]


class Threads(Dataset[int]):
    """Its items are the threads that a video would be decoded with; 0 leaves them to the reader."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return decoding_threads() or 0


def test_a_worker_decodes_with_one_thread_and_a_process_without_workers_with_all(
    make_module: MakeModule, video_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [int(threads) for threads in DataLoader(Threads(), num_workers=2, batch_size=None)] == [1, 1]
    assert [int(threads) for threads in DataLoader(Threads(), batch_size=None)] == [0, 0]
    given: list[Any] = []
    monkeypatch.setattr(
        "longvid_train.data.media.read_clip",
        lambda *words, workers, **options: given.append(workers) or read_clip(*words, workers=workers, **options),
    )
    monkeypatch.setattr("longvid_train.data.media.decoding_threads", lambda: 3)
    assert len(list(loader(make_module([video_row(1)])))) == 1
    assert given == [3]


def test_a_worker_reads_at_least_one_batch_ahead() -> None:
    with pytest.raises(UserError, match="prefetch_factor is 0; it must be at least 1"):
        LoadingOptions(prefetch_factor=0)
