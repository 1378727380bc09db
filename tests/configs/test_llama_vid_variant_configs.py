"""The recipe of the LLaMA-VID variants: both stages parse, are headed, and name each other's folders and the world."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from longvid_train import cli
from longvid_train.world.settings import parse_world

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "llama_vid" / "variants"
WORLD = ROOT / "configs" / "world" / "llama_vid_variants.yaml"


def printed(stage: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["fit", "--config", str(FOLDER / f"{stage}.yaml"), "--print_config"]) == 0
    values: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return values


def test_both_stages_parse_and_follow_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == ["stage1.yaml", "stage2.yaml"]
    first, second = printed("stage1", capsys), printed("stage2", capsys)
    assert second["model"]["init_args"]["model"] == first["run_dir"] + "/model"
    assert first["model"]["init_args"]["lora"] is None
    assert second["model"]["init_args"]["lora"]["r"] == 8
    sets = {one.name for one in parse_world(yaml.safe_load(WORLD.read_text()), where="world").sets}
    for config, name in ((first, "stage1"), (second, "stage2")):
        assert config["data"]["init_args"]["train"] == f"runs/llama_vid_variants/world/{name}/train/manifest.jsonl"
    assert sets == {"stage1", "stage2"}


@pytest.mark.parametrize("path", [*sorted(FOLDER.iterdir()), WORLD], ids=lambda path: path.stem)
def test_configs_are_headed(path: Path) -> None:
    header = path.read_text().split("\nseed")[0]
    for word in ("# Paper:", "# Command:", "# Hardware:", "# Expected:"):
        assert word in header
