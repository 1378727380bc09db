"""``longvid reproduce`` on an untrained nano OneVision: everything it writes, going on, and mistakes."""

import json
from pathlib import Path

import pytest
import torch

from longvid_train.cli import main
from longvid_train.evaluation.claims import embeddings
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
    (cell,) = (tmp_path / "visual-window" / "cells").glob("none_*_64_0.json")
    answered = json.loads(cell.read_text())
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


def test_claims_that_ask_nothing_stand_in_the_same_table(models: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "EPISODES", 8)
    command = ["reproduce", "intp-roofline", "embeddings", "--out", str(tmp_path), "--models", str(models)]
    assert main([*command, "--processes", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [claim["claim"] for claim in said["claims"]] == ["intp-roofline", "embeddings"]
    table = (tmp_path / "table.md").read_text()
    assert "| intp-roofline | Table 1: KV (GB) | 9 of 9 numbers" in table and "| embeddings | Figure 1b" in table
    assert (tmp_path / "embeddings" / "embeddings.png").is_file()
    kept = json.loads((tmp_path / "embeddings" / "scores.json").read_text())
    assert kept == said["claims"][1] and -1 <= kept["silhouette"]["mean"] <= 1


def test_claims_may_be_checked_without_models_that_none_of_them_reads(tmp_path: Path) -> None:
    assert main(["reproduce", "intp-roofline", "--out", str(tmp_path), "--models", "/nowhere"]) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_find_what_one_finds_and_end_in_one_line(models: Path, tmp_path: Path, capfd) -> None:
    size = ["--episodes", "2", "--seeds", "1", "--models", str(models)]
    found = []
    for processes in ("1", "2"):
        command = ["reproduce", "embeddings", "intp-roofline", *size, "--out", str(tmp_path / processes), "--json"]
        assert main([*command, "--processes", processes]) == 0
        said = capfd.readouterr()
        found.append(json.loads(said.out)["claims"])
    assert found[0] == found[1] and [claim["claim"] for claim in found[1]] == ["intp-roofline", "embeddings"]
    assert "embeddings: done" in said.err and "2 of 2 claims" in said.err
    cells = tmp_path / "2" / "visual-window" / "cells"
    cells.mkdir(parents=True)
    (cells / "settings.json").write_text("{}")
    command = ["reproduce", "visual-window", "intp-roofline", *size, "--out", str(tmp_path / "2")]
    assert main([*command, "--processes", "2"]) == 2
    error = capfd.readouterr().err
    assert "choose another --out" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["visual-windw"], "did you mean 'visual-window'"),
        (["--episodes", "1"], "--episodes is 1; an interval needs at least 2"),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--processes", "0"], "--processes is 0; it must be at least 1"),
        (
            ["embeddings", "--models", "/nowhere"],
            "/nowhere/nano_onevision holds no model; name the folder of nano_onevision with --models",
        ),
        (["--models", "/nowhere"], "holds no model; name the folder of nano_onevision with --models"),
        (["llama-vid-long-video", "--models", "/nowhere"], "config.json does not exist; name the folder of the nano"),
        (
            ["intp-kv-bits-llama-vid", "--llama-vid", "/nowhere"],
            "/nowhere holds no model; name the folder of a LLaMA-VID with --llama-vid",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], said: str, tmp_path: Path, capsys) -> None:
    assert main(["reproduce", "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "out").exists()
