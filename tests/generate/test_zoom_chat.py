"""Zooming through the chat: every backbone, window and cache; what is refused before weights load."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import longvid_train
from longvid_train.adaptation.reading import parse_adaptation
from longvid_train.adaptation.settings import Adaptation
from longvid_train.adaptation.zoom import ZoomChoice
from longvid_train.data.backbone_datamodule import BackboneDataModule
from longvid_train.errors import UserError
from longvid_train.generate.chat import Conversation, FramesRequest, ImageRequest, VideoChat
from longvid_train.generate.generation import generate_prompts
from longvid_train.generate.loading import read_prompting
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.zoom.prompting import ZoomPrompting
from longvid_train.models.backbones import video_tokens
from longvid_train.models.backbones.adapted import BackboneAdapter, read_any_adapter
from longvid_train.models.backbones.resized import resized
from tests.generate.tiny_backbone_folder import JOINT_FRAMES, save_tiny_backbone

NAMES = ("onevision", "next_video", "video_llava", "interleave", "next_image", "joint")
FRAMES = 8
OPTIONS = GenerationOptions(max_new_tokens=10)
ZOOM = "zoom: {draft_tokens: 3, zoomed_frames: 2, adjusted_tokens: 2, every_sentences: 1}"
PLAIN = "zoom: {draft_tokens: 3, zoomed_frames: 2, adjusted_tokens: 0}"
WINDOWS = {
    "none": "window: {kind: none, extrapolate: true}",
    "linear": "window: {kind: linear, scale: 2.0}",
    "ntk": "window: {kind: ntk, scale: 2.0}",
    "yarn": "window: {kind: yarn, scale: 2.0}",
    "visual_yarn": "window: {kind: visual_yarn, scale: 2.0, trained_tokens: 64}",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("zoomed_backbones")
    return {name: save_tiny_backbone(folder / name, name) for name in NAMES}


def clip(frames: int = FRAMES, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, 40, 60, 3), dtype=np.uint8)


def adaptation_of(*parts: str) -> Adaptation:
    return parse_adaptation("\n".join(parts), where="test")


def chat_of(folder: Path, *parts: str) -> VideoChat:
    return VideoChat.load(folder, adaptation=adaptation_of(*parts), device="cpu")


def talk_of(chat: VideoChat, frames: int = FRAMES) -> Conversation:
    return chat.open([FramesRequest(clip(frames), [0.5 * frame for frame in range(frames)])])


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_answers_as_from_the_whole_prompt(folders: dict[str, Path], name: str) -> None:
    """Overview and chosen frames encoded apart, put together by hand, and read from scratch."""
    chat = chat_of(folders[name], WINDOWS["none"], PLAIN)
    talk = talk_of(chat)
    answer = talk.ask("What?", OPTIONS)
    trace, prompting, backbone = answer.trace, chat.prompting, chat.engine.backbone  # type: ignore[attr-defined]
    assert trace is not None
    assert isinstance(prompting, ZoomPrompting)
    plan = prompting.planned.zoom_plan(FRAMES)
    shown, pictures = list(plan.shown), prompting.planned.small_pictures
    small = resized(backbone, prompting.planned.small_facts.image_side)
    chosen = tuple(place for place, frame in enumerate(trace.overview) if frame.chosen)
    assert len(chosen) == 2
    encoded, zoom = plan.zoomed(chosen)
    with torch.no_grad():
        overview = video_tokens(small, pictures.pixel_values(clip()[shown]), plan.overview)
        full = prompting.processor.preprocess_frames(clip()[[shown[place] for place in encoded]])
        in_full = video_tokens(backbone, full, zoom)[: zoom.frame_tokens]
    frames = plan.overview.frame_tokens
    tokens = torch.cat([overview[:frames], in_full, overview[frames:]])
    (turns, layouts) = (talk.turns[:1], talk.layouts)
    ids = prompting.encode(turns, layouts).input_ids
    placeholder = prompting.processor.visual_token_id
    last = int((ids == placeholder).nonzero()[frames - 1])
    ids = torch.cat([ids[: last + 1], ids.new_full((len(in_full),), placeholder), ids[last + 1 :]])
    (wanted,) = generate_prompts(
        chat.model, prompting.decoder, [ids], [tokens], OPTIONS, placeholder_id=placeholder, prefill_chunk=1000
    )
    assert answer.answer == wanted.text
    assert (answer.visual_tokens, answer.prompt_tokens) == (len(tokens), len(ids))
    assert answer.visual_tokens == plan.visual_tokens


@pytest.mark.parametrize(
    ("name", "window"), [*(("onevision", window) for window in sorted(WINDOWS)), ("next_video", "visual_yarn")]
)
def test_windows_and_caches_compose(folders: dict[str, Path], name: str, window: str) -> None:
    """A cache that codes without error changes nothing, and the rotary frequencies are those of before."""
    chat = chat_of(folders[name], WINDOWS[window], ZOOM)
    rotary = chat.model.get_decoder().rotary_emb
    before = rotary.inv_freq.clone()
    plain = talk_of(chat).ask("What?", OPTIONS)
    assert plain.trace is not None and plain.trace.zoom_tokens > 0
    assert torch.equal(rotary.inv_freq, before)
    assert chat.model.get_decoder().config._attn_implementation == "sdpa"
    coded = talk_of(chat_of(folders[name], WINDOWS[window], ZOOM, "cache: {preset: full, recent_tokens: 8}")).ask(
        "What?", OPTIONS
    )
    assert plain.cache is None
    assert coded.cache is not None and coded.cache.coded_bytes > 0
    assert coded.answer == plain.answer
    assert coded.trace is not None
    assert [frame.chosen for frame in coded.trace.overview] == [frame.chosen for frame in plain.trace.overview]
    for own, other in zip(coded.trace.sentences, plain.trace.sentences, strict=True):
        assert own.frame_mass == pytest.approx(other.frame_mass, abs=1e-4)


def test_two_bits_and_a_window_and_adjustment(tmp_path: Path) -> None:
    """KIVI needs heads of 32: a wider model. The codes must be read, not refused."""
    folder = save_tiny_backbone(
        tmp_path / "wide", "onevision", hidden_size=64, num_attention_heads=2, num_key_value_heads=1
    )
    chat = chat_of(folder, WINDOWS["visual_yarn"], ZOOM, "cache: {preset: kivi_g32, recent_tokens: 0}")
    answer = talk_of(chat).ask("What?", OPTIONS)
    assert answer.cache is not None and answer.cache.bits_per_number < 4
    assert answer.trace is not None and answer.trace.zoom_tokens == 32
    assert sum(answer.trace.sentences[-1].frame_mass) < 1


def test_the_window_is_that_of_overview_and_zoom_together(folders: dict[str, Path]) -> None:
    """16 x 6 + 49 x 2 visual tokens under a window of 100: its scale is fixed before the overview is read."""
    chat = chat_of(folders["interleave"], "window: {kind: visual_yarn, trained_tokens: 100}", ZOOM)
    answer = talk_of(chat).ask("What?", OPTIONS)
    assert answer.window.tokens == 6 * 16 + 2 * 49
    assert answer.window.scale == pytest.approx(1.94)


def test_the_trace_knows_question_times_and_chosen_frames(folders: dict[str, Path]) -> None:
    chat = chat_of(folders["onevision"], ZOOM)
    talk = talk_of(chat)
    first, second = talk.ask("What?", OPTIONS).trace, talk.ask("And then?", OPTIONS).trace
    assert first is not None and second is not None
    assert (first.question, second.question, first.video) == ("What?", "And then?", "frames")
    assert [frame.frame for frame in first.overview] == [0, 1, 3, 4, 6, 7]
    assert [frame.time_s for frame in first.overview] == [0.0, 0.5, 1.5, 2.0, 3.0, 3.5]
    assert [(one.frame, one.time_s) for one in first.pictures[6:]] == [(one.frame, one.time_s) for one in first.chosen]
    assert first.frames_taken == FRAMES
    assert first.seconds.overview_encode_s > 0
    assert second.seconds.overview_encode_s == 0, "the overview is encoded once"


def test_answers_of_a_batch_are_those_of_each_alone(folders: dict[str, Path]) -> None:
    chat = chat_of(folders["onevision"], ZOOM)
    questions = ["What?", "Who is there, and where?"]
    alone = [talk_of(chat).ask(question, OPTIONS).answer for question in questions]
    together = chat.ask_batch([talk_of(chat), talk_of(chat)], questions, OPTIONS)
    assert [answer.answer for answer in together] == alone


def test_subtitles_stand_behind_their_frames(folders: dict[str, Path], tmp_path: Path) -> None:
    """Text between the overview's tokens: frames in full go behind the last of these."""
    srt = tmp_path / "a.srt"
    srt.write_text("1\n00:00:00,400 --> 00:00:01,000\nred circle\n")
    chat = chat_of(folders["onevision"], ZOOM)
    talk = chat.open([FramesRequest(clip(), [0.5 * frame for frame in range(FRAMES)], subtitles=srt)])
    answer = talk.ask("What?", OPTIONS)
    assert answer.trace is not None and answer.trace.zoom_tokens == 32
    assert answer.visual_tokens == 6 * 4 + 1 + 32


