"""What a feature cache may keep instead of all patches, and what tells one tower from another."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig

from longvid_train.errors import UserError
from longvid_train.models.llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration
from longvid_train.models.llama_vid.head import check_cells, pool_patches
from longvid_train.models.llama_vid.tower_file import load_vision_tower, tower_sha256


@pytest.fixture(scope="module")
def content_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of 4 x 4 patches without a text decoder, saved."""
    torch.manual_seed(3)
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaVidConfig(
        vision_config=CLIPVisionConfig(**size, image_size=16, patch_size=4).to_dict(),
        text_decoder_config=None,
        text_config=LlamaConfig(**size, num_key_value_heads=2, vocab_size=11).to_dict(),
        visual_token_id=11,
    )
    folder = tmp_path_factory.mktemp("tower") / "model"
    LlamaVidForConditionalGeneration(config).save_pretrained(folder)
    return folder


def tokens(model: LlamaVidForConditionalGeneration, features: torch.Tensor, grid: int) -> torch.Tensor:
    prompt = torch.zeros(1, 1, dtype=torch.int64)
    return model.visual_tokens(features, torch.tensor([[0, len(features), 0]]), torch.tensor([grid]), prompt, prompt)


def test_content_tokens_of_pooled_cells_are_those_of_all_patches(content_only: Path) -> None:
    model = LlamaVidForConditionalGeneration.from_pretrained(content_only)
    features = torch.randn(3, 17, 8)
    for side in (1, 2):
        cells = torch.cat([features[:, :1], pool_patches(features[:, 1:], side)], dim=1)
        for grid in (grid for grid in (1, 2) if side % grid == 0):
            torch.testing.assert_close(tokens(model, cells, grid), tokens(model, features, grid))
        for grid in (0, 2 * side):
            with pytest.raises(
                UserError, match=f"{side} x {side} pooled cells a frame, from which content_grid {grid}"
            ):
                tokens(model, cells, grid)


@pytest.mark.parametrize("count", [16, 18, 10, 1, 26])
def test_features_that_are_neither_patches_nor_cells_are_refused(count: int) -> None:
    """3 x 3 cells do not divide 4 x 4 patches; 16 tokens lack CLS."""
    with pytest.raises(UserError, match=f"features have {count} tokens a frame"):
        check_cells(torch.zeros(1, count, 8), torch.tensor([1]), 4)


def test_the_tower_alone_is_the_tower_of_the_model(content_only: Path) -> None:
    model = LlamaVidForConditionalGeneration.from_pretrained(content_only).eval()
    tower = load_vision_tower(content_only)
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(tower.encode(pixels), model.encode_frames(pixels))
    assert not tower.training
    assert not any(value.requires_grad for value in tower.parameters())


def test_the_tower_s_hash_follows_its_values_only(content_only: Path, tmp_path: Path) -> None:
    """Neither another part of the model, nor the type of equal values, nor the split into files; any value does."""
    whole = tower_sha256(content_only)

    def changed(name: str, weights: dict[str, torch.Tensor], **config: int) -> str:
        folder = tmp_path / name
        shutil.copytree(content_only, folder)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        if config:
            LlamaVidConfig.from_pretrained(folder, **config).save_pretrained(folder)
        return tower_sha256(folder)

    weights = load_file(content_only / "model.safetensors")
    name = next(name for name in weights if name.startswith("vision_tower."))
    assert changed("language", {**weights, "language_model.lm_head.weight": torch.zeros(11, 8)}) == whole
    assert changed("layer", weights, vision_select_layer=-1) != whole
    one = weights[name].clone()
    one.view(-1)[-1] = torch.nextafter(one.view(-1)[-1], torch.tensor(9.0))
    assert changed("value", {**weights, name: one}) != whole
    halves = {key: value.half() for key, value in weights.items()}
    widened = {key: value.float() for key, value in halves.items()}
    assert changed("half", halves) == changed("widened", widened) != whole
    sharded = tmp_path / "sharded"
    LlamaVidForConditionalGeneration.from_pretrained(content_only).save_pretrained(sharded, max_shard_size="5KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert tower_sha256(sharded) == whole


def test_a_tower_with_a_weight_missing_is_refused(content_only: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(content_only, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.startswith("vision_tower."))
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"weight '{name}' does not fit"):
        load_vision_tower(folder)
