"""``longvid merge``: what stops it. That a merged model answers like its adapter stands in the tests of training."""

from pathlib import Path

import pytest

from longvid_train.cli import main
from tests.generate.tiny_checkpoint import save_tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("merge") / "model")


def test_mistakes_are_one_line_and_write_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "taken").mkdir()
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "absent", "--out", out], "absent is not a folder; name the adapter/ folder"),
        ([model, "--out", out], "holds a whole model, not an adapter"),
        ([tmp_path / "empty", "--out", out], "adapter_config.json does not exist"),
        ([model, "--out", tmp_path / "taken"], "taken: already exists; choose another --out"),
        ([model], "required: --out"),
    ):
        assert main(["merge", *map(str, words)]) == 2
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith("longvid: ")]
        assert len(lines) == 1
        assert message in lines[0]
        assert printed.out == ""
        assert not out.exists()


def test_ask_names_the_option_for_each_kind_of_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert main(["ask", "a.mp4", "What?", "--adapter", str(model)]) == 2
    assert f"{model} holds a whole model, not an adapter; name it with --model" in capsys.readouterr().err
    assert main(["ask", "a.mp4", "What?", "--model", str(tmp_path / "adapter")]) == 2
    assert "holds an adapter, not a whole model; ask it with --adapter" in capsys.readouterr().err
