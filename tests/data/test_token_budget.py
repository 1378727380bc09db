"""Rows over the budget: what is left out, in which order, and that the numbers promised are the encoded ones."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.data.budget import RowPlan, RowPlanner, TokenBudget
from longvid_train.data.collate import collate
from longvid_train.data.conversation import (
    ConversationOptions,
    EncodedSample,
    LoadedMedium,
    MediumLayout,
    SampleTooLongError,
    encode_conversation,
)
from longvid_train.data.dataset import BadSamples, BatchFailure, DatasetCounts, Draw, ManifestDataset
from longvid_train.data.frame_counts import FrameCounts, evenly_spaced
from longvid_train.data.manifest import ManifestRules, Turn, read_manifest
from longvid_train.data.media import MediaOptions
from longvid_train.data.templates import PLAIN, VICUNA_V1, ChatTemplate
from longvid_train.errors import UserError
from longvid_train.types import IGNORE_INDEX, Shortening
from longvid_train.video import DecodeLimits, FramesPerSecond, UniformFrames

OPTIONS = ConversationOptions(max_tokens=10_000)


def turns(*texts: str) -> list[Turn]:
    return [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]


def video(frames: int, *lines: str) -> MediumLayout:
    return MediumLayout("video", ((),) * (frames - 1) + (lines,))


def planner(processor: Any, options: ConversationOptions, *steps: Any, **fields: Any) -> RowPlanner:
    return RowPlanner(processor, VICUNA_V1, options, TokenBudget(shorten=steps, **fields))


def encoded(
    plan: RowPlan,
    conversation: Sequence[Turn],
    layouts: Sequence[MediumLayout],
    processor: Any,
    template: ChatTemplate = VICUNA_V1,
    epoch: int = 0,
) -> EncodedSample:
    """Read the row as planned, from layouts instead of files: lines of a thinned video go to its first frame."""
    media = []
    for layout in layouts[: plan.media]:
        if plan.max_frames is not None and layout.type == "video" and layout.frame_count > plan.max_frames:
            lines = tuple(line for lines in layout.lines_after_frame for line in lines)
            layout = MediumLayout("video", (lines,) + ((),) * (plan.max_frames - 1))
        media.append(LoadedMedium(layout, torch.zeros(layout.frame_count, 1, 1, 1)))
    return encode_conversation(
        conversation[: plan.turns],
        media,
        processor,
        template,
        plan.options,
        sample_id="a",
        epoch=epoch,
        cut_answer=plan.cut_answer,
    )


words = st.text("ab c:\n.?é", min_size=1, max_size=12).filter(str.strip)
STEPS = ["fewer_frames", "coarser_pooling", "truncate_text"]


@given(
    st.lists(st.tuples(words, words), min_size=1, max_size=3),
    st.lists(st.lists(words, max_size=1).map(tuple), min_size=1, max_size=9),
    st.booleans(),
    st.permutations(STEPS).flatmap(lambda steps: st.integers(0, 3).map(lambda count: tuple(steps[:count]))),
    st.sampled_from(["as_written", "every_turn"]),
    st.sampled_from(["as_written", "first", "random"]),
    st.sampled_from([VICUNA_V1, PLAIN]),
    st.integers(4, 160),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_the_plan_is_what_is_encoded(
    processor: Any,
    pairs: Any,
    lines: Any,
    image: bool,
    steps: Any,
    per_turn: Any,
    position: Any,
    template: ChatTemplate,
    room: int,
    epoch: int,
) -> None:
    options = ConversationOptions(
        media_per_turn=per_turn, placeholder_position=position, video_content_grid=2, max_tokens=10_000
    )
    conversation = turns(*[text for pair in pairs for text in pair])
    conversation[0] = Turn("user", f"<video>\n{pairs[0][0]}")
    layouts = [MediumLayout("video", tuple(lines))]
    if image:
        conversation[-2] = Turn("user", f"{conversation[-2].text}\n<image>")
        layouts.append(MediumLayout.without_subtitles("image", 1))
    whole = RowPlanner(processor, template, options, TokenBudget()).plan(conversation, layouts)
    limit = max(1, whole.tokens.total - room)
    budgeted = RowPlanner(processor, template, replace(options, max_tokens=limit), TokenBudget(shorten=steps))
    try:
        plan = budgeted.plan(conversation, layouts)
    except SampleTooLongError:
        return
    row = encoded(plan, conversation, layouts, processor, template, epoch)
    visual = int((row.input_ids == processor.visual_token_id).sum())
    assert visual == plan.tokens.visual
    counts = [
        span[1] * processor.tokens_per_frame(int(grid))
        for span, grid in zip(row.spans.tolist(), row.content_grids, strict=True)
    ]
    assert visual == sum(counts), "no showing is cut"
    assert len(row.input_ids) <= limit
    if position == "random":
        assert len(row.input_ids) <= plan.tokens.total
    else:
        assert len(row.input_ids) == plan.tokens.total
        short = plan.shortening
        assert short is not None
        assert short.visual_tokens + short.text_tokens == whole.tokens.total - len(row.input_ids)
        assert short.frames == whole.frames - plan.frames
    assert row.pixel_values is not None and len(row.pixel_values) == plan.frames
    assert (row.labels != IGNORE_INDEX).any()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_as_many_frames_stay_as_fit(processor: Any, first: int, second: int, questions: int, kept: int) -> None:
    """Two videos of one row share one cap; with one frame more the row would be too long."""
    texts = ["<video>\na <video>\nb", "c", *["d?", "e"] * (questions - 1)]
    layouts = [video(first, "line"), video(second)]
    whole = planner(processor, OPTIONS).plan(turns(*texts), layouts)
    kept = min(kept, max(first, second))
    cost = questions * 2 * (min(first, kept) + min(second, kept))
    options = replace(OPTIONS, max_tokens=whole.tokens.text + cost + 1)
    plan = planner(processor, options, "fewer_frames").plan(turns(*texts), layouts)
    assert plan.frames == min(first, kept) + min(second, kept)
    assert plan.tokens.visual == cost
    assert plan.tokens.text == whole.tokens.text, "no text is touched"
    assert plan.max_frames == (None if kept == max(first, second) else kept)
    dropped = first + second - plan.frames
    expected = (
        None if dropped == 0 else Shortening(frames=dropped, visual_tokens=2 * questions * dropped, text_tokens=0)
    )
    assert plan.shortening == expected


def test_steps_go_in_the_order_of_the_config_and_only_as_far_as_needed(processor: Any) -> None:
    conversation, layouts = turns("<video>\nWhat?", "this"), [video(10)]
    options = replace(OPTIONS, video_content_grid=2)  # 5 tokens a frame
    text = planner(processor, options).plan(conversation, layouts).tokens.text

    def frames_and_grid(limit: int, *steps: str, min_frames: int = 1) -> tuple[int, int]:
        limited = replace(options, max_tokens=text + limit)
        plan = planner(processor, limited, *steps, min_frames=min_frames).plan(conversation, layouts)
        return plan.frames, plan.options.video_content_grid

    assert frames_and_grid(50, "fewer_frames", "coarser_pooling") == (10, 2)
    assert frames_and_grid(49, "fewer_frames", "coarser_pooling") == (9, 2)
    assert frames_and_grid(49, "coarser_pooling", "fewer_frames") == (10, 1)
    assert frames_and_grid(19, "coarser_pooling", "fewer_frames") == (9, 1)
    assert frames_and_grid(30, "fewer_frames", "coarser_pooling", min_frames=8) == (8, 1)
    with pytest.raises(
        SampleTooLongError, match=rf"the row has {text + 50} tokens \({text} text, 50 visual\), still {text + 16} after"
    ):
        frames_and_grid(15, "fewer_frames", "coarser_pooling", min_frames=8)


def test_images_keep_their_patches_while_a_coarser_grid_is_not_needed(processor: Any) -> None:
    conversation, layouts = turns("<image>\nWhat?", "this"), [MediumLayout.without_subtitles("image", 1)]
    text = planner(processor, OPTIONS).plan(conversation, layouts).tokens.text
    for room, grid, tokens in ((17, 0, 17), (16, 2, 5), (4, 1, 2)):
        options = replace(OPTIONS, max_tokens=text + room)
        plan = planner(processor, options, "fewer_frames", "coarser_pooling").plan(conversation, layouts)
        assert (plan.options.image_content_grid, plan.tokens.visual) == (grid, tokens)
    with pytest.raises(SampleTooLongError):
        planner(processor, replace(OPTIONS, max_tokens=text + 16), "fewer_frames").plan(conversation, layouts)


def test_text_loses_its_last_turns_with_their_media_and_then_the_end_of_an_answer(processor: Any) -> None:
    conversation = turns("<video>\nWhat?", "this and that", "<image>\nAnd this?", "a red square and a blue circle")
    layouts = [video(3), MediumLayout.without_subtitles("image", 1)]
    row = encoded(planner(processor, OPTIONS).plan(conversation, layouts), conversation, layouts, processor)
    ids, answer = row.input_ids.tolist(), (row.labels != IGNORE_INDEX).tolist()
    starts = [place for place in range(1, len(ids)) if answer[place] and not answer[place - 1]]
    first_end = answer.index(False, starts[0])
    for limit, kept, media in (
        (len(ids) - 1, len(ids) - 1, 2),
        (starts[1] + 1, starts[1] + 1, 2),
        (starts[1], first_end, 1),
        (first_end - 1, first_end - 1, 1),
    ):
        plan = planner(processor, replace(OPTIONS, max_tokens=limit), "truncate_text").plan(conversation, layouts)
        cut = encoded(plan, conversation, layouts, processor)
        assert cut.input_ids.tolist() == ids[:kept], limit
        assert cut.labels.tolist() == row.labels.tolist()[:kept]
        assert (plan.media, len(cut.spans)) == (media, media)
    with pytest.raises(SampleTooLongError):
        planner(processor, replace(OPTIONS, max_tokens=starts[0]), "truncate_text").plan(conversation, layouts)
    asked = RowPlanner(
        processor,
        VICUNA_V1,
        replace(OPTIONS, max_tokens=20),
        TokenBudget(shorten=("truncate_text",)),
        for_generation=True,
    )
    with pytest.raises(SampleTooLongError):
        asked.plan(turns("a" * 30, "b"), [])


def test_a_budget_that_says_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="list each step once"):
        TokenBudget(shorten=("fewer_frames", "fewer_frames"))
    with pytest.raises(UserError, match=r"budget\.min_frames is 0"):
        TokenBudget(min_frames=0)


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count))))
def test_kept_frames_spread_over_all(case: tuple[int, int]) -> None:
    count, kept = case
    positions = evenly_spaced(count, kept).tolist()
    assert len(set(positions)) == kept and positions == sorted(positions)
    assert positions[0] == 0 and (kept == 1 or positions[-1] == count - 1)
    gaps = [after - before for before, after in pairwise(positions)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.fixture
def make_dataset(processor: Any, write_rows: Callable[..., Path]) -> Callable[..., ManifestDataset]:
    def make(rows: list[dict[str, Any]], **changes: Any) -> ManifestDataset:
        manifest = read_manifest(write_rows(rows, "budget"), ManifestRules(check_files=False))
        options: dict[str, Any] = {"conversation": OPTIONS, "media": MediaOptions(), **changes}
        return ManifestDataset([manifest], processor, VICUNA_V1, **options)

    return make


def test_only_the_frames_that_stay_are_decoded(
    processor: Any, make_dataset: Any, video_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ramp.mp4 at 2 frames a second: frames 0, 5, ... 35 of grey level 6 * number; 4 of these 8 are 0, 10, 25, 35."""
    from longvid_train.data import media as media_module

    rows = [video_row(1), video_row(2, media=[{"type": "video", "path": "ramp.mp4", "start_s": 1.55}])]
    sampling = MediaOptions(sampling=FramesPerSecond(fps=2.0))
    text = make_dataset(rows, media=sampling).plan(0).tokens.text
    options = replace(OPTIONS, max_tokens=text + 8)
    dataset = make_dataset(rows, media=sampling, conversation=options, budget=TokenBudget(shorten=("fewer_frames",)))
    decoded: list[int] = []
    read_clip = media_module.read_clip

    def counting(*args: Any, **kwargs: Any) -> Any:
        clip = read_clip(*args, **kwargs)
        decoded.append(len(clip.frames))
        return clip

    monkeypatch.setattr(media_module, "read_clip", counting)
    samples = dataset.__getitems__([0, Draw(1, 0)])
    assert decoded == [4, 4]
    mean, std = processor.settings.image_mean[0], processor.settings.image_std[0]
    levels = [((row.pixel_values[:, 0].mean(dim=(1, 2)) * std + mean) * 255).tolist() for row in samples]
    assert levels[0] == pytest.approx([0, 60, 150, 210], abs=4)
    assert levels[1] == pytest.approx([90, 120, 180, 210], abs=4), "5 frames from 1.55 s on, of which the third goes"
    assert [sample.shortening for sample in samples] == [Shortening(4, 8, 0), Shortening(1, 2, 0)]
    batch = collate(samples, processor)
    assert batch["shortened"] == {"row-1": Shortening(4, 8, 0), "row-2": Shortening(1, 2, 0)}
    assert dataset.counts() == DatasetCounts(cache_misses=2, shortened_samples=2, frames_dropped=5)


