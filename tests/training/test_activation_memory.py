"""MLPs in tiles and activations on the host: the numbers of a plain run, with less in memory at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from longvid_train import cli
from longvid_train.errors import UserError
from longvid_train.training.activations import ActivationMemory, apply_activation_memory, check_activation_memory
from longvid_train.training.lora import LoraSettings
from longvid_train.training.strategies.zero import ZeroStrategy
from longvid_train.training.tracking import read_metrics

LAYERS, WIDTH = 2, 16


def language_model(*, frozen: str = "") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=40,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        vocab_size=11,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).double().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, value in model.named_parameters():
        value.requires_grad_(not frozen or frozen not in name)
    return model


def gradients(model: LlamaForCausalLM, rows: int = 2, length: int = 9) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 11, (rows, length), generator=torch.Generator().manual_seed(1))
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 3), length=st.integers(2, 13), tile=st.integers(1, 40))
def test_gradients_of_tiles_are_those_of_the_whole(rows: int, length: int, tile: int) -> None:
    plain, tiled = language_model(), language_model()
    apply_activation_memory(tiled.model, ActivationMemory(mlp_tile_tokens=tile))
    wanted, found = gradients(plain, rows, length), gradients(tiled, rows, length)
    assert found.keys() == wanted.keys() == dict(plain.named_parameters()).keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    ready = [getattr(value, "ds_grad_is_ready", None) for value in tiled.model.layers.parameters()]
    assert False not in ready, "ZeRO would wait for the gradient forever"


def test_an_mlp_never_sees_more_tokens_than_a_tile() -> None:
    model = language_model()
    apply_activation_memory(model.model, ActivationMemory(mlp_tile_tokens=4))
    seen: list[int] = []
    model.model.layers[0].mlp.gate_proj.register_forward_hook(
        lambda _module, args, _output: seen.append(args[0].shape[:-1].numel())
    )
    gradients(model, rows=2, length=9)
    assert set(seen) == {4}, "18 tokens in five tiles of 4, the last two of them padding"
    assert len(seen) == 5 * 3, "forward pass, recomputed layer, and the tiles' own backward pass"


def test_a_trained_mlp_behind_frozen_embeddings_gets_its_gradient() -> None:
    plain, tiled = (language_model(frozen="embed") for _ in range(2))
    apply_activation_memory(tiled.model, ActivationMemory(mlp_tile_tokens=3))
    only = {"model.layers.0.mlp.up_proj.weight"}
    for model in (plain, tiled):
        for name, value in model.named_parameters():
            value.requires_grad_(name in only)
    wanted, found = gradients(plain), gradients(tiled)
    assert wanted.keys() == found.keys() == only
    (name,) = only
    torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-12)


def test_layer_inputs_go_to_the_host_and_come_back_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, offloaded = language_model(), language_model()
    away: list[torch.Size] = []

    class Recorded(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, *, pin_memory: bool) -> None:
            assert pin_memory == torch.cuda.is_available()

            def pack(value: torch.Tensor) -> torch.Tensor:
                away.append(value.shape)
                return value.clone()

            super().__init__(pack, lambda value: value)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Recorded)
    apply_activation_memory(offloaded.model, ActivationMemory(offload=True))
    wanted, found = gradients(plain), gradients(offloaded)
    assert away.count(torch.Size([2, 9, WIDTH])) >= LAYERS
    assert torch.Size([2, 2, 9, 9]) not in away, "what a layer recomputes is not kept at all"
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("memory", "strategy", "dropout", "checkpointing", "message"),
    [
        (ActivationMemory(offload=True), SingleDeviceStrategy(), 0.0, False, "set gradient_checkpointing to true"),
        (ActivationMemory(mlp_tile_tokens=8), DDPStrategy(), 0.0, True, "DDP would reduce the gradient of the first"),
        (ActivationMemory(mlp_tile_tokens=8), ZeroStrategy(stage=2), 0.1, True, "with lora.dropout 0.1"),
    ],
)
def test_what_would_train_otherwise_is_refused(
    memory: ActivationMemory, strategy: Any, dropout: float, checkpointing: bool, message: str
) -> None:
    lora = LoraSettings(r=2, alpha=4, target_modules=["*"], dropout=dropout)
    with pytest.raises(UserError, match=message):
        check_activation_memory(memory, strategy, lora, gradient_checkpointing=checkpointing)


def test_what_trains_the_same_is_not_refused() -> None:
    both, lora = ActivationMemory(offload=True, mlp_tile_tokens=8), LoraSettings(r=2, alpha=4, target_modules=["*"])
    for strategy in (SingleDeviceStrategy(), ZeroStrategy(stage=3)):
        check_activation_memory(both, strategy, lora, gradient_checkpointing=True)
    check_activation_memory(ActivationMemory(), DDPStrategy(), None, gradient_checkpointing=False)


def test_a_negative_tile_is_refused() -> None:
    with pytest.raises(UserError, match="mlp_tile_tokens is -1; it must be 0"):
        ActivationMemory(mlp_tile_tokens=-1)


def test_a_run_with_both_is_the_plain_run(fit_config: Callable[..., Path], tmp_path: Path) -> None:
    config = fit_config(trainer__max_steps=1, model__init_args__gradient_checkpointing=True)
    words = ["--model.init_args.activations.offload=true", "--model.init_args.activations.mlp_tile_tokens=5"]
    for run, more in (("plain", []), ("saving", words)):
        assert cli.main(["fit", "--config", str(config), "--run_dir", str(tmp_path / run), *more]) == 0
    losses, weights = [], []
    for run in ("plain", "saving"):
        losses.append([line["train/loss"] for line in read_metrics(tmp_path / run) if "train/loss" in line])
        weights.append(load_file(tmp_path / run / "model" / "model.safetensors"))
    assert len(losses[0]) == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_offload_frees_the_layers_inputs_on_the_gpu() -> None:
    peaks, found = [], []
    for memory in (ActivationMemory(), ActivationMemory(offload=True)):
        model = language_model().to("cuda")
        apply_activation_memory(model.model, memory)
        ids = torch.zeros(1, 65536, dtype=torch.long, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model.model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        found.append([value.grad for value in model.parameters() if value.grad is not None])
    assert peaks[0] - peaks[1] >= 65536 * WIDTH * 8, "the first layer's input at least, in float64"
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))
