"""Measure the data pipeline alone: samples, tokens and frames a second from video files to batches.

    longvid world --config WORLD.yaml --out /tmp/pipe/world
    longvid init --out /tmp/pipe/model --image-size 224
    python -m scripts.bench.data_pipeline --manifest /tmp/pipe/world/SET/train/manifest.jsonl --model /tmp/pipe/model \
        --workers 0 1 2 --repeats 3 --out bench/

One pass over a manifest with each number of loader workers, at one frame a second and in batches of ``--batch-size``
rows. Nothing is trained. Contenders:

- ``decord``: what public training code does, as a torch ``Dataset`` and ``DataLoader``: each row opens its video with
  decord, reads its frames by ``get_batch``, prepares them with CLIP's image processor (PIL) and is padded to the
  longest row of a random batch.
- ``decord-all``: likewise, but decodes every frame of the file first.
- ``seek``: likewise with PyAV, one seek for each frame.
- ``ours``: ``ManifestDataModule`` as it is; ``ours-grouped`` with rows of like length together; ``ours-cached`` with
  decoded frames kept (``cache_bytes``), so that further questions on a video decode nothing; ``ours-features`` reads
  tower features, which ``longvid predict`` computed before (not in the time).

All make the same tokens with the same code: their number is compared. Contenders take turns within a repeat, so that
drift hits all alike; the table has medians and ratios to ``decord`` with as many workers. CPU seconds are those of this
process and its workers: on a shared machine they say more than seconds on the clock.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from longvid_train import cli
from longvid_train.data.collate import collate
from longvid_train.data.conversation import (
    ConversationOptions,
    EncodedSample,
    LoadedMedium,
    MediumLayout,
    encode_conversation,
)
from longvid_train.data.datamodule import ManifestDataModule
from longvid_train.data.loading import LoadingOptions
from longvid_train.data.manifest import ManifestRules, read_manifest
from longvid_train.data.media import MediaOptions
from longvid_train.data.templates import template_by_name
from longvid_train.files import write_json
from longvid_train.models.llama_vid.processing import LlamaVidProcessor
from longvid_train.types import Batch
from longvid_train.video import FramesPerSecond

OPTIONS = ConversationOptions(max_tokens=65536)
FPS = 1.0
CACHE_BYTES = 2 * 10**9
FEATURES_CONFIG = "configs/llama_vid/nano/features.yaml"
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Pass:
    """One pass over the manifest."""

    contender: str
    workers: int
    samples: int
    tokens: int
    frames: int
    padding_share: float
    wall_s: float
    cpu_s: float


def wanted_frames(count: int, rate: float) -> list[int]:
    """Numbers of the frames at one a second, as the public code picks them."""
    return list(range(0, count, max(1, round(rate / FPS))))


def with_decord(path: Path) -> Frames:
    """The wanted frames by ``get_batch``."""
    video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    frames: Frames = video.get_batch(wanted_frames(len(video), video.get_avg_fps())).asnumpy()
    return frames


def with_decord_all(path: Path) -> Frames:
    """Every frame of the file, of which the wanted ones are kept."""
    video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    frames: Frames = video.get_batch(range(len(video))).asnumpy()
    return frames[wanted_frames(len(video), video.get_avg_fps())]


def with_seek(path: Path) -> Frames:
    """The wanted frames with PyAV, one seek each."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None and stream.time_base is not None
        rate = float(stream.average_rate)
        pictures = []
        for number in wanted_frames(stream.frames, rate):
            target = round(number / rate / stream.time_base)
            container.seek(target, stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.pts is not None and frame.pts >= target)
            pictures.append(frame.to_ndarray(format="rgb24"))
    return np.stack(pictures)


READERS: dict[str, Callable[[Path], Frames]] = {
    "decord": with_decord,
    "decord-all": with_decord_all,
    "seek": with_seek,
}


class NaiveRows(Dataset[EncodedSample]):
    """A row is read when it is asked for, whatever was read before."""

    def __init__(self, manifest: Path, processor: LlamaVidProcessor, read: Callable[[Path], Frames]) -> None:
        self._manifest = read_manifest(manifest, ManifestRules())
        self._processor = processor
        self._read = read
        side = processor.settings.image_size
        self._pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    def __len__(self) -> int:
        return len(self._manifest)

    def __getitem__(self, index: int) -> EncodedSample:
        row = self._manifest[index]
        media = [self._load(self._manifest.path.parent / medium.path) for medium in row.media]
        template = template_by_name("vicuna_v1")
        names: dict[str, Any] = {"sample_id": row.id, "seed": 0, "epoch": 0}
        return encode_conversation(row.conversation, media, self._processor, template, OPTIONS, **names)

    def _load(self, path: Path) -> LoadedMedium:
        frames = self._read(path)
        pixels = self._pictures(list(frames), return_tensors="pt")["pixel_values"]
        return LoadedMedium(MediumLayout.without_subtitles("video", len(frames)), pixels)


