"""The recipes of the nano backbones: what a clip is in words, what is supervised, and that a run repeats itself."""

import dataclasses
import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from longvid_train.errors import UserError
from longvid_train.models.backbones import BackboneProcessor, load_backbone
from longvid_train.training.nano.backbone_stages import PictureTokens, WordTokens, answers_loss
from longvid_train.training.nano.backbones import NOISE, RECIPES, STAGES, train_stage
from longvid_train.training.nano.clip_batches import (
    ClipBatches,
    ClipRecipe,
    clip_pictures,
    has_rivals,
    noisy_pixels,
)
from longvid_train.training.nano.clip_words import clear_cells, frame_bags, frame_list
from longvid_train.training.nano.dialogue import DialogueWriter, Turn, with_dense_task
from longvid_train.training.nano.families import FAMILIES, IMAGE_SIDE, PRETRAINED
from longvid_train.training.nano.frame_words import WORDS, FrameWords
from longvid_train.training.nano.schedule import Rate, exact_match
from longvid_train.types import IGNORE_INDEX
from longvid_train.world.clips import even_clip
from longvid_train.world.episode import Appearance, Episode, Scene, WorldSettings, make_episode

LEFT = Appearance(
    colour="red",
    shape="ring",
    digit="7",
    enter_s=1.0,
    leave_s=4.0,
    start_xy=(0.25, 0.5),
    end_xy=(0.25, 0.6),
    size=0.4,
)
RIGHT = dataclasses.replace(
    LEFT, colour="blue", shape="star", digit="2", enter_s=3.0, leave_s=6.0, start_xy=(0.75, 0.5), end_xy=(0.75, 0.4)
)
EPISODE = Episode(
    episode_id="made",
    split="train",
    duration_s=8.0,
    scenes=(Scene(name="sea", start_s=0.0, end_s=8.0),),
    appearances=(LEFT, RIGHT),
    subtitles=(),
)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def tokenizer(family):
    return family.tokenizer()


def tiny(stage, family, **fields):
    name = next(name for name, one in FAMILIES.items() if one is family)
    recipe = RECIPES[name, stage]
    return dataclasses.replace(recipe, clips=dataclasses.replace(recipe.clips, steps=3, clips=2, **fields))


def test_cells_hold_the_words_of_their_half() -> None:
    left, right = ("sea", "red", "ring", "7"), ("sea", "blue", "star", "2")
    assert frame_bags(EPISODE, 2.0, class_token=False) == (left, ("sea", "nothing"), left, ("sea", "nothing"))
    assert frame_bags(EPISODE, 3.5, class_token=True) == ((*left, *right[1:]), left, right, left, right)
    assert frame_bags(EPISODE, 7.0, class_token=False) == (("sea", "nothing"),) * 4


def test_cells_into_which_an_object_slides_are_not_clear() -> None:
    assert clear_cells(EPISODE, 0.9, class_token=True) == (False, False, True, False, True)
    assert clear_cells(EPISODE, 4.1, class_token=False) == (False, True, False, True)
    assert clear_cells(EPISODE, 3.5, class_token=True) == (True,) * 5


def test_frames_are_listed_in_words() -> None:
    clip = dataclasses.replace(even_clip(EPISODE, 3), times_s=(0.0, 2.0, 3.5))
    assert frame_list(clip) == "sea nothing, sea red ring 7, sea red ring 7 blue star 2"