def test_what_cannot_fit_is_refused_before_decoding(
    make_dataset: Any, video_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [video_row(number) for number in range(4)]
    short = replace(OPTIONS, max_tokens=40)
    monkeypatch.setattr("longvid_train.data.media.read_clip", None)
    failure = make_dataset(rows, conversation=short).__getitems__([0])
    assert isinstance(failure, BatchFailure)
    assert "(sample 'row-0'): the row has " in failure.message and "max_tokens is 40" in failure.message
    policy = BadSamples(too_long="skip", max_too_long_samples=2)
    budget = TokenBudget(shorten=("fewer_frames", "truncate_text"))
    skipping = make_dataset(rows, conversation=short, budget=budget, bad_samples=policy)
    assert skipping.__getitems__([0, 1]) == []
    assert skipping.counts() == DatasetCounts(too_long_samples=2)
    failure = skipping.__getitems__([2])
    assert isinstance(failure, BatchFailure)
    assert failure.message.startswith("3 too long samples, more than max_too_long_samples = 2; the last: ")


def test_frame_counts_are_probed_once_for_the_same_file(
    video_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longvid_train.data import frame_counts

    probed: list[Path] = []
    probe = frame_counts.probe

    def counting(path: Path, **options: Any) -> Any:
        probed.append(path)
        return probe(path, **options)

    monkeypatch.setattr(frame_counts, "probe", counting)
    file, store, limits = tmp_path / "clip.mp4", tmp_path / "probes.db", DecodeLimits()
    file.write_bytes((video_folder / "ramp.mp4").read_bytes())
    counts = FrameCounts(store)
    assert [counts.count(file, FramesPerSecond(fps=2.0), limits) for _ in range(3)] == [8, 8, 8]
    assert counts.count(file, UniformFrames(count=5), limits) == 5
    assert FrameCounts(store).count(file, FramesPerSecond(fps=2.0), limits) == 8, "from the store"
    assert len(probed) == 2
    FrameCounts().count(file, FramesPerSecond(fps=2.0), limits)
    assert len(probed) == 3, "without a store nothing outlives the object"
    file.write_bytes((video_folder / "ramp.mp4").read_bytes() + b"\0\0\0\x08free")
    assert FrameCounts(store).count(file, FramesPerSecond(fps=2.0), limits) == 8
    assert len(probed) == 4, "another file"
    (tmp_path / "text.db").write_text("not a database at all, but a text that is long enough")
    with pytest.raises(UserError, match=r"probe_cache '.*text\.db' cannot be used"):
        FrameCounts(tmp_path / "text.db")
