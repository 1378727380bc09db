"""``longvid calibrate`` from its command line: the file, the gate, interruptions, other processes and mistakes."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longvid_train import cli
from longvid_train.adaptation.settings import Adaptation
from longvid_train.generate.chat import VideoChat, VideoRequest
from longvid_train.generate.loading import read_prompting
from longvid_train.kvcache.attention import rotation_of
from longvid_train.kvcache.checkpoint import CONFIG_NAME, TENSORS_NAME, load_quantizer
from longvid_train.kvcache.quantizer import cache_shape
from longvid_train.models.identity import model_identity
from longvid_train.training.calibration import passes
from longvid_train.training.calibration.datamodule import CalibrationData
from longvid_train.training.calibration.passes import LoadedModel, calibration_row
from longvid_train.training.calibration.settings import ModelSettings
from longvid_train.video import UniformFrames
from tests.training.backbone_folders import save_backbone

FRAMES = 4
SAMPLING = {"class_path": "longvid_train.video.UniformFrames", "init_args": {"count": FRAMES}}
OPEN_GATE = {"rows": 4, "mean_kl": 100.0, "max_kl": 1000.0, "top1_agreement": 0.0, "needle_drop": 1.0}
QUESTION = "what colour is the video ?"


@pytest.fixture(scope="module")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("onevision") / "model", "onevision")


@pytest.fixture
def models(tiny_model_folder: Path, onevision: Path) -> dict[str, Path]:
    return {"llama_vid": tiny_model_folder, "onevision": onevision}


@pytest.fixture
def config_of(world: Any, models: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Write a calibration of 12 rows about three videos, of which one is held out; keywords replace dotted keys."""

    def write(model: str = "llama_vid", **changes: Any) -> Path:
        config: dict[str, Any] = {
            "model": {"model": str(models[model]), "sample_tokens": 64, "save_every": 2, "torch_threads": 1},
            "data": {
                "calibration": str(world.manifest("calibration.jsonl", 12)),
                "held_out_share": 0.3,
                "media": {"sampling": SAMPLING},
            },
            "cache": {"preset": "static2", "sink_tokens": 2, "recent_tokens": 4, "flush_tokens": 4},
            "gate": dict(OPEN_GATE),
            "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        }
        for dotted, value in changes.items():
            target = config
            *path, last = dotted.split("__")
            for part in path:
                target = target[part]
            target[last] = value
        file = tmp_path / "calibrate.yaml"
        file.write_text(json.dumps(config))
        return file

    return write


@pytest.fixture(autouse=True)
def threads_restored() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def calibrate(config: Path, out: Path, *flags: str) -> int:
    return cli.main(["calibrate", "--config", str(config), "--out", str(out), *flags])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def data_of(model: Path, manifest: Path, **options: Any) -> CalibrationData:
    from longvid_train.data.media import MediaOptions

    sampling = options.pop("sampling", UniformFrames(count=FRAMES))
    data = CalibrationData(str(model), str(manifest), media=MediaOptions(sampling=sampling), **options)
    data.read()
    return data


def test_the_checkpoint_says_what_made_it(
    config_of: Callable[..., Path], models: dict[str, Path], world: Any, tmp_path: Path
) -> None:
    out = tmp_path / "kv"
    assert calibrate(config_of(), out) == 0
    assert sorted(files(out)) == sorted([CONFIG_NAME, TENSORS_NAME])
    assert not (tmp_path / "kv.calibration").exists()
    data = data_of(models["llama_vid"], world.folder / "calibration.jsonl", held_out_share=0.3)
    loaded = LoadedModel(ModelSettings(model=str(models["llama_vid"])), data)
    loaded.load(torch.device("cpu"))
    model = loaded.engine().model
    quantizer, record = load_quantizer(
        out,
        model=model_identity(models["llama_vid"]),
        shape=cache_shape(model.config),
        rotation=rotation_of(model),
    )
    rows = data.selection.calibration
    assert len(rows) == 8 and record.calibration is not None
    lengths = [len(data.dataset[row].input_ids) for row in rows]
    assert record.calibration.samples == 8
    assert record.calibration.tokens == sum(lengths) - 8 * 2
    assert record.calibration.set_hash == data.set_hash(rows) != record.verdict["held_out_hash"]
    assert record.verdict["passed"] and not record.verdict["forced"] and record.verdict["rows"] == 4
    kinds = {data.dataset.sample(row).meta["kind"] for row in data.selection.held_out}
    assert kinds == {"detail", "description"} and record.verdict["accuracy"] == {}, "no row says that it has an answer"
    assert quantizer.policy.recent_tokens == 4 and len(quantizer.errors) == 2
    assert all(0 < error.keys < 1 and 0 < error.values < 1 for error in quantizer.errors)
    versions = json.loads((out / CONFIG_NAME).read_text())["versions"]
    assert versions["torch"] == torch.__version__ and "longvid-train" in versions


@pytest.mark.parametrize("name", ["llama_vid", "onevision"])
@pytest.mark.parametrize("planned", [False, True])
def test_rows_are_what_ask_reads(models: dict[str, Path], world: Any, tmp_path: Path, name: str, planned: bool) -> None:
    """The prompt's ids and embeddings of a row are those of a conversation about the same frames."""
    adaptation = tmp_path / "adaptation.yaml"
    adaptation.write_text("plan: {kind: progressive, group: 2, low_stride: 2}\n" if planned else "frames: 4\n")
    data = data_of(models[name], world.manifest("ask.jsonl", 6), adaptation=str(adaptation))
    loaded = LoadedModel(ModelSettings(model=str(models[name])), data)
    loaded.load(torch.device("cpu"))
    engine = loaded.engine()
    row = calibration_row(engine, data, 2, data.dataset[2])
    assert data.dataset.sample(2).media[0].path == "blue.mp4"
    chat = VideoChat(engine, name=name)
    talk = chat.open([VideoRequest(world.folder / "blue.mp4", UniformFrames(count=FRAMES))])
    prompt = data.prompting.encode(talk.with_question(QUESTION), talk.layouts)
    opened = len(prompt.input_ids)
    assert torch.equal(row.input_ids[:opened], prompt.input_ids)
    assert opened <= row.answer[0] <= opened + 1 and row.answer[1] > row.answer[0]
    asked = passes.Asked(sample=prompt, counts=data.facts(2).counts, shown=(0,), kept=tuple(talk.encode().kept))
    expected = engine.visual_tokens(asked)
    assert len(expected) == int(row.visual.sum()) > FRAMES
    assert torch.equal(row.embeddings[row.visual], expected)
    text = row.input_ids[~row.visual[0]]
    assert torch.equal(row.embeddings[~row.visual], engine.model.get_input_embeddings()(text))


def test_rows_with_several_videos_and_turns_show_each_in_its_place(models: dict[str, Path], world: Any) -> None:
    turns = [("user", f"<video>\n<video>\n{QUESTION}"), ("assistant", "red"), ("user", "and ?"), ("assistant", "blue")]
    rows = [
        {
            "id": "two",
            "media": [{"type": "video", "path": f"{colour}.mp4"} for colour in ("red", "blue")],
            "conversation": [{"role": role, "text": text} for role, text in turns],
        },
        {"id": "text", "conversation": [{"role": role, "text": text[-5:]} for role, text in turns[1:][1:]]},
    ]
    manifest = world.write("several.jsonl", rows)
    data = data_of(models["onevision"], manifest)
    loaded = LoadedModel(ModelSettings(model=str(models["onevision"])), data)
    loaded.load(torch.device("cpu"))
    row = calibration_row(loaded.engine(), data, 0, data.dataset[0])
    single = data_of(models["onevision"], world.manifest("single.jsonl", 3))
    tokens = [calibration_row(loaded.engine(), single, n, single.dataset[n]) for n in (0, 2)]
    expected = torch.cat([one.embeddings[one.visual] for one in tokens])
    assert torch.equal(row.embeddings[row.visual], expected)
    assert row.answer[1] - row.answer[0] <= len("blue") + 2, "the last answer alone"
    text = calibration_row(loaded.engine(), data, 1, data.dataset[1])
    assert not text.visual.any() and text.kind == ""


def test_what_corrupts_is_refused_unless_forced(
    config_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, config = tmp_path / "kv", config_of(gate__mean_kl=1e-9)
    assert calibrate(config, out) == 1
    assert not out.exists()
    refused = [line for line in capsys.readouterr().err.splitlines() if "refused" in line]
    assert len(refused) == 1 and refused[0].startswith("longvid: refused: mean_kl is ")
    report = json.loads((tmp_path / "kv.calibration" / "report.json").read_text())
    assert not report["verdict"]["passed"] and report["verdict"]["mean_kl"] > 1e-9
    assert len(report["errors"]) == 2 and str(tmp_path / "kv.calibration" / "report.json") in refused[0]
    assert calibrate(config, out, "--force") == 0
    said = capsys.readouterr().err
    assert "8 of 8 rows were observed before" in said and "written by --force: mean_kl is " in said
    verdict = json.loads((out / CONFIG_NAME).read_text())["verdict"]
    assert (verdict["passed"], verdict["forced"]) == (False, True)
    assert verdict["reasons"] == report["verdict"]["reasons"]
    assert not (tmp_path / "kv.calibration").exists()


def test_an_interrupted_run_goes_on_to_the_same_file(
    config_of: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_of()
    assert calibrate(config, tmp_path / "whole") == 0
    observed: list[int] = []
    observe = passes.observe_row

    def failing(model: Any, statistics: Any, row: Any) -> None:
        if len(observed) == 5:
            raise RuntimeError("the power went")
        observed.append(row.number)
        observe(model, statistics, row)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(passes, "observe_row", failing)
        assert calibrate(config, out) == 1
    assert not out.exists() and len(observed) == 5
    capsys.readouterr()
    assert calibrate(config, out, "--data.seed", "1") == 2
    error = capsys.readouterr().err
    assert "holds statistics of another calibration: " in error and error.count("\n") == 1
    observed.clear()
    assert calibrate(config, out) == 0
    assert "4 of 8 rows were observed before" in capsys.readouterr().err
    assert files(out) == files(tmp_path / "whole")


def test_progress_says_rows_and_what_is_done_with_them(
    config_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(trainer__enable_progress_bar=True)
    assert calibrate(config, tmp_path / "kv", "--log_interval_s", "0") == 0
    lines = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines() if "rows/s" in line]
    assert lines == [f"statistics {n}/8 rows" for n in range(1, 9)] + [f"gate {n}/4 rows" for n in range(1, 5)]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no manifest": ({"data__calibration": "/nowhere.jsonl"}, "manifest '/nowhere.jsonl' cannot be read"),
    "no manifests": ({"data__calibration": []}, "data.calibration names no manifest"),
    "small set": (
        {"model__sample_tokens": 4096},
        "the calibration set has 8 rows with 368 tokens behind their first 2, and model.sample_tokens is 4096",
    ),
    "few held out": ({"gate__rows": 5}, "4 rows are held out, and the gate asks for at least 5 (gate.rows)"),
    "nothing coded": ({"cache__recent_tokens": 900}, "the newest 900 stay in full precision: nothing would be coded"),
    "head dim": (
        {"cache": {"keys": {"kind": "dynamic_groups", "along": "channels", "group": 5}}},
        "dynamic_groups: the head dim 8 is not a multiple of group 5",
    ),
    "protected": ({"cache__protected_layers": [7]}, "protected_layers names layer 7, the model has 2 layers"),
    "share": ({"data__held_out_share": 1.5}, "data.held_out_share is 1.5; it must be above 0 and below 1"),
    "samples": ({"data__samples": 0}, "data.samples is 0; it must be at least 1"),
    "dtype": ({"model__dtype": "int8"}, "dtype 'int8' is not known"),
    "model": ({"model__model": "/nowhere"}, "/nowhere is not a folder"),
    "template": ({"data__prompt": "{question}"}, "--prompt has no effect: a LLaMA-VID has templates"),
    "features": (
        {"data__media": {"sampling": SAMPLING, "features": "f"}},
        "data.media.features is set, but calibration reads pixels",
    ),
    "key": (
        {"cache__presets": "static2"},
        "'presets' is not a key of a calibration; did you mean 'cache.preset'?",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    config_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    changes, message = MISTAKES[name]
    assert calibrate(config_of(**changes), tmp_path / "kv") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert [path.name for path in tmp_path.iterdir()] == ["calibrate.yaml"]


def test_nothing_is_written_over(
    config_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / "mine").touch()
    assert calibrate(config_of(), tmp_path / "kv") == 2
    assert "kv exists and is not an empty folder; name a new one" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "kv").iterdir()] == ["mine"]


def damaged(model: Path, folder: Path, name: str, value: float) -> Path:
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_numbers_that_are_not_finite_name_the_sample_and_the_layer(
    config_of: Callable[..., Path], models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = "language_model.model.layers.1.self_attn.k_proj.weight"
    model = damaged(models["llama_vid"], tmp_path / "model", weight, math.nan)
    assert calibrate(config_of(model__model=str(model)), tmp_path / "kv") == 2
    error = capsys.readouterr().err
    assert "calibration sample 'row" in error and "layer 1: keys hold NaN or infinity" in error
    assert error.count("\n") == 1 and not (tmp_path / "kv").exists()


def test_a_video_that_cannot_be_read_names_its_row(
    config_of: Callable[..., Path], world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (world.folder / "green.mp4").read_bytes()
    (world.folder / "broken.mp4").write_bytes(whole[:-200] + bytes(200))
    rows = [json.loads(line) for line in world.manifest("broken.jsonl", 12).read_text().splitlines()]
    for row in rows:
        if row["media"][0]["path"] == "green.mp4":
            row["media"][0]["path"] = "broken.mp4"
    manifest = world.write("broken.jsonl", rows)
    status = calibrate(config_of(data__calibration=str(manifest)), tmp_path / "kv")
    error = capsys.readouterr().err
    assert status == 2 and "broken.jsonl:2 (sample 'row1')" in error and error.count("\n") == 1
    assert not (tmp_path / "kv").exists()


def test_manifests_are_read_before_weights(
    config_of: Callable[..., Path],
    models: dict[str, Path],
    world: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(models["llama_vid"], model)
    (model / "model.safetensors").write_bytes(b"no weights")
    manifest = world.write("wrong.jsonl", [{"id": "a", "conversation": []}])
    assert calibrate(config_of(model__model=str(model), data__calibration=str(manifest)), tmp_path / "kv") == 2
    assert "wrong.jsonl:1: " in capsys.readouterr().err
    assert calibrate(config_of(model__model=str(model)), tmp_path / "kv") == 2
    assert "not a whole safetensors file" in capsys.readouterr().err


def test_rows_of_one_video_cannot_be_on_both_sides(
    config_of: Callable[..., Path], world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in world.manifest("all.jsonl", 12).read_text().splitlines()]
    red = world.write("red.jsonl", [row for row in rows if row["media"][0]["path"] == "red.mp4"])
    config = config_of(data__calibration=str(red))
    assert calibrate(config, tmp_path / "kv") == 2
    assert "all 4 rows of" in capsys.readouterr().err
    assert calibrate(config, tmp_path / "kv", "--data.held_out", str(world.folder / "all.jsonl")) == 2
    error = capsys.readouterr().err
    assert "all.jsonl:1 (sample 'row0'): the calibration set has rows about the same media" in error


def test_windows_of_different_scales_are_refused(
    config_of: Callable[..., Path], world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adaptation = tmp_path / "adaptation.yaml"
    adaptation.write_text("window: {kind: visual_yarn, trained_tokens: 8}\n")
    rows = [json.loads(line) for line in world.manifest("scales.jsonl", 12).read_text().splitlines()]
    rows[4]["media"][0]["end_s"] = 2.0
    every_second = {"class_path": "longvid_train.video.FramesPerSecond", "init_args": {"fps": 1.0}}
    config = config_of(
        "onevision",
        data__calibration=str(world.write("scales.jsonl", rows)),
        data__media={"sampling": every_second},
        data__adaptation=str(adaptation),
    )
    assert calibrate(config, tmp_path / "kv") == 2
    error = capsys.readouterr().err
    assert "window 'visual_yarn' extends rows" in error and "static parameters hold for one" in error
    assert "set window.scale to 8 " in error and error.count("\n") == 1


def test_rows_that_the_trainer_left_out_and_a_cache_in_the_adaptation_are_refused(
    config_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(config_of(), tmp_path / "kv", "--trainer.limit_predict_batches", "3") == 2
    assert "3 of 8 rows were observed; leave trainer.limit_predict_batches" in capsys.readouterr().err
    adaptation = tmp_path / "adaptation.yaml"
    adaptation.write_text("cache: {preset: kivi_g32}\n")
    assert calibrate(config_of(data__adaptation=str(adaptation)), tmp_path / "kv") == 2
    assert "adaptation.yaml: cache is what calibration makes; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "kv").exists()


def test_the_quantizer_answers_in_ask_and_for_its_model_only(
    config_of: Callable[..., Path],
    models: dict[str, Path],
    world: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_of("onevision")
    assert calibrate(config, tmp_path / "kv", "--cache.preset", "lloyd2", "--cache.separate_visual", "true") == 0
    adaptation = tmp_path / "compressed.yaml"
    adaptation.write_text("cache: {quantizer: kv}\n")
    capsys.readouterr()

    def ask(model: Path) -> int:
        words = ["ask", str(world.folder / "blue.mp4"), QUESTION, "--frames", str(FRAMES), "--max-new-tokens", "6"]
        return cli.main([*words, "--model", str(model), "--adaptation", str(adaptation), "--json"])

    assert ask(models["onevision"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["cache"]["name"].endswith("kv") and 2 <= answer["cache"]["bits_per_number"] < 8
    other = damaged(models["onevision"], tmp_path / "other", "language_model.model.norm.weight", 0.5)
    assert ask(other) == 2
    error = capsys.readouterr().err
    assert "was calibrated for" in error and "calibrate for this model" in error


OVERLAYS = Path(__file__).parents[2] / "configs" / "deepspeed"
WAIT_S = 600


def start(*words: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "longvid_train.cli", "calibrate", *words],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def two_processes(config: Path, out: Path, strategy: str = "ddp") -> list[str]:
    """Words of a calibration by two processes under DDP or an overlay of configs/deepspeed."""
    spread = ["--trainer.strategy", "ddp"] if strategy == "ddp" else ["--config", str(OVERLAYS / f"{strategy}.yaml")]
    return ["--config", str(config), "--out", str(out), "--trainer.devices", "2", *spread]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("llama_vid", "ddp"),
        ("onevision", "ddp"),
        ("onevision", "zero1"),
        ("onevision", "zero2"),
        ("llama_vid", "zero3"),
    ],
)
def test_two_processes_write_the_bytes_of_one(
    config_of: Callable[..., Path], tmp_path: Path, name: str, strategy: str
) -> None:
    config = config_of(name, cache__preset="lloyd2", data__num_workers=1)
    assert calibrate(config, tmp_path / "one") == 0
    process = start(*two_processes(config, tmp_path / "two", strategy))
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors
    assert files(tmp_path / "two") == files(tmp_path / "one")
    said = [line for line in errors.splitlines() if line.startswith("longvid: ")]
    assert len(said) == 2, said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_mistake_of_one_process_is_one_line_of_both(
    config_of: Callable[..., Path], models: dict[str, Path], tmp_path: Path
) -> None:
    weight = "language_model.model.layers.0.self_attn.v_proj.weight"
    model = damaged(models["llama_vid"], tmp_path / "model", weight, math.inf)
    process = start(*two_processes(config_of(model__model=str(model)), tmp_path / "kv"))
    _, errors = process.communicate(timeout=WAIT_S)
    said = [line for line in errors.splitlines() if line.startswith("longvid: ")]
    assert process.returncode == 2 and len(said) == 1, errors
    assert "layer 0: values hold NaN or infinity" in said[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_of_two_processes_is_finished_by_one(
    config_of: Callable[..., Path], world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(
        data__calibration=str(world.manifest("many.jsonl", 90)), data__held_out_samples=4, model__save_every=1
    )
    assert calibrate(config, tmp_path / "whole") == 0
    out, work = tmp_path / "killed", tmp_path / "killed.calibration"
    process = start(*two_processes(config, out))
    deadline = time.monotonic() + WAIT_S
    while len(list(work.glob("part-*.safetensors"))) != 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists() and work.exists()
    capsys.readouterr()
    assert calibrate(config, out) == 0
    assert " of 60 rows were observed before" in capsys.readouterr().err
    assert files(out) == files(tmp_path / "whole")


def test_defaults_are_read_without_an_adaptation(models: dict[str, Path], world: Any) -> None:
    data = data_of(models["onevision"], world.manifest("plain.jsonl", 6))
    assert data.adaptation == Adaptation()
    opened = read_prompting(models["onevision"]).counts(
        data.dataset.sample(1).conversation[:-1], data.layouts(1, [FRAMES])
    )
    assert data.facts(1).prompt_tokens == opened.total
    assert data.facts(1).counts.total == len(data.dataset[1].input_ids)
    assert data.facts(1).counts.visual == opened.frames
