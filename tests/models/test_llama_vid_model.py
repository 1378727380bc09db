"""The whole model: batches, loss, gradients, adapters."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from longvid_train.models.supervised_loss import supervised_loss_sum


@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_a_row_of_a_mixed_batch_equals_the_row_alone(any_model, mixed, left):
    data = mixed(any_model.config)
    together = any_model(**data.batch(left=left)).logits
    mask = data.batch(left=left)["attention_mask"].bool()
    for row in range(4):
        alone = any_model(**data.batch((row,))).logits[0]
        torch.testing.assert_close(together[row][mask[row]], alone, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_encoded_features_replace_pixels(model, mixed):
    batch = mixed(model.config).batch()
    expected = model(**batch).logits
    batch["visual_features"] = model.encode_frames(batch.pop("pixel_values"))
    assert torch.equal(model(**batch).logits, expected)


def labels_of(batch):
    labels = batch["input_ids"].masked_fill((batch["input_ids"] == 60) | (batch["attention_mask"] == 0), -100)
    labels[:, :2] = -100
    return labels


def test_loss_is_the_mean_cross_entropy_of_supervised_tokens(model, mixed):
    batch = mixed(model.config).batch()
    labels = labels_of(batch)
    logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    output = model(**batch, labels=labels)
    torch.testing.assert_close(output.loss, expected)
    assert output.logits is None
    assert model(**batch, labels=labels, logits_to_keep=2).logits.shape == (4, 2, 60)
    total, count = model.loss_sum(**batch, labels=labels)
    assert int(count) == int((labels[:, 1:] != -100).sum())
    torch.testing.assert_close(total / count, expected)
    torch.testing.assert_close(model(**batch, labels=labels, num_items_in_batch=7).loss, total / 7)


def test_the_head_only_sees_supervised_positions(model, mixed):
    batch = mixed(model.config).batch()
    labels = labels_of(batch)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.numel() // out.shape[-1]))
    model(**batch, labels=labels)
    assert seen == [int((labels[:, 1:] != -100).sum())]


def test_chunks_of_the_loss_change_neither_value_nor_gradient():
    torch.manual_seed(0)
    hidden = torch.randn(2, 40, 8, requires_grad=True)
    labels = torch.randint(0, 11, (2, 40))
    labels[0, 5:9] = -100
    head = torch.nn.Linear(8, 11)
    results = []
    for chunk in (1000, 7):
        hidden.grad = head.weight.grad = None
        total, count = supervised_loss_sum(hidden, labels, head, chunk)
        total.backward()
        results.append((total.detach(), count, hidden.grad.clone(), head.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1])


def test_nothing_supervised_is_a_zero_with_gradients(model, mixed):
    batch = mixed(model.config).batch()
    loss = model(**batch, labels=torch.full_like(batch["input_ids"], -100)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_every_trained_part_gets_a_gradient(any_model, mixed):
    any_model.vision_tower.requires_grad_(False)
    any_model.train()
    batch = mixed(any_model.config).batch()
    any_model(**batch, labels=labels_of(batch)).loss.backward()
    missing = [name for name, p in any_model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad is None for p in any_model.vision_tower.parameters())
    for part in (any_model.text_decoder, any_model.context_attention, any_model.content_projector):
        assert part is None or any(p.grad.any() for p in part.parameters())


def test_a_text_only_batch_in_training_gives_zero_gradients_to_the_visual_side(any_model):
    any_model.vision_tower.requires_grad_(False)
    any_model.train()
    ids = torch.randint(3, 50, (2, 6))
    any_model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in any_model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            if not name.startswith("language_model"):
                assert not parameter.grad.any()


def test_a_frozen_tower_keeps_no_graph_and_a_trained_one_does(model, mixed):
    pixels = mixed(model.config).pixel_values
    assert model.encode_frames(pixels).requires_grad
    model.vision_tower.requires_grad_(False)
    assert not model.encode_frames(pixels).requires_grad


def gradients(model, batch):
    model.zero_grad()
    torch.manual_seed(5)
    model(**batch, labels=labels_of(batch), use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def without_dropout(model):
    for config in (model.config.vision_config, model.config.text_decoder_config):
        for name in ("attention_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


@pytest.mark.parametrize("kind", ["qformer", "bert"])
def test_gradient_checkpointing_changes_no_gradient(tiny, mixed, kind):
    model = tiny.build(tiny.eva(), getattr(tiny, kind)())
    without_dropout(model)
    model.train()
    batch = mixed(model.config).batch()
    plain = gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    on = [name for name, module in model.named_modules() if getattr(module, "gradient_checkpointing", False)]
    for part in ("vision_tower", "text_decoder", "language_model"):
        assert any(name.startswith(part) for name in on)
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-7)


def test_lora_trains_only_adapters_and_merges_exactly(model, mixed):
    batch = mixed(model.config).batch()
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = model(**batch).logits.detach()
    target = r"language_model\.model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=target, task_type="CAUSAL_LM"))
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(**batch, labels=labels_of(batch)).loss.backward()
        optimizer.step()
    for name, parameter in adapted.named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, base[plain]), name
    adapted.eval()
    with torch.no_grad():
        trained = adapted(**batch).logits
        assert (trained - before).abs().max() > 1e-2
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, trained, rtol=1e-4, atol=1e-4)


def test_lora_around_the_language_model_alone_reaches_the_loss(model, mixed):
    batch = mixed(model.config).batch()
    before = model(**batch, labels=labels_of(batch)).loss.detach()
    model.language_model = get_peft_model(model.language_model, LoraConfig(r=4, target_modules=["v_proj"]))
    torch.testing.assert_close(model(**batch, labels=labels_of(batch)).loss, before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    assert (model(**batch, labels=labels_of(batch)).loss - before).abs() > 1e-4