@pytest.mark.parametrize("class_token", [False, True])
def test_every_clear_cell_is_read_and_no_other(class_token: bool) -> None:
    """Against sums by hand; the half into which an object slides counts for nothing."""
    torch.manual_seed(0)
    clip = dataclasses.replace(even_clip(EPISODE, 3), times_s=(0.9, 3.5))
    head = FrameWords(16, class_token=class_token)
    tokens = torch.randn(2, 5 if class_token else 4, 16)
    losses = []
    for frame, time_s in enumerate(clip.times_s):
        bags = frame_bags(EPISODE, time_s, class_token=class_token)
        for cell, clear in enumerate(clear_cells(EPISODE, time_s, class_token=class_token)):
            if clear:
                shown = torch.tensor([float(word in bags[cell]) for word in WORDS])
                odds = head.read(tokens[frame, cell]).sigmoid()
                losses.append(-(shown * odds.log() + (1 - shown) * (1 - odds).log()).sum())
    assert len(losses) == (2 + 5 if class_token else 2 + 4)
    assert head(tokens, (clip,)).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_the_words_of_every_frame_move_the_tower_where_they_are_asked_for(tmp_path: Path) -> None:
    family = FAMILIES["onevision"]
    start = tmp_path / "start"
    train_stage(family, "language", tiny("language", family), start=None, out=start, runs=tmp_path)
    recipe = tiny("finish", family)
    assert recipe.frame_words > 0 and recipe.clips.rivals > 0
    found = {}
    for weight in (0.0, recipe.frame_words):
        out = tmp_path / str(weight)
        weighted = dataclasses.replace(recipe, frame_words=weight)
        backbone = train_stage(family, "finish", weighted, start=start, out=out, runs=tmp_path)
        found[weight] = backbone.model.model.vision_tower.state_dict()
        record = json.loads((out / "provenance.json").read_text())
        assert record["recipe"]["frame_words"] == weight
        assert record["started_from_sha256"] == hashlib.sha256((start / "model.safetensors").read_bytes()).hexdigest()
        assert ("frame_words" in record["final_metrics"]) is (weight > 0)
    plain, told = found.values()
    assert any(not torch.equal(plain[name], told[name]) for name in plain)


def test_rivals_are_neighbours_of_one_colour_and_drawn_as_often_as_wanted(family, tokenizer) -> None:
    other = dataclasses.replace(RIGHT, colour="red")
    assert not has_rivals(EPISODE)
    assert has_rivals(dataclasses.replace(EPISODE, appearances=(LEFT, other)))
    apart = dataclasses.replace(RIGHT, enter_s=5.0)
    assert not has_rivals(dataclasses.replace(EPISODE, appearances=(LEFT, apart, other)))
    writer = DialogueWriter(tokenizer, family.chat)

    def share(rivals: float) -> float:
        recipe = ClipRecipe(
            steps=1,
            clips=120,
            fewest_frames=8,
            first_most_frames=8,
            most_frames=8,
            steps_per_frame=1,
            spacing_s=(1.0, 1.0),
            dense=False,
            rivals=rivals,
        )
        (batch,) = ClipBatches(recipe, writer, 4, 1)
        return sum(has_rivals(clip.episode) for clip in batch.clips) / 120

    assert share(0.0) < 0.5 < share(0.5) < share(1.0) == 1.0


def test_only_answers_are_supervised_and_a_conversation_begins_as_the_processor_s_prompt(family, tokenizer) -> None:
    backbone = family.build(tokenizer)
    writer = DialogueWriter(tokenizer, family.chat)
    turns = [
        Turn(kind="detail", question="Which digit?", answer="7"),
        Turn(kind="order", question="Next?", answer="red"),
    ]
    written = writer.write(turns, 12)
    supervised = [token for token in written.labels if token != IGNORE_INDEX]
    end = tokenizer.eos_token_id
    words = [tokenizer.encode(family.chat.lead + word, add_special_tokens=False) for word in ("7", "red")]
    assert supervised == [*words[0], end, *words[1], end]
    for (kind, first, last), turn in zip(written.answers, turns, strict=True):
        assert kind == turn.kind and list(written.ids[first:last]) == list(written.labels[first:last])
    processor = BackboneProcessor(tokenizer, backbone.facts, family.pictures, chat_template=family.template)
    prompt = processor.prompt_ids("Which digit?", 12)[0].tolist()
    assert list(written.ids[: len(prompt)]) == prompt
    assert written.answers[0][1] == len(prompt)


def test_the_language_model_is_the_pretrained_one_in_the_family_s_architecture(family, tokenizer) -> None:
    own = LlamaForCausalLM.from_pretrained(PRETRAINED / "language_model", dtype=torch.float32)
    backbone = family.build(tokenizer)
    ids = torch.tensor([[1, 40, 300, 77, 500, 12]])
    with torch.no_grad():
        wanted = own(input_ids=ids).logits
        logits = backbone.model.lm_head(backbone.model.model.language_model(input_ids=ids).last_hidden_state)
    assert logits.shape[-1] == len(tokenizer) > wanted.shape[-1]
    assert torch.allclose(logits[..., : wanted.shape[-1]], wanted, atol=1e-5)
    assert {"<image>", "<video>"} <= set(tokenizer.get_vocab()) - {tokenizer.unk_token}


