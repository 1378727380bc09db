"""Every 7B and 13B config, by the command in its own header: parsed as `longvid fit` does, and built without weights.

The checkpoint folders that the configs name are stand-ins: configurations of the paper's sizes, an empty weight file.
"""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning.strategies import DDPStrategy, Strategy
from safetensors.torch import save_file
from transformers import AutoTokenizer

from longvid_train.commands.init import NANO_PARTS
from longvid_train.models.llama_vid import LlamaVidForConditionalGeneration, LlamaVidProcessor
from longvid_train.models.llama_vid.sizes import published_config
from longvid_train.training.base import check_strategy

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "llama_vid"
CONFIGS = sorted(path for size in ("7b", "13b") for path in (FOLDER / size).glob("*.yaml"))
RECIPES = sorted((FOLDER / "paper").glob("*.yaml"))
STAGE, VARIANT = re.compile(r"stage(\d)"), re.compile(r"stage\d_(\w+)")


def header(path):
    lines = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    found = dict(re.match(r"(Paper|Command|Hardware|Expected):\s+(.+)", line).groups() for line in lines[1:])
    assert lines[0].startswith("Stage "), path
    return found


def parse(parser, path, *more):
    words = header(path)["Command"].split()
    assert words[:2] == ["longvid", "fit"] and words[2::2] == ["--config"] * len(words[2::2])
    files = [ROOT / word for word in words[3::2]]
    assert files[-1] == path and files[0].parent.name == "paper"
    arguments = [word for file in (*files, *more) for word in ("--config", str(file))]
    return parser.parse_args(["fit", *arguments, "--trainer.accelerator=cpu"]).fit


def model_of(path):
    name = VARIANT.match(path.stem).group(1)
    decoder = "bert" if name.endswith("bert") else "qformer"
    return published_config(path.parent.name, image_size=336 if "336" in name else 224, text_decoder=decoder)


