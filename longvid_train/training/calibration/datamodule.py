"""Rows of the calibration manifests for Lightning: read and prompted as ``ask`` would, one row at a time.

Which rows calibrate and which are held out, how long each is and whether all have one window is known, and refused if
wrong, before any weights load.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from longvid_train.adaptation.reading import load_adaptation
from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.backbone_datamodule import adapted_sampling
from longvid_train.data.conversation import EncodedSample, MediumLayout, shown_media
from longvid_train.data.dataset import BatchFailure, ManifestDataset
from longvid_train.data.manifest import ManifestRules, Sample, read_manifest
from longvid_train.data.media import MediaOptions
from longvid_train.data.worker_signals import ignore_foreign_sigterm
from longvid_train.errors import UserError
from longvid_train.generate.loading import read_prompting
from longvid_train.generate.prompting import Prompting
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.rope.scale import TokenCounts, extent_of
from longvid_train.training.calibration.selection import Selection, first_rows, split_rows

UNBOUNDED_TOKENS = 2**62
"""Of a row: the window rules, not a training budget."""


class LoadedRow(NamedTuple):
    """A decoded row and its number; or why it could not be read."""

    number: int
    sample: EncodedSample | BatchFailure


@dataclass(frozen=True, kw_only=True)
class RowFacts:
    """What is known of a row before its frames.

    Attributes:
        counts: its tokens, the answer included.
        prompt_tokens: of these, in front of the last answer.
        scale: of its window.
    """

    counts: TokenCounts
    prompt_tokens: int
    scale: float


class CalibrationData(pl.LightningDataModule):
    """See the module.

    Args:
        model: the checkpoint: a folder or a hub id.
        calibration: manifest or manifests of the calibration set.
        held_out: manifest or manifests for the safety gate; None holds out a share of ``calibration``.
        held_out_share: that share, in rows; rows about the same media stay together.
        samples: calibrate on at most this many rows, chosen by a hash of the seed; None takes all.
        held_out_samples: judge on at most this many rows, likewise.
        adaptation: YAML file; None is the model as it is.
        prompt: of a backbone: instead of its chat template.
        template: of a LLaMA-VID: name of a chat template; None is the one it was trained with.
        media: how videos and images are read; the adaptation's ``frames`` and ``fps`` replace its sampling.
        num_workers: processes that read ahead on each rank.
        seed: of every choice.

    Raises:
        UserError: an option without meaning.
    """

    def __init__(
        self,
        model: str,
        calibration: str | list[str],
        held_out: str | list[str] | None = None,
        held_out_share: float = 0.2,
        samples: int | None = None,
        held_out_samples: int | None = None,
        adaptation: str | None = None,
        prompt: str | None = None,
        template: str | None = None,
        media: MediaOptions = MediaOptions(),  # noqa: B008 - frozen
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        if not 0 < held_out_share < 1:
            raise UserError(f"data.held_out_share is {held_out_share}; it must be above 0 and below 1, e.g. 0.2")
        for name, most in (("samples", samples), ("held_out_samples", held_out_samples)):
            if most is not None and most < 1:
                raise UserError(f"data.{name} is {most}; it must be at least 1, or null for all rows")
        if media.features is not None:
            raise UserError("data.media.features is set, but calibration reads pixels as ask does; leave it out")
        if not _listed(calibration):
            raise UserError(
                "data.calibration names no manifest; give one, e.g. runs/kv/world/short/train/manifest.jsonl"
            )
        self.model = model
        self.seed = seed
        self._paths = _listed(calibration)
        self._held_out_paths = _listed(held_out)
        self._share = held_out_share
        self._most = samples, held_out_samples
        self._adaptation_file = adaptation
        self._prompt, self._template = prompt, template
        self._media = media
        self._num_workers = num_workers
        self._shown: tuple[int, ...] = ()
        self._facts: dict[int, RowFacts] = {}

    def read(self) -> None:
        """Read the adaptation, the checkpoint's configuration and processor and the manifests, and choose the rows.

        Raises:
            UserError: any of them is missing, broken or does not fit the others, or a side has no rows.
        """
        file = self._adaptation_file
        self.adaptation: Adaptation = Adaptation() if file is None else load_adaptation(file)
        if self.adaptation.cache is not None:
            raise UserError(f"{file}: cache is what calibration makes; leave it out, and add the result afterwards")
        self.prompting: Prompting = read_prompting(
            self.model, adaptation=self.adaptation, prompt=self._prompt, template=self._template
        )
        paths = [*self._paths, *self._held_out_paths]
        manifests = [read_manifest(Path(path), ManifestRules()) for path in paths]
        self.manifest_sha256 = [manifest.sha256 for manifest in manifests]
        sampling = adapted_sampling(self.adaptation, self._media.sampling)
        self.dataset = ManifestDataset(
            manifests,
            self.prompting.processor,
            self.prompting.template,
            conversation=replace(self.prompting.options, max_tokens=UNBOUNDED_TOKENS),
            media=replace(self._media, sampling=sampling),
        )
        self.selection = self._selected(sum(map(len, manifests[: len(self._paths)])))

    def check(self, policy: CachePolicy, *, sample_tokens: int, held_out_rows: int) -> None:
        """Measure every chosen row; nothing is decoded.

        Args:
            policy: that will be fitted.
            sample_tokens: tokens the statistics keep.
            held_out_rows: least rows of the gate.

        Raises:
            UserError: a row that cannot be read or is over its window, rows under windows of different scales, or too
                few rows or tokens on a side.
        """
        facts = {row: self.facts(row) for row in (*self.selection.calibration, *self.selection.held_out)}
        self._check_one_scale(facts)
        tokens = sum(max(0, facts[row].counts.total - policy.sink_tokens) for row in self.selection.calibration)
        if tokens < sample_tokens:
            raise UserError(
                f"the calibration set has {len(self.selection.calibration)} rows with {tokens} tokens behind their "
                f"first {policy.sink_tokens}, and model.sample_tokens is {sample_tokens}: at least as many are "
                "needed; add rows or lower it"
            )
        if len(self.selection.held_out) < held_out_rows:
            raise UserError(
                f"{len(self.selection.held_out)} rows are held out, and the gate asks for at least {held_out_rows} "
                "(gate.rows); add rows, or raise data.held_out_share or data.held_out_samples"
            )
        longest = max(facts[row].prompt_tokens for row in self.selection.held_out)
        needed = policy.recent_tokens + policy.block_tokens
        if longest <= needed:
            raise UserError(
                f"the longest prompt held out has {longest} tokens, and the newest {policy.recent_tokens} stay in full "
                f"precision: nothing would be coded below {needed + 1}; show more frames or lower cache.recent_tokens"
            )

    def facts(self, row: int) -> RowFacts:
        """Tokens and window of a row.

        Raises:
            UserError: naming the row, what is wrong with its media or that it is over its window.
        """
        if row not in self._facts:
            self._facts[row] = self._measured(row)
        return self._facts[row]

    def layouts(self, row: int, shown_frames: Sequence[int]) -> list[MediumLayout]:
        """The media of a row without their subtitles, from the frames of its showings in reading order."""
        sample = self.dataset.sample(row)
        shown = shown_media(sample.conversation, self.prompting.options)
        frames = dict(zip(shown, shown_frames, strict=True))
        return [MediumLayout.without_subtitles(one.type, frames[number]) for number, one in enumerate(sample.media)]

    def show(self, rows: Sequence[int]) -> None:
        """Choose the rows of the next pass, over all processes."""
        self._shown = tuple(rows)

    def predict_dataloader(self) -> DataLoader[LoadedRow]:
        """This process's rows, each as a `LoadedRow`."""
        rows = _Rows(self.dataset)
        trainer = self.trainer
        sampler = _RankRows(rows, self._shown, rank=trainer.global_rank, world_size=trainer.world_size)
        return DataLoader(
            rows,
            batch_size=None,
            sampler=sampler,
            num_workers=self._num_workers,
            worker_init_fn=ignore_foreign_sigterm,
        )

    def settings(self) -> dict[str, Any]:
        """What decides the rows, as JSON values."""
        return {
            "manifests": self.manifest_sha256,
            "rows": list(self.selection.calibration),
            "media": json.loads(json.dumps(asdict(self._media), default=str)),
            "prompt": self._prompt,
            "template": self._template,
        }

    def set_hash(self, rows: Sequence[int]) -> str:
        """SHA-256 of the manifests and the rows taken of them."""
        return hashlib.sha256(json.dumps([self.manifest_sha256, list(rows)]).encode()).hexdigest()

    def _measured(self, row: int) -> RowFacts:
        plan, sample = self.dataset.plan(row), self.dataset.sample(row)
        layouts = self.layouts(row, [frames for _, frames in plan.showings])
        with self.dataset.named(row):
            opened = self.prompting.counts(sample.conversation[:-1], layouts)
            counts = TokenCounts(visual=opened.frames, total=plan.tokens.total)
            extent = extent_of(self.adaptation.window, counts, self.prompting.trained)
            return RowFacts(counts=counts, prompt_tokens=opened.total, scale=extent.scale)

    def _selected(self, calibration_rows: int) -> Selection:
        keys = [_media_key(*self._located(row)) for row in range(len(self.dataset))]
        if self._held_out_paths:
            chosen = Selection(tuple(range(calibration_rows)), tuple(range(calibration_rows, len(keys))))
            self._check_apart(keys, chosen)
        else:
            chosen = split_rows(keys, held_out_share=self._share, seed=self.seed)
        if not chosen.calibration:
            raise UserError(
                f"all {len(keys)} rows of {', '.join(self._paths)} are about the same media, so that holding some out "
                "leaves none to calibrate on; add rows about other media, or give data.held_out"
            )
        samples, held_out = self._most
        return Selection(
            first_rows(chosen.calibration, samples, seed=self.seed),
            first_rows(chosen.held_out, held_out, seed=self.seed),
        )

    def _check_apart(self, keys: Sequence[str], chosen: Selection) -> None:
        calibrated = {keys[row] for row in chosen.calibration}
        for row in chosen.held_out:
            if keys[row] in calibrated:
                with self.dataset.named(row):
                    raise UserError("the calibration set has rows about the same media; hold out media that it has not")

    def _located(self, row: int) -> tuple[Sample, Path]:
        manifest, number = self.dataset.locate(row)
        return manifest[number], manifest.path.parent.resolve()

    def _check_one_scale(self, facts: dict[int, RowFacts]) -> None:
        first = next(iter(facts))
        for row, found in facts.items():
            if found.scale != facts[first].scale:
                raise UserError(
                    f"window '{self.adaptation.window.kind}' extends rows '{self.dataset.sample(first).id}' and "
                    f"'{self.dataset.sample(row).id}' by s = {facts[first].scale:.6g} and {found.scale:.6g}, and "
                    f"static parameters hold for one; set window.scale to "
                    f"{max(one.scale for one in facts.values()):.6g} or show as many frames of every video"
                )


class _Rows(Dataset[LoadedRow]):
    """Rows by number; what is wrong with one is handed on, so that all processes stop together."""

    def __init__(self, rows: ManifestDataset) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> LoadedRow:
        found = self._rows.__getitems__([row])
        return LoadedRow(row, found if isinstance(found, BatchFailure) else found[0])


class _RankRows(DistributedSampler[int]):
    """Every ``world_size``-th of the chosen rows. A ``DistributedSampler``, so that Lightning does not replace it."""

    def __init__(self, rows: _Rows, chosen: Sequence[int], *, rank: int, world_size: int) -> None:
        super().__init__(rows, num_replicas=world_size, rank=rank, shuffle=False)
        self._mine = chosen[rank::world_size]

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)

    def __len__(self) -> int:
        return len(self._mine)


def _media_key(sample: Sample, folder: Path) -> str:
    """Equal for rows about the same media; a row of text stands for itself."""
    files = sorted({str((folder / medium.path).resolve()) for medium in sample.media})
    return "\n".join(files) or f"text {folder} {sample.id}"


def _listed(paths: str | list[str] | None) -> list[str]:
    if paths is None:
        return []
    return [paths] if isinstance(paths, str) else list(paths)
