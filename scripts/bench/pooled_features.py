"""Measure what storing fewer values of a frame costs in accuracy: held-out questions answered from cached features.

    python -m scripts.bench.pooled_features --model quickstart/stage2/model --rows 240 --out bench/ \
        --manifest quickstart/world/stage2_heldout/val/manifest.jsonl --folder /tmp/features

For every storage (``dtype/patches``), ``longvid predict`` writes the features of the manifest's media to a folder of
its own, and the model answers the manifest's questions greedily from them, as ``longvid fit`` answers held-out
questions. The context token, which was trained on all patches, then attends to the cells that are kept; nothing is
tuned. ``change`` is the mean difference to the first storage over pairs of answers to one question, with its 95 %
bootstrap interval. ``bytes`` are those of the shards, divided by their frames.
"""

import argparse
import itertools
from collections import defaultdict
from pathlib import Path

import torch

from longvid_train import cli
from longvid_train.data.conversation import ConversationOptions
from longvid_train.data.datamodule import ManifestDataModule
from longvid_train.data.features.index import read_index
from longvid_train.data.loading import LoadingOptions
from longvid_train.data.manifest import ManifestRules, Sample, read_manifest
from longvid_train.data.media import MediaOptions
from longvid_train.evaluation.statistics import bootstrap_mean
from longvid_train.files import write_json
from longvid_train.generate.decoding import AnswerDecoder
from longvid_train.generate.generation import generate_answers
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.scoring import score_answer
from longvid_train.models.llama_vid import LlamaVidForConditionalGeneration
from longvid_train.video import FramesPerSecond

STORAGES = ("float16/all", "bfloat16/all", "float16/grid:3", "float16/grid:2", "float16/grid:1", "bfloat16/grid:2")
CONFIG = "configs/llama_vid/nano/features.yaml"
MAX_NEW_TOKENS = 64
BATCH_ROWS = 40


def make_features(storage: str, model: Path, manifest: Path, folder: Path) -> Path:
    """Run ``longvid predict`` for one storage; what the folder holds already is not made again."""
    dtype, _, patches = storage.partition("/")
    out = folder / f"{dtype}-{patches.replace(':', '')}"
    words = ["predict", "--config", CONFIG, "--run_dir", str(out), "--model.model", str(model)]
    words += ["--data.manifests", str(manifest), "--data.storage.dtype", dtype, "--data.storage.patches", patches]
    if cli.main(words):
        raise SystemExit(f"longvid {' '.join(words)} failed")
    return out


def answer(model: LlamaVidForConditionalGeneration, folder: Path, arguments: argparse.Namespace) -> dict[str, str]:
    """Answers by id, from the features of one folder."""
    data = ManifestDataModule(
        str(arguments.model),
        test=str(arguments.manifest),
        conversation=ConversationOptions(image_content_grid=1, max_tokens=512),
        media=MediaOptions(sampling=FramesPerSecond(fps=1.0), features=str(folder), allow_pooled_context=True),
        loading=LoadingOptions(eval_batch_size=BATCH_ROWS),
    )
    decoder = AnswerDecoder(data.processor, data.template)
    answers: dict[str, str] = {}
    options = GenerationOptions(max_new_tokens=MAX_NEW_TOKENS)
    for batch in itertools.islice(data.predict_dataloader(), -(-arguments.rows // BATCH_ROWS)):
        found = generate_answers(model, decoder, batch, options)
        answers |= {name: one.text for name, one in zip(batch["sample_ids"], found, strict=True)}
    return answers


def scores(answers: dict[str, str], samples: dict[str, Sample]) -> dict[str, float]:
    """Score of every answer by id."""
    return {
        name: score_answer(text, str(samples[name].meta["answer"]), str(samples[name].meta["kind"]))
        for name, text in answers.items()
    }


def by_kind(scored: dict[str, float], samples: dict[str, Sample]) -> dict[str, float]:
    """Mean score of every kind of question."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for name, score in scored.items():
        kinds[str(samples[name].meta["kind"])].append(score)
    return {kind: sum(values) / len(values) for kind, values in sorted(kinds.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a LLaMA-VID folder")
    parser.add_argument("--manifest", type=Path, required=True, help="questions with meta.answer and meta.kind")
    parser.add_argument("--folder", type=Path, required=True, help="where the features are made and kept")
    parser.add_argument("--storage", nargs="+", default=list(STORAGES), metavar="DTYPE/PATCHES")
    parser.add_argument("--rows", type=int, default=10**9, help="answer only the first rows")
    parser.add_argument("--out", type=Path, help="folder for pooled_features.json")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.manifest, ManifestRules())
    samples = {sample.id: sample for sample in manifest}
    model = LlamaVidForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    first: dict[str, float] = {}
    report = []
    for storage in arguments.storage:
        folder = make_features(storage, arguments.model, arguments.manifest, arguments.folder)
        index = read_index(folder)
        frame_bytes = sum(index.shards.values()) / index.frame_count
        scored = scores(answer(model, folder, arguments), samples)
        first = first or scored
        kinds = by_kind(scored, samples)
        if not report:
            print(f"| storage | bytes a frame | overall | change | {' | '.join(kinds)} |\n|{'---|' * (4 + len(kinds))}")
        change = bootstrap_mean([scored[name] - first[name] for name in scored])
        overall = sum(scored.values()) / len(scored)
        numbers = " | ".join(f"{value:.3f}" for value in kinds.values())
        print(
            f"| {storage} | {frame_bytes:,.0f} | {overall:.3f} | {change.mean:+.3f} [{change.low:+.3f}, "
            f"{change.high:+.3f}] | {numbers} |",
            flush=True,
        )
        report.append({"storage": storage, "bytes": frame_bytes, "overall": overall, "kinds": kinds, "n": len(scored)})
    if arguments.out is not None:
        write_json(arguments.out / "pooled_features.json", report)


if __name__ == "__main__":
    main()
