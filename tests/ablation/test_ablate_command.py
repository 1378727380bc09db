"""``longvid ablate`` through the command line, with commands that answer at once."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longvid_train.ablation import chart, launching
from longvid_train.ablation.locks import folder_lock
from longvid_train.cli import main
from tests.ablation.fake_commands import FakeLauncher

WriteGrid = Callable[..., Path]
RECIPE: dict[str, Any] = {
    "steps": {
        "world": {"run": "world", "set": {"sets": [{"videos": {"test": 1}}]}},
        "evaluate": {
            "run": "evaluate",
            "set": {"model": "none", "manifests": ["${world}/manifest.jsonl"], "seed": "${seed}", "limit": 1},
        },
    },
    "choices": {
        "outcome": {"fine": {}, "broken": {"evaluate.max_left_out": 13}, "endless": {"evaluate.max_left_out": 99}}
    },
    "result": "evaluate",
}


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> FakeLauncher:
    """In place of the server; pictures, which take long to draw, and wandb's runs have tests of their own."""
    fake = FakeLauncher()
    monkeypatch.setattr(launching, "Launcher", lambda: fake)
    monkeypatch.setattr(chart, "results_png", lambda sweep, results: b"picture")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return fake


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_a_grid_becomes_one_table_with_mean_and_spread(
    write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, out = write_grid(RECIPE, (0, 1), **{"evaluate.limit": [1, 2, 3]}), tmp_path / "out"
    assert main(["ablate", str(grid), "--out", str(out), "--processes", "3"]) == 0
    assert launcher.started.count("world") == 1, "cells and seeds share the world"
    assert launcher.started.count("evaluate") == 6
    found = results(out)
    cells = {cell["parameters"]["evaluate.limit"]: cell for cell in found["cells"]}
    # Questions 0 to limit + seed - 1 are right: 1 and 2 of 4; kinds alternate.
    assert {seed: one["scores"] for seed, one in cells[1]["seeds"].items()} == {
        "0": {"overall": 0.25, "needle": 0.5, "order": 0.0},
        "1": {"overall": 0.5, "needle": 0.5, "order": 0.5},
    }
    assert cells[1]["scores"]["overall"] == pytest.approx(
        {"mean": 0.375, "sd": 0.125 * 2**0.5, "min": 0.25, "max": 0.5}
    )
    assert cells[3]["scores"]["overall"]["mean"] == 0.875 and cells[3]["scores"]["order"]["mean"] == 0.75
    assert cells[1]["cost"] == {"frames": 8, "visual_tokens": 33} and cells[1]["missing"] == {}
    assert found["kinds"] == ["overall", "needle", "order"] and found["varied"] == ["evaluate.limit"]
    table = (out / "table.md").read_text()
    assert "| limit | seeds | overall | needle | order | visual tokens |" in table
    assert "| 1 | 2 | 37.5 ± 17.7 | 50.0 ± 0.0 | 25.0 ± 35.4 | 33.0 |" in table
    assert capsys.readouterr().out == table
    assert (out / "results.png").read_bytes() == b"picture"
    assert {"WANDB_SWEEP_ID", "WANDB_RUN_ID"}.isdisjoint(launcher.environments[0])


def test_every_run_is_recorded(write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["ablate", str(write_grid(RECIPE, (5,), outcome=["fine"])), "--out", str(out)]) == 0
    folder = out / "cells" / "all" / "seed5"
    record, result = (json.loads((folder / name).read_text()) for name in ("run.json", "result.json"))
    assert record["parameters"] == {"outcome": "fine"} and record["seed"] == 5
    assert record["config"]["evaluate"]["manifests"] == ["${world}/manifest.jsonl"]
    (manifest,) = record["manifest_sha256"]
    assert manifest == f"{record['steps']['world']['folder']}/out/manifest.jsonl"
    assert set(record) >= {"git_commit", "versions", "hardware", "duration_s", "finished_at"}
    assert record["versions"]["torch"] and record["hardware"]["cpu_cores"] == os.cpu_count()
    assert [one["id"] for one in result["questions"]] == ["q0", "q1", "q2", "q3"]
    assert result["questions"][0] == {"id": "q0", "kind": "needle", "score": 1.0, "frames": 8, "visual_tokens": 33}
    step = json.loads((out / record["steps"]["evaluate"]["folder"] / "step.json").read_text())
    assert step["identity"] == result["identity"] and len(step["starts"]) == 1


def test_a_failing_cell_is_named_and_the_others_go_on(
    write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, out = write_grid(RECIPE, (0, 1), outcome=["broken", "fine"]), tmp_path / "out"
    assert main(["ablate", str(grid), "--out", str(out)]) == 1
    streams = capsys.readouterr()
    assert "failed: outcome=broken seed=0: step evaluate ended with status 2" in streams.err
    assert "longvid: the thirteenth was left out" in streams.err and str(out / "steps") in streams.err
    assert "| fine | 2 | 37.5" in streams.out and "| broken | 0 | - |" in streams.out
    cells = {cell["name"]: cell for cell in results(out)["cells"]}
    assert set(cells["outcome=broken"]["missing"]) == {"0", "1"} and cells["outcome=fine"]["missing"] == {}
    launcher.started.clear()
    assert main(["ablate", str(grid), "--out", str(out)]) == 1
    assert launcher.started == ["evaluate", "evaluate"], "what failed is tried again, what is done is not"


def test_a_step_that_cells_share_fails_once(write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path) -> None:
    recipe = {
        **RECIPE,
        "steps": {
            **RECIPE["steps"],
            "again": {"run": "evaluate", "set": {"model": "${evaluate}", "manifests": ["m"], "limit": 1}},
        },
        "result": "again",
    }
    grid = write_grid(recipe, outcome=["broken"], **{"again.limit": [1, 2]})
    assert main(["ablate", str(grid), "--out", str(tmp_path / "out")]) == 1
    assert launcher.started == ["world", "evaluate"]


def test_an_ablation_goes_on_with_what_is_missing(
    write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, out = str(write_grid(RECIPE, (0,), **{"evaluate.limit": [1, 2]})), str(tmp_path / "out")
    assert main(["ablate", grid, "--out", out, "--only", "evaluate.limit=2"]) == 0
    assert launcher.started == ["world", "evaluate"]
    assert "runs not done yet: 1" in capsys.readouterr().out
    assert main(["ablate", grid, "--out", out, "--dry-run"]) == 0
    assert "2 runs, 1 done; 3 different steps, 2 done" in capsys.readouterr().out
    assert main(["ablate", grid, "--out", out, "--seeds", "2"]) == 0
    assert launcher.started == ["world", "evaluate", "evaluate", "evaluate", "evaluate"]
    assert main(["ablate", grid, "--out", out, "--seeds", "2"]) == 0
    assert main(["ablate", grid, "--out", out, "--table-only", "--json"]) == 0
    assert len(launcher.started) == 5
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == results(Path(out))


def test_half_a_step_goes_on_and_is_not_taken_for_done(
    write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path
) -> None:
    grid, out = str(write_grid(RECIPE, (0,), outcome=["fine"])), tmp_path / "out"
    assert main(["ablate", grid, "--out", str(out)]) == 0
    (step,) = (out / "steps").glob("evaluate-*")
    (step / "done.json").unlink()
    (out / "cells/all/seed0/result.json").unlink()
    launcher.started.clear()
    assert main(["ablate", grid, "--out", str(out)]) == 0
    assert launcher.started == ["evaluate"]
    assert len(json.loads((step / "step.json").read_text())["starts"]) == 2


def test_a_second_ablation_in_the_folder_is_refused(
    write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, out = str(write_grid(RECIPE, (0,), outcome=["fine"])), tmp_path / "out"
    with folder_lock(out, shared=False):
        assert main(["ablate", grid, "--out", str(out)]) == 2
    assert f"longvid ablate is at work there (process {os.getpid()})" in capsys.readouterr().err
    assert launcher.started == []
    assert main(["ablate", grid, "--out", str(out)]) == 0


def test_agents_of_wandb_share_the_folder(
    write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_RUN_ID", "def")
    grid, out = str(write_grid(RECIPE, (0,), outcome=["fine"])), tmp_path / "out"
    with folder_lock(out, shared=True):
        assert main(["ablate", grid, "--out", str(out), "--only", "outcome=fine", "seed=0"]) == 0
    assert {"WANDB_SWEEP_ID", "WANDB_RUN_ID"}.isdisjoint(launcher.environments[0])


def test_a_folder_of_another_grid_or_of_something_else_is_refused(
    write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["ablate", str(write_grid(RECIPE, (0,), outcome=["fine"])), "--out", str(out)]) == 0
    other = write_grid(RECIPE, (0,), **{"evaluate.limit": [1, 2]})
    assert main(["ablate", str(other), "--out", str(out)]) == 2
    assert "holds another grid: parameters differ; choose another --out" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("")
    assert main(["ablate", str(other), "--out", str(tmp_path / "mine")]) == 2
    assert "is no folder of an ablation" in capsys.readouterr().err


def test_results_of_changed_files_are_refused(
    write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("frames: 8\n")
    evaluate = RECIPE["steps"]["evaluate"] | {"config": str(base)}
    recipe = {**RECIPE, "steps": {**RECIPE["steps"], "evaluate": evaluate}}
    grid, out = str(write_grid(recipe, (0,), outcome=["fine"])), tmp_path / "out"
    assert main(["ablate", grid, "--out", str(out)]) == 0
    base.write_text("frames: 16\n")
    assert main(["ablate", grid, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "was made with another evaluate" in error and str(out / "cells/all/seed0") in error
    base.write_text("frames: 8  # as it was\n")
    assert main(["ablate", grid, "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--processes", "0"], "--processes is 0; it must be at least 1"),
        (["--only", "outcome=good"], "not a value of"),
        (["--table-only"], "no run of"),
        (["--table-only", "--dry-run"], "not allowed with"),
    ],
)
def test_mistakes_are_one_line(
    write_grid: WriteGrid,
    launcher: FakeLauncher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    grid, out = write_grid(RECIPE, (0,), outcome=["fine"]), tmp_path / "out"
    assert main(["ablate", str(grid), "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert launcher.started == [] and not out.exists()


def test_a_key_that_no_config_has_is_one_line_before_anything_runs(
    write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, out = write_grid(RECIPE, (0,), **{"evaluate.frame": [8]}), tmp_path / "out"
    assert main(["ablate", str(grid), "--out", str(out)]) == 2
    assert "step 'evaluate': 'frame' is unknown; did you mean 'frames'" in capsys.readouterr().err
    assert launcher.started == [] and not out.exists()


def test_an_interruption_ends_the_commands_and_the_next_call_goes_on(
    write_grid: WriteGrid, launcher: FakeLauncher, tmp_path: Path
) -> None:
    grid, out = str(write_grid(RECIPE, (0,), outcome=["endless", "fine"])), tmp_path / "out"
    started = launcher.start

    def interrupt_the_endless_one(words: Any, *others: Any) -> Any:
        process = started(words, *others)
        if launcher.started.count("evaluate") == 1:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return process

    launcher.start = interrupt_the_endless_one  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        main(["ablate", grid, "--out", str(out)])
    assert left.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before
    assert launcher.started == ["world", "evaluate"] and not (out / "results.json").exists()
    assert main(["ablate", grid, "--out", str(out), "--only", "outcome=fine"]) == 0
    assert launcher.started == ["world", "evaluate", "evaluate"]
