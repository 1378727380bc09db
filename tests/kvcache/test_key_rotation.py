"""The rotary embedding of keys: as transformers applies it, and off again."""

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from longvid_train.kvcache.rotation import Rotation


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("scaling", [1.0, 1.2])
def test_apply_is_what_the_model_does(kv, family, scaling):
    model = kv.model(family, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    rotary = model.model.rotary_emb
    rotary.attention_scaling = scaling
    keys = torch.randn(2, 2, 5, 16)
    positions = torch.tensor([[0, 1, 2, 3, 4], [700, 701, 702, 703, 704]])
    cos, sin = rotary(keys, positions)
    expected, _ = apply_rotary_pos_emb(keys, keys, cos, sin)
    ours = Rotation(rotary.inv_freq, scaling).apply(keys, positions)
    assert torch.allclose(ours, expected, atol=1e-6)


def test_remove_undoes_apply_to_float64_precision(kv):
    rotation = kv.rotation(scaling=1.3)
    keys = torch.randn(2, 3, 9, 16, dtype=torch.float64)
    positions = torch.randint(-5, 60_000, (2, 9))
    back = rotation.remove(rotation.apply(keys, positions), positions)
    assert (back - keys).abs().max() < 1e-13
    assert not torch.allclose(rotation.apply(keys, positions), keys)


def test_scores_with_one_rotated_key_need_no_rotated_key(kv):
    rotation = kv.rotation(scaling=0.9)
    query, key = torch.randn(2, 3, 4, 16, dtype=torch.float64), torch.randn(3, 16, dtype=torch.float64)
    positions = torch.tensor([[0, 3, 500], [7, 8, 9]])
    rotated = kv.rotate(np.broadcast_to(key[None, :, None, :], (2, 3, 3, 16)), positions, rotation.inv_freq, 0.9)
    expected = np.einsum("bhrd,bhtd->bhrt", query.numpy(), rotated)
    assert np.allclose(rotation.scores(query, key, positions).numpy(), expected, atol=1e-12)


def test_a_difference_names_both_values(kv):
    own = kv.rotation()
    assert own.differs(kv.rotation()) is None
    assert own.fingerprint() == kv.rotation().fingerprint()
    assert own.differs(kv.rotation(scaling=1.5)) == "attention scaling 1.0 and 1.5"
    words = own.differs(kv.rotation(base=20_000.0))
    assert words == "inverse frequency 7: 0.00031622779 and 0.00017242442"
    assert own.differs(kv.rotation(head_dim=8)) == "8 frequencies and 4"
    assert own.fingerprint() != kv.rotation(base=20_000.0).fingerprint()