def test_pixels_in_full_are_kept_of_the_overviews_frames_only(folders: dict[str, Path]) -> None:
    chat = chat_of(folders["onevision"], ZOOM)
    kept = talk_of(chat).encode().kept[0]
    wanted = chat.engine.preprocess(clip()[[0, 1, 3, 4, 6, 7]])
    assert torch.equal(kept.pixels, wanted)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_of_frames_change_nothing(folders: dict[str, Path], chunk: int) -> None:
    from longvid_train.generate.engine import EngineOptions

    answers = [
        VideoChat.load(folders["joint"], adaptation=adaptation_of(WINDOWS["none"], ZOOM), device="cpu", engine=options)
        for options in (EngineOptions(), EngineOptions(frame_chunk=chunk, prefill_chunk=chunk, features_on="cpu"))
    ]
    own, chunked = (talk_of(chat).ask("What?", OPTIONS) for chat in answers)
    assert own.answer == chunked.answer
    assert own.trace is not None and chunked.trace is not None
    assert own.trace.chosen == tuple(
        replace(frame, score=pytest.approx(frame.score, abs=1e-5)) for frame in chunked.trace.chosen
    )


def refusal(folder: Path, *parts: str, media: Any = None, options: GenerationOptions = OPTIONS) -> str:
    with pytest.raises(UserError) as caught:
        chat = chat_of(folder, *parts)
        talk = talk_of(chat) if media is None else chat.open(media)
        talk.ask("What?", options)
    return str(caught.value)


