"""Batches of the data module: token budgets, packing, modalities, weights, and rows left out before they are drawn."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longvid_train.data.conversation import ConversationOptions
from longvid_train.data.datamodule import ManifestDataModule
from longvid_train.data.dataset import BadSamples
from longvid_train.data.loading import LoadingOptions, ModalityWeights, accumulation_steps
from longvid_train.data.order import IMAGE, TEXT, VIDEO
from longvid_train.errors import UserError

IMAGE_ROW = {
    "id": "image",
    "media": [{"type": "image", "path": "grey.png"}],
    "conversation": [{"role": "user", "text": "<image>\nWhat?"}, {"role": "assistant", "text": "grey"}],
}


def text_row(number: int) -> dict[str, Any]:
    turns = [{"role": "user", "text": "a" * (5 * number + 1)}, {"role": "assistant", "text": "b"}]
    return {"id": f"text-{number}", "conversation": turns}


@pytest.fixture
def make_module(processor: Any, write_rows: Callable[..., Path], tmp_path: Path) -> Callable[..., ManifestDataModule]:
    def make(rows: list[dict[str, Any]], **changes: Any) -> ManifestDataModule:
        processor.save_pretrained(tmp_path)
        loading = LoadingOptions(**{"seed": 2, **changes.pop("loading", {})})
        return ManifestDataModule(str(tmp_path), train=str(write_rows(rows, "making")), loading=loading, **changes)

    return make


def test_the_table_has_what_the_encoded_rows_have(make_module: Any, video_row: Any) -> None:
    module = make_module([video_row(0), IMAGE_ROW, text_row(3)])
    table, dataset = module.row_table(), module.dataset("train")
    rows = [dataset[index] for index in range(3)]
    visual = [int((row.input_ids == module.processor.visual_token_id).sum()) for row in rows]
    assert list(table.visual_tokens) == visual == [8, 17, 0]
    assert [sum(pair) for pair in zip(table.text_tokens, visual, strict=True)] == [len(row.input_ids) for row in rows]
    assert list(table.frames) == [4, 1, 0]
    assert list(table.modalities) == [VIDEO, IMAGE, TEXT]
    assert table.summary().startswith(f"3 of 3 rows usable, {sum(len(row.input_ids) for row in rows)} tokens")


@pytest.mark.parametrize("packing", [False, True])
def test_token_batches_hold_the_budget_and_text_runs_alone(make_module: Any, video_row: Any, packing: bool) -> None:
    rows = [*[text_row(number) for number in range(12)], *[video_row(number) for number in range(5)], IMAGE_ROW]
    options = {"max_tokens_per_batch": 300, "packing": packing, "group_by_modality": True, "num_workers": 0}
    module = make_module(rows, loading=options, conversation=ConversationOptions(max_tokens=300))
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) < 9
    assert sorted(row for batch in batches for row in batch["sample_ids"]) == sorted(row["id"] for row in rows)
    for batch in batches:
        shape = batch["text"]["input_ids"].shape
        assert shape.numel() <= 300
        assert ("position_ids" in batch["text"], "attention_mask" in batch["text"]) == (packing, not packing)
        assert (shape[0] == 1) if packing else (shape[0] == len(batch["sample_ids"]))
        kinds = {row.split("-")[0] for row in batch["sample_ids"]}
        assert len(kinds) == 1
        assert (batch["visual"] is None) == (kinds == {"text"})


def test_rows_that_cannot_be_used_are_left_out_once_before_they_are_drawn(make_module: Any, video_row: Any) -> None:
    rows = [text_row(0), video_row(1, "broken.mp4"), text_row(90), text_row(2)]
    module = make_module(
        rows,
        loading={"max_tokens_per_batch": 200},
        conversation=ConversationOptions(max_tokens=200),
        bad_samples=BadSamples(on_bad_sample="skip", too_long="skip"),
    )
    assert list(module.row_table().usable) == [1, 0, 0, 1]
    loader = module.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        assert sorted(row for batch in loader for row in batch["sample_ids"]) == ["text-0", "text-2"]
    counts = module.counts()["train"]
    assert (counts.bad_samples, counts.too_long_samples) == (1, 1)
    with pytest.raises(UserError, match=r"making\.jsonl:1 \(sample 'text-90'\): the row has \d+ tokens"):
        make_module(
            rows[2:], loading={"group_by_length": True}, conversation=ConversationOptions(max_tokens=200)
        ).row_table()


def test_modalities_are_visited_by_their_weights(make_module: Any, video_row: Any) -> None:
    rows = [*[text_row(number) for number in range(8)], *[video_row(number) for number in range(3)], IMAGE_ROW]
    weights = ModalityWeights(text=0.5, image=0.0, video=2.0)
    module = make_module(rows, loading={"batch_size": 2, "modality_weights": weights})
    ids = Counter(row for batch in module.train_dataloader() for row in batch["sample_ids"])
    assert {row: count for row, count in ids.items() if row.startswith("row")} == {"row-0": 2, "row-1": 2, "row-2": 2}
    assert sum(count for row, count in ids.items() if row.startswith("text")) == 4
    assert "image" not in ids
    with pytest.raises(UserError, match=r"modality_weights\.text is -1"):
        ModalityWeights(text=-1)


@pytest.mark.parametrize(
    ("total", "batch", "ranks", "expected"),
    [
        (256, 8, 8, 4),
        (8, 8, 1, 1),
        (
            256,
            12,
            8,
            "batches of 12 rows on 8 ranks (96 rows at once); use batch_size 8, or a global_batch_size that is",
        ),
        (10, 4, 3, "batches of 4 rows on 3 ranks (12 rows at once); use a multiple of 12"),
        (4, 8, 1, "batches of 8 rows on 1 rank (8 rows at once); use batch_size 4, or"),
    ],
)
def test_a_global_batch_is_divided_or_refused(total: int, batch: int, ranks: int, expected: int | str) -> None:
    if isinstance(expected, int):
        assert accumulation_steps(total, batch, ranks) == expected
        return
    with pytest.raises(UserError) as caught:
        accumulation_steps(total, batch, ranks)
    assert expected in str(caught.value)