def test_conversations_fit_the_window_of_the_pretrained_language_model(family, tokenizer) -> None:
    grid = family.build(tokenizer).facts.grid
    recipe = tiny("language", family, first_most_frames=8)
    recipe = dataclasses.replace(recipe.clips, fewest_frames=8, steps=30, clips=8)
    writer = DialogueWriter(tokenizer, family.chat)
    longest = max(
        batch.dialogues.ids.shape[1]
        for batch in ClipBatches(recipe, writer, grid.frame_tokens(grid.stride), grid.end_tokens)
    )
    window = json.loads((PRETRAINED / "language_model" / "config.json").read_text())["max_position_embeddings"]
    assert 120 < longest <= window == family.build(tokenizer).facts.trained.language


def test_word_tokens_are_sums_of_embeddings(family, tokenizer) -> None:
    backbone = family.build(tokenizer)
    clip = dataclasses.replace(even_clip(EPISODE, 2), times_s=(2.0, 3.5))
    words = WordTokens(backbone, tokenizer)
    made = words((clip,))
    weight = backbone.model.get_input_embeddings().weight
    first = backbone.facts.grid.class_tokens
    wanted = sum(
        weight[tokenizer.encode(f" {word}", add_special_tokens=False)[0]] for word in ("sea", "red", "ring", "7")
    )
    assert made.shape == (2, first + 4, weight.shape[1])
    assert torch.allclose(made[0, first], wanted) and not torch.allclose(made[0, first + 1], wanted)
    assert words.clear((clip,)).all()


def test_pictures_become_tokens_as_the_processor_and_the_backbone_make_them(family, tokenizer) -> None:
    """Without noise, and for frames of the tower's size, training and answering see the same pixels."""
    torch.manual_seed(0)
    backbone = family.build(tokenizer)
    backbone.model.eval()
    clip = even_clip(make_episode(WorldSettings(duration_s=8.0), split="train", seed=0, index=0), 8)
    frames = clip_pictures((clip,), IMAGE_SIDE)
    mean, std = family.pictures["image_mean"], family.pictures["image_std"]
    processor = BackboneProcessor(tokenizer, backbone.facts, family.pictures, chat_template=family.template)
    made = noisy_pixels(frames, np.random.default_rng(0), 0.0, mean, std)
    assert torch.allclose(made, processor.pixel_values(frames), atol=1e-5)
    grid = backbone.facts.grid
    with torch.no_grad():
        tokens = PictureTokens(backbone, family.pictures, 0.0, 0)((clip,))
        alone = backbone.frame_tokens(backbone.encode(made), *grid.pooled(grid.stride))
    assert tokens.shape[:2] == (8, grid.frame_tokens(grid.stride)) and torch.equal(tokens, alone)
    assert NOISE > 0


def test_the_loss_is_that_of_transformers_own_model(family, tokenizer) -> None:
    torch.manual_seed(0)
    backbone = family.build(tokenizer)
    backbone.model.eval()
    clips = tuple(
        even_clip(make_episode(WorldSettings(duration_s=4.0), split="train", seed=0, index=index), 8)
        for index in range(2)
    )
    grid = backbone.facts.grid
    writer = DialogueWriter(tokenizer, family.chat)
    turns = [with_dense_task([], clip, random.Random(0), lists_frames=True) for clip in clips]
    batch = writer.batch([writer.write(one, 8 * grid.frame_tokens(grid.stride) + grid.end_tokens) for one in turns])
    with torch.no_grad():
        tokens = PictureTokens(backbone, family.pictures, 0.0, 0)(clips)
        loss, _ = answers_loss(backbone, tokens, batch)
        pixels = noisy_pixels(
            clip_pictures(clips, IMAGE_SIDE),
            np.random.default_rng(0),
            0.0,
            family.pictures["image_mean"],
            family.pictures["image_std"],
        )
        rows = []
        for row in range(2):
            kept = batch.ids[row] != tokenizer.pad_token_id
            own = backbone.model(
                input_ids=batch.ids[row][kept][None], pixel_values_videos=pixels[8 * row : 8 * row + 8][None]
            ).logits[0]
            rows.append((own[:-1], batch.labels[row][kept][1:]))
    wanted = torch.nn.functional.cross_entropy(torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows]))
    assert torch.allclose(loss, wanted, atol=1e-5)


