"""Shipped evaluations are read as the command reads them; the list of benchmarks names what exists."""

from pathlib import Path
from typing import Any

import yaml

from longvid_train.evaluation.harness import tasks
from longvid_train.evaluation.local.settings import read_settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "evaluation"
BENCHMARKS = FOLDER / "benchmarks.yaml"


def benchmarks() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = yaml.safe_load(BENCHMARKS.read_text())["benchmarks"]
    return listed


def test_every_evaluation_is_headed_and_read() -> None:
    paths = sorted(FOLDER.glob("*.yaml"))
    assert len(paths) == 12
    for path in paths:
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        for word in ("# Paper:", "# Command:", "# Hardware:", "# Expected:"):
            assert sum(line.startswith(word) for line in head) == 1, f"{path.name}: {word}"
        if path != BENCHMARKS:
            settings = read_settings(path)
            assert settings.manifests or settings.judge


def test_configs_name_the_manifest_that_their_command_writes() -> None:
    for path in sorted(FOLDER.glob("*.yaml")):
        settings = None if path == BENCHMARKS else read_settings(path)
        for manifest in () if settings is None or settings.model else settings.manifests:
            assert f"--out {manifest}" in path.read_text()
            assert f"evaluate --config configs/evaluation/{path.name}" in path.read_text()


def test_the_list_of_benchmarks_covers_the_papers_and_names_files_that_exist() -> None:
    listed = benchmarks()
    assert len({one["name"] for one in listed}) == len(listed) == 27
    assert {paper.rsplit(" ", 2)[0] for one in listed for paper in one["papers"]} == {
        "LLaMA-VID",
        "Visual context window",
        "INTP",
        "ZoomVLM",
    }
    for one in listed:
        assert set(one) == {"name", "papers", "task", "local", "judge"} and one["judge"]
        assert one["local"] is None or (FOLDER / one["local"]).is_file()
    ours = {f"longvid_{path.stem}" for path in our_tasks()}
    assert {one["task"] for one in listed if str(one["task"]).startswith("longvid_")} == ours


def our_tasks() -> list[Path]:
    return sorted(Path(tasks.__file__).parent.glob("*.yaml"))