@dataclass(frozen=True)
class Collate:
    """Pads to the longest row of the batch."""

    processor: LlamaVidProcessor

    def __call__(self, samples: list[EncodedSample]) -> Batch:
        return collate(samples, self.processor)


def naive_batches(name: str, workers: int, arguments: argparse.Namespace) -> Iterable[Batch]:
    """A shuffled ``DataLoader`` over `NaiveRows`."""
    processor = LlamaVidProcessor.from_pretrained(arguments.model)
    rows = NaiveRows(arguments.manifest, processor, READERS[name])
    return DataLoader(
        rows,
        batch_size=arguments.batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=Collate(processor),
        generator=torch.Generator().manual_seed(0),
    )


def our_batches(name: str, workers: int, arguments: argparse.Namespace) -> Iterable[Batch]:
    """The training loader of a ``ManifestDataModule``."""
    kept = CACHE_BYTES if name == "ours-cached" else 0
    features = str(arguments.features) if name == "ours-features" else None
    data = ManifestDataModule(
        str(arguments.model),
        train=str(arguments.manifest),
        conversation=OPTIONS,
        media=MediaOptions(sampling=FramesPerSecond(fps=FPS), cache_bytes=kept, features=features),
        loading=LoadingOptions(
            batch_size=arguments.batch_size, num_workers=workers, group_by_length=name == "ours-grouped"
        ),
    )
    return data.train_dataloader()


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(name: str, workers: int, arguments: argparse.Namespace) -> Pass:
    """One pass, from making the loader to the end of its workers."""
    cpu_before, before = cpu_s(), time.perf_counter()
    batches = naive_batches if name in READERS else our_batches
    samples = tokens = slots = frames = 0
    for batch in batches(name, workers, arguments):
        mask, visual = batch["text"]["attention_mask"], batch["visual"]
        samples, tokens, slots = samples + len(mask), tokens + int(mask.sum()), slots + mask.numel()
        if visual is not None:
            shown = visual["visual_features"] if "visual_features" in visual else visual["pixel_values"]
            frames += len(shown)
    wall_s, spent_s = time.perf_counter() - before, cpu_s() - cpu_before
    return Pass(name, workers, samples, tokens, frames, 1 - tokens / slots, wall_s, spent_s)


def make_features(arguments: argparse.Namespace) -> None:
    """Run ``longvid predict``; what the folder holds already is not made again."""
    words = ["predict", "--config", FEATURES_CONFIG, "--run_dir", str(arguments.features)]
    words += ["--model.model", str(arguments.model), "--data.manifests", str(arguments.manifest)]
    if cli.main(words):
        raise SystemExit(f"longvid {' '.join(words)} failed")


def rows_of_table(passes: Sequence[Pass]) -> Iterator[str]:
    """Medians by workers and contender, with ratios to the first contender."""
    yield "| workers | contender | samples/s | of decord | tokens/s | CPU s | of decord | padding |"
    yield "|---|---|---|---|---|---|---|---|"
    first = passes[0].contender
    for workers in sorted({one.workers for one in passes}):
        base = _medians(passes, first, workers)
        for name in dict.fromkeys(one.contender for one in passes):
            wall, cpu, padding = _medians(passes, name, workers)
            yield (
                f"| {workers} | {name} | {passes[0].samples / wall:.2f} | {base[0] / wall:.2f} | "
                f"{passes[0].tokens / wall:.0f} | {cpu:.2f} | {cpu / base[1]:.2f} | {padding:.1%} |"
            )


def _medians(passes: Sequence[Pass], name: str, workers: int) -> tuple[float, float, float]:
    chosen = [one for one in passes if (one.contender, one.workers) == (name, workers)]
    return (
        statistics.median(one.wall_s for one in chosen),
        statistics.median(one.cpu_s for one in chosen),
        statistics.median(one.padding_share for one in chosen),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="LLaMA-VID folder: its processor, and its tower")
    parser.add_argument("--features", type=Path, help="folder of tower features for ours-features, made if need be")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--out", type=Path, help="folder for data_pipeline.json")
    arguments = parser.parse_args()
    ours = ["ours", "ours-grouped", "ours-cached"]
    if arguments.features is not None:
        make_features(arguments)
        ours.append("ours-features")
    names = [name for name in [*READERS, *ours] if name not in arguments.skip]
    passes: list[Pass] = []
    for workers in arguments.workers:
        for repeat in range(arguments.repeats):
            for name in names:
                passes.append(measure(name, workers, arguments))
                print(f"{workers} workers, repeat {repeat}: {passes[-1]}", flush=True)
    made = {(one.samples, one.tokens, one.frames) for one in passes}
    assert len(made) == 1, f"contenders made different batches: {made}"
    print("\n".join(rows_of_table(passes)))
    if arguments.out is not None:
        write_json(arguments.out / "data_pipeline.json", [asdict(one) for one in passes])


if __name__ == "__main__":
    main()
