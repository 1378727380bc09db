"""Held-out questions answered before, during and after training: the measure that a stage must improve."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import WandbLogger

from longvid_train.data.manifest import Sample
from longvid_train.errors import UserError
from longvid_train.files import write_text
from longvid_train.generate.decoding import AnswerDecoder
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.record import AnswerRecord
from longvid_train.generate.scoring import score_answer
from longvid_train.training.strategies.whole import whole_weights
from longvid_train.types import Batch, VisualInputs

OVERALL = "overall"
UNKNOWN_KIND = "other"
TABLE_ROWS = 32


class AnswerAccuracy(Callback):
    """Answer the rows of ``data.test`` by greedy generation when training starts and ends, and every ``every_n_steps``.

    Answers are those that ``longvid ask`` would give: an answer ends at the end token or at the template's suffix.
    Writes ``answers_before.jsonl``, ``answers_after.jsonl`` and ``answers_step_<n>.jsonl`` to the run folder, logs
    ``answers/<kind>`` and ``answers/overall`` (mean scores), and a table of the first answers to wandb. A resumed run
    does not repeat "before".

    Args:
        enabled: False answers nothing.
        max_new_tokens: longest answer.
        every_n_steps: optimiser steps between answers during training; 0 answers at the start and the end only.
        max_samples: answer only the first rows, this many on all ranks together; 0 answers all.
    """

    def __init__(
        self,
        enabled: bool = False,
        max_new_tokens: int = 32,
        every_n_steps: int = 0,
        max_samples: int = 0,
    ) -> None:
        for name, value, least in (
            ("max_new_tokens", max_new_tokens, 1),
            ("every_n_steps", every_n_steps, 0),
            ("max_samples", max_samples, 0),
        ):
            if value < least:
                raise UserError(f"answers.{name} is {value}; it must be at least {least}")
        self.enabled = enabled
        self.options = GenerationOptions(max_new_tokens=max_new_tokens)
        self.every_n_steps = every_n_steps
        self.max_samples = max_samples
        self._answered_step = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Read and check the held-out manifest before any weights load.

        Raises:
            UserError: ``data.test`` names no manifest or a broken one, or two manifests share an id.
        """
        if self.enabled and stage == "fit":
            _samples_by_id(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Answer before the first step."""
        if self.enabled and trainer.global_step == 0:
            self._answer(trainer, pl_module, "before")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Answer every ``every_n_steps`` optimiser steps."""
        step = trainer.global_step
        due = self.enabled and self.every_n_steps > 0 and step % self.every_n_steps == 0
        if due and step not in (0, self._answered_step):
            self._answer(trainer, pl_module, f"step_{step}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Answer after the last step."""
        if self.enabled:
            self._answer(trainer, pl_module, "after")

    def _answer(self, trainer: pl.Trainer, pl_module: pl.LightningModule, moment: str) -> None:
        self._answered_step = trainer.global_step
        was_training = pl_module.training
        pl_module.eval()
        with whole_weights(trainer.strategy):
            own = list(self._records(trainer, pl_module))
        records = _gathered(own, trainer.world_size)
        pl_module.train(was_training)
        if trainer.is_global_zero:
            lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records]
            write_text(Path(trainer.default_root_dir) / f"answers_{moment}.jsonl", "".join(lines))
            self._log(trainer, records, moment)

    def _records(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[AnswerRecord]:
        samples = _samples_by_id(trainer)
        decoder = AnswerDecoder(pl_module.processor, trainer.datamodule.template)
        limit = -(-self.max_samples // trainer.world_size) if self.max_samples else len(samples)
        answered = 0
        for batch in trainer.datamodule.predict_dataloader():
            if answered >= limit:
                return
            batch = trainer.strategy.batch_to_device(batch, pl_module.device)
            for record in self._answer_batch(pl_module, decoder, batch, samples)[: limit - answered]:
                answered += 1
                yield record

    def _answer_batch(
        self, pl_module: pl.LightningModule, decoder: AnswerDecoder, batch: Batch, samples: dict[str, Sample]
    ) -> list[AnswerRecord]:
        answers = [answer.text for answer in pl_module.answers(batch, decoder, self.options)]
        visual_tokens = (batch["text"]["input_ids"] == pl_module.processor.visual_token_id).sum(dim=1).tolist()
        frames = frames_per_row(batch["visual"], visual_tokens, pl_module.processor)
        prompt_tokens = batch["text"]["attention_mask"].sum(dim=1).tolist()
        return [
            _record(samples[sample_id], *numbers)
            for sample_id, *numbers in zip(
                batch["sample_ids"], answers, frames, visual_tokens, prompt_tokens, strict=True
            )
        ]

    def _log(self, trainer: pl.Trainer, records: Sequence[AnswerRecord], moment: str) -> None:
        metrics = {f"answers/{kind}": value for kind, value in mean_scores(records).items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
            if isinstance(logger, WandbLogger) and records:
                rows = [list(asdict(record).values()) for record in records[:TABLE_ROWS]]
                logger.log_table(f"answers_{moment}", columns=list(asdict(records[0])), data=rows)


def frames_per_row(visual: VisualInputs | None, visual_tokens: Sequence[int], processor: Any) -> list[int]:
    """Return the number of distinct frames each row of a batch shows, from its visual tokens and the spans in reading
    order."""
    if visual is None:
        return [0] * len(visual_tokens)
    spans = iter(zip(visual["visual_spans"].tolist(), visual["content_grids"].tolist(), strict=True))
    counts = []
    for tokens in visual_tokens:
        shown: set[int] = set()
        while tokens > 0:
            (first, count, _), grid = next(spans)
            shown.update(range(first, first + count))
            tokens -= sum(processor.frame_tokens(grid, count))
        counts.append(len(shown))
    return counts


def mean_scores(records: Sequence[AnswerRecord]) -> dict[str, float]:
    """Return the mean ``correct`` of each kind and of all rows (``"overall"``)."""
    kinds = {OVERALL: list(records)}
    for record in records:
        kinds.setdefault(record.kind, []).append(record)
    return {kind: sum(row.correct for row in rows) / len(rows) for kind, rows in kinds.items() if rows}


def read_answers(path: Path) -> list[AnswerRecord]:
    """Read an ``answers_*.jsonl`` file."""
    return [AnswerRecord(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _record(sample: Sample, answer: str, frames: int, visual_tokens: int, prompt_tokens: int) -> AnswerRecord:
    kind, truth = str(sample.meta.get("kind", UNKNOWN_KIND)), sample.conversation[-1].text
    questions = [turn.text for turn in sample.conversation if turn.role == "user"]
    return AnswerRecord(
        id=sample.id,
        kind=kind,
        question=questions[-1],
        answer=answer,
        truth=truth,
        correct=score_answer(answer, truth, kind),
        frames=frames,
        visual_tokens=visual_tokens,
        prompt_tokens=prompt_tokens,
    )


def _samples_by_id(trainer: pl.Trainer) -> dict[str, Sample]:
    dataset = trainer.datamodule.dataset("predict")
    samples: dict[str, Sample] = {}
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        if sample.id in samples:
            raise UserError(f"data.test: id '{sample.id}' stands in two manifests; answers need one id a row")
        if sample.conversation[-1].role != "assistant":
            raise UserError(
                f"data.test: row '{sample.id}' has no answer to compare with; end it with the assistant's turn"
            )
        samples[sample.id] = sample
    return samples


def _gathered(records: list[AnswerRecord], world_size: int) -> list[AnswerRecord]:
    """Records of all ranks, rows in file order (rank ``r`` has rows ``r, r + world_size, ...``)."""
    if world_size == 1:
        return records
    parts: list[list[AnswerRecord]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(parts, records)
    longest = max(len(part) for part in parts)
    return [part[row] for row in range(longest) for part in parts if row < len(part)]
