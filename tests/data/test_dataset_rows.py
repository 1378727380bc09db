"""Real files through the data set: frames, subtitles, windows, the cache, bad rows and batches."""

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longvid_train.data.collate import collate
from longvid_train.data.conversation import ConversationOptions
from longvid_train.data.dataset import BadSamples, BatchFailure, DatasetCounts, Draw, ManifestDataset
from longvid_train.data.manifest import ManifestRules, read_manifest
from longvid_train.data.media import MediaOptions
from longvid_train.data.templates import VICUNA_V1
from longvid_train.errors import UserError
from longvid_train.types import IGNORE_INDEX
from longvid_train.video import FramesPerSecond, UniformFrames

TEXT_ROW = {"id": "text", "conversation": [{"role": "user", "text": "Hi"}, {"role": "assistant", "text": "yo"}]}
IMAGE_ROW = {
    "id": "image",
    "media": [{"type": "image", "path": "grey.png"}],
    "conversation": [{"role": "user", "text": "<image>\nWhat?"}, {"role": "assistant", "text": "grey"}],
}


@pytest.fixture
def make_dataset(processor: Any, write_rows: Callable[..., Path]) -> Callable[..., ManifestDataset]:
    def make(*manifests: list[dict[str, Any]], **changes: Any) -> ManifestDataset:
        read = [
            read_manifest(write_rows(rows, f"m{number}"), ManifestRules(check_files=False))
            for number, rows in enumerate(manifests)
        ]
        options: dict[str, Any] = {"conversation": ConversationOptions(), "media": MediaOptions(), **changes}
        return ManifestDataset(read, processor, VICUNA_V1, **options)

    return make


def grey_levels(processor: Any, pixels: torch.Tensor) -> list[float]:
    """Grey level in 0..255 of each preprocessed frame, from its red channel."""
    mean, std = processor.settings.image_mean[0], processor.settings.image_std[0]
    return [round(float(value), 0) for value in (pixels[:, 0].mean(dim=(1, 2)) * std + mean) * 255]


def test_frames_are_the_ones_sampled(processor: Any, make_dataset: Any, video_row: Any) -> None:
    row = make_dataset([video_row(7)])[0]
    assert row.sample_id == "row-7"
    assert grey_levels(processor, row.pixel_values) == pytest.approx([0, 60, 120, 180], abs=3)
    assert row.spans.tolist() == [[0, 4, 0]]
    assert row.prompts == ("Which digit is number 7?",)


def test_a_rows_window_replaces_the_samplings(processor: Any, make_dataset: Any, video_row: Any) -> None:
    media = [{"type": "video", "path": "ramp.mp4", "start_s": 2.0, "end_s": 3.5}]
    row = make_dataset([video_row(1, media=media)])[0]
    assert grey_levels(processor, row.pixel_values) == pytest.approx([120, 180], abs=3)


def test_subtitles_stand_behind_their_frames(processor: Any, make_dataset: Any, video_row: Any) -> None:
    media = [{"type": "video", "path": "ramp.mp4", "subtitles": "ramp.srt"}]
    dataset = make_dataset([video_row(1, media=media)])
    row = dataset[0]
    text = processor.tokenizer.decode(row.input_ids)
    assert "<vis><vis><vis><vis> first line<vis><vis><vis><vis> second line\nWhich" in text.replace(
        "<vis> <vis>", "<vis><vis>"
    )
    assert dataset.plan(0).tokens.total == len(row.input_ids)
    cut = make_dataset([video_row(1, media=[{**media[0], "start_s": 2.0}])])[0]
    assert "first line" not in processor.tokenizer.decode(cut.input_ids)


