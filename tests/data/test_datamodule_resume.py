"""The data module under Lightning: configs, ranks, workers, failures, and a resume in the middle of an epoch."""

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from torchdata.stateful_dataloader import StatefulDataLoader

from longvid_train.data.conversation import ConversationOptions
from longvid_train.data.datamodule import ManifestDataModule, ManifestSource
from longvid_train.data.dataset import BadSamples
from longvid_train.data.loader import BatchCollator, ManifestLoader, make_loader
from longvid_train.data.loading import LoadingOptions
from longvid_train.data.media import MediaOptions
from longvid_train.data.order import RowOrder, Stratum
from longvid_train.errors import UserError
from longvid_train.types import Batch
from longvid_train.video import FramesPerSecond, UniformFrames


def new_children(earlier: list[BaseProcess]) -> list[BaseProcess]:
    """Children of this process beside those that other tests left and nobody has collected yet."""
    return [child for child in multiprocessing.active_children() if child not in earlier]


def text_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{n}",
            "conversation": [{"role": "user", "text": f"{n}?"}, {"role": "assistant", "text": "a" * (n % 7 + 1)}],
        }
        for n in range(count)
    ]


class Recorder(pl.LightningModule):
    """Records the ids of every batch; stops the run by an exception after ``crash_after`` batches in all."""

    def __init__(self, crash_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, tuple[str, ...]]] = []
        self.crash_after = crash_after

    def training_step(self, batch: Batch) -> torch.Tensor:
        if len(self.seen) == self.crash_after:
            raise RuntimeError("power cut")
        self.seen.append((self.current_epoch, tuple(batch["sample_ids"])))
        return self.weight.sum() * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **changes: Any) -> pl.Trainer:
    options = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "max_epochs": 3,
        "limit_val_batches": 0,
        **changes,
    }
    return pl.Trainer(**options)  # type: ignore[arg-type]


def checkpoint_every_step(folder: Path) -> pl.callbacks.ModelCheckpoint:
    return pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


@pytest.mark.parametrize(
    ("first_workers", "then_workers", "grouped", "crash_after"),
    [
        (0, 0, False, 7),
        (2, 2, True, 7),
        (2, 0, False, 2),
        (0, 2, False, 4),
        (1, 2, False, 6),
        (0, 0, False, 5),
        (0, 0, True, 10),
    ],
)
def test_resume_gives_exactly_the_remaining_batches(
    make_module: Any, tmp_path: Path, first_workers: int, then_workers: int, grouped: bool, crash_after: int
) -> None:
    def module(workers: int) -> ManifestDataModule:
        return make_module(text_rows(9), loading={"num_workers": workers, "group_by_length": grouped})  # type: ignore[no-any-return]

    whole = Recorder()
    trainer(tmp_path, enable_checkpointing=False).fit(whole, datamodule=module(0))
    assert len(whole.seen) == 15, "3 epochs of 5 batches"
    for epoch in range(3):
        assert sorted(int(i) for at, ids in whole.seen if at == epoch for i in ids) == list(range(9))
    assert [ids for _, ids in whole.seen[:5]] != [ids for _, ids in whole.seen[5:10]]

    crashed = Recorder(crash_after)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path, callbacks=[checkpoint_every_step(tmp_path)]).fit(crashed, datamodule=module(first_workers))
    resumed = Recorder()
    trainer(tmp_path, enable_checkpointing=False).fit(
        resumed, datamodule=module(then_workers), ckpt_path=tmp_path / f"step={crash_after}.ckpt", weights_only=False
    )
    assert crashed.seen + resumed.seen == whole.seen


