"""`longvid init`: the shipped parts become a LLaMA-VID with their own weights and fresh projections."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longvid_train.cli import main
from longvid_train.commands.init import NANO_PARTS
from longvid_train.models.llama_vid import LlamaVidProcessor, load_llama_vid


def test_init_keeps_the_parts_and_draws_the_rest_from_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["init", "--out", str(tmp_path / name), "--seed", seed]) == 0
    models = {name: load_llama_vid(tmp_path / name).state_dict() for name in "abc"}
    shipped = load_file(NANO_PARTS / "language_model" / "model.safetensors")
    for name, weights in shipped.items():
        assert torch.equal(models["a"][f"language_model.{name}"], weights.float()), name
    assert all(torch.equal(models["a"][name], models["b"][name]) for name in models["a"])
    differing = {name.split(".")[0] for name in models["a"] if not torch.equal(models["a"][name], models["c"][name])}
    assert differing == {"context_attention", "content_projector"}
    processor = LlamaVidProcessor.from_pretrained(tmp_path / "a")
    assert processor.tokenizer.convert_ids_to_tokens(processor.visual_token_id) == "<visual>"
    assert processor.tokens_per_frame(1) == 2


def test_a_fresh_bert_decoder_and_no_decoder(tmp_path: Path) -> None:
    bert = Path(__file__).parents[2] / "configs" / "llama_vid" / "nano" / "bert.json"
    assert main(["init", "--out", str(tmp_path / "bert"), "--text-decoder", str(bert)]) == 0
    assert load_llama_vid(tmp_path / "bert").config.text_decoder_config.model_type == "bert"
    assert main(["init", "--out", str(tmp_path / "content"), "--no-text-decoder"]) == 0
    assert load_llama_vid(tmp_path / "content").context_attention is None
    assert LlamaVidProcessor.from_pretrained(tmp_path / "content").tokens_per_frame(1) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tower", "nowhere"], "nowhere"),
        (["--text-decoder", "nowhere.json"], "nowhere.json does not exist"),
        (["--tokenizer", "nowhere"], "nowhere is not a folder"),
        (["--tokenizer", str(NANO_PARTS / "tower")], "tower holds no tokenizer"),
        (["--no-text-decoder", "--no-content"], "a frame would have no token"),
        (["--image-size", "0"], "--image-size is 0"),
        (["--image-size", "-14"], "--image-size is -14"),
        (["--image-size", "113"], "not a multiple"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--out", str(tmp_path / "x"), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_a_full_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    assert main(["init", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