def test_length_is_exact_without_decoding(make_dataset: Any, video_row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(
        [video_row(1), IMAGE_ROW, TEXT_ROW], media=MediaOptions(sampling=UniformFrames(count=100, at_most=True))
    )
    encoded = [len(dataset[index].input_ids) for index in range(3)]
    monkeypatch.setattr("longvid_train.data.media.read_clip", None)
    assert [dataset.plan(index).tokens.total for index in range(3)] == encoded


def test_rows_of_several_manifests_are_numbered_on(make_dataset: Any, video_row: Any) -> None:
    dataset = make_dataset([video_row(0), video_row(1)], [TEXT_ROW])
    assert len(dataset) == 3
    assert [dataset.sample(index).id for index in range(3)] == ["row-0", "row-1", "text"]
    with pytest.raises(IndexError):
        dataset[3]


def test_cache_decodes_once_and_gives_the_same_frames(make_dataset: Any, video_row: Any) -> None:
    rows = [video_row(number) for number in range(3)]
    plain = make_dataset(rows)
    expected = [plain[index].pixel_values for index in range(3)]
    cached = make_dataset(rows, media=MediaOptions(cache_bytes=1 << 20))
    batch = cached.__getitems__([0, 1, 2, 0])
    assert cached.counts() == DatasetCounts(0, 0, cache_hits=3, cache_misses=1)
    for index, row in zip([0, 1, 2, 0], batch, strict=True):
        assert torch.equal(row.pixel_values, expected[index])
    bytes_of_clip = 4 * 48 * 64 * 3
    small = make_dataset(rows, media=MediaOptions(cache_bytes=bytes_of_clip - 1))
    small.__getitems__([0, 1])
    assert small.counts() == DatasetCounts(0, 0, cache_hits=0, cache_misses=2)
    assert small._loader.cache.used_bytes == 0


def test_cache_stays_in_its_bounds(make_dataset: Any, video_row: Any) -> None:
    windows = [[{"type": "video", "path": "ramp.mp4", "start_s": start}] for start in (0.0, 1.0, 2.0)]
    rows = [video_row(number, media=media) for number, media in enumerate(windows)]
    frame_bytes = 48 * 64 * 3
    dataset = make_dataset(rows, media=MediaOptions(cache_bytes=5 * frame_bytes))
    for index, used in ((0, 4), (1, 3), (2, 5), (1, 5), (2, 5)):
        dataset[index]
        assert dataset._loader.cache.used_bytes == used * frame_bytes
    assert dataset._loader.cache.hits == 2


def test_a_bad_row_stops_the_run_by_default(make_dataset: Any, video_row: Any) -> None:
    dataset = make_dataset([TEXT_ROW, video_row(3, "broken.mp4")])
    failure = dataset.__getitems__([0, 1])
    assert isinstance(failure, BatchFailure)
    assert failure.message.startswith(f"{dataset.manifests[0].path}:2 (sample 'row-3'): ")
    assert "broken.mp4" in failure.message and "\n" not in failure.message
    with pytest.raises(UserError, match=r"m0\.jsonl:2 \(sample 'row-3'\)"):
        dataset[1]


def test_skipped_rows_are_counted_logged_and_limited(
    make_dataset: Any, video_row: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [TEXT_ROW, video_row(1, "broken.mp4"), video_row(2), video_row(3, "absent.mp4")]
    dataset = make_dataset(rows, bad_samples=BadSamples(on_bad_sample="skip", max_bad_samples=2))
    with caplog.at_level(logging.WARNING):
        kept = dataset.__getitems__([0, 1, Draw(2, 5), 3])
    assert [row.sample_id for row in kept] == ["text", "row-2"]
    assert dataset.counts().bad_samples == 2
    assert [record.message.split("(")[1].split(")")[0] for record in caplog.records] == [
        "sample 'row-1'",
        "sample 'row-3'",
    ]
    failure = dataset.__getitems__([1])
    assert isinstance(failure, BatchFailure)
    assert failure.message.startswith("3 bad samples, more than max_bad_samples = 2; the last: ")


@pytest.mark.parametrize("too_long", ["error", "skip"])
def test_too_long_rows_have_a_policy_of_their_own(make_dataset: Any, video_row: Any, too_long: Any) -> None:
    dataset = make_dataset(
        [TEXT_ROW, video_row(1)],
        conversation=ConversationOptions(max_tokens=50),
        bad_samples=BadSamples(on_bad_sample="skip", max_bad_samples=0, too_long=too_long),
    )
    batch = dataset.__getitems__([0, 1])
    if too_long == "error":
        assert isinstance(batch, BatchFailure) and "max_tokens is 50" in batch.message
    else:
        assert [row.sample_id for row in batch] == ["text"]
        assert (dataset.counts().bad_samples, dataset.counts().too_long_samples) == (0, 1)


def test_mixed_batch_has_frames_once_and_offsets(processor: Any, make_dataset: Any, video_row: Any) -> None:
    again = video_row(2)
    again["conversation"] += [{"role": "user", "text": "What?"}, {"role": "assistant", "text": "this"}]
    dataset = make_dataset([TEXT_ROW, again, IMAGE_ROW], media=MediaOptions(sampling=FramesPerSecond(fps=0.5)))
    rows = [dataset[index] for index in (1, 0, 2)]
    batch = collate(rows, processor)
    visual = batch["visual"]
    assert visual is not None and batch["sample_ids"] == ["row-2", "text", "image"]
    assert visual["visual_spans"].tolist() == [[0, 2, 0], [0, 2, 1], [2, 1, 1]], "'What?' is one prompt row for both"
    assert visual["content_grids"].tolist() == [1, 1, 0]
    assert grey_levels(processor, visual["pixel_values"]) == pytest.approx([0, 120, 90], abs=3)
    ids, mask = processor.encode_prompts(["Which digit is number 2?", "What?"])
    assert torch.equal(visual["prompt_input_ids"], ids) and torch.equal(visual["prompt_attention_mask"], mask)
    text = batch["text"]
    for number, row in enumerate(rows):
        size = len(row.input_ids)
        assert torch.equal(text["input_ids"][number, :size], row.input_ids)
        assert torch.equal(text["labels"][number, :size], row.labels)
        assert text["attention_mask"][number].tolist() == [1] * size + [0] * (text["input_ids"].shape[1] - size)
        assert (text["input_ids"][number, size:] == processor.tokenizer.pad_token_id).all()
        assert (text["labels"][number, size:] == IGNORE_INDEX).all()
    left = collate(rows, processor, "left")["text"]
    size = len(rows[1].input_ids)
    assert torch.equal(left["input_ids"][1, -size:], rows[1].input_ids)
    assert left["attention_mask"][1].sum() == size and left["attention_mask"][1, -size:].all()


def test_text_only_batch_costs_no_vision(processor: Any, make_dataset: Any) -> None:
    dataset = make_dataset([TEXT_ROW])
    assert collate([dataset[0], dataset[0]], processor)["visual"] is None


def test_dataset_pickles_with_a_filled_cache(make_dataset: Any, video_row: Any) -> None:
    dataset = make_dataset([video_row(1)], media=MediaOptions(cache_bytes=1 << 20))
    row = dataset[0]
    copy = pickle.loads(pickle.dumps(dataset._loader))
    assert torch.equal(
        copy.load(dataset.sample(0).media[0], dataset.manifests[0].path.parent).pixel_values, row.pixel_values
    )