def test_what_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from tests.generate.tiny_checkpoint import write_picture

    folder = folders["onevision"]
    write_picture(tmp_path / "a.png")
    assert "7 frames are to be shown in full, but the overview of 8 frames has 6" in refusal(
        folder, "zoom: {zoomed_frames: 7}"
    )
    assert "num_beams is 2, and the adaptation zooms" in refusal(folder, ZOOM, options=GenerationOptions(num_beams=2))
    assert "zooms into one video, and an image is shown" in refusal(
        folder, ZOOM, media=[ImageRequest(tmp_path / "a.png")]
    )
    two = [FramesRequest(clip()), FramesRequest(clip(seed=1))]
    assert "zooms into one video, and 2 media are shown" in refusal(folder, ZOOM, media=two)
    assert "zooms into one video, and 0 media are shown" in refusal(folder, ZOOM, media=[])


def test_what_is_refused_before_weights_load(folders: dict[str, Path], checkpoint: Path) -> None:
    def reading(folder: Path, text: str) -> str:
        with pytest.raises(UserError) as caught:
            read_prompting(folder, adaptation=adaptation_of(text))
        return str(caught.value)

    assert "layers 1 to 2 are outside the decoder's 0 to 1" in reading(folders["onevision"], "zoom: {layers: [1, 2]}")
    assert "overview_side is 28" in reading(folders["onevision"], "zoom: {overview_side: 28}")
    assert "5 x 5 patches" in reading(folders["next_video"], "zoom: {overview_side: 20}")
    assert "is a LLaMA-VID" in reading(checkpoint, "zoom: {}")


def test_training_and_planning_refuse_a_zoom(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(ZOOM)
    with pytest.raises(UserError, match=r"a.yaml: training generates no answers to choose frames by; leave zoom out"):
        BackboneDataModule(str(folders["onevision"]), adaptation=str(tmp_path / "a.yaml"))


def test_an_adapter_may_be_asked_with_a_zoom() -> None:
    """The shipped one: its window and plan stay, the zoom is added."""
    assets = Path(longvid_train.__file__).parent / "assets"
    adapter = read_any_adapter(assets / "nano_onevision_lora")
    assert isinstance(adapter, BackboneAdapter)
    zoom = ZoomChoice(draft_tokens=1, zoomed_frames=2, overview_side=28)
    adaptation = replace(adapter.adaptation, zoom=zoom)
    chat = VideoChat.load(assets / "nano_onevision", adapter=adapter, adaptation=adaptation, device="cpu")
    answer = talk_of(chat).ask("What comes first?", OPTIONS)
    assert answer.trace is not None
    assert answer.window.kind == adapter.adaptation.window.kind
    with pytest.raises(UserError, match="is not the adaptation that"):
        read_prompting(assets / "nano_onevision", adapter=adapter, adaptation=Adaptation(zoom=zoom))


def test_a_window_too_small_names_frames_that_fit(folders: dict[str, Path]) -> None:
    """512 tokens hold the overview of 20 frames and two in full, not that of 60."""
    chat = chat_of(folders["interleave"], "window: {kind: none}", ZOOM)
    with pytest.raises(UserError, match=r"60 frames make \d+ visual tokens.*show at most \d+ frames"):
        talk_of(chat, 60).ask("What?", OPTIONS)


def test_a_joint_towers_video_comes_in_whole_groups(folders: dict[str, Path]) -> None:
    chat = chat_of(folders["joint"], WINDOWS["none"], ZOOM)
    answer = talk_of(chat, 4 * JOINT_FRAMES).ask("What?", OPTIONS)
    assert answer.trace is not None
    assert len(answer.trace.overview) == 3 * JOINT_FRAMES, "11 frames of 16, rounded up to whole groups"
