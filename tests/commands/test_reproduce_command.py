"""``longvid reproduce`` on an untrained nano OneVision: everything it writes, going on, and mistakes."""

import json
from pathlib import Path

import pytest
import torch

from longvid_train.cli import main
from longvid_train.training.nano.families import ONEVISION


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    tokenizer = ONEVISION.tokenizer()
    ONEVISION.save(ONEVISION.build(tokenizer), tokenizer, folder / ONEVISION.name)
    return folder


def test_a_claim_leaves_a_table_a_plot_json_and_every_answer(models: Path, tmp_path: Path, capsys) -> None:
    command = ["reproduce", "visual-window", "--out", str(tmp_path), "--models", str(models)]
    size = ["--episodes", "2", "--seeds", "1"]
    assert main([*command, *size, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (claim,) = said["claims"]
    assert claim["claim"] == "visual-window" and len(claim["checks"]) == 5
    assert {row["n"] for row in claim["scores"] if row["kind"] == "all"} == {6}
    cells = sorted((tmp_path / "visual-window" / "cells").glob("*_0.json"))
    assert len(cells) == 9 * 4
    answered = json.loads((tmp_path / "visual-window" / "cells" / "none_64_0.json").read_text())
    mean = sum(row["score"] for row in answered) / 6
    (found,) = [row for row in claim["scores"] if (row["method"], row["frames"], row["kind"]) == ("none", 64, "all")]
    assert found["mean"] == pytest.approx(mean)
    assert (tmp_path / "visual-window" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "paper | here | holds" in (tmp_path / "table.md").read_text()
    kept = cells[0].stat().st_mtime_ns
    assert main([*command, *size]) == 0
    assert cells[0].stat().st_mtime_ns == kept
    assert "no extension" in capsys.readouterr().out
    assert main([*command, "--episodes", "3", "--seeds", "1"]) == 2
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["visual-windw"], "did you mean 'visual-window'"),
        (["--episodes", "1"], "--episodes is 1; an interval needs at least 2"),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--models", "/nowhere"], "holds no model; name the folder of nano_onevision"),
        (["intp-kv-bits-llama-vid"], "is about a LLaMA-VID, and none ships; name a folder with --llama-vid"),
        (
            ["intp-kv-bits-llama-vid", "--llama-vid", "/nowhere"],
            "/nowhere holds no model; name the folder of a LLaMA-V",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], said: str, tmp_path: Path, capsys) -> None:
    assert main(["reproduce", "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "out").exists()
