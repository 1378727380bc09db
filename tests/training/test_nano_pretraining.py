"""The pre-training of the nano parts: what a reading becomes, what a frame is asked, and what ships."""

import dataclasses
import json
import random

import pytest
import torch
from transformers import AutoTokenizer

from longvid_train.commands.init import NANO_PARTS
from longvid_train.training.nano.language import (
    LONG_RECIPE,
    WINDOW,
    LanguagePretraining,
    LanguageRecipe,
    ReadingBatches,
    hold_then_cosine,
    nano_language_model,
)
from longvid_train.training.nano.tokenizer import train_tokenizer
from longvid_train.training.nano.vision import NGRAMS, FrameBatches, VisionRecipe, ask_frame, frame_ngrams
from longvid_train.types import IGNORE_INDEX
from longvid_train.world.episode import WorldSettings, make_episode


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(NANO_PARTS / "tokenizer")


def test_the_shipped_tokenizer_is_the_recipe_s(tokenizer) -> None:
    assert train_tokenizer(seed=0).get_vocab() == tokenizer.get_vocab()


def test_world_words_are_single_tokens_and_any_text_survives(tokenizer) -> None:
    for word in (" red", " circle", " forest", " 7", " ASSISTANT", " apple"):
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1, word
    text = "Ünïcode 漢字 </s> 42\n\ttabs"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids


def test_only_answers_are_supervised_and_they_read_back(tokenizer) -> None:
    recipe = LanguageRecipe(steps=3, batch_size=4)
    batch = next(iter(ReadingBatches(tokenizer, recipe)))
    labels = batch["labels"]
    supervised = torch.zeros_like(labels, dtype=torch.bool)
    for _, row, start, end in batch["answers"]:
        supervised[row, start:end] = True
        assert labels[row, end - 1] in (tokenizer.eos_token_id, tokenizer.encode("\n", add_special_tokens=False)[0])
    assert torch.equal(supervised, labels != IGNORE_INDEX)
    bags = torch.diff(batch["offsets"], append=torch.tensor([len(batch["bags"])])).view(labels.shape)
    assert (bags[supervised] == 1).all()
    single = batch["bags"][batch["offsets"]].view(labels.shape)
    assert torch.equal(single[supervised], labels[supervised])


def test_readings_follow_the_seed(tokenizer) -> None:
    def first(seed: int) -> torch.Tensor:
        return next(iter(ReadingBatches(tokenizer, LanguageRecipe(steps=1, batch_size=2, seed=seed))))["bags"]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_long_readings_fill_the_window_with_whole_questions(tokenizer) -> None:
    recipe = dataclasses.replace(LONG_RECIPE, steps=30, batch_size=4, first_longest_s=72, subtitles=1.0)
    kinds = set()
    fullest = 0
    for batch in ReadingBatches(tokenizer, recipe):
        assert batch["labels"].shape[1] <= WINDOW
        assert len(batch["answers"]) >= 4
        kinds |= {kind for kind, *_ in batch["answers"]}
        fullest = max(fullest, batch["labels"].shape[1])
    assert fullest > WINDOW - 20
    assert kinds >= {"needle", "order", "count", "detail", "subtitle", "speech", "story"}


def test_language_loss_is_that_of_transformers_on_plain_words(tokenizer) -> None:
    torch.manual_seed(0)
    model = nano_language_model(tokenizer)
    recipe = LanguageRecipe(steps=1, batch_size=2, merged=0.0)
    batch = next(iter(ReadingBatches(tokenizer, recipe)))
    module = LanguagePretraining(model, recipe)
    module.log = module.log_dict = lambda *_, **__: None
    loss = module.training_step(batch, 0)
    ids = batch["bags"].view(batch["labels"].shape)
    assert loss.item() == pytest.approx(model(input_ids=ids, labels=batch["labels"]).loss.item(), rel=1e-5)


def test_schedule_warms_up_holds_and_decays_to_zero() -> None:
    recipe = LanguageRecipe(steps=1000, warmup_steps=100, decay_from=0.6)
    assert hold_then_cosine(0, recipe) == pytest.approx(0.01)
    assert hold_then_cosine(100, recipe) == hold_then_cosine(600, recipe) == 1.0
    assert hold_then_cosine(800, recipe) == pytest.approx(0.5)
    assert hold_then_cosine(1000, recipe) == pytest.approx(0.0, abs=1e-9)


def test_frame_questions_are_answered_from_the_frame_alone() -> None:
    rng = random.Random(0)
    absent = 0
    for index in range(200):
        episode = make_episode(WorldSettings(duration_s=8.0, overlap=0.3), split="train", seed=5, index=index)
        time_s = rng.uniform(0, 8)
        question, answer = ask_frame(episode, time_s, rng)
        assert set(answer) <= set(NGRAMS)
        seen = {appearance.name: appearance for appearance in episode.visible_at(time_s)}
        if question.startswith("Which digit"):
            name = question.removeprefix("Which digit does the ").removesuffix(" carry?")
            assert answer == ([seen[name].digit] if name in seen else ["nothing"])
            absent += name not in seen
        if question.startswith("What came right after"):
            assert answer == frame_ngrams(episode, time_s)
    assert absent > 5


def test_frame_batches_have_the_promised_shapes(tokenizer) -> None:
    batch = next(iter(FrameBatches(tokenizer, VisionRecipe(steps=1, batch_size=8))))
    assert batch["pixel_values"].shape == (8, 3, 84, 84)
    assert batch["caption"].shape == batch["answer"].shape == (8, len(NGRAMS))
    assert batch["caption"].sum(dim=1).ge(1).all()
    assert batch["prompt_input_ids"].shape == batch["prompt_attention_mask"].shape


@pytest.mark.parametrize("part", ["language_model", "tower", "qformer"])
def test_shipped_parts_say_how_they_were_made(part: str) -> None:
    record = json.loads((NANO_PARTS / part / "provenance.json").read_text())
    assert isinstance(record["recipe"]["seed"], int)
    assert record["command"].startswith("python -m longvid_train.training.nano.pretrain")
    assert len(record["commit"]) == 40 and len(record["data_hash"]) == 64
    size = sum(file.stat().st_size for file in (NANO_PARTS / part).iterdir())
    assert size < 4_000_000