def stand_in(folder, config):
    """A checkpoint folder without weights."""
    config.save_pretrained(folder)
    save_file({"none": torch.zeros(1)}, folder / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(NANO_PARTS / "tokenizer")
    LlamaVidProcessor.for_model(config, tokenizer, tokenizer).save_pretrained(folder)


def test_the_paper_has_24_configs_3_recipes_and_2_overlays():
    assert len(CONFIGS) == 24
    assert [path.stem for path in RECIPES] == ["stage1", "stage2", "stage2_lora", "stage3", "stage3_lora"]
    for size in ("7b", "13b"):
        names = {path.stem for path in CONFIGS if path.parent.name == size}
        assert {f"stage{stage}_video" for stage in (1, 2, 3)} | {f"stage{stage}_image_336" for stage in (1, 2)} < names
        assert len(names) == 12


@pytest.mark.parametrize("path", [*CONFIGS, *RECIPES], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_headers_name_paper_command_hardware_and_expectation(path):
    found = header(path)
    assert list(found) == ["Paper", "Command", "Hardware", "Expected"]
    assert re.search(r"arXiv \d{4}\.\d{5}", found["Paper"].replace("arXiv,", ""))
    assert "not yet run" in found["Expected"]
    stage = STAGE.match(path.stem).group(1)
    assert path.read_text().startswith(f"# Stage {stage}")


PAPER = {  # Table 7: learning rate, global batch, tokens, RoPE factor, template
    1: (1e-3, 256, 2048, 1.0, "plain"),
    2: (2e-5, 128, 2048, 1.0, "vicuna_v1"),
    3: (2e-5, 8, 65536, 16.0, "vicuna_v1"),
}
GRIDS = {  # content grids of images and of videos
    "video": (1, 1),
    "video_grid2": (2, 2),
    "video_bert": (1, 1),
    "image_336": (0, 1),
    "image_224_grid4": (4, 1),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_config_holds_the_papers_numbers_and_its_variants_tokens(parser, path):
    stage, name = int(STAGE.match(path.stem).group(1)), VARIANT.match(path.stem).group(1)
    settings = parse(parser, path)
    model, data = settings.model.init_args, settings.data.init_args
    rate, batch, tokens, rope, template = PAPER[stage]
    assert (model.optimizer.lr, model.warmup_ratio, model.optimizer.weight_decay) == (rate, 0.03, 0.0)
    assert (model.rope_scaling, model.gradient_checkpointing, data.template) == (rope, True, template)
    assert data.loading.global_batch_size == batch
    assert data.conversation.max_tokens == (4096 if (stage, name) == (2, "image_336") else tokens)
    assert (data.conversation.image_content_grid, data.conversation.video_content_grid) == GRIDS[name]
    ranks = settings.trainer.devices * settings.trainer.num_nodes
    assert batch % (data.loading.batch_size * ranks) == 0
    assert (settings.trainer.precision, settings.trainer.max_epochs) == ("bf16-mixed", 1)
    assert data.media.sampling.fps == 1.0
    assert data.processor == model.model
    shown = {"llava_pretrain", "webvid", "llava_instruct", "video_chatgpt", "movienet", "longalpaca"}
    manifests = {Path(row).parent.name for row in data.train}
    assert manifests < shown and len(manifests) == (2 if "video" in name else 1)
    # Each stage starts from the folder that the one before it exports.
    before = f"runs/llama_vid/{path.parent.name}/stage{stage - 1}_{name}/model"
    assert model.model == (before if stage > 1 else model.model)
    assert settings.run_dir == f"runs/llama_vid/{path.parent.name}/{path.stem}"
    assert stage > 1 or re.fullmatch(r"models/llama-vid-(7b|13b)-(224|336|224-bert)", model.model)


def count(part):
    return 0 if part is None else sum(value.numel() for value in part.parameters())


def built(parser, path, folder, monkeypatch, *more):
    """The config's model, on the meta device, after its stage was applied; and its data module and strategy."""
    settings = parse(parser, path, *more)
    config = model_of(path)
    stand_in(folder / settings.model.init_args.model, config)
    monkeypatch.chdir(folder)

    def load(model_folder):
        with torch.device("meta"):
            return LlamaVidForConditionalGeneration(config), LlamaVidProcessor.from_pretrained(model_folder)

    monkeypatch.setattr("longvid_train.training.module.load_for_training", load)
    settings.trainer.logger = False
    instances = parser.instantiate_classes({"fit": settings})["fit"]
    module = instances["model"]
    module.configure_model()
    return module, instances["data"], instances["trainer"]["strategy"]


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_config_builds_its_model_and_trains_what_the_stage_says(parser, path, tmp_path, monkeypatch):
    module, data, strategy = built(parser, path, tmp_path, monkeypatch)
    model, stage = module.model, int(STAGE.match(path.stem).group(1))
    parts = {name: count(part) for name, part in model.named_children()}
    trained = {
        1: ("context_attention", "content_projector", *(("text_decoder",) if "bert" in path.stem else ())),
        2: ("text_decoder", "context_attention", "content_projector", "language_model"),
        3: ("language_model", "content_projector"),
    }[stage]
    assert module.stage_report.trainable_parameters == sum(parts[name] for name in trained)
    assert module.stage_report.frozen_parameters == sum(size for name, size in parts.items() if name not in trained)
    assert (
        data.processor.tokens_per_frame(data.conversation.video_content_grid)
        == 1 + GRIDS[VARIANT.match(path.stem).group(1)][1] ** 2
    )
    check_strategy(strategy if isinstance(strategy, Strategy) else DDPStrategy())


@pytest.mark.parametrize("stage", [3])
def test_stage_3_of_7b_builds(parser, stage, tmp_path, monkeypatch):
    path = FOLDER / "7b" / f"stage{stage}_video.yaml"
    test_a_config_builds_its_model_and_trains_what_the_stage_says(parser, path, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_the_lora_overlay_trains_adapters_instead_of_the_language_model(parser, stage, tmp_path, monkeypatch):
    path, overlay = FOLDER / "7b" / f"stage{stage}_video.yaml", FOLDER / "paper" / f"stage{stage}_lora.yaml"
    module, _, _ = built(parser, path, tmp_path, monkeypatch, overlay)
    rank, layers, width, inner = 64, 32, 4096, 11008
    adapters = layers * rank * (4 * 2 * width + 3 * (width + inner))
    model = module.model
    beside = [model.content_projector, *((model.text_decoder, model.context_attention) if stage == 2 else ())]
    trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert trainable == adapters + sum(count(part) for part in beside)


def test_the_light_bert_is_the_papers():
    config = published_config("7b", text_decoder="bert").text_decoder_config
    for name, value in json.loads((FOLDER / "paper" / "bert.json").read_text()).items():
        assert getattr(config, name) == value, name


def test_every_yaml_under_llama_vid_is_known_here_or_has_tests_of_its_own():
    files = {path for path in FOLDER.rglob("*.yaml") if path.parent.name not in ("nano", "variants")}
    assert files == {*CONFIGS, *RECIPES}
    assert all(isinstance(yaml.safe_load(path.read_text()), dict) for path in files)
