"""Stages: what trains is what the patterns name, and what is frozen stays in eval mode."""

from pathlib import Path

import pytest
import torch
from torch import nn

from longvid_train.errors import UserError
from longvid_train.training.module import LlamaVidTraining
from longvid_train.training.optimizer import OptimizerConfig
from longvid_train.training.stages import LLAMA_VID_STAGES, Stage, apply_stage, frozen_modules


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        self.decoder = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Dropout()), "b": nn.Linear(2, 2)})
        self.embed = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight


def trainable(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["tower"], {"tower.0.weight", "tower.0.bias"}),
        (["tower.*"], {"tower.0.weight", "tower.0.bias"}),
        (["decoder.b.weight"], {"decoder.b.weight"}),
        (["*.bias"], {"tower.0.bias", "decoder.a.0.bias", "decoder.b.bias"}),
        (["head"], {"embed.weight"}),
        (["*", "!tower", "!decoder.a"], {"decoder.b.weight", "decoder.b.bias", "embed.weight"}),
    ],
)
def test_patterns_select_parameters(patterns: list[str], expected: set[str]) -> None:
    model = Toy()
    report = apply_stage(model, Stage(name="s", trainable=patterns))
    assert trainable(model) == expected
    assert report.trainable_parameters == sum(v.numel() for v in model.parameters() if v.requires_grad)
    assert report.trainable_parameters + report.frozen_parameters == sum(v.numel() for v in model.parameters())


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["towr"], "pattern 'towr' matches no parameter; did you mean 'tower'?"),
        (["tower", "!decodr.a"], "pattern '!decodr.a' matches no parameter; did you mean 'decoder.a'?"),
        (["zzzz"], "the model's modules are decoder, embed, head, tower"),
        (["tower", "!tower"], "trains nothing"),
        ([], "trains nothing"),
    ],
)
def test_patterns_that_match_nothing_are_named(patterns: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_stage(Toy(), Stage(name="s", trainable=patterns))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_wholly_frozen_modules_go_to_eval() -> None:
    model = Toy().train()
    apply_stage(model, Stage(name="s", trainable=["decoder.a", "embed"]))
    assert [path for path, _ in frozen_modules(model)] == ["tower", "decoder.b"]
    assert not model.tower[1].training
    assert model.decoder["a"][1].training
    assert model.decoder.training


@pytest.mark.parametrize(
    ("stage", "trains", "frozen"),
    [
        (1, {"context_attention", "content_projector"}, {"vision_tower", "text_decoder", "language_model"}),
        (2, {"context_attention", "content_projector", "text_decoder", "language_model"}, {"vision_tower"}),
        (3, {"language_model", "content_projector"}, {"vision_tower", "text_decoder", "context_attention"}),
    ],
)
def test_the_papers_stages(tiny_model_folder: Path, stage: int, trains: set[str], frozen: set[str]) -> None:
    module = LlamaVidTraining(str(tiny_model_folder), LLAMA_VID_STAGES[stage], OptimizerConfig(lr=1e-3))
    module.configure_model()
    assert {name.split(".")[0] for name in trainable(module.model)} == trains
    assert {path for path, _ in frozen_modules(module.model)} == frozen
    module.train()
    assert {name for name in trains | frozen if not getattr(module.model, name).training} == frozen
    module.eval()
    assert not module.model.language_model.training


def test_rope_scaling_divides_frequencies_and_is_saved(tiny_model_folder: Path, tmp_path: Path) -> None:
    from longvid_train.models.llama_vid import LlamaVidForConditionalGeneration

    plain = LlamaVidForConditionalGeneration.from_pretrained(tiny_model_folder)
    module = LlamaVidTraining(str(tiny_model_folder), LLAMA_VID_STAGES[3], OptimizerConfig(lr=1e-3), rope_scaling=16.0)
    module.configure_model()
    module.model.save_pretrained(tmp_path / "m")
    again = LlamaVidForConditionalGeneration.from_pretrained(tmp_path / "m")
    base = plain.language_model.model.rotary_emb.inv_freq
    for model in (module.model, again):
        torch.testing.assert_close(model.language_model.model.rotary_emb.inv_freq, base / 16, rtol=1e-6, atol=0)
        assert model.config.text_config.max_position_embeddings == 256 * 16
    module.processor.save_pretrained(tmp_path / "m")
    twice = LlamaVidTraining(str(tmp_path / "m"), LLAMA_VID_STAGES[3], OptimizerConfig(lr=1e-3), rope_scaling=2.0)
    with pytest.raises(UserError, match="already has rope_type 'linear'"):
        twice.configure_model()
