"""Backbones through ``longvid fit``: LoRA under an extended window, whole models, resume, merge, what is refused."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlavaOnevisionForConditionalGeneration

from longvid_train import cli
from longvid_train.adaptation.reading import load_adaptation
from longvid_train.adaptation.settings import Adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones import BackboneProcessor, load_backbone, read_facts, video_logits, video_tokens
from longvid_train.models.backbones.adapted import load_adapted_backbone, read_backbone_adapter
from longvid_train.rope.export import save_extended
from longvid_train.rope.extension import extended, prepare
from longvid_train.rope.scale import TokenCounts
from longvid_train.rope.visual_yarn import VisualYarnWindow
from longvid_train.tokens.plan import make_plan
from longvid_train.tokens.uniform import UniformPlan
from longvid_train.training.answers import read_answers
from longvid_train.training.cli import RunCLI
from longvid_train.training.tracking import read_metrics
from tests.training.backbone_folders import save_backbone

QUESTION = "what colour is the video ?"
LORA = {"r": 4, "alpha": 8, "target_modules": ["model.language_model"]}
WINDOW = "{kind: visual_yarn, trained_tokens: 16, bounds: share, alpha: 0.2, beta: 0.8}"
ADAPTATION = f"backbones: [llava_onevision]\nframes: 4\nfps: 1.0\nwindow: {WINDOW}\n"


@pytest.fixture(scope="session")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone") / "onevision", "onevision")


def rows(count: int, prefix: str = "row") -> list[dict[str, Any]]:
    """Every other row shows the first 2 s of its video (2 frames), the others all 4; answers differ in length."""
    made = []
    for row in range(count):
        colour = ("red", "green", "blue")[row % 3]
        short = {"end_s": 2.0} if row % 2 else {}
        made.append(
            {
                "id": f"{prefix}{row}",
                "media": [{"type": "video", "path": f"{colour}.mp4", **short}],
                "conversation": [
                    {"role": "user", "text": f"<video>\n{QUESTION}"},
                    {"role": "assistant", "text": colour if row % 2 else f"a {colour} video"},
                ],
                "meta": {"kind": "detail"},
            }
        )
    return made


@dataclass
class Run:
    config: Path
    folder: Path
    module: Any
    data: Any

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def steps(self) -> list[dict[str, float]]:
        return [line for line in read_metrics(self.folder) if "train/loss" in line]


def write_config(folder: Path, model: Path, world: Any, adaptation: str | None, **changes: Any) -> Path:
    data: dict[str, Any] = {
        "train": str(world.write(f"{folder.name}_train.jsonl", rows(8))),
        "test": str(world.write(f"{folder.name}_test.jsonl", rows(3, "held"))),
        "loading": {"batch_size": 2},
    }
    if adaptation is not None:
        (folder / "adaptation.yaml").write_text(adaptation)
        data["adaptation"] = str(folder / "adaptation.yaml")
    config: dict[str, Any] = {
        "seed_everything": 7,
        "run_dir": str(folder / "run"),
        "wandb": "off",
        "model": {
            "class_path": "longvid_train.training.backbones.BackboneTraining",
            "init_args": {
                "model": str(model),
                "stage": {"name": "lora", "trainable": []},
                "optimizer": {"lr": 2e-2},
                "lora": LORA,
            },
        },
        "data": {"class_path": "longvid_train.data.backbone_datamodule.BackboneDataModule", "init_args": data},
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


@pytest.fixture(scope="module")
def run(onevision: Path, world: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("backbone_lora")
    config = write_config(
        folder,
        onevision,
        world,
        ADAPTATION,
        answers={"enabled": True, "max_new_tokens": 4},
        checkpoint={"every_n_train_steps": 2, "save_top_k": -1},
    )
    fitted = RunCLI("fit", ["--config", str(config)])
    return Run(config, folder / "run", fitted.model, fitted.datamodule)


def test_only_the_adapters_change(run: Run, onevision: Path) -> None:
    kept = load_backbone(onevision).model.state_dict()
    state = run.module.model.state_dict()
    matrices = {name: value for name, value in state.items() if ".lora_" in name}
    others = {name.replace(".base_layer.", "."): value for name, value in state.items() if name not in matrices}
    assert others.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in others.items())
    moved = [name for name, value in matrices.items() if "lora_B" in name and value.abs().max() > 0]
    assert len(moved) == len(matrices) // 2 == 2 * 7, "two layers of seven linear maps"
    assert all(name.startswith("model.language_model.layers.") for name in matrices)
    trained = {name for name, value in run.module.model.named_parameters() if value.requires_grad}
    assert trained == matrices.keys()


def test_the_adapter_folder_holds_the_whole_adaptation(run: Run, onevision: Path) -> None:
    assert not (run.folder / "model").exists()
    names = {path.name for path in run.adapter.iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "adapter_record.json", "adaptation.yaml"}
    adapter = read_backbone_adapter(run.adapter)
    assert adapter.adaptation == load_adaptation(run.config.parent / "adaptation.yaml") != Adaptation()
    assert adapter.base_folder() == onevision
    shape = json.loads((run.adapter / "adapter_config.json").read_text())
    assert (shape["r"], shape["lora_alpha"], shape["modules_to_save"]) == (4, 8, None)


def test_another_adaptation_or_a_folder_without_one_is_refused(run: Run, tmp_path: Path) -> None:
    adapter = read_backbone_adapter(run.adapter)
    adapter.check_adaptation(load_adaptation(run.config.parent / "adaptation.yaml"), "same.yaml")
    with pytest.raises(UserError, match=r"other\.yaml is not the adaptation that .*adapter was trained under"):
        adapter.check_adaptation(Adaptation(), "other.yaml")
    copy = shutil.copytree(run.adapter, tmp_path / "adapter")
    (copy / "adaptation.yaml").write_text("backbones: [video_llava]\n")
    with pytest.raises(UserError, match=r"adaptation\.yaml: the adaptation is for video_llava, .* 'llava_onevision'"):
        load_adapted_backbone(adapter.base_folder(), read_backbone_adapter(copy))
    (copy / "adaptation.yaml").unlink()
    with pytest.raises(UserError, match=r"adaptation\.yaml does not exist"):
        read_backbone_adapter(copy)


def mean_loss(folder: Path, data: Any, scratch: Path, scale_of: dict[int, float]) -> float:
    """Mean loss of the training rows by transformers' own ``forward``.

    Args:
        folder: the checkpoint.
        data: the run's data module.
        scratch: for checkpoints exported with the window extended.
        scale_of: of a row, by its number of frames.
    """
    backbone = load_backbone(folder, dtype=torch.float32)
    models = {}
    for frames, scale in scale_of.items():
        window = VisualYarnWindow(trained_tokens=16, bounds="share", alpha=0.2, beta=0.8, scale=scale)
        none = TokenCounts(visual=0, total=0)
        extension = prepare(backbone.model, window, counts=none, trained=backbone.facts.trained)
        save_extended(backbone.model, scratch / str(frames), extension)
        models[frames] = LlavaOnevisionForConditionalGeneration.from_pretrained(scratch / str(frames)).eval()
    total, tokens = 0.0, 0
    dataset = data.dataset("train")
    for index in range(len(dataset)):
        row = dataset[index]
        with torch.no_grad():
            loss = models[len(row.pixel_values)](
                input_ids=row.input_ids[None], pixel_values_videos=row.pixel_values[None], labels=row.labels[None]
            ).loss
        supervised = int((row.labels[1:] != -100).sum())
        total, tokens = total + float(loss) * supervised, tokens + supervised
    return total / tokens


def test_each_row_of_a_batch_trains_under_its_own_window(onevision: Path, world: Any, tmp_path: Path) -> None:
    found = {}
    for name, adaptation in (("extended", ADAPTATION), ("plain", "frames: 4\nfps: 1.0\n")):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(
            folder,
            onevision,
            world,
            adaptation,
            data__init_args__loading={"batch_size": 8},
            trainer__max_steps=1,
        )
        fitted = RunCLI("fit", ["--config", str(config)])
        found[name] = Run(config, folder / "run", fitted.model, fitted.datamodule)
    (one,), (other,) = found["extended"].steps, found["plain"].steps
    data = found["extended"].data
    # 2 and 4 frames of 16 tokens against a window of 16: s = 2 and 4.
    extended_loss = mean_loss(onevision, data, tmp_path / "own", {2: 2.0, 4: 4.0})
    plain_loss = mean_loss(onevision, data, tmp_path / "unextended", {2: 1.0, 4: 1.0})
    assert one["train/loss"] == pytest.approx(extended_loss, rel=1e-5)
    assert other["train/loss"] == pytest.approx(plain_loss, rel=1e-5)
    assert abs(extended_loss - plain_loss) > 1e-3
    assert one["train/supervised_tokens"] == sum(len(row["conversation"][1]["text"]) + 1 for row in rows(8)), (
        "a token a byte and the end token"
    )


def first_batch(run: Run) -> Any:
    return next(iter(run.data.train_dataloader()))


def test_gradient_checkpointing_under_a_window_changes_no_gradient(run: Run) -> None:
    batch, gradients = first_batch(run), []
    for on in (False, True):
        run.module.gradient_checkpointing = on
        if on:
            run.module.model.gradient_checkpointing_enable({"use_reentrant": False})
        run.module.train()
        run.module.zero_grad()
        loss, _ = run.module.batch_loss(batch)
        loss.backward()
        gradients.append(
            {name: value.grad.clone() for name, value in run.module.named_parameters() if value.grad is not None}
        )
    run.module.gradient_checkpointing = False
    run.module.model.gradient_checkpointing_disable()
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys() and len(plain) == 28
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-5, atol=1e-7)


def adapted_logits(run: Run, backbone: Any, window: Any) -> torch.Tensor:
    """Of the first test row's prompt."""
    row = run.data.dataset("predict")[0]
    plan = run.data.processor.plan(-1, len(row.pixel_values))
    counts = TokenCounts(visual=plan.frame_tokens, total=len(row.input_ids))
    with torch.no_grad(), extended(backbone.model, window, counts=counts, trained=backbone.facts.trained):
        tokens = video_tokens(backbone, row.pixel_values, plan)
        return video_logits(backbone, row.input_ids[None], tokens)


