"""Every config of LoRA after extension, by the command in its own header: parsed as `longvid fit` does, and built.

The checkpoint folders that the configs name are stand-ins: configurations of the published sizes, built on the meta
device, an empty weight file and a tokenizer of bytes.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from longvid_train.adaptation.reading import load_adaptation
from longvid_train.models.backbones import read_facts
from longvid_train.models.backbones.planned import PLANNED, PlannedProcessor
from longvid_train.models.backbones.published import published_backbone
from longvid_train.rope.scale import TokenCounts, extent_of
from longvid_train.training.lora import apply_lora, plan_lora
from tests.training.backbone_folders import VICUNA, byte_tokenizer, save_backbone

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "lora"
RECIPE = FOLDER / "recipe.yaml"
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if path != RECIPE)
ADAPTATIONS = sorted((FOLDER / "adaptations").glob("*.yaml"))
PUBLISHED = {  # published size, layers, and the scale of the longest input the adaptation is for
    "onevision_7b_image": ("llava-onevision-7b", 28, 8.0),
    "onevision_7b_video": ("llava-onevision-7b", 28, 8.0),
    "onevision_05b_image": ("llava-onevision-0.5b", 24, 8.0),
    "onevision_05b_video": ("llava-onevision-0.5b", 24, 8.0),
    "next_video_7b": ("llava-next-video-7b", 32, (64 * 144 + 20) / 4096),
    "video_llava_7b": ("video-llava-7b", 32, (32 * 257 + 20) / 4096),
    "interleave_7b": ("llava-interleave-7b", 28, (256 * 196 + 20) / 32768),
}
NANO = {"nano_onevision": "onevision", "nano_video_llava": "joint"}


def header(path: Path) -> dict[str, str]:
    lines = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    matches = [re.match(r"(Paper|Command|Hardware|Expected):\s+(.+)", line) for line in lines]
    return dict(match.groups() for match in matches if match is not None)


def words_of(path: Path) -> list[str]:
    """The ``--config`` words of the header's ``longvid fit`` line."""
    lines = [line for line in path.read_text().splitlines() if "longvid fit" in line]
    assert len(lines) == 1, path
    words = lines[0].split("longvid fit")[1].split()
    assert [ROOT / word for word in words[1::2]][-1] == path
    return words


def parsed(parser: Any, path: Path) -> Any:
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words_of(path)]
    return parser.parse_args(["fit", *words, "--trainer.accelerator=cpu"]).fit


def stand_in(folder: Path, path: Path) -> Any:
    """A checkpoint folder of the published sizes without weights; a tiny one for the nano models."""
    if path.stem in NANO:
        save_backbone(folder, NANO[path.stem], positions=160)
        return None
    config = published_backbone(PUBLISHED[path.stem][0])
    tokenizer = byte_tokenizer(begins=False, end="</s>")
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    if hasattr(config, "video_token_id"):
        config.video_token_id = tokenizer.convert_tokens_to_ids("<video>")
    config.save_pretrained(folder)
    save_file({"none": torch.zeros(1)}, folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(VICUNA)
    part = "image_processor" if config.model_type == "llava" else "video_processor"
    (folder / "processor_config.json").write_text(json.dumps({part: {}}))
    return config


def test_there_are_nine_configs_one_recipe_and_four_adaptations() -> None:
    assert {path.stem for path in CONFIGS} == PUBLISHED.keys() | NANO.keys()
    assert (len(CONFIGS), len(ADAPTATIONS)) == (9, 4)


@pytest.mark.parametrize("path", [RECIPE, *CONFIGS, *ADAPTATIONS], ids=lambda path: path.stem)
def test_headers_name_paper_command_hardware_and_expectation(path: Path) -> None:
    found = header(path)
    assert found.keys() == {"Paper", "Command", "Hardware", "Expected"}
    assert re.search(r"arXiv:\d{4}\.\d{5}", found["Paper"])
    assert path.stem in NANO or "not yet run" in found["Expected"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_builds_its_model_and_trains_the_decoder_s_adapters_alone(
    parser: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = parsed(parser, path)
    config = stand_in(tmp_path / settings.model.init_args.model, path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    settings.trainer.logger = False
    instances = parser.instantiate_classes({"fit": settings})["fit"]
    module, data = instances["model"], instances["data"]
    model = module.skeleton()
    shape = plan_lora(model, module.stage, module.lora)
    report = apply_lora(model, shape)
    assert all(".language_model.layers." in f".{name}" for name in shape.target_modules)
    assert shape.modules_to_save == ()
    linear = [model.get_submodule(name) for name in shape.target_modules]
    rank = module.lora.r
    assert report.trainable_parameters == sum(rank * (one.in_features + one.out_features) for one in linear)
    processor = data.processor
    assert isinstance(processor, PlannedProcessor) and processor.adaptation == data.adaptation
    if config is None:
        return
    _, layers, scale = PUBLISHED[path.stem]
    assert len(shape.target_modules) == 7 * layers
    lora, trainer = module.lora, settings.trainer
    assert (lora.r, lora.alpha, module.optimizer_config.lr) == (64, 16, 1e-5)
    assert (data._loading.batch_size, trainer.max_steps, trainer.accumulate_grad_batches) == (1, 10_000, 1)
    assert settings.run_dir == f"runs/lora/{path.stem}"
    frames = data.adaptation.frames
    visual = processor.window_tokens(PLANNED, frames)
    counts = TokenCounts(visual=visual, total=visual + 20)
    assert extent_of(data.adaptation.window, counts, processor.facts.trained).scale == pytest.approx(scale)
    assert data.conversation.max_tokens >= sum(processor.frame_tokens(PLANNED, frames)) + 2048


def test_images_of_the_paper_s_run_train_under_the_window_of_256_frames(tmp_path: Path) -> None:
    (path,) = (path for path in CONFIGS if path.stem == "onevision_7b_image")
    stand_in(tmp_path / "model", path)
    facts = read_facts(tmp_path / "model")
    image = load_adaptation(FOLDER / "adaptations" / "onevision_image_256.yaml")
    video = load_adaptation(FOLDER / "adaptations" / "onevision_video_256.yaml")
    counts = TokenCounts(visual=729, total=900)
    assert extent_of(image.window, counts, facts.trained).scale == 8.0
    assert extent_of(video.window, counts, facts.trained).scale == 1.0


@pytest.mark.parametrize("path", ADAPTATIONS, ids=lambda path: path.stem)
def test_adaptations_of_this_folder_are_used(path: Path) -> None:
    name = f"configs/lora/adaptations/{path.name}"
    users = [config for config in CONFIGS if f"adaptation: {name}" in config.read_text()]
    assert users
    assert any(config.stem in header(path)["Command"] for config in users)
