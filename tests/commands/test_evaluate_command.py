"""``longvid evaluate`` through the command line: files, table, JSON, mistakes in one line, scoring again."""

import json
from pathlib import Path

import pytest

from longvid_train.cli import main
from tests.evaluation.local.conftest import row, write_rows
from tests.generate.tiny_backbone_folder import save_tiny_backbone
from tests.generate.tiny_checkpoint import save_tiny_checkpoint, write_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    save_tiny_backbone(folder / "onevision")
    save_tiny_checkpoint(folder / "llama_vid")
    for seed, (name, seconds) in enumerate({"a": 8, "b": 4}.items()):
        write_clip(folder / f"{name}.mp4", seconds=seconds, seed=seed)
    options = {"kind": "multiple_choice", "options": ["a dog", "a cat"]}
    write_rows(
        folder,
        [
            row(0, "a", "What is it?", "red", kind="open", type="colour"),
            row(1, "b", "What is it?", "blue", kind="open", type="colour"),
            row(2, "b", "Which?\nA. a dog\nB. a cat", "B", **options, type="animal"),
        ],
    )
    (folder / "set.yaml").write_text(
        "manifests: [manifest.jsonl]\nmodel: onevision\nframes: 4\nmax_new_tokens: 4\nisolated: false\n"
        "duration_edges_s: [5]\n"
    )
    return folder


def evaluated(folder: Path, out: str, *words: str) -> int:
    return main(["evaluate", "--config", "set.yaml", "--out", out, *words])


def test_files_table_and_json_agree(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert evaluated(folder, "out") == 0
    table = capsys.readouterr().out
    assert "3 of 3 questions answered" in table
    assert "| multiple_choice | 1 |" in table and "| colour | 2 |" in table and "| up to 5 s | 2 |" in table
    assert (folder / "out/table.md").read_text() == table
    metrics = json.loads((folder / "out/metrics.json").read_text())
    assert evaluated(folder, "out", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"out": "out", **metrics}
    assert metrics["overall"]["n"] == 3 and metrics["cost"]["frames"] == 4
    assert [json.loads(line)["id"] for line in (folder / "out/scores.jsonl").read_text().splitlines()] == [
        "q0",
        "q1",
        "q2",
    ]


def test_scoring_again_needs_no_model_and_sees_changed_answers(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert evaluated(folder, "again") == 0
    path = folder / "again/predictions.jsonl"
    said = {"q0": "Red.", "q1": "It is blue", "q2": "a cat"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(one | {"answer": said[one["id"]]}) + "\n" for one in lines))
    capsys.readouterr()
    assert main(["evaluate", "--rescore", "again", "--category", "type", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["overall"]["mean"] == pytest.approx(2 / 3)
    assert found["overall"]["contained"] == 1.0
    assert {name: one["mean"] for name, one in found["by"]["type"]["groups"].items()} == {"animal": 1.0, "colour": 0.5}
    assert set(found["by"]) == {"type", "video length"}  # of the run and of this command


def test_a_llama_vid_without_frames_shows_what_fits(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 s and 4 s of video at 1 frame a second, and fewer where an answer of 460 tokens leaves no room for more."""
    monkeypatch.chdir(folder)
    (folder / "llama.yaml").write_text("manifests: [manifest.jsonl]\nmodel: llama_vid\nisolated: false\nlimit: 2\n")
    assert main(["evaluate", "--config", "llama.yaml", "--out", "llama", "--max-new-tokens", "4"]) == 0
    lines = [json.loads(line) for line in (folder / "llama/predictions.jsonl").read_text().splitlines()]
    assert [(one["frames"], one["visual_tokens"]) for one in lines] == [(8, 16), (4, 8)]
    prompt = lines[0]["prompt_tokens"]
    room = 512 - (prompt - 6)  # what an answer may take when 5 of the 8 frames are shown
    assert (
        main(["evaluate", "--config", "llama.yaml", "--out", "tight", "--max-new-tokens", str(room), "--limit", "1"])
        == 0
    )
    (line,) = (folder / "tight/predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["frames"] == 5
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x"], "no manifest is named"),
        (["--manifest", "manifest.jsonl", "--out", "x"], "no model is named"),
        (["--manifest", "manifest.jsonl", "--model", "onevision"], "--out is missing"),
        (["--config", "none.yaml"], "none.yaml: cannot be read"),
        (["--config", "typo.yaml"], "typo.yaml: 'frame' is unknown; did you mean 'frames'?"),
        (["--config", "set.yaml", "--frames", "0"], "frames is 0; it must be at least 1"),
        (["--config", "set.yaml", "--manifest", "gone.jsonl"], "gone.jsonl"),
        (["--config", "set.yaml", "--model", "nowhere/at/all"], "nowhere"),
        (["--config", "set.yaml", "--adaptation", "elsewhere.yaml"], "the adaptation is for video_llava"),
        (["--rescore", "nothing"], "nothing/evaluation.json: no such file"),
        (["--rescore", "nothing", "--frames", "4"], "--frames has no effect with --rescore"),
        (["--config", "judge.yaml"], "judge.yaml: judge: 'base_url' is missing"),
        (["--config", "edges.yaml"], "duration_edges_s is [60.0, 15.0]; it must be rising"),
    ],
)
def test_mistakes_are_one_line_before_weights(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "typo.yaml").write_text("frame: 4\n")
    (folder / "elsewhere.yaml").write_text("backbones: [video_llava]\n")
    (folder / "judge.yaml").write_text("judge: {rubrics: [accuracy]}\n")
    (folder / "edges.yaml").write_text("duration_edges_s: [60, 15]\n")
    assert main(["evaluate", *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (folder / "x").exists()
