"""LoRA in the three stages through the real command line: fit, ask, merge, resume."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.training.answers import read_answers
from longvid_train.training.cli import RunCLI
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
QUESTION = "what colour is the video ?"
STAGES: dict[int, dict[str, Any]] = {
    1: {
        "stage": {"name": "alignment", "trainable": ["context_attention", "content_projector"]},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["text_decoder.qformer"]},
    },
    2: {
        "stage": {"name": "instruction", "trainable": ["*", "!vision_tower", "!language_model"]},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["language_model.model"]},
    },
    3: {
        "stage": {"name": "long_video", "trainable": []},
        "lora": {"r": 8, "alpha": 16, "target_modules": ["language_model.*.self_attn", "language_model.lm_head"]},
        "rope_scaling": 4.0,
    },
}


@dataclass
class Run:
    """A finished run of one stage."""

    stage: int
    config: Path
    folder: Path
    module: Any

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


SLOW = pytest.mark.slow


@pytest.fixture(scope="module", params=[pytest.param(1, marks=SLOW), 2, pytest.param(3, marks=SLOW)])
def run(request: pytest.FixtureRequest, fit_config_in: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(f"lora{request.param}")
    changes = {f"model__init_args__{name}": value for name, value in STAGES[request.param].items()}
    config = fit_config_in(
        folder,
        **changes,
        model__init_args__optimizer={"lr": 5e-2},
        answers={"enabled": True, "max_new_tokens": 4},
        checkpoint={"every_n_train_steps": 2, "save_top_k": -1},
    )
    fitted = RunCLI("fit", ["--config", str(config)])
    return Run(request.param, config, folder / "run", fitted.model)


def base_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def plain_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


def test_only_the_adapter_and_the_stage_s_modules_change(run: Run, tiny_model_folder: Path) -> None:
    base = base_weights(tiny_model_folder)
    whole = {1: {"context_attention", "content_projector"}, 3: set()}
    whole[2] = whole[1] | {"text_decoder"}
    state = run.module.model.state_dict()
    matrices = {name: value for name, value in state.items() if ".lora_" in name}
    others = {plain_name(name): value for name, value in state.items() if name not in matrices}
    assert others.keys() == base.keys()
    changed = {name for name, value in others.items() if not torch.equal(value, base[name])}
    assert {name.split(".")[0] for name in changed} == whole[run.stage]
    moved = [name for name, value in matrices.items() if "lora_B" in name and value.abs().max() > 0]
    assert len(moved) == {1: len(matrices) // 2 - 2, 2: 14, 3: 9}[run.stage], (
        "nothing reads a Q-Former's last text layer"
    )


def test_the_run_folder_holds_an_adapter_and_no_model(run: Run, tiny_model_folder: Path) -> None:
    assert not (run.folder / "model").exists()
    files = {path.name for path in run.adapter.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "adapter_record.json"} <= files
    record = json.loads((run.adapter / "adapter_record.json").read_text())
    assert record["base_model"] == str(tiny_model_folder)
    assert record["text_config"]["max_position_embeddings"] == (1024 if run.stage == 3 else 256)
    names = load_file(run.adapter / "adapter_model.safetensors").keys()
    assert not [name for name in names if "vision_tower" in name or "base_layer" in name]
    assert cli.main(["fit", "--config", str(run.config)]) == 2


def test_checkpoints_hold_what_trains_and_nothing_frozen(run: Run) -> None:
    trains = {name for name, value in run.module.named_parameters() if value.requires_grad}
    found = list((run.folder / "checkpoints").glob("*.ckpt"))
    assert len(found) >= 3
    for path in found:
        saved = torch.load(path, weights_only=False)
        assert saved["state_dict"].keys() == trains
        moments = saved["optimizer_states"][0]["state"].values()
        assert sum(one["exp_avg"].numel() for one in moments) <= sum(v.numel() for v in saved["state_dict"].values())


def test_asking_through_the_adapter_gives_the_answers_of_the_training(
    run: Run, world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = {row.id: row.answer for row in read_answers(run.folder / "answers_after.jsonl")}
    before = {row.id: row.answer for row in read_answers(run.folder / "answers_before.jsonl")}
    # In stage 1 a random language model hardly heeds the frames; there the logits below tell the models apart.
    assert run.stage == 1 or trained != before, "training must change an answer for this test to say anything"
    video = str(world.folder / "red.mp4")
    words = [video, QUESTION, "--frames", "2", "--max-new-tokens", "4", "--json"]
    capsys.readouterr()
    assert cli.main(["ask", *words, "--no-isolate", "--adapter", str(run.adapter)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["answer"] == trained["held0"]
    assert answer["model"] == str(run.adapter)

    merged = run.folder.parent / "merged"
    assert cli.main(["merge", str(run.adapter), "--out", str(merged)]) == 0
    assert cli.main(["ask", *words, "--no-isolate", "--model", str(merged)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["answer"] == trained["held0"]


def test_merged_and_unmerged_models_agree(run: Run, tiny_model_folder: Path, tmp_path: Path) -> None:
    from longvid_train.models.backbones.adapted import read_any_adapter
    from longvid_train.models.llama_vid.adapted import load_adapted
    from longvid_train.models.llama_vid.loading import load_llama_vid

    assert cli.main(["merge", str(run.adapter), "--out", str(tmp_path / "m"), "--model", str(tiny_model_folder)]) == 0
    merged = load_llama_vid(tmp_path / "m")
    adapted = load_adapted(tiny_model_folder, read_any_adapter(run.adapter))
    assert merged.state_dict().keys() == base_weights(tiny_model_folder).keys()
    ids = torch.full((2, 4), merged.config.visual_token_id)
    batch = {
        "input_ids": torch.cat([torch.tensor([[1, 8], [1, 9]]), ids, torch.tensor([[13, 14], [15, 16]])], dim=1),
        "pixel_values": torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0)),
        "visual_spans": torch.tensor([[0, 2, 0], [2, 2, 1]]),
        "content_grids": torch.tensor([1, 1]),
        "prompt_input_ids": torch.tensor([[9, 10], [11, 12]]),
        "prompt_attention_mask": torch.ones(2, 2, dtype=torch.long),
    }
    with torch.no_grad():
        one, other, plain = (m(**batch).logits for m in (merged, adapted, load_llama_vid(tiny_model_folder)))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert (one - plain).abs().max() > 100 * (one - other).abs().max()


def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(run: Run, tmp_path: Path) -> None:
    (checkpoint,) = (run.folder / "checkpoints").glob("epoch*-step=4.ckpt")
    again = tmp_path / "again"
    words = ["--run_dir", str(again), "--ckpt_path", str(checkpoint)]
    assert cli.main(["fit", "--config", str(run.config), *words]) == 0
    names = ("step", "train/loss", "train/grad_norm", "train/lr")
    left, right = (
        [[line[name] for name in names] for line in read_metrics(folder) if "train/loss" in line]
        for folder in (run.folder, again)
    )
    assert len(left) == 6
    assert right == left[4:]
    one, other = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run.folder, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_of_another_base_or_another_choice_is_refused(
    run: Run, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from longvid_train.models.llama_vid.loading import load_llama_vid
    from longvid_train.models.llama_vid.processing import LlamaVidProcessor

    other = tmp_path / "other"
    model = load_llama_vid(tiny_model_folder)
    with torch.no_grad():
        model.language_model.lm_head.weight.mul_(1.01)
    model.save_pretrained(other)
    LlamaVidProcessor.from_pretrained(tiny_model_folder).save_pretrained(other)
    (checkpoint,) = (run.folder / "checkpoints").glob("epoch*-step=4.ckpt")
    start = ["fit", "--config", str(run.config), "--run_dir", str(tmp_path / "run"), "--ckpt_path", str(checkpoint)]
    for words, message in (
        (["--model.model", str(other)], "started from a model with other weights"),
        (["--model.lora.target_modules", "[language_model.*.k_proj]"], "of a run that trained other parameters"),
    ):
        capsys.readouterr()
        assert cli.main([*start, *words]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1]
    ask = ["ask", "nothing.mp4", "what ?", "--adapter", str(run.adapter), "--model", str(other)]
    assert cli.main(ask) == 2
    assert f"{other} is not the model that {run.adapter} was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"r": 0, "alpha": 1, "target_modules": ["language_model.model"]}, "lora.r is 0"),
        ({"r": 2, "alpha": 1, "target_modules": ["langage_model.model"]}, "did you mean 'language_model.model'?"),
        ({"r": 2, "alpha": 1, "target_modules": ["language_model.model"]}, "trains in full"),
    ],
)
def test_mistakes_stop_before_weights_load(
    fit_config: FitConfig,
    lora: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("longvid_train.training.module.load_for_training", load)
    assert cli.main(["fit", "--config", str(fit_config(model__init_args__lora=lora))]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert not (tmp_path / "run" / "adapter").exists()


LANGUAGE_LORA = {"r": 4, "alpha": 8, "target_modules": ["language_model.model"]}


@pytest.mark.parametrize(
    ("trainable", "lora"),
    [
        (["*", "!vision_tower"], None),
        (["context_attention", "content_projector"], None),
        ([], LANGUAGE_LORA),
    ],
    ids=["everything", "below-a-frozen-language-model", "lora-without-input-gradients"],
)
def test_gradient_checkpointing_recomputes_and_changes_no_number(
    fit_config: FitConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trainable: list[str],
    lora: dict[str, Any] | None,
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls = [0]
    forward = LlamaMLP.forward

    def counting(self: Any, *arguments: Any) -> Any:
        calls[0] += 1
        return forward(self, *arguments)

    monkeypatch.setattr(LlamaMLP, "forward", counting)
    config = fit_config(
        model__init_args__stage={"name": "s", "trainable": trainable}, model__init_args__lora=lora, trainer__max_steps=3
    )
    runs, counts = {}, {}
    for on in (False, True):
        calls[0] = 0
        folder = tmp_path / f"checkpointing_{on}"
        words = ["--run_dir", str(folder), "--model.gradient_checkpointing", str(on).lower()]
        assert cli.main(["fit", "--config", str(config), *words]) == 0
        counts[on], runs[on] = calls[0], folder
    assert counts == {False: 3 * 2, True: 2 * 3 * 2}, "3 steps of 2 layers, each layer run again in the backward pass"
    lines = {on: [line for line in read_metrics(folder) if "train/loss" in line] for on, folder in runs.items()}
    for plain, recomputed in zip(lines[False], lines[True], strict=True):
        assert recomputed["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-6)
        assert recomputed["train/grad_norm"] == pytest.approx(plain["train/grad_norm"], rel=1e-5)
        assert plain["train/grad_norm"] > 0
    file = "model/model.safetensors" if lora is None else "adapter/adapter_model.safetensors"
    left, right = (load_file(folder / file) for folder in runs.values())
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_fresh_process_finds_the_model_from_the_adapter_s_record(run: Run, world: Any, tmp_path: Path) -> None:
    command = [Path(sys.executable).parent / "longvid", "ask", world.folder / "red.mp4", QUESTION, "--frames", "2"]
    command += ["--max-new-tokens", "4", "--json", "--adapter", run.adapter]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    trained = {row.id: row.answer for row in read_answers(run.folder / "answers_after.jsonl")}
    assert json.loads(done.stdout)["answer"] == trained["held0"]
