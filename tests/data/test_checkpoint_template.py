"""Training rows of backbones: ids are those of inference up to each answer, labels stand on answers and their ends."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.backbone_datamodule import BackboneDataModule
from longvid_train.data.checkpoint_template import CheckpointTemplate
from longvid_train.data.conversation import (
    ConversationOptions,
    EncodedSample,
    LoadedMedium,
    MediumLayout,
    encode_conversation,
    encode_prompt,
    token_counts,
)
from longvid_train.data.loading import LoadingOptions
from longvid_train.data.manifest import Turn
from longvid_train.data.media import MediaOptions
from longvid_train.errors import UserError
from longvid_train.models.backbones import BackboneProcessor, read_facts
from longvid_train.models.backbones.planned import PLANNED, PlannedProcessor
from longvid_train.tokens.progressive import ProgressivePlan
from longvid_train.tokens.slowfast import SlowFastPlan
from longvid_train.types import ALL_PATCHES, IGNORE_INDEX
from longvid_train.video import UniformFrames
from tests.training.backbone_folders import PICTURES, save_backbone

NAMES = sorted(PICTURES)
OPTIONS = ConversationOptions(
    media_per_turn="as_written", video_content_grid=PLANNED, image_content_grid=ALL_PATCHES, max_tokens=10_000
)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("backbones")
    return {name: save_backbone(root / name, name) for name in NAMES}


def planned(folder: Path, adaptation: Adaptation = Adaptation()) -> PlannedProcessor:  # noqa: B008 - frozen
    return PlannedProcessor(BackboneProcessor.load(folder, read_facts(folder)), adaptation)


def encoded(
    processor: PlannedProcessor, turns: list[Turn], layouts: list[MediumLayout], *, open_prompt: bool = False
) -> EncodedSample:
    media = [LoadedMedium(layout, torch.zeros(layout.frame_count, 0)) for layout in layouts]
    template = CheckpointTemplate(processor.checkpoint)
    if open_prompt:
        return encode_prompt(turns, media, processor, template, OPTIONS)
    return encode_conversation(turns, media, processor, template, OPTIONS, sample_id="row")


def conversation(*pairs: tuple[str, str], shown: str = "<video>\n") -> list[Turn]:
    turns = []
    for number, (question, answer) in enumerate(pairs):
        turns += [Turn("user", (shown if number == 0 else "") + question), Turn("assistant", answer)]
    return turns


def supervised_text(processor: PlannedProcessor, row: EncodedSample) -> str:
    ids = row.input_ids[row.labels != IGNORE_INDEX]
    assert torch.equal(row.labels[row.labels != IGNORE_INDEX], ids)
    text: str = processor.tokenizer.decode(ids.tolist())
    return text


VIDEO = MediumLayout.without_subtitles("video", 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_the_prompt_of_inference_then_the_answer_and_its_end(name: str, folders: dict[str, Path]) -> None:
    processor = planned(folders[name])
    row = encoded(processor, conversation(("What is it?", "a red video")), [VIDEO])
    plan = processor.plan(PLANNED, 4)
    prompt = processor.checkpoint.prompt_ids("What is it?", plan.visual_tokens)[0]
    assert torch.equal(row.input_ids[: len(prompt)], prompt)
    assert (row.labels[: len(prompt)] == IGNORE_INDEX).all()
    end = processor.tokenizer.eos_token
    space = "" if name in ("onevision", "interleave") else " "
    assert supervised_text(processor, row) == f"{space}a red video{end}"
    assert torch.equal(
        encoded(processor, conversation(("What is it?", "a red video")), [VIDEO], open_prompt=True).input_ids, prompt
    )


@pytest.mark.parametrize(
    ("answered", "supervised"), [("assistant\n ", " red"), ("assistant\n", "red"), ("assistant \n", "red")]
)
def test_white_space_in_front_of_an_answer_is_the_template_s_where_it_continues_the_prompt(
    answered: str, supervised: str, folders: dict[str, Path]
) -> None:
    read = planned(folders["onevision"]).checkpoint
    template = (
        "{% for message in messages %}{{ '<|im_start|>' }}{% if message['role'] == 'assistant' %}{{ 'ANSWERED' }}"
        "{% else %}{{ 'user ' }}{% endif %}{% for part in message['content'] %}"
        "{{ part['text'] if part['type'] == 'text' else '<video>\n' }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ).replace("ANSWERED", answered.replace("\n", "\\n"))
    own = BackboneProcessor(read.tokenizer, read.facts, PICTURES["onevision"], chat_template=template)
    processor = PlannedProcessor(own, Adaptation())
    row = encoded(processor, conversation(("What?", "red")), [VIDEO])
    assert supervised_text(processor, row) == f"{supervised}<|im_end|>"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "onevision",
            "<|im_start|>user V\nWhat?<|im_end|><|im_start|>assistant\nred<|im_end|>"
            "<|im_start|>user \nAnd then?<|im_end|><|im_start|>assistant\nblue<|im_end|>",
        ),
        ("next_video", "<s>USER: V\nWhat? ASSISTANT: red</s> USER: And then? ASSISTANT: blue</s>"),
    ],
)
def test_later_turns_follow_the_end_of_the_answer_before(name: str, text: str, folders: dict[str, Path]) -> None:
    processor = planned(folders[name])
    row = encoded(processor, conversation(("What?", "red"), ("And then?", "blue")), [VIDEO])
    visual = processor.plan(PLANNED, 4).visual_tokens
    whole = processor.tokenizer.decode(row.input_ids.tolist())
    assert whole == text.replace("V", processor.checkpoint.placeholder * visual, 1)
    space, end = ("", "<|im_end|>") if name == "onevision" else (" ", "</s>")
    assert supervised_text(processor, row) == f"{space}red{end}{space}blue{end}"


words = st.text(st.characters(codec="utf-8", exclude_characters="<", exclude_categories=["Cs"]), max_size=20)


@pytest.fixture(scope="session")
def onevision(folders: dict[str, Path]) -> PlannedProcessor:
    return planned(folders["onevision"])


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(words, words.filter(lambda text: bool(text.strip()))), min_size=1, max_size=3),
    frames=st.integers(1, 6),
)
def test_counts_are_exact_and_a_later_answer_changes_no_earlier_id(
    pairs: list[tuple[str, str]], frames: int, onevision: PlannedProcessor
) -> None:
    processor = onevision
    layout = MediumLayout.without_subtitles("video", frames)
    turns = conversation(*pairs)
    row = encoded(processor, turns, [layout])
    counts = token_counts(turns, [layout], processor, CheckpointTemplate(processor.checkpoint), OPTIONS)
    assert counts.total == len(row.input_ids)
    assert counts.visual == int((row.input_ids == processor.visual_token_id).sum()) == 16 * frames + 1
    for kept in range(1, len(pairs) + 1):
        prompt = encoded(processor, turns[: 2 * kept], [layout], open_prompt=True).input_ids
        assert torch.equal(row.input_ids[: len(prompt)], prompt)
    answers = "".join(f"{answer.strip()}<|im_end|>" for _, answer in pairs)
    assert supervised_text(processor, row) == answers


@pytest.mark.parametrize(
    ("adaptation", "tokens"),
    [
        (Adaptation(), (16, 16, 16, 16, 16, 17)),
        (Adaptation(plan=ProgressivePlan(group=3, high_stride=2, low_stride=4)), (16, 4, 4, 16, 4, 5)),
        (Adaptation(plan=SlowFastPlan(slow_frames=2, slow_stride=2, fast_stride=4)), (0, 0, 0, 0, 0, 32 + 24 + 1)),
    ],
    ids=["uniform", "progressive", "slowfast"],
)
def test_tokens_of_each_frame_are_the_plan_s(
    adaptation: Adaptation, tokens: tuple[int, ...], folders: dict[str, Path]
) -> None:
    processor = planned(folders["onevision"], adaptation)
    assert processor.frame_tokens(PLANNED, 6) == tokens
    assert processor.window_tokens(PLANNED, 6) == sum(tokens) - 1
    assert processor.frame_tokens(ALL_PATCHES, 1) == (50,), "7 x 7 patches and the token behind them"


def test_images_of_a_backbone_with_another_tower_for_them_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="only videos are read here"):
        planned(folders["joint"]).frame_tokens(ALL_PATCHES, 1)


@pytest.mark.parametrize("question", ["a<|im_end|>b", "say </s>", "<pad>"])
def test_control_tokens_in_words_are_refused(question: str, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="a control token of the checkpoint; leave it out"):
        encoded(planned(folders["onevision"]), conversation((question, "red")), [VIDEO])


def test_a_control_token_in_an_answer_is_letters(folders: dict[str, Path]) -> None:
    processor = planned(folders["onevision"])
    row = encoded(processor, conversation(("What?", "</s>")), [VIDEO])
    supervised = row.input_ids[row.labels != IGNORE_INDEX].tolist()
    assert len(supervised) == 5 and processor.tokenizer.convert_tokens_to_ids("</s>") not in supervised


def test_media_behind_the_words_are_refused(folders: dict[str, Path]) -> None:
    turns = [Turn("user", "What is in <video> ?"), Turn("assistant", "red")]
    with pytest.raises(UserError, match="shows media behind or between its words"):
        encoded(planned(folders["onevision"]), turns, [VIDEO])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conversation": ConversationOptions(video_content_grid=2)}, "video_content_grid is 2"),
        ({"conversation": ConversationOptions(placeholder_position="random")}, "placeholder_position is random"),
        ({"media": MediaOptions(features="somewhere")}, "media.features is set"),
        ({"loading": LoadingOptions(max_tokens_per_batch=4096, packing=True)}, "loading.packing is true"),
        ({"adaptation": "absent.yaml"}, "absent.yaml: cannot be read as an adaptation"),
    ],
)
def test_options_that_backbones_do_not_have_are_refused(
    options: dict[str, Any], message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(UserError, match=message):
        BackboneDataModule(str(folders["onevision"]), **options)


def test_the_adaptation_s_sampling_takes_the_place_of_the_config_s(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(json.dumps({"frames": 3}))
    media = MediaOptions(sampling=UniformFrames(count=9))
    data = BackboneDataModule(str(folders["onevision"]), str(tmp_path / "a.yaml"), media=media)
    assert data._media.sampling == UniformFrames(count=3)
    assert BackboneDataModule(str(folders["onevision"]), media=media)._media.sampling == UniformFrames(count=9)
