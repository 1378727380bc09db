"""A tiny random LLaMA-VID and manifests over real mp4 files, made once a session."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    InstructBlipQFormerConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from longvid_train.models.llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration
from longvid_train.models.llama_vid.processing import LlamaVidProcessor
from longvid_train.training import checkpoint_io

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    ":",
    ".",
    "?",
    "\n",
    "A",
    "a",
    "red",
    "green",
    "blue",
    "what",
    "colour",
    "is",
    "the",
    "video",
    "Describe",
    "In",
    "USER",
    "ASSISTANT",
]
VOCABULARY = [*dict.fromkeys(WORDS)]


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, a token for every word, mark and newline."""
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|[:.?]"), "isolated"),
            pre_tokenizers.Split(Regex(r" +"), "removed"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_config() -> LlamaVidConfig:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaVidConfig(
        vision_config=CLIPVisionConfig(**size, image_size=28, patch_size=14).to_dict(),
        text_decoder_config=InstructBlipQFormerConfig(
            **size, vocab_size=len(VOCABULARY), encoder_hidden_size=16, max_position_embeddings=64
        ).to_dict(),
        text_config=LlamaConfig(
            **size,
            num_key_value_heads=2,
            vocab_size=len(VOCABULARY),
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ).to_dict(),
        num_queries=4,
        max_prompt_tokens=32,
        visual_token_id=len(VOCABULARY),
    )


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    config = tiny_config()
    LlamaVidForConditionalGeneration(config).save_pretrained(folder)
    LlamaVidProcessor.for_model(config, tokenizer(), tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dropout_free_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without dropout, so that ranks and micro-batches compute what the whole batch does."""
    folder = shutil.copytree(tiny_model_folder, tmp_path_factory.mktemp("dropout_free") / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_decoder_config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


def write_video(path: Path, colour: tuple[int, int, int], frames: int = 4) -> None:
    """One frame a second of one colour."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), colour, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@dataclass(frozen=True)
class World:
    """A folder of colour videos and a way to write manifests over them."""

    folder: Path

    def manifest(self, name: str, rows: int, *, prefix: str = "row") -> Path:
        """``rows`` questions about the colours, answers of one or of three tokens."""
        lines = []
        for row in range(rows):
            colour = list(COLOURS)[row % 3]
            answer = colour if row % 2 else f"a {colour} video"
            lines.append(
                {
                    "id": f"{prefix}{row}",
                    "media": [{"type": "video", "path": f"{colour}.mp4"}],
                    "conversation": [
                        {"role": "user", "text": "<video>\nwhat colour is the video ?"},
                        {"role": "assistant", "text": answer},
                    ],
                    "meta": {"kind": "detail" if row % 2 else "description"},
                }
            )
        return self.write(name, lines)

    def uneven(self, name: str, rows: int) -> Path:
        """Videos, and texts alone, with answers of 2 to 9 supervised tokens: ranks and micro-batches hold unequal
        shares."""
        lines = []
        for number in range(rows):
            colour = list(COLOURS)[number % 3]
            answer = {"role": "assistant", "text": " ".join([colour, *["video"] * (number * number % 8)])}
            row: dict[str, Any] = {"id": f"row{number}", "media": [{"type": "video", "path": f"{colour}.mp4"}]}
            question = {"role": "user", "text": "<video>\nwhat colour is the video ?"}
            if number % 4 == 3:
                row, question = {"id": f"row{number}"}, {"role": "user", "text": "what is the colour ?"}
            lines.append({**row, "conversation": [question, answer]})
        return self.write(name, lines)

    def write(self, name: str, rows: list[dict[str, Any]]) -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    for name, colour in COLOURS.items():
        write_video(folder / f"{name}.mp4", colour)
    return World(folder)


@pytest.fixture(scope="session")
def fit_config_in(tiny_model_folder: Path, world: World) -> Callable[..., Path]:
    """Write a complete config of a tiny run to a folder and return its path; keywords replace dotted keys."""

    def write(folder: Path, **changes: Any) -> Path:
        config: dict[str, Any] = {
            "seed_everything": 7,
            "run_dir": str(folder / "run"),
            "wandb": "off",
            "model": {
                "class_path": "longvid_train.training.module.LlamaVidTraining",
                "init_args": {
                    "model": str(tiny_model_folder),
                    "stage": {"name": "instruction", "trainable": ["*", "!vision_tower"]},
                    "optimizer": {"lr": 1e-3},
                },
            },
            "data": {
                "class_path": "longvid_train.data.datamodule.ManifestDataModule",
                "init_args": {
                    "train": str(world.manifest("train.jsonl", 12)),
                    "test": str(world.manifest("test.jsonl", 4, prefix="held")),
                    "media": {
                        "sampling": {"class_path": "longvid_train.video.UniformFrames", "init_args": {"count": 2}}
                    },
                    "loading": {"batch_size": 2},
                },
            },
            "trainer": {
                "accelerator": "cpu",
                "devices": 1,
                "max_epochs": 1,
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
            },
        }
        for dotted, value in changes.items():
            target = config
            *path, last = dotted.split("__")
            for part in path:
                target = target[part]
            target[last] = value
        file = folder / "config.yaml"
        file.write_text(json.dumps(config))
        return file

    return write


@pytest.fixture
def fit_config(fit_config_in: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """``fit_config_in`` the test's own folder."""
    return partial(fit_config_in, tmp_path)


LEFT_BY_LIGHTNING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "RANK")
"""Its launcher sets these for a run in this process and leaves them: a later job would wait for ranks never started."""


def launching_environment() -> dict[str, str]:
    """This process's variables as a user's shell would have them."""
    return {name: value for name, value in os.environ.items() if name not in LEFT_BY_LIGHTNING}


@pytest.fixture
def user_environment() -> dict[str, str]:
    """See `launching_environment`."""
    return launching_environment()


@pytest.fixture
def start_fit() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start ``longvid fit WORDS`` as a process group of its own; what is left of it is killed when the test ends."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str, path: Path | None = None, **options: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "longvid_train.cli", "fit", *words]
        environment = {
            **launching_environment(),
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
            "PYTHONPATH": str(path or ""),
        }
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def finish_fit() -> Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]:
    """Wait for a run and return its exit status and the lines of stderr that are for the user."""

    def finish(process: "subprocess.Popen[str]") -> tuple[int, list[str]]:
        _, errors = process.communicate(timeout=900)
        return process.returncode, [line for line in errors.splitlines() if line.startswith("longvid: ")]

    return finish


@pytest.fixture(scope="session")
def validated() -> Callable[..., float]:
    """What ``longvid validate WORDS`` says of ``val/loss``, in a process of its own."""

    def validate(*words: str) -> float:
        command = [sys.executable, "-m", "longvid_train.cli", "validate", *words]
        environment = {**launching_environment(), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        found = re.search(r"val/loss\W+([0-9.]+)", done.stdout)
        assert found is not None, done.stdout
        return float(found.group(1))

    return validate


ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class TwoHosts:
    """Two network namespaces of this machine with a cable between them.

    ``names`` of the namespaces, ``devices`` and ``addresses`` of the cable's ends.
    """

    names: tuple[str, str]
    devices: tuple[str, str]
    addresses: tuple[str, str]

    def slow_cable(self, rate: str) -> None:
        """Let no more than ``rate`` (of ``tc``, e.g. ``"20mbit"``) through, each way."""
        for name, device in zip(self.names, self.devices, strict=True):
            limit = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "400ms"]
            _allowed("tc", "-n", name, "qdisc", "add", "dev", device, *limit)

    def fit(self, *words: str) -> list[str]:
        """``longvid fit WORDS`` with one process a host, through scripts/launch/torchrun.sh; what each wrote to
        stderr. Both must end well."""
        processes = []
        for rank, (name, device) in enumerate(zip(self.names, self.devices, strict=True)):
            environment = {
                **launching_environment(),
                "NNODES": "2",
                "NODE_RANK": str(rank),
                "NPROC": "1",
                "MASTER_ADDR": self.addresses[0],
                "TORCHRUN": str(Path(sys.executable).with_name("torchrun")),
                "GLOO_SOCKET_IFNAME": device,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
            }
            command = ["ip", "netns", "exec", name, "bash", str(ROOT / "scripts" / "launch" / "torchrun.sh"), *words]
            processes.append(
                subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
            )
        try:
            errors = [process.communicate(timeout=1500)[1] for process in processes]
            assert [process.returncode for process in processes] == [0, 0], errors
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return errors


def _allowed(*words: str) -> None:
    """Run a command of iproute2, or skip the test."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"network namespaces need the {words[0]} command (iproute2)")
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"network namespaces are not allowed here: {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def two_hosts() -> Iterator[TwoHosts]:
    """See `TwoHosts`; skipped where namespaces are not allowed."""
    hosts = TwoHosts(
        names=(f"lvhost{os.getpid()}a", f"lvhost{os.getpid()}b"),
        devices=("lv0", "lv1"),
        addresses=("10.213.77.1", "10.213.77.2"),
    )
    (first, second), (left, right) = hosts.names, hosts.devices
    try:
        for name in hosts.names:
            _allowed("ip", "netns", "add", name)
        _allowed("ip", "link", "add", left, "netns", first, "type", "veth", "peer", "name", right, "netns", second)
        for name, device, address in zip(hosts.names, hosts.devices, hosts.addresses, strict=True):
            _allowed("ip", "-n", name, "address", "add", f"{address}/24", "dev", device)
            _allowed("ip", "-n", name, "link", "set", device, "up")
            _allowed("ip", "-n", name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for name in hosts.names:
            if shutil.which("ip"):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


SLOW_DISK = """
import os
import time
from pytorch_lightning.callbacks import Callback

sync = os.fsync


def slow(handle):
    time.sleep(1.0)
    sync(handle)


class SlowDisk(Callback):
    '''A disk that takes a second to accept a file.'''

    def on_train_start(self, trainer, pl_module):
        os.fsync = slow
"""


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Files reach the disk when the event is set; it is set at the end, so that no thread is left waiting."""
    opened = threading.Event()
    sync = os.fsync

    def waiting(handle: int) -> None:
        assert opened.wait(60)
        sync(handle)

    monkeypatch.setattr(checkpoint_io.os, "fsync", waiting)
    yield opened
    opened.set()


@pytest.fixture
def slow_disk(tmp_path: Path) -> list[str]:
    """Words of a run whose process is started with ``tmp_path`` on its path: its disk is `SLOW_DISK`."""
    (tmp_path / "slow_disk.py").write_text(SLOW_DISK)
    return ["--trainer.callbacks+=slow_disk.SlowDisk"]


@pytest.fixture
def job_words(fit_config: Callable[..., Path], world: World) -> list[str]:
    """One epoch of 4 steps of two micro-batches on each of two ranks, a state after each step."""
    config = fit_config(
        data__init_args__train=str(world.manifest("zero_ranks.jsonl", 16)),
        data__init_args__loading={"batch_size": 1},
        trainer__accumulate_grad_batches=2,
        checkpoint={"every_n_train_steps": 1},
    )
    return ["--config", str(config), "--trainer.devices", "2"]
