"""The two passes of a calibration as LightningModules: what every row says of keys and values, and the safety gate.

Rows pass one at a time, so that what is computed of one depends neither on the others nor on the number of processes.
``S`` tokens of a row, ``T`` visual tokens, ``H`` language-model width, ``F`` frames.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from longvid_train.data.conversation import EncodedSample
from longvid_train.data.dataset import BatchFailure
from longvid_train.errors import UserError
from longvid_train.generate.engine import Asked, Engine, EngineOptions
from longvid_train.generate.loading import load_engine
from longvid_train.kvcache.calibration import observe_row
from longvid_train.kvcache.gate import RowComparison, compare_row
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.quantizer import Quantizer
from longvid_train.kvcache.rows import CalibrationRow
from longvid_train.kvcache.statistics import Statistics
from longvid_train.models.splice import embed_and_splice
from longvid_train.training.calibration.datamodule import CalibrationData, LoadedRow
from longvid_train.training.calibration.parts import consolidate, observed_samples, save_part
from longvid_train.training.calibration.settings import ModelSettings
from longvid_train.training.notices import notice
from longvid_train.training.threads import use_threads
from longvid_train.types import IGNORE_INDEX


class LoadedModel:
    """A checkpoint that both passes share; its weights are loaded when the first of them begins."""

    def __init__(self, settings: ModelSettings, data: CalibrationData) -> None:
        self.settings = settings
        self.data = data
        self._engine: Engine | None = None

    def load(self, device: torch.device) -> None:
        """Load the weights unless they are."""
        if self._engine is None:
            use_threads(self.settings.torch_threads)
            self._engine = load_engine(
                self.settings.model,
                self.data.prompting,
                device=device,
                dtype=self.settings.dtype_of_weights(),
                options=EngineOptions(prefill_chunk=self.settings.prefill_chunk),
            )

    def engine(self) -> Engine:
        """The loaded engine."""
        assert self._engine is not None, "a pass loads it"
        return self._engine

    def window(self, engine: Engine, row: int) -> AbstractContextManager[None]:
        """The block in which the model has the window of a row, and so of all of them."""
        return engine.reading(engine.extension(self.data.facts(row).counts))


class RowPass(pl.LightningModule):
    """A pass over rows; the first mistake is kept, and `job` raises it on all processes together.

    Attributes:
        what: for the lines of progress.
        mistake: what went wrong in this process; empty while nothing did.
    """

    what = ""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.loaded = loaded
        self.mistake = ""

    @abstractmethod
    def take(self, engine: Engine, row: CalibrationRow) -> None:
        """Use one row, under its window."""

    def configure_model(self) -> None:
        """Load the weights."""
        self.loaded.load(self.trainer.strategy.root_device)

    def transfer_batch_to_device(self, batch: LoadedRow, device: torch.device, dataloader_idx: int) -> LoadedRow:
        """Leave the row where it is: its frames go to the device in chunks."""
        return batch

    def predict_step(self, batch: LoadedRow, batch_idx: int) -> None:
        """Take one row, unless something went wrong before."""
        if self.mistake:
            return
        if isinstance(batch.sample, BatchFailure):
            self.mistake = batch.sample.message
            return
        engine = self.loaded.engine()
        try:
            with self.loaded.window(engine, batch.number):
                self.take(engine, calibration_row(engine, self.loaded.data, batch.number, batch.sample))
        except UserError as error:
            self.mistake = str(error)


class StatisticsPass(RowPass):
    """Observes rows and saves what this process has every few of them.

    Args:
        loaded: the model.
        statistics: to fill; without samples.
        folder: of the run's parts.
        save_every: rows between saves.
    """

    what = "statistics"

    def __init__(self, loaded: LoadedModel, statistics: Statistics, folder: Path, *, save_every: int) -> None:
        super().__init__(loaded)
        self.statistics = statistics
        self._folder = folder
        self._save_every = save_every
        self._unsaved = 0

    def setup(self, stage: str) -> None:
        """Put together what a killed run left, and show the rows that are still to be observed."""
        if self.trainer.is_global_zero:
            consolidate(self._folder, Statistics.from_state(self.statistics.state()))
        self.trainer.strategy.barrier("parts of a killed run")
        done = observed_samples(self._folder)
        data = self.loaded.data
        if done:
            notice(f"statistics: {len(done)} of {len(data.selection.calibration)} rows were observed before")
        data.show([row for row in data.selection.calibration if row not in done])

    def take(self, engine: Engine, row: CalibrationRow) -> None:
        """Observe a row."""
        with observing(engine.model, self.statistics):
            observe_row(engine.model, self.statistics, row)
        self._unsaved += 1
        if self._unsaved >= self._save_every:
            self.save()

    def save(self) -> None:
        """Write this process's part if it has rows that are not saved."""
        if self._unsaved:
            save_part(self._folder, self.global_rank, self.statistics)
            self._unsaved = 0


