"""Each shipped config is swept by a test: a new folder must say by which."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
COVERED_BY = {
    "ablations": "tests/ablation/test_shipped_grids.py",
    "adaptations": "tests/adaptation/test_adaptation_files.py",
    "calibration": "tests/configs/test_calibration_configs.py",
    "deepspeed": "tests/training/test_deepspeed_config.py",
    "llama_vid/7b": "tests/configs/test_paper_configs.py",
    "llama_vid/13b": "tests/configs/test_paper_configs.py",
    "llama_vid/paper": "tests/configs/test_paper_configs.py",
    "llama_vid/nano": "tests/training/test_fit_bad_input.py",
    "llama_vid/variants": "tests/configs/test_llama_vid_variant_configs.py",
    "lora": "tests/configs/test_lora_configs.py",
    "evaluation": "tests/configs/test_evaluation_configs.py",
    "world": "tests/integration/test_nano_stages_improve.py",
}
"""Folder of ``configs/`` -> the test that reads all files in it."""


def covering_test(config: Path) -> str | None:
    folders = [str(folder) for folder in config.relative_to(ROOT / "configs").parents]
    return next((COVERED_BY[folder] for folder in folders if folder in COVERED_BY), None)


def test_every_config_is_swept_by_a_test_that_exists() -> None:
    found = [path for path in sorted((ROOT / "configs").rglob("*")) if path.is_file()]
    assert len(found) > 70
    assert {path.suffix for path in found} == {".yaml", ".json"}
    assert [str(path) for path in found if covering_test(path) is None] == []
    tests = {test for path in found if (test := covering_test(path)) is not None}
    assert [test for test in tests if not (ROOT / test).is_file()] == []


def test_a_folder_nobody_names_is_found() -> None:
    assert covering_test(ROOT / "configs" / "new" / "a.yaml") is None
    assert covering_test(ROOT / "configs" / "llama_vid" / "34b" / "a.yaml") is None
    assert covering_test(ROOT / "configs" / "lora" / "deeper" / "a.yaml") == COVERED_BY["lora"]
