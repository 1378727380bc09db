"""A whole calibration: checks, statistics, a quantizer, the gate, and the checkpoint or the reason there is none.

Everything that can be known without weights is checked before they load, and before further processes start. Rows are
divided over the processes; the statistics are put together on rank 0 exactly, so that the file does not depend on how
many there were.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from longvid_train.adaptation.reading import adaptation_values
from longvid_train.errors import UserError
from longvid_train.files import write_json
from longvid_train.kvcache.attention import rotation_of
from longvid_train.kvcache.checkpoint import (
    CalibrationRecord,
    ModelIdentity,
    QuantizerRecord,
    runtime_versions,
    save_quantizer,
)
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.gate import GateThresholds, Verdict, judge
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.quantizer import CacheShape, Quantizer, cache_shape
from longvid_train.kvcache.statistics import Statistics
from longvid_train.models.backbones.load import read_config
from longvid_train.models.identity import model_identity
from longvid_train.training.calibration.cache_settings import CacheSettings
from longvid_train.training.calibration.datamodule import CalibrationData
from longvid_train.training.calibration.parts import consolidate
from longvid_train.training.calibration.passes import GatePass, LoadedModel, StatisticsPass
from longvid_train.training.calibration.ranks import gathered, on_first, raise_together
from longvid_train.training.calibration.run_folder import REPORT_FILE, begin, check_out, end, run_folder
from longvid_train.training.calibration.settings import ModelSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationJob:
    """What a config describes.

    Attributes:
        model: the model and how its statistics are taken.
        data: the rows.
        cache: the scheme.
        gate: what the quantizer must keep.
        out: folder of the checkpoint.
        force: write it although the gate refuses it.
    """

    model: ModelSettings
    data: CalibrationData
    cache: CacheSettings
    gate: GateThresholds
    out: Path
    force: bool

    def run(self, trainer: pl.Trainer) -> Verdict:
        """Calibrate and write the checkpoint, or the report of a refusal.

        Returns:
            The verdict; the checkpoint was written if it passed or was forced.

        Raises:
            UserError: anything of the config, the files, the model or the rows that cannot be.
        """
        policy, shape, identity = self._checked()
        folder = run_folder(self.out)
        begin(folder, self._settings(identity, policy))
        loaded = LoadedModel(self.model, self.data)
        empty = self._empty(policy, shape)
        self._observe(trainer, loaded, empty, folder)
        quantizer, record = on_first(trainer, lambda: self._fit(loaded, policy, consolidate(folder, empty), identity))
        verdict = self._judge(trainer, loaded, quantizer)
        on_first(trainer, lambda: self._publish(folder, quantizer, record, verdict))
        return verdict

    def _checked(self) -> tuple[CachePolicy, CacheShape, ModelIdentity]:
        """Everything that needs no weights."""
        check_out(self.out)
        policy = self.cache.policy()
        shape = cache_shape(read_config(self.model.model)[1])
        policy.check_shape(shape.layers, shape.head_dim)
        self.data.read()
        self.data.check(policy, sample_tokens=self.model.sample_tokens, held_out_rows=self.gate.rows)
        return policy, shape, model_identity(self.model.model)

    def _settings(self, identity: ModelIdentity, policy: CachePolicy) -> dict[str, Any]:
        """What the statistics depend on."""
        return {
            "model": identity.config_hash,
            "dtype": self.model.dtype,
            "adaptation": adaptation_values(self.data.adaptation),
            "sample_tokens": self.model.sample_tokens,
            "sink_tokens": policy.sink_tokens,
            "seed": self.data.seed,
            "versions": runtime_versions(),
            **self.data.settings(),
        }

    def _empty(self, policy: CachePolicy, shape: CacheShape) -> Statistics:
        return Statistics(
            shape, sample_tokens=self.model.sample_tokens, skip_tokens=policy.sink_tokens, seed=self.data.seed
        )

    def _observe(self, trainer: pl.Trainer, loaded: LoadedModel, empty: Statistics, folder: Path) -> None:
        own = Statistics.from_state(empty.state())
        observing = StatisticsPass(loaded, own, folder, save_every=self.model.save_every)
        trainer.predict(observing, datamodule=self.data, return_predictions=False)
        observing.save()
        raise_together(trainer, observing.mistake)

    def _fit(
        self, loaded: LoadedModel, policy: CachePolicy, statistics: Statistics, identity: ModelIdentity
    ) -> tuple[Quantizer, QuantizerRecord]:
        rows = self.data.selection.calibration
        if statistics.samples != set(rows):
            raise UserError(
                f"{len(statistics.samples)} of {len(rows)} rows were observed; leave trainer.limit_predict_batches and "
                "trainer.fast_dev_run out, and lower data.samples instead"
            )
        engine = loaded.engine()
        with loaded.window(engine, rows[0]):
            quantizer = fit_quantizer(policy, statistics, rotation_of(engine.model))
        record = QuantizerRecord(
            model=identity,
            adaptation=adaptation_values(self.data.adaptation),
            calibration=CalibrationRecord(
                set_hash=self.data.set_hash(rows),
                samples=len(rows),
                tokens=int(statistics.tokens.sum()),
                sample_tokens=self.model.sample_tokens,
                seed=self.data.seed,
            ),
            verdict={},
        )
        return quantizer, record

    def _judge(self, trainer: pl.Trainer, loaded: LoadedModel, quantizer: Quantizer) -> Verdict:
        comparing = GatePass(loaded, quantizer)
        trainer.predict(comparing, datamodule=self.data, return_predictions=False)
        raise_together(trainer, comparing.mistake)
        compared = [row for part in gathered(trainer, comparing.compared) for row in part]
        verdict = judge(compared, self.gate)
        return replace(verdict, forced=self.force and not verdict.passed)

    def _publish(self, folder: Path, quantizer: Quantizer, record: QuantizerRecord, verdict: Verdict) -> None:
        values = {**verdict.values(), "held_out_hash": self.data.set_hash(self.data.selection.held_out)}
        if not (verdict.passed or verdict.forced):
            layers = [asdict(error) for error in quantizer.errors]
            write_json(folder / REPORT_FILE, {"verdict": values, "policy": asdict(quantizer.policy), "errors": layers})
            return
        try:
            save_quantizer(self.out, quantizer, replace(record, verdict=values))
        except OSError as error:
            raise UserError(f"--out {self.out} cannot be written ({error.strerror}); name another folder") from error
        end(folder)
