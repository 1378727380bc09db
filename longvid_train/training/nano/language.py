"""Pre-training of the nano language model on world text (``longvid_train.world.text``).

``B`` readings of a batch, ``S`` positions of a reading. A position is a bag of token ids; its embedding is the sum of
theirs. Only captions and answers are supervised: a transcript is random, and its loss would drown the rest.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NotRequired, TypedDict

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longvid_train.types import IGNORE_INDEX
from longvid_train.world.episode import WorldSettings, make_episode
from longvid_train.world.text import Reading, plain_entries, read_episode

WINDOW = 256
"""Positions the language model is pre-trained for: LLaMA-VID's stage 3 extends them."""

LONGEST_PLAIN_S = 30
"""In plain words a second takes about five positions: longer readings would leave no room for questions."""

STORY, COPY, SPEECH, CAPTION = "story", "copy", "speech", "caption"
SHORT_KINDS = ("needle", "order", "count", "detail", "subtitle")


@dataclass(frozen=True, kw_only=True)
class LanguageRecipe:
    """How the nano language model is pre-trained; lengths grow by one second every ``steps_per_second`` steps.

    Attributes:
        questions: most questions of a reading; those that would outgrow the window are left out.
        merged: share of batches whose readings are merged, two positions a second.
        subtitles: share of readings with speech.
        bare_captions: share of readings told right away, without the word "Story:".
        stories: share of the other readings that are told at all.
        copies: share of readings of at most ``longest_copy_s`` whose every second is written out in plain words.
        speeches: share of readings with speech that list what was said with which object.
        longest_gap_s: the longest pause between two objects is drawn from these, for each reading.
    """

    steps: int = 2800
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_from: float = 0.6
    shortest_s: int = 3
    first_longest_s: int = 4
    longest_s: int = 12
    steps_per_second: int = 140
    questions: int = 4
    merged: float = 0.75
    subtitles: float = 0.4
    bare_captions: float = 0.4
    stories: float = 1.0
    copies: float = 0.5
    longest_copy_s: int = 6
    speeches: float = 0.0
    longest_gap_s: tuple[float, ...] = (0.8,)
    seed: int = 0


LONG_RECIPE = LanguageRecipe(
    steps=3000,
    batch_size=24,
    learning_rate=1e-3,
    decay_from=0.5,
    shortest_s=6,
    first_longest_s=16,
    longest_s=72,
    steps_per_second=30,
    questions=12,
    merged=0.9,
    subtitles=0.6,
    bare_captions=0.1,
    stories=0.3,
    speeches=0.5,
    longest_copy_s=8,
    longest_gap_s=(0.8, 3.0, 8.0),
    seed=1,
)
"""Goes on from the first recipe's model: readings of up to 72 s, crowded and sparse, questions that fill the window."""


@dataclass
class _Bags:
    """A reading as bags of token ids, a label for each, and where the answer to each kind of question stands."""

    ids: list[tuple[int, ...]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    answers: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, bag: tuple[int, ...], label: int = IGNORE_INDEX) -> None:
        self.ids.append(bag)
        self.labels.append(label)

    def add_text(self, tokens: tuple[int, ...], *, supervised: bool) -> None:
        for token in tokens:
            self.add((token,), token if supervised else IGNORE_INDEX)


class ReadingBatch(TypedDict):
    """Flattened bags, their ``(B * S,)`` offsets, ``(B, S)`` labels, ``(kind, row, start, end)`` of every answer."""

    bags: torch.Tensor
    offsets: torch.Tensor
    labels: torch.Tensor
    answers: list[tuple[str, int, int, int]]
    mode: NotRequired[str]