class StepReader(Recorder):
    """Reads ``estimated_stepping_batches`` where a schedule would: Lightning then makes the loader before it knows a
    checkpoint's loader state, and never restores that state (Lightning issue 20550)."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches == 15
        return super().configure_optimizers()


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_the_number_of_steps_first_does_not_lose_the_place(
    make_module: Any, tmp_path: Path, workers: int
) -> None:
    whole = Recorder()
    trainer(tmp_path, enable_checkpointing=False).fit(whole, datamodule=make_module(text_rows(9)))
    crashed = StepReader(8)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path, callbacks=[checkpoint_every_step(tmp_path)]).fit(
            crashed, datamodule=make_module(text_rows(9))
        )
    resumed, module = StepReader(), make_module(text_rows(9), loading={"num_workers": workers})
    trainer(tmp_path, enable_checkpointing=False).fit(
        resumed, datamodule=module, ckpt_path=tmp_path / "step=8.ckpt", weights_only=False
    )
    assert crashed.seen + resumed.seen == whole.seen
    again = Recorder()
    trainer(tmp_path, enable_checkpointing=False).fit(again, datamodule=module)
    assert again.seen == whole.seen, "a fresh run with the same data module starts at the first batch"


def loader_of(module: ManifestDataModule, **changes: Any) -> ManifestLoader:
    dataset = module.dataset("train")
    options: dict[str, Any] = {"seed": 1, "shuffle": True, "batch_size": 2, **changes}
    rank, num_workers = options.pop("rank", 0), options.pop("num_workers", 0)
    order = RowOrder(strata=(Stratum(range(len(dataset))),), **options)
    return make_loader(dataset, order, BatchCollator(module.processor), rank=rank, num_workers=num_workers)


def ids_of(loader: ManifestLoader) -> list[str]:
    return [sample_id for batch in loader for sample_id in batch["sample_ids"]]


def test_two_ranks_share_no_row(make_module: Any) -> None:
    module = make_module(text_rows(9))
    ranks = [loader_of(module, world_size=2, rank=rank) for rank in range(2)]
    for epoch in range(2):
        for loader in ranks:
            loader.sampler.set_epoch(epoch)
        ids = [ids_of(loader) for loader in ranks]
        assert [len(rank) for rank in ids] == [4, 4]
        assert len(set(ids[0] + ids[1])) == 8


def test_a_second_pass_starts_at_the_first_row_again(make_module: Any) -> None:
    loader = loader_of(make_module(text_rows(6)))
    first = ids_of(loader)
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "batches": 1})
    assert ids_of(loader) == first[2:]
    assert ids_of(loader) == first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_state_is_that_of_the_batches_consumed_not_of_those_read_ahead(make_module: Any, num_workers: int) -> None:
    earlier = multiprocessing.active_children()
    loader = loader_of(make_module(text_rows(12)), num_workers=num_workers)
    assert isinstance(loader, StatefulDataLoader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (0, 0)
    assert new_children(earlier) == [], "asking an idle loader starts no workers"
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches, places = iter(loader), []
        for _ in range(6):
            next(batches)
            places.append((loader.state_dict()["epoch"], loader.state_dict()["batches"]))
        assert places == [(epoch, consumed) for consumed in range(1, 7)]
        assert next(batches, None) is None
        assert places[-1] == (epoch, loader.state_dict()["batches"])


def test_a_pass_that_is_broken_off_is_begun_again(make_module: Any) -> None:
    loader = loader_of(make_module(text_rows(6)), shuffle=False)
    assert next(iter(loader))["sample_ids"] == ["0", "1"]
    assert ids_of(loader) == [f"{row}" for row in range(6)]


def test_workers_outlive_the_sigterm_that_a_cluster_sends_to_all_processes(make_module: Any) -> None:
    """Sent by another process, as by a cluster: torch's workers die of it, and the loader raises in the middle of a
    step. A worker still ends when its own process says so."""
    earlier = multiprocessing.active_children()
    loader = loader_of(make_module(text_rows(40)), shuffle=False, num_workers=2)
    batches = iter(loader)
    read = next(batches)["sample_ids"]
    workers = new_children(earlier)
    assert len(workers) == 2
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in workers)], check=True)
    for batch in batches:
        read += batch["sample_ids"]
    assert read == [f"{row}" for row in range(40)]
    other = iter(loader)
    next(other)
    for worker in new_children(earlier):
        os.kill(worker.pid or 0, signal.SIGTERM)
        worker.join(timeout=60)
        assert worker.exitcode == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_a_state_discards_the_batches_read_ahead(make_module: Any, num_workers: int) -> None:
    loader = loader_of(make_module(text_rows(8)), shuffle=False, num_workers=num_workers)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    next(batches)
    next(batches)
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    assert ids_of(loader) == [f"{row}" for row in range(2, 8)]
    loader.load_state_dict({**state, "batches": 4})
    assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (1, 0), "a whole epoch is behind"


def test_resuming_with_another_order_is_refused(make_module: Any) -> None:
    module = make_module(text_rows(6))
    state = loader_of(module).state_dict()
    with pytest.raises(UserError, match="data order has batch_size = 2 and this run has 3; resume with the settings"):
        loader_of(module, batch_size=3).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_workers_failure_is_one_clear_line(make_module: Any, video_row: Any, workers: int) -> None:
    module = make_module([video_row(1, "broken.mp4"), *text_rows(3)], loading={"num_workers": workers})
    with pytest.raises(UserError) as caught:
        list(module.train_dataloader())
    assert "data.jsonl:1 (sample 'row-1'): " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_rows_make_batches_smaller_and_are_counted(make_module: Any, video_row: Any, workers: int) -> None:
    rows = [*text_rows(3), video_row(1, "broken.mp4"), video_row(2, "broken.mp4"), video_row(3, "broken.mp4")]
    module = make_module(
        rows, bad_samples=BadSamples(on_bad_sample="skip"), loading={"num_workers": workers, "eval_batch_size": 2}
    )
    assert [batch["sample_ids"] for batch in module.val_dataloader()] == [["0", "1"], ["2"]]
    assert module.counts()["val"].bad_samples == 3


def test_a_wholly_skipped_batch_stops_a_run_of_several_ranks(make_module: Any, video_row: Any) -> None:
    module = make_module([video_row(1, "broken.mp4"), *text_rows(3)], bad_samples=BadSamples(on_bad_sample="skip"))
    loader = loader_of(module, batch_size=1, world_size=2, shuffle=False)
    with pytest.raises(UserError, match="every row of a batch was skipped as bad"):
        list(loader)


def test_predict_batches_are_open_and_padded_on_the_left(make_module: Any) -> None:
    module = make_module(text_rows(12), loading={"eval_batch_size": 12})
    (batch,) = list(module.predict_dataloader())
    assert batch["text"]["attention_mask"][:, -1].all() and not batch["text"]["attention_mask"][0, 0]
    tokenizer = module.processor.tokenizer
    assert all(tokenizer.decode(ids).endswith(f"{n}? ASSISTANT:") for n, ids in enumerate(batch["text"]["input_ids"]))
    (taught,) = list(module.test_dataloader())
    assert (taught["text"]["labels"] != -100).any(dim=1).all()


def test_real_videos_through_workers_equal_the_main_process(make_module: Any, video_row: Any) -> None:
    rows = [video_row(number) for number in range(3)]
    batches = [list(make_module(rows, loading={"num_workers": workers}).train_dataloader()) for workers in (0, 2)]
    assert [batch["sample_ids"] for batch in batches[0]] == [batch["sample_ids"] for batch in batches[1]]
    for left, right in zip(*batches, strict=True):
        assert torch.equal(left["visual"]["pixel_values"], right["visual"]["pixel_values"])


def _parsed(values: dict[str, Any]) -> Iterator[Any]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    config = {"class_path": "longvid_train.data.datamodule.ManifestDataModule", "init_args": values}
    return parser.instantiate_classes(parser.parse_object({"data": config})).data  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"count": 8, "at_most": True}, UniformFrames(count=8, at_most=True)),
        ({"fps": 2.0, "max_frames": 64}, FramesPerSecond(fps=2.0, max_frames=64)),
        (
            {"class_path": "longvid_train.video.UniformFrames", "init_args": {"count": 8}},
            UniformFrames(count=8),
        ),
    ],
)
def test_a_config_builds_it(processor_folder: str, sampling: dict[str, Any], expected: Any) -> None:
    module: Any = _parsed(
        {
            "processor": processor_folder,
            "train": ["a.jsonl", {"path": "b.jsonl", "weight": 0.5}],
            "val": "v.jsonl",
            "template": "plain",
            "conversation": {"placeholder_position": "random", "max_tokens": 4096},
            "media": {"sampling": sampling, "cache_bytes": 1000},
            "bad_samples": {"on_bad_sample": "skip"},
            "loading": {"batch_size": 4},
        }
    )
    assert isinstance(module, ManifestDataModule)
    assert module._media == MediaOptions(sampling=expected, cache_bytes=1000)
    assert module.conversation == ConversationOptions(placeholder_position="random", max_tokens=4096)
    assert module._paths == {"train": ["a.jsonl", "b.jsonl"], "val": ["v.jsonl"], "test": []}
    assert module._weights == (1.0, 0.5)


def test_bad_settings_are_named(processor_folder: str) -> None:
    with pytest.raises(UserError, match="batch_size is 0; it must be at least 1"):
        LoadingOptions(batch_size=0)
    with pytest.raises(UserError, match=r"weight of manifest 'a' is 0\.0; it must be greater"):
        ManifestSource(path="a", weight=0.0)
    with pytest.raises(UserError, match="names no manifest for 'train'"):
        ManifestDataModule(processor_folder).train_dataloader()