def test_exact_match_wants_every_token() -> None:
    right = torch.tensor([[True, True, False], [True, True, True]])
    answers = (("a", 0, 0, 2), ("a", 0, 1, 3), ("b", 1, 0, 3))
    assert exact_match(right, answers) == {"a": 0.5, "b": 1.0}


def test_the_rate_warms_up_holds_and_falls_to_zero() -> None:
    rate = Rate(peak=1.0, warmup_steps=10, decay_from=0.5)
    assert [rate.factor(step, 100) for step in (0, 9, 10, 50)] == [0.1, 1.0, 1.0, 1.0]
    assert rate.factor(75, 100) == pytest.approx(0.5)
    assert rate.factor(100, 100) == pytest.approx(0.0)


def test_all_stages_twice_give_the_same_files(family, tmp_path: Path) -> None:
    def train(where: Path) -> dict[str, str]:
        start = None
        for stage in STAGES:
            recipe = tiny(stage, family)
            out = where / stage
            train_stage(family, stage, recipe, start=start, out=out, runs=where / "runs")
            start = out
        return {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(out.iterdir())
            if file.name != "provenance.json"
        }

    first = train(tmp_path / "a")
    assert first == train(tmp_path / "b")
    assert {"model.safetensors", "tokenizer.json", "config.json", "video_preprocessor_config.json"} <= first.keys()
    record = json.loads((tmp_path / "a" / "finish" / "provenance.json").read_text())
    assert record["recipe"]["clips"]["steps"] == 3 and len(record["data_hash"]) == 64
    assert record["held_out"].keys() == {"needle", "order", "detail"}
    assert all(0 <= score <= 1 for score in record["held_out"].values())
    assert (
        record["started_from"]["started_from"]["started_from"]["started_from"]["recipe"]["clips"]["seed"]
        == tiny("language", family).clips.seed
    )
    backbone = load_backbone(tmp_path / "a" / "finish")
    assert backbone.model.dtype == torch.float16
    read = AutoTokenizer.from_pretrained(tmp_path / "a" / "finish")
    assert read.eos_token == family.chat.end
    assert backbone.model.generation_config.eos_token_id == read.eos_token_id


def test_alignment_leaves_the_language_model_alone_and_coupling_trains_everything(family, tmp_path: Path) -> None:
    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return load_backbone(folder, dtype=torch.float32).model.state_dict()

    start = tmp_path / "language"
    train_stage(family, "language", tiny("language", family), start=None, out=start, runs=tmp_path)
    train_stage(family, "align", tiny("align", family), start=start, out=tmp_path / "align", runs=tmp_path)
    before, after = weights(start), weights(tmp_path / "align")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("language_model" not in name and "lm_head" not in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed) and any("tower" in name for name in changed)


def test_a_stage_without_its_start_is_refused(family, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs --start"):
        train_stage(family, "align", tiny("align", family), start=None, out=tmp_path / "x", runs=tmp_path)
    with pytest.raises(UserError, match="has no --start"):
        train_stage(family, "language", tiny("language", family), start=tmp_path, out=tmp_path / "x", runs=tmp_path)


def test_clips_grow_and_follow_the_seed(family, tokenizer) -> None:
    recipe = ClipRecipe(
        steps=64,
        clips=1,
        fewest_frames=2,
        first_most_frames=2,
        most_frames=6,
        steps_per_frame=8,
        spacing_s=(0.8, 1.2),
        seed=5,
    )
    drawn = list(ClipBatches(recipe, DialogueWriter(tokenizer, family.chat), 4, 1))
    assert {batch.frames for batch in drawn[:8]} == {2}
    assert max(batch.frames for batch in drawn[16:24]) <= 4 and max(batch.frames for batch in drawn) == 6
    again = list(ClipBatches(recipe, DialogueWriter(tokenizer, family.chat), 4, 1))
    assert all(torch.equal(a.dialogues.ids, b.dialogues.ids) for a, b in zip(drawn, again, strict=True))
