"""``longvid cost`` through the command line: tables, plans, mistakes."""

import json
import shutil
from pathlib import Path

import pytest

import longvid_train
from longvid_train.cli import main
from longvid_train.kvcache.checkpoint import ModelIdentity, QuantizerRecord, save_quantizer
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.presets import preset
from longvid_train.kvcache.quantizer import CacheShape, uncalibrated
from longvid_train.kvcache.schemes.dynamic_groups import DynamicGroups
from longvid_train.models.identity import model_identity

NANO = Path(longvid_train.__file__).parent / "assets" / "nano_onevision"


def cost(capsys, *words):
    status = main(["cost", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def planned(capsys, *words):
    status, out, _ = cost(capsys, *words, "--json")
    assert status == 0
    return json.loads(out)


def test_the_papers_table_has_rows_and_errata(capsys):
    table = planned(capsys, "--paper", "intp-table1")
    assert len(table["rows"]) == 9
    assert set(table["rows"][0]) == {"frames", "kv_bits", "ops_g", "decode_ms", "total_gb", "kv_gb"}
    assert any("A6000" in line for line in table["errata"])
    status, out, _ = cost(capsys, "--paper", "intp-table1")
    assert status == 0 and "    64       2     21.8        18.8       14.0      1.1" in out


def test_a_plan_has_the_counts_of_the_checkpoint(capsys, tmp_path):
    plan = planned(capsys, "--model", "video-llava-7b", "--frames", "16", "--device", "rtx-a6000")
    assert {"ops", "weight_bytes", "kv_bytes", "total_bytes", "prefill_ms", "decode_ms"} <= set(plan)
    assert plan["visual_tokens"] == 16 * 257
    assert plan["sequence_tokens"] == 16 * 257 + 64 + 256 and not plan["fits_window"]
    assert plan["kv_bytes"] == 2 * 32 * 4096 * (plan["sequence_tokens"] - 1) * 2
    two_bit = planned(capsys, "--model", "video-llava-7b", "--frames", "16", "--kv-bits", "2")
    scales, rows = 2 * 2 * 32 * 4096 * 4, 32 * 2 * 8
    assert two_bit["kv_bytes"] == plan["kv_bytes"] // 8 + scales + rows


def test_a_named_cache_is_planned_with_its_windows(capsys, tmp_path):
    words = ("--model", "llava-onevision-0.5b", "--frames", "32")
    plain, codes = planned(capsys, *words), planned(capsys, *words, "--kv", "kivi_g32")
    layers, heads, head_dim = 24, 2, 64
    tokens = plain["sequence_tokens"] - 1
    coded = (tokens - 128) // 32 * 32
    a_token = layers * 2 * heads * head_dim
    known = layers * 8 * (2 + 4)
    assert codes["kv_bytes"] == a_token * (coded * 3 // 8 + 2 * (tokens - coded + 4)) + known
    adaptation = tmp_path / "coded.yaml"
    adaptation.write_text("cache: {preset: kivi_g32}\n")
    assert planned(capsys, *words, "--adaptation", str(adaptation))["kv_bytes"] == codes["kv_bytes"]
    over = planned(capsys, *words, "--adaptation", str(adaptation), "--kv-bits", "16")
    assert over["kv_bytes"] == plain["kv_bytes"]


def test_a_quantizer_folder_is_planned_and_refused_for_another_model(capsys, tmp_path):
    policy = CachePolicy(
        keys=DynamicGroups(bits=4, along="tokens", group=64), values=DynamicGroups(bits=2, along="channels", group=32)
    )
    shape = CacheShape(layers=24, heads=2, head_dim=64)
    record = QuantizerRecord(
        model=ModelIdentity(model_id="m", revision="", config_hash="0"), adaptation={}, calibration=None, verdict={}
    )
    save_quantizer(tmp_path / "quantizer", uncalibrated(policy, shape), record)
    words = ("--frames", "32", "--kv", str(tmp_path / "quantizer"))
    plan = planned(capsys, "--model", "llava-onevision-0.5b", *words)
    tokens = plan["sequence_tokens"] - 1
    coded = (tokens - 128) // 64 * 64
    numbers, known = 24 * 2 * 64, 24 * 8 * (2 + 4)
    code_bytes = numbers * coded * (4 + 32 / 64 + 2 + 32 / 32) / 8
    assert plan["kv_bytes"] == code_bytes + numbers * 2 * 2 * (tokens - coded + 4) + known
    status, _, err = cost(capsys, "--model", "llava-onevision-7b", *words)
    assert status == 2 and "is for 24 layers of 2 heads of 64, the model has 28 layers of 4 heads of 128" in err


def test_a_quantizer_is_planned_for_its_own_weights_only(capsys, tmp_path):
    """The two models differ in nothing but weights; a folder without weights cannot tell."""
    own, other, bare = (tmp_path / name for name in ("own", "other", "bare"))
    shutil.copytree(NANO, own)
    shutil.copytree(NANO, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(weights))
    shutil.copytree(NANO, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    record = QuantizerRecord(model=model_identity(own), adaptation={}, calibration=None, verdict={})
    shape = CacheShape(layers=4, heads=4, head_dim=32)
    save_quantizer(tmp_path / "q", uncalibrated(preset("kivi_g32"), shape), record)
    words = ("--frames", "8", "--kv", str(tmp_path / "q"))
    plans = [planned(capsys, "--model", str(folder), *words)["kv_bytes"] for folder in (own, bare)]
    assert plans[0] == plans[1]
    status, out, err = cost(capsys, "--model", str(other), *words)
    assert status == 2 and not out
    assert f"{tmp_path / 'q'} was calibrated for {own} (config " in err and f"the model is {other} (config " in err


def test_the_prompt_is_planned_in_the_chunks_of_ask(capsys):
    words = ("--model", "llava-onevision-7b", "--frames", "256", "--kv-bits", "8")
    plan = planned(capsys, *words)
    assert plan == planned(capsys, *words, "--prefill-chunk", "1024")
    assert planned(capsys, *words, "--prefill-chunk", "65536")["activation_bytes"] > 2 * plan["activation_bytes"]


def test_an_adaptation_changes_tokens_and_window(capsys, tmp_path):
    adaptation = tmp_path / "visual.yaml"
    adaptation.write_text("plan: {kind: progressive}\nwindow: {kind: visual_yarn}\n")
    words = ("--model", "llava-onevision-0.5b", "--frames", "256")
    plain = planned(capsys, *words)
    extended = planned(capsys, *words, "--adaptation", str(adaptation))
    assert (plain["visual_tokens"], plain["window_tokens"], plain["fits_window"]) == (50_177, 32_768, False)
    assert extended["visual_tokens"] == 15_617
    assert extended["scale"] == pytest.approx(15_616 / 6272)
    assert extended["fits_window"]
    picture = tmp_path / "curve.png"
    status, *_ = cost(capsys, *words, "--adaptation", str(adaptation), "--plot", str(picture))
    assert status == 0 and picture.read_bytes().startswith(b"\x89PNG")


def test_the_most_frames_fill_the_card(capsys):
    words = ("--model", "video-llava-7b", "--device", "rtx-4090")
    most = planned(capsys, *words, "--max-frames")
    room = 0.9 * most["device"]["memory_bytes"]
    assert most["total_bytes"] <= room
    assert planned(capsys, *words, "--frames", str(most["max_frames"] + 1))["total_bytes"] > room
    none = planned(capsys, "--model", "video-llava-7b", "--max-frames", "--memory-gb", "8")
    assert none["max_frames"] == 0 and "total_bytes" not in none


def test_training_of_a_stage_is_planned_on_each_device(capsys):
    words = (
        "--model",
        "llama-vid-7b",
        "--frames",
        "3600",
        "--text-tokens",
        "50000",
        "--train-stage",
        "3",
        "--gpus",
        "8",
    )
    two = planned(capsys, *words, "--zero", "2", "--device", "a100-80gb-sxm")
    three = planned(capsys, *words, "--zero", "3", "--device", "a100-80gb-sxm")
    assert two["sequence_tokens"] == 57_200
    assert two["weight_bytes"] == 2 * two["parameters"] and three["weight_bytes"] == two["weight_bytes"] // 8
    assert two["optimizer_bytes"] == 12 * two["trainable"] // 8
    assert two["fits"] and three["total_bytes"] < two["total_bytes"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "llava-onevison-7b", "--frames", "8"], "did you mean 'llava-onevision-7b'?"),
        (["--model", "video-llava-7b"], "Give --frames N, or --max-frames"),
        (["--model", "video-llava-7b", "--frames", "0"], "frames is 0; it must be at least 1"),
        (["--model", "video-llava-7b", "--frames", "8", "--device", "h100"], "device 'h100' is unknown; did you mean"),
        (["--model", "video-llava-7b", "--frames", "8", "--memory-gb", "-1"], "--memory-gb is -1.0"),
        (["--model", "video-llava-7b", "--frames", "8", "--new-tokens", "0"], "new_tokens is 0"),
        (["--model", "video-llava-7b", "--frames", "8", "--prefill-chunk", "0"], "prefill_chunk is 0"),
        (
            ["--model", "video-llava-7b", "--frames", "8", "--kv", "loyd2"],
            "neither a folder nor a preset; did you mean",
        ),
        (["--model", "video-llava-7b", "--frames", "8", "--train-stage", "3"], "--train-stage is for LLaMA-VID"),
        (["--model", "llama-vid-7b", "--frames", "8", "--train-stage", "4"], "train-stage is 4; LLaMA-VID has 1, 2, 3"),
        (["--model", "llama-vid-7b", "--frames", "8", "--train-stage", "1", "--zero", "7"], "zero is 7"),
    ],
)
def test_mistakes_are_one_line_and_status_2(capsys, words, said):
    status, out, err = cost(capsys, *words)
    assert status == 2 and not out
    assert said in err and len(err.strip().splitlines()) == 1