def test_the_merged_model_computes_what_its_adapter_does(run: Run, onevision: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert cli.main(["merge", str(run.adapter), "--out", str(out)]) == 0
    adapter = read_backbone_adapter(run.adapter)
    window = load_adaptation(out / "adaptation.yaml").window
    assert window == adapter.adaptation.window
    merged, adapted = load_backbone(out), load_adapted_backbone(onevision, adapter)
    assert merged.model.state_dict().keys() == load_backbone(onevision).model.state_dict().keys()
    one, other = adapted_logits(run, merged, window), adapted_logits(run, adapted, window)
    plain = adapted_logits(run, load_backbone(onevision), window)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert (one - plain).abs().max() > 100 * (one - other).abs().max()
    asked = BackboneProcessor.load(out, read_facts(out))
    assert torch.equal(asked.prompt_ids("why?", 3), run.data.processor.checkpoint.prompt_ids("why?", 3))


def test_merging_writes_a_fixed_window_into_the_model(run: Run, onevision: Path, tmp_path: Path) -> None:
    copy, out = shutil.copytree(run.adapter, tmp_path / "adapter"), tmp_path / "merged"
    text = (copy / "adaptation.yaml").read_text().replace("trained_tokens: 16", "trained_tokens: 16, scale: 4.0")
    (copy / "adaptation.yaml").write_text(text)
    assert cli.main(["merge", str(copy), "--out", str(out), "--model", str(onevision)]) == 0
    adapter = read_backbone_adapter(copy)
    assert adapter.adaptation.window.scale == 4.0
    assert load_adaptation(out / "adaptation.yaml") == Adaptation(backbones=("llava_onevision",), frames=4, fps=1.0)
    row = run.data.dataset("predict")[0]
    with torch.no_grad():
        plain = LlavaOnevisionForConditionalGeneration.from_pretrained(out).eval()
        own = plain(input_ids=row.input_ids[None], pixel_values_videos=row.pixel_values[None]).logits[:, -1:]
    ours = adapted_logits(run, load_adapted_backbone(onevision, adapter), adapter.adaptation.window)
    torch.testing.assert_close(own, ours, rtol=1e-4, atol=1e-4)
    assert plain.config.text_config.rope_parameters["rope_type"] == "longrope"
    assert plain.config.text_config.max_position_embeddings == 4 * 2048


def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(run: Run, tmp_path: Path) -> None:
    (checkpoint,) = (run.folder / "checkpoints").glob("epoch*-step=2.ckpt")
    again = tmp_path / "again"
    words = ["--run_dir", str(again), "--ckpt_path", str(checkpoint)]
    assert cli.main(["fit", "--config", str(run.config), *words]) == 0
    names = ("step", "train/loss", "train/grad_norm", "train/lr")
    left, right = (
        [[line[name] for name in names] for line in read_metrics(folder) if "train/loss" in line]
        for folder in (run.folder, again)
    )
    assert len(left) == 4
    assert right == left[2:]
    one, other = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run.folder, again))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_answers_of_the_run_are_those_of_ask_with_the_adapter(
    run: Run, world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = {row.id: row.answer for row in read_answers(run.folder / "answers_after.jsonl")}
    assert len(trained) == 3
    capsys.readouterr()
    words = ["--adapter", str(run.adapter), "--max-new-tokens", "4", "--json"]
    assert cli.main(["ask", str(world.folder / "red.mp4"), QUESTION, *words]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == trained["held0"]


@pytest.mark.parametrize(
    ("name", "trainable"),
    [
        ("joint", ["*", "!model.video_tower", "!model.image_tower"]),
        pytest.param("next_video", ["model.multi_modal_projector", "model.language_model"], marks=pytest.mark.slow),
        pytest.param("interleave", ["*"], marks=pytest.mark.slow),
    ],
)
def test_a_stage_trains_a_whole_backbone(name: str, trainable: list[str], world: Any, tmp_path: Path) -> None:
    model = save_backbone(tmp_path / "base", name)
    config = write_config(
        tmp_path,
        model,
        world,
        "frames: 4\n" + ("grouping: rearranged\n" if name == "joint" else ""),
        model__init_args__stage={"name": "full", "trainable": trainable},
        model__init_args__lora=None,
        data__init_args__train=str(world.write("even.jsonl", [row for row in rows(8) if int(row["id"][3:]) % 2 == 0])),
        data__init_args__test=None,
    )
    module = RunCLI("fit", ["--config", str(config)]).model
    before, after = load_backbone(model), load_backbone(tmp_path / "run" / "model")
    kept, trained = before.model.state_dict(), after.model.state_dict()
    changed = {one for one, value in trained.items() if not torch.equal(value, kept[one])}
    frozen = ("model.video_tower", "model.image_tower", "model.vision_tower") if trainable != ["*"] else ()
    assert not [one for one in changed if one.startswith(frozen or "none.")]
    assert any(one.startswith("model.multi_modal_projector") for one in changed)
    assert any(one.startswith("model.language_model.layers.1") for one in changed)
    assert any(one.startswith("model.vision_tower") for one in changed) == (trainable == ["*"])
    asked = BackboneProcessor.load(tmp_path / "run" / "model", after.facts)
    assert asked.prompt_ids("why?", 2).shape[0] == 1
    assert not (tmp_path / "run" / "adapter").exists()
    module.zero_grad()
    ids = torch.arange(8, 20)[None]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    loss, count = module.batch_loss({"text": text, "visual": None, "sample_ids": ["text"], "shortened": {}})
    loss.backward()
    assert int(count) == 11
    lost = [one for one, value in module.named_parameters() if value.requires_grad and value.grad is None]
    assert not lost, "DDP waits for the gradient of every parameter"


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("longvid_train.training.backbones.load_backbone", load)
    yield


@pytest.mark.parametrize(
    ("adaptation", "changes", "message"),
    [
        ("backbones: [video_llava]", {}, "the adaptation is for video_llava, the model is 'llava_onevision'"),
        (
            f"frames: 4\nfps: 1.0\nwindow: {WINDOW[:-1]}, scale: 2}}",
            {},
            "_train.jsonl:1 (sample 'row0'): 64 visual tokens are over the window of 32 (16 x 2); use fewer",
        ),
        (
            None,
            {"model__init_args__lora": LORA | {"target_modules": ["language_model"]}},
            "did you mean 'model.language_model'?",
        ),
        (
            None,
            {"data__class_path": "longvid_train.data.datamodule.ManifestDataModule"},
            "set data.class_path to longvid_train.data.backbone_datamodule.BackboneDataModule",
        ),
    ],
    ids=["another-backbone", "over-the-window", "wrong-pattern", "another-data-module"],
)
def test_mistakes_are_one_line_before_weights_load(
    adaptation: str | None,
    changes: dict[str, Any],
    message: str,
    onevision: Path,
    world: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    unloaded: None,
) -> None:
    config = write_config(tmp_path, onevision, world, adaptation, **changes)
    assert cli.main(["fit", "--config", str(config)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]


def test_a_folder_that_is_no_backbone_says_what_to_do(tiny_model_folder: Path, tmp_path: Path) -> None:
    from longvid_train.training.backbones import check_backbone_folder

    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    weightless = save_backbone(tmp_path / "weightless", "onevision")
    (weightless / "model.safetensors").unlink()
    for folder, message in (
        (tiny_model_folder, "LlamaVidTraining"),
        (tmp_path / "text", "holds a 'llama' model"),
        (tmp_path / "absent", "is not a folder"),
        (weightless, r"no \*\.safetensors weights"),
    ):
        with pytest.raises(UserError, match=message):
            check_backbone_folder(folder)


def test_images_train_with_all_their_patches_under_a_fixed_window(onevision: Path, world: Any, tmp_path: Path) -> None:
    for name, shade in (("dark", 40), ("light", 220)):
        Image.fromarray(np.full((30, 40, 3), shade, np.uint8)).save(world.folder / f"{name}.png")
    manifest = [
        {
            "id": name,
            "media": [{"type": "image", "path": f"{name}.png"}],
            "conversation": [{"role": "user", "text": "<image>\nhow is it ?"}, {"role": "assistant", "text": name}],
        }
        for name in ("dark", "light")
    ]
    config = write_config(
        tmp_path,
        onevision,
        world,
        f"window: {WINDOW[:-1]}, target_tokens: 64}}",
        data__init_args__train=str(world.write("images.jsonl", manifest)),
        data__init_args__test=None,
        trainer__max_steps=1,
    )
    fitted = RunCLI("fit", ["--config", str(config)])
    (step,) = Run(config, tmp_path / "run", fitted.model, fitted.datamodule).steps
    base = load_backbone(onevision, dtype=torch.float32)
    window = VisualYarnWindow(trained_tokens=16, bounds="share", alpha=0.2, beta=0.8, scale=4.0)
    none = TokenCounts(visual=0, total=0)
    extension = prepare(base.model, window, counts=none, trained=base.facts.trained)
    save_extended(base.model, tmp_path / "extended", extension)
    plain = load_backbone(tmp_path / "extended")
    losses = []
    for index in range(2):
        row = fitted.datamodule.dataset("train")[index]
        assert int((row.input_ids == base.facts.placeholder_id).sum()) == 49 + 1
        tokens = video_tokens(plain, row.pixel_values, make_plan(UniformPlan(stride=1), 1, base.facts.grid))
        with torch.no_grad():
            logits = video_logits(plain, row.input_ids[None], tokens, last=0)[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, row.labels[1:], reduction="none", ignore_index=-100))
    supervised = sum(len(name) + 1 for name in ("dark", "light"))
    assert step["train/supervised_tokens"] == supervised
    assert step["train/loss"] == pytest.approx(float(torch.cat(losses).sum()) / supervised, rel=1e-5)
