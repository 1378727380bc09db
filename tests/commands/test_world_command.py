import json
from pathlib import Path

import pytest

from longvid_train.cli import main

SMALL = ["--size", "32", "--duration", "2-3", "--fps", "2"]


def test_it_builds_a_world_from_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w"
    words = ["world", "--out", str(out), "--split", "train=2", "--split", "val=1", "--images", "train=1", *SMALL]
    words += ["--kinds", "detail,count", "--questions-per-episode", "2", "--subtitles", "--seed", "9", "--json"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rendered"] == 4
    assert printed["counts"]["train"]["videos"] == 2
    rows = [json.loads(line) for line in (out / "train/manifest.jsonl").read_text().splitlines()]
    assert len(rows) == printed["counts"]["train"]["rows"]
    assert {row["meta"]["kind"] for row in rows} == {"detail", "count"}
    assert sorted(path.name for path in out.rglob("*.srt")) == [
        "train-9-000000.srt",
        "train-9-000001.srt",
        "val-9-000000.srt",
    ]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["rendered"] == 0


def test_it_builds_several_sets_from_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "world.yaml"
    config.write_text(
        "defaults: {size_px: 32, duration_s: 2, fps: 2}\n"
        "sets:\n"
        "  - {name: one, videos: {train: 1}, style: caption}\n"
        "  - {name: two, videos: {val: 1}, kinds: [needle]}\n"
    )
    assert main(["world", "--out", str(tmp_path / "w"), "--config", str(config), "--seed", "4"]) == 0
    assert "2 files rendered" in capsys.readouterr().out
    assert (tmp_path / "w/one/train/videos/train-4-000000.mp4").stat().st_size > 500
    assert (tmp_path / "w/two/val/videos/val-5-000000.mp4").stat().st_size > 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "train=1", "--kinds", "neddle"], "did you mean 'needle'"),
        (["--split", "train"], "--split train must be SPLIT=COUNT"),
        (["--split", "train=two"], "must be SPLIT=COUNT"),
        (["--split", "train=1", "--fps", "0"], "fps 0"),
        (["--split", "train=1", "--seed", "-1"], "seed -1"),
        (["--split", "train=1", "--workers", "0"], "workers 0"),
        ([], "is empty"),
        (["--config", "absent.yaml"], "absent.yaml does not exist"),
        (["--config", "absent.yaml", "--fps", "4"], "--fps cannot be combined with --config"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["world", "--out", str(tmp_path / "w"), *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (tmp_path / "w").exists()


def test_a_broken_config_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "world.yaml"
    config.write_text("sets: [\n")
    assert main(["world", "--out", str(tmp_path / "w"), "--config", str(config)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_world_in_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["world", "--out", str(tmp_path / "w"), "--split", "train=1", *SMALL]
    assert main(words) == 0
    assert main([*words, "--seed", "1"]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*words, "--seed", "1", "--overwrite"]) == 0