class ReadingBatches(IterableDataset[ReadingBatch]):
    """An endless, seeded stream of batches of readings of one length each (so that little is padding)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: LanguageRecipe) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._encode = lru_cache(maxsize=None)(self._encode_uncached)

    def __iter__(self) -> Iterator[ReadingBatch]:
        """Yield ``recipe.steps`` batches."""
        rng = random.Random(self._recipe.seed)
        for step in range(self._recipe.steps):
            yield self._batch(rng, self._longest_s(step))

    def _longest_s(self, step: int) -> int:
        grown_s = self._recipe.first_longest_s + step // self._recipe.steps_per_second
        return min(self._recipe.longest_s, grown_s)

    def _batch(self, rng: random.Random, longest_s: int) -> ReadingBatch:
        merged = rng.random() < self._recipe.merged
        duration_s = rng.randint(self._recipe.shortest_s, longest_s if merged else min(longest_s, LONGEST_PLAIN_S))
        batch = _pad([self._reading(rng, duration_s, merged) for _ in range(self._recipe.batch_size)])
        return {**batch, "mode": "merged" if merged else "plain"}

    def _reading(self, rng: random.Random, duration_s: int, merged: bool) -> _Bags:
        """A reading whose transcript leaves room in the window for two answers at least."""
        while True:
            bags = self._to_bags(self._drawn(rng, duration_s, merged), rng)
            if len(bags.answers) > 1:
                return bags

    def _drawn(self, rng: random.Random, duration_s: int, merged: bool) -> Reading:
        settings = WorldSettings(
            duration_s=float(duration_s),
            gap_s=(0.0, rng.choice(self._recipe.longest_gap_s)),
            subtitles=rng.random() < self._recipe.subtitles,
        )
        episode = make_episode(settings, split="train", seed=rng.getrandbits(32), index=0)
        return read_episode(episode, rng, kinds=SHORT_KINDS, questions=self._recipe.questions, merged=merged)

    def _to_bags(self, reading: Reading, rng: random.Random) -> _Bags:
        bags = _Bags()
        bags.add((self._tokenizer.bos_token_id,))
        for entry in reading.entries:
            for words in entry.bags:
                bags.add(tuple(token for word in words for token in self._encode(f" {word}")))
            if entry.spoken:
                bags.add_text(self._encode(f" {entry.spoken}"), supervised=False)
        bare = rng.random() < self._recipe.bare_captions
        if bare:
            self._answer(bags, CAPTION, (), self._encode(f"{reading.caption}\n"))
        for kind, prompt, answer in self._tasks(reading, rng, told=bare or rng.random() >= self._recipe.stories):
            tokens = (*self._encode(f" {answer}"), self._tokenizer.eos_token_id)
            self._answer(bags, kind, self._encode(prompt), tokens)
        return bags

    def _tasks(self, reading: Reading, rng: random.Random, *, told: bool) -> list[tuple[str, str, str]]:
        """``(kind, prompt, answer)`` of what is asked about a reading, in order."""
        tasks = [(q.kind, f"\nQuestion: {q.text} Answer:", q.answer) for q in reading.questions]
        if not told:
            tasks.insert(rng.choice((0, len(tasks))), (STORY, "\nStory:", reading.caption))
        if reading.speech and rng.random() < self._recipe.speeches:
            tasks.insert(rng.choice((0, len(tasks))), (SPEECH, "\nSpeech:", reading.speech))
        if len(reading.entries) <= self._recipe.longest_copy_s and rng.random() < self._recipe.copies:
            tasks.insert(0, (COPY, "\nFrames:", plain_entries(reading)))
        return tasks

    def _answer(self, bags: _Bags, kind: str, prompt: tuple[int, ...], answer: tuple[int, ...]) -> None:
        """Add a task, unless it would outgrow the window."""
        if len(bags.ids) + len(prompt) + len(answer) > WINDOW:
            return
        bags.add_text(prompt, supervised=False)
        start = len(bags.ids)
        bags.add_text(answer, supervised=True)
        bags.answers.append((kind, start, len(bags.ids)))

    def _encode_uncached(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def _pad(readings: list[_Bags]) -> ReadingBatch:
    """Flatten for ``embedding_bag``; padding stands on the right, where causal attention ignores it."""
    longest = max(len(reading.ids) for reading in readings)
    labels = torch.full((len(readings), longest), IGNORE_INDEX)
    flat: list[int] = []
    offsets: list[int] = []
    for row, reading in enumerate(readings):
        labels[row, : len(reading.labels)] = torch.tensor(reading.labels)
        for bag in reading.ids + [(0,)] * (longest - len(reading.ids)):
            offsets.append(len(flat))
            flat.extend(bag)
    answers = [(kind, row, start, end) for row, reading in enumerate(readings) for kind, start, end in reading.answers]
    return {"bags": torch.tensor(flat), "offsets": torch.tensor(offsets), "labels": labels, "answers": answers}


def nano_language_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about a million parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=WINDOW,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class LanguagePretraining(pl.LightningModule):
    """Next-token prediction of captions and answers."""

    def __init__(self, model: LlamaForCausalLM, recipe: LanguageRecipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe

    def training_step(self, batch: ReadingBatch, batch_index: int) -> torch.Tensor:
        """Return the mean cross-entropy of the supervised positions."""
        labels = batch["labels"]
        embeddings = nn.functional.embedding_bag(
            batch["bags"], self.model.get_input_embeddings().weight, batch["offsets"], mode="sum"
        ).view(*labels.shape, -1)
        hidden = self.model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        supervised = labels[:, 1:] != IGNORE_INDEX
        logits = self.model.lm_head(hidden[:, :-1][supervised])
        targets = labels[:, 1:][supervised]
        loss = nn.functional.cross_entropy(logits, targets)
        right = torch.zeros_like(labels, dtype=torch.bool)
        right[:, 1:][supervised] = logits.argmax(-1) == targets
        self.log("loss", loss, prog_bar=True)
        self.log_dict(_exact_match(right, batch["answers"], batch["mode"]))
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW; constant after the warm-up, cosine to zero over the last part."""
        recipe = self.recipe
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: hold_then_cosine(step, recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _exact_match(right: torch.Tensor, answers: list[tuple[str, int, int, int]], mode: str) -> dict[str, float]:
    """Share of answers of each kind whose every token is the likeliest one, given the right tokens before it."""
    scores: dict[str, list[float]] = {}
    for kind, row, start, end in answers:
        scores.setdefault(f"{mode}/{kind}", []).append(float(right[row, start:end].all()))
    return {name: sum(values) / len(values) for name, values in scores.items()}


def hold_then_cosine(step: int, recipe: LanguageRecipe) -> float:
    """Factor of the learning rate at ``step``: linear warm-up, 1, then a cosine to 0 from ``decay_from`` on."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    decaying = (step / recipe.steps - recipe.decay_from) / (1 - recipe.decay_from)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, decaying))))
