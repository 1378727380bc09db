"""``longvid report`` through the command line's own entry."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from longvid_train import cli

SCORES = [("needle", 0.0, 1.0), ("needle", 0.0, 0.0), ("count", 1.0, 1.0), ("caption", 0.25, 0.5)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run over text-only rows and one image row."""
    run = tmp_path / "stage"
    run.mkdir()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "red.png")
    rows: list[dict[str, Any]] = []
    for index, (kind, _, _) in enumerate(SCORES):
        talk = [{"role": "user", "text": "What?"}, {"role": "assistant", "text": "yes"}]
        rows.append({"id": f"r{index}", "conversation": talk, "meta": {"kind": kind}})
    rows[0] |= {"media": [{"type": "image", "path": "red.png"}]}
    rows[0]["conversation"][0]["text"] = "<image>\nWhat?"
    manifest = write_lines(tmp_path / "held.jsonl", rows)
    media = {"sampling": {"count": 2, "at_most": False, "start_s": 0.0, "end_s": None}, "limits": {}}
    config = {
        "model": {"init_args": {"model": "parts", "stage": {"name": "alignment"}}},
        "data": {"init_args": {"test": [str(manifest)], "media": media}},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    start = {
        "started_at": "2026-01-02T03:04:05+00:00",
        "command": "longvid fit --config c.yaml",
        "seed": 1,
        "git_commit": None,
        "manifest_sha256": {str(manifest): hashlib.sha256(manifest.read_bytes()).hexdigest()},
        "versions": {"torch": "2", "transformers": "5"},
        "hardware": {"cpu_cores": 2, "cuda_devices": []},
    }
    (run / "run.json").write_text(json.dumps({"starts": [start]}))
    numbers = {"lr": 0.1, "tokens_per_s": 5.0, "frames_per_s": 1.0, "peak_bytes": 7.0}
    step = {f"train/{name}": value for name, value in numbers.items()}
    write_lines(run / "metrics.jsonl", [{"step": 0, "train/loss": 2.0, **step}])
    for moment, name in enumerate(("before", "after")):
        answers = [
            {"id": f"r{index}", "kind": kind, "question": "What?", "answer": "a", "truth": "yes"}
            | {"correct": scores[moment], "frames": 0, "visual_tokens": 0, "prompt_tokens": 3}
            for index, (kind, *scores) in enumerate(SCORES)
        ]
        write_lines(run / f"answers_{name}.jsonl", answers)
    return run


def test_report_writes_the_page_the_pictures_and_the_numbers(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pictures = tmp_path / "new" / "report.html", tmp_path / "pictures"
    words = ["report", str(run_folder), str(run_folder), "--out", str(out), "--pictures", str(pictures), "--json"]
    assert cli.main([*words, "--title", "Twice"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["out"] == str(out)
    first, second = printed["stages"]
    assert first == second
    assert {kind: (part["before"]["mean"], part["after"]["mean"]) for kind, part in first["kinds"].items()} == {
        "needle": (0.0, 0.5),
        "count": (1.0, 1.0),
        "caption": (0.25, 0.5),
    }
    assert (first["overall"]["after"]["mean"], first["overall"]["change"]["mean"]) == (0.625, 0.3125)
    assert first["overall"]["after"]["low"] < 0.625 < first["overall"]["after"]["high"]
    text = out.read_text()
    assert "<h1>Twice</h1>" in text
    assert text.count("data:image/jpeg") == 2
    assert sorted(path.name for path in out.parent.iterdir()) == ["report.html"]
    assert printed["pictures"] == [str(pictures / "scores.png"), str(pictures / "sample.png")]
    for path in printed["pictures"]:
        with Image.open(path) as picture:
            assert 900 <= picture.width <= 1200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--out", "FOLDER"], "must be an HTML file"),
        (["RUN", "--out", "x.html", "--samples", "-1"], "--samples is -1"),
        (["nowhere", "--out", "x.html"], "nowhere: no such run folder"),
        (["RUN", "--out", "x.html", "--asked", "no.json"], "no.json: no such file; write it with longvid ask"),
    ],
)
def test_mistakes_end_with_one_line_and_no_page(
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [{"RUN": str(run_folder), "FOLDER": str(tmp_path)}.get(word, word) for word in words]
    assert cli.main(["report", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.html").exists()


def test_an_unfinished_run_names_the_file(run_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (run_folder / "answers_after.jsonl").unlink()
    assert cli.main(["report", str(run_folder), "--out", str(tmp_path / "x.html")]) == 2
    assert "answers_after.jsonl: no such file; the run is unfinished" in capsys.readouterr().err