class GatePass(RowPass):
    """Compares held-out rows.

    Args:
        loaded: the model.
        quantizer: to judge.
    """

    what = "gate"

    def __init__(self, loaded: LoadedModel, quantizer: Quantizer) -> None:
        super().__init__(loaded)
        self.compared: list[RowComparison] = []
        self._quantizer = quantizer

    def setup(self, stage: str) -> None:
        """Show the rows that are held out."""
        self.loaded.data.show(self.loaded.data.selection.held_out)

    def take(self, engine: Engine, row: CalibrationRow) -> None:
        """Compare a row."""
        chunk = self.loaded.settings.prefill_chunk
        self.compared.append(compare_row(engine.model, self._quantizer, row, prefill_chunk=chunk))


@torch.no_grad()
def calibration_row(engine: Engine, data: CalibrationData, number: int, sample: EncodedSample) -> CalibrationRow:
    """A decoded row as the decoder reads it: its frames through the tower, visual tokens in their places."""
    spans, written = sample.spans.tolist(), data.dataset.sample(number)
    layouts = data.layouts(number, [frames for _, frames, _ in spans])
    opened = engine.prompting.encode(written.conversation[:-1], layouts)
    first = {(start, frames): None for start, frames, _ in spans}
    assert len(first) == len(layouts), "every medium is shown"
    kept = tuple(
        engine.keep(_chunks(sample.pixel_values, start, frames, engine.frame_chunk), layout)
        for (start, frames), layout in zip(sorted(first), layouts, strict=True)
    )
    shown = tuple(sorted(first).index((start, frames)) for start, frames, _ in spans)
    whole = replace(sample, spans=opened.spans, content_grids=opened.content_grids, prompts=opened.prompts)
    tokens = engine.visual_tokens(Asked(sample=whole, counts=data.facts(number).counts, shown=shown, kept=kept))
    ids, placeholder = sample.input_ids, engine.prompting.processor.visual_token_id
    embeddings = embed_and_splice(
        engine.model.get_input_embeddings(), ids[None].to(engine.device), tokens.to(engine.device), placeholder
    )
    return CalibrationRow(
        number=number,
        name=written.id,
        kind=_kind(written.meta),
        embeddings=embeddings,
        visual=(ids == placeholder)[None],
        input_ids=ids,
        answer=last_answer(sample.labels),
    )


def last_answer(labels: torch.Tensor) -> tuple[int, int]:
    """First and one past the last of the last run of supervised tokens in ``(S,)`` labels."""
    supervised = (labels != IGNORE_INDEX).nonzero().flatten().tolist()
    end = supervised[-1] + 1
    start = max((place for place in range(end) if labels[place] == IGNORE_INDEX), default=-1) + 1
    return start, end


def _chunks(pixels: torch.Tensor | None, start: int, frames: int, size: int) -> Iterator[torch.Tensor]:
    assert pixels is not None, "a row with media has pixels"
    for first in range(start, start + frames, size):
        yield pixels[first : min(first + size, start + frames)]


def _kind(meta: Any) -> str:
    """Of the question, where the row says what the answer is."""
    kind = meta.get("kind")
    return kind if isinstance(kind, str) and "answer" in meta else ""
