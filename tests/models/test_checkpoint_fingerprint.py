"""A fingerprint tells two trainings of one model apart, and does not care how the weights lie in files."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from longvid_train.errors import UserError
from longvid_train.models.fingerprint import BLOCK_BYTES, BLOCKS, block_ranges, fingerprint


@given(st.integers(0, 40 * BLOCK_BYTES) | st.integers(2**30, 2**40))
def test_blocks_lie_inside_and_cover_both_ends(size: int) -> None:
    ranges = block_ranges(size)
    assert ranges[0][0] == 0
    assert sum(ranges[-1]) == size
    assert all(offset >= 0 and offset + count <= size for offset, count in ranges)
    assert sum(count for _, count in ranges) == min(size, BLOCKS * BLOCK_BYTES)
    gaps = [later[0] - sum(earlier) for earlier, later in itertools.pairwise(ranges)]
    assert all(gap >= 0 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1, "evenly spaced"


@pytest.fixture
def folder(model, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, target: Path, change) -> Path:
    shutil.copytree(folder, target)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_it_does_not_depend_on_the_split_into_files(model, folder: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert fingerprint(tmp_path / "shards") == fingerprint(folder)
    assert len(fingerprint(folder)) == 64


def test_one_value_of_a_small_tensor_a_shape_a_type_and_a_name_count(folder: Path, tmp_path: Path) -> None:
    name = "language_model.model.norm.weight"

    def nudge(weights):
        weights[name][-1] += 1e-6

    def reshape(weights):
        weights[name] = weights[name].reshape(2, -1)

    def retype(weights):
        weights[name] = weights[name].view(torch.int32)

    def rename(weights):
        weights[name + "_"] = weights.pop(name)

    prints = {fingerprint(folder)}
    for change in (nudge, reshape, retype, rename):
        prints.add(fingerprint(rewrite(folder, tmp_path / change.__name__, change)))
    assert len(prints) == 5


def test_a_step_of_training_in_a_large_tensor_counts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = torch.randn(400, 400)
    assert large.numel() * 4 > 2 * BLOCKS * BLOCK_BYTES
    prints = []
    for number, values in enumerate((large, large - 1e-4 * torch.randn(400, 400))):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "config.json").write_text("{}")
        save_file({"w": values}, place / "model.safetensors")
        prints.append(fingerprint(place))
    assert prints[0] != prints[1]


def test_the_configuration_counts_and_the_library_version_does_not(folder: Path) -> None:
    before, path = fingerprint(folder), folder / "config.json"
    config = json.loads(path.read_text())
    config["transformers_version"] = "99.0"
    config["text_config"]["transformers_version"] = "99.0"
    path.write_text(json.dumps(config, indent=7))
    assert fingerprint(folder) == before
    config["text_config"]["max_position_embeddings"] *= 2
    path.write_text(json.dumps(config))
    assert fingerprint(folder) != before


def test_what_is_no_checkpoint_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        fingerprint(folder)
    weights.write_bytes(whole[:50])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        fingerprint(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"no \*\.safetensors weights"):
        fingerprint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        fingerprint(folder)
