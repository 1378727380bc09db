"""Which caches go to the kernels, said before anything runs; and that the kernels compile for the GPUs they are for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longvid_train.errors import UserError
from longvid_train.kvcache.affine import AffineCodec
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.kernels.choice import page_decoder, refusal_of
from longvid_train.kvcache.kernels.sides import Side, side_of, word_bytes
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import CacheShape, uncalibrated
from longvid_train.kvcache.schemes.dynamic_groups import ChannelGroupCodec, TokenGroupCodec

ROOT = Path(__file__).parents[3]


def affine(bits=2, kinds=1, head_dim=64):
    scale = torch.arange(1.0, kinds * 3 * head_dim + 1).view(kinds, 3, head_dim)
    return AffineCodec(bits=bits, scale=scale, offset=-scale, head_dim=head_dim)


@pytest.mark.parametrize(
    ("keys", "values", "said"),
    [
        (affine(kinds=2), affine(), "keys: text and visual tokens have parameters of their own"),
        (affine(head_dim=60), affine(bits=3, head_dim=60), "values: a head dim of 60 at 3 bits is not read"),
        (affine(), TokenGroupCodec(bits=2, group=32), "values: groups along tokens are read for keys only"),
        (TokenGroupCodec(bits=2, group=24), affine(), "keys: groups of 24 tokens are not a multiple of 16"),
    ],
)
def test_refusals_name_the_side_and_the_reason(keys, values, said):
    head_dim = values.head_dim if isinstance(values, AffineCodec) else 64
    assert said in (refusal_of(keys, values, heads=3, head_dim=head_dim) or "")


def test_a_layer_wide_scale_is_spread_over_the_channels():
    layer_wide = AffineCodec(bits=4, scale=torch.full((1, 1, 1), 0.5), offset=torch.full((1, 1, 1), -2.0), head_dim=64)
    side = side_of(layer_wide, 3, 64)
    assert isinstance(side, Side)
    assert side.scale.shape == side.offset.shape == (3, 64)
    assert side.scale.eq(0.5).all() and side.offset.eq(-2).all()


def test_groups_of_whole_heads_are_as_long_as_a_head():
    side = side_of(ChannelGroupCodec(bits=4, group=None), 3, 96)
    assert isinstance(side, Side) and side.group == 96 and side.tensor_names == ("codes", "scale", "offset")


@pytest.mark.parametrize(
    ("bits", "channels", "size"),
    [(2, 128, 4), (2, 40, 2), (2, 4, 1), (2, 3, 0), (3, 128, 3), (3, 40, 3), (3, 60, 0), (8, 5, 1)],
)
def test_codes_are_taken_in_the_widest_words_that_fit(bits, channels, size):
    assert word_bytes(bits, channels) == size


def test_on_the_cpu_pages_go_through_torch_and_insisting_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    given = {"heads": 3, "head_dim": 64, "dtype": torch.float32, "device": torch.device("cpu")}
    for decoding in ("auto", "torch"):
        assert page_decoder(affine(), affine(), decoding=decoding, **given) is None
    with pytest.raises(UserError, match=r"decoding: triton cannot read this cache: (it is on cpu|Triton is not)"):
        page_decoder(affine(), affine(), decoding="triton", **given)


def test_an_unknown_way_of_decoding_is_refused_when_the_cache_is_made():
    quantizer = uncalibrated(PRESETS["kivi_g32"], CacheShape(layers=1, heads=2, head_dim=64))
    with pytest.raises(UserError, match="decoding 'trition' is unknown; did you mean 'triton'"):
        QuantizedKVCache(quantizer, decoding="trition")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_a_gpu(capability):
    """To machine code, in a process of its own: no shared memory beyond 96 KiB, hardly a register spilled."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.kv_compile", "--capability", str(capability)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    header, *rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [name.strip() for name in header[1:4]] == ["registers", "spilled bytes", "shared bytes"]
    assert len(rows) >= 7
    for name, _registers, spilled_bytes, shared_bytes, _code_loads in rows:
        assert int(spilled_bytes) <= 256, name
        assert int(shared_bytes) <= 96 * 1024, name
