"""Adaptation files: read strictly, written back the same, and every shipped one built on its backbone."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.adaptation.cache import CacheChoice
from longvid_train.adaptation.reading import (
    adaptation_of,
    adaptation_values,
    load_adaptation,
    parse_adaptation,
    write_adaptation,
)
from longvid_train.adaptation.settings import PLANS, WINDOWS, Adaptation
from longvid_train.errors import UserError
from longvid_train.rope.linear import LinearWindow
from longvid_train.rope.scale import TokenCounts, TrainedWindows, extent_of
from longvid_train.rope.unextended import NoWindow
from longvid_train.rope.visual_yarn import VisualYarnWindow
from longvid_train.rope.yarn import YarnWindow
from longvid_train.tokens.grid import FrameGrid
from longvid_train.tokens.overview import plan_zoom
from longvid_train.tokens.progressive import ProgressivePlan
from longvid_train.tokens.slowfast import SlowFastPlan
from longvid_train.tokens.uniform import UniformPlan

CONFIGS = Path(__file__).parents[2] / "configs" / "adaptations"
SHIPPED = sorted(CONFIGS.rglob("*.yaml"))

ONE_VISION = FrameGrid(rows=27, columns=27, stride=2, partial_cells=True, end_tokens=1)
NEXT_VIDEO = FrameGrid(rows=24, columns=24, stride=2)
VIDEO_LLAVA = FrameGrid(rows=16, columns=16, class_tokens=1, joint_frames=8)
GRIDS = {"llava_onevision": ONE_VISION, "llava_next_video": NEXT_VIDEO, "video_llava": VIDEO_LLAVA}
TRAINED = {
    "llava_onevision": TrainedWindows(visual=6272, language=32_768),
    "llava_next_video": TrainedWindows(visual=2304, language=4096),
    "video_llava": TrainedWindows(visual=2056, language=4096),
}

EXPECTED = {
    "visual_context_window/baseline_32": (6272, 1.0),
    "visual_context_window/table4_extrapolation": (50_176, 1.0),
    "visual_context_window/table4_yarn": (50_176, 50_277 / 32_768),
    "visual_context_window/table4_visual_yarn": (50_176, 8.0),
    "visual_context_window/table5_4_4": (12_544, 2.0),
    "visual_context_window/table5_8_8": (4096, 1.0),
    "visual_context_window/table5_2_4_k4": (64 * 196 + 192 * 49, 3.5),
    "visual_context_window/table5_2_8_k4": (15_616, 15_616 / 6272),
    "visual_context_window/table5_2_4_k8": (32 * 196 + 224 * 49, 2.75),
    "visual_context_window/table5_2_8_k8": (32 * 196 + 224 * 16, 9856 / 6272),
    "visual_context_window/table5_2_4_k16": (16 * 196 + 240 * 49, 2.375),
    "visual_context_window/table5_2_8_k16": (16 * 196 + 240 * 16, 6976 / 6272),
    "visual_context_window/ours_256": (15_616, 15_616 / 6272),
    "visual_context_window/ours_512": (31_232, 31_232 / 6272),
    "visual_context_window/ours_1fps_512": (31_232, 31_232 / 6272),
    "intp_tables/baseline_8": (2056, 1.0),
    "intp_tables/intp_8": (2056, 1.0),
    "intp_tables/intp_16": (4112, 4212 / 4096),
    "intp_tables/intp_32": (8224, 8324 / 4096),
    "intp_tables/intp_64": (16_448, 16_548 / 4096),
    "zoomvlm_baselines/vanilla_clip_32": (4608, 1.0),
    "zoomvlm_baselines/vanilla_siglip_32": (6272, 1.0),
    "zoomvlm_baselines/slowfast_clip_50": (3680, 1.0),
    "zoomvlm_baselines/slowfast_clip_45": (2160, 1.0),
    "zoomvlm_baselines/slowfast_clip_25": (1264, 1.0),
    "zoomvlm_baselines/slowfast_siglip_50": (6230, 1.0),
}
GENERAL = {
    *("none", "linear", "ntk", "yarn", "visual_yarn", "visual_yarn_progressive", "visual_yarn_small_window"),
    *("intp", "intp_consecutive"),
    "kv/visual_yarn_kivi_g32",
}
KV_ALONE = {"kv/kivi_g32", "kv/kivi_g128"}
NANO = {
    f"nano/{name}"
    for name in (
        *("yarn", "visual_linear", "visual_ntk", "visual_yarn_progressive", "rearranged", "intp_visual"),
        *("slowfast", "pooled", "sampled", "overview", "zoom", "zoom_adjusted"),
    )
}


ZOOMED = {
    "zoomvlm/clip_32": 2848,
    "zoomvlm/clip_32_augmenter": 2848,
    "zoomvlm/clip_32_overview": 22 * 64,
    "zoomvlm/clip_32_every_sentence": 2848,
    "zoomvlm/clip_32_vicuna_13b": 2848,
    "zoomvlm/siglip_32": 22 * 81 + 10 * 196,
    "zoomvlm/siglip_32_k12": 4134,
}
SIDES = {24: (336, 14), 27: (384, 14)}
"""Patches a side of a picture: pixels a side of it and of a patch."""


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def test_every_row_is_shipped_and_nothing_else() -> None:
    assert {name_of(path) for path in SHIPPED} == EXPECTED.keys() | GENERAL | NANO | KV_ALONE | ZOOMED.keys()


@pytest.mark.parametrize("name", sorted(ZOOMED))
def test_a_zoom_has_the_paper_s_tokens(name: str) -> None:
    adaptation = load_adaptation(CONFIGS / f"{name}.yaml")
    assert adaptation.zoom is not None and adaptation.frames is not None and isinstance(adaptation.plan, UniformPlan)
    grid = GRIDS[next(one for one in adaptation.backbones if one in GRIDS)] if "siglip" in name else NEXT_VIDEO
    side, patch = SIDES[grid.rows]
    small = adaptation.zoom.side(side) // patch
    plan = plan_zoom(
        adaptation.frames,
        grid,
        replace(grid, rows=small, columns=small),
        stride=adaptation.plan.stride,
        ratio=adaptation.zoom.temporal_ratio,
        counting=adaptation.zoom.counting,
        zoomed_frames=adaptation.zoom.zoomed_frames,
    )
    assert plan.frame_tokens == ZOOMED[name]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_row_of_the_tables_has_the_paper_s_tokens_and_scale(name: str) -> None:
    adaptation = load_adaptation(CONFIGS / f"{name}.yaml")
    (backbone,) = GRIDS.keys() & set(adaptation.backbones)
    adaptation.check_backbone(backbone)
    assert adaptation.frames is not None
    plan = adaptation.plan_frames(adaptation.frames, GRIDS[backbone])
    counts = TokenCounts(visual=plan.frame_tokens, total=plan.visual_tokens + 100)
    extent = extent_of(adaptation.window, counts, TRAINED[backbone])
    assert (plan.frame_tokens, extent.scale) == (EXPECTED[name][0], pytest.approx(EXPECTED[name][1], rel=1e-12))


@pytest.mark.parametrize("backbone", sorted(GRIDS))
@pytest.mark.parametrize("name", sorted(GENERAL))
def test_a_general_adaptation_goes_with_every_backbone(name: str, backbone: str) -> None:
    adaptation = load_adaptation(CONFIGS / f"{name}.yaml")
    assert adaptation.backbones == () and adaptation.frames is None
    plan = adaptation.plan_frames(64, GRIDS[backbone])
    counts = TokenCounts(visual=plan.frame_tokens, total=plan.visual_tokens + 50)
    assert extent_of(adaptation.window, counts, TRAINED[backbone]).scale >= 1


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_the_header_says_what_it_is_and_the_file_is_as_written(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"--adaptation configs/adaptations/{name_of(path)}.yaml" in "\n".join(head)
    assert any(line.startswith("# Expected: ") for line in head) and any("# Hardware: " in line for line in head)
    adaptation = load_adaptation(path)
    values = yaml.safe_load(path.read_text())
    assert adaptation_of(values, where="") == adaptation
    assert parse_adaptation(write_adaptation(adaptation), where="") == adaptation


def test_rearrangement_and_windows_are_where_the_papers_have_them() -> None:
    for path in SHIPPED:
        adaptation = load_adaptation(path)
        named = path.stem in ("intp", "intp_visual", "rearranged")
        rearranged = named or (path.parent.name == "intp_tables" and path.stem != "baseline_8")
        assert (adaptation.grouping == "rearranged") == rearranged
    small = load_adaptation(CONFIGS / "visual_yarn_small_window.yaml").window
    assert isinstance(small, VisualYarnWindow) and (small.bounds, small.alpha, small.beta) == ("share", 0.2, 0.8)


plans = st.one_of(
    st.builds(UniformPlan, stride=st.none() | st.integers(1, 9) | st.tuples(st.integers(1, 9), st.integers(1, 9))),
    st.builds(ProgressivePlan, group=st.integers(2, 9), high_stride=st.integers(1, 3), low_stride=st.integers(3, 9)),
    st.builds(SlowFastPlan, slow_frames=st.integers(1, 5), slow_stride=st.tuples(st.integers(1, 9), st.integers(1, 9))),
)
shared = {"trained_tokens": st.none() | st.integers(1, 9999), "temperature": st.booleans()}
windows = st.one_of(
    st.builds(NoWindow, extrapolate=st.booleans()),
    st.builds(
        LinearWindow, scale=st.none() | st.floats(1, 99), measure=st.sampled_from(["language", "visual"]), **shared
    ),
    st.builds(YarnWindow, target_tokens=st.none() | st.integers(1, 99), beta=st.floats(1.1, 99), **shared),
    st.builds(VisualYarnWindow, checkpoint_scaling=st.sampled_from(["compose", "replace"]), **shared),
    st.builds(VisualYarnWindow, ramp=st.just("index"), truncate=st.booleans()),
)


@given(
    st.builds(
        Adaptation,
        backbones=st.lists(st.sampled_from(["llava_onevision", "video_llava", "null", "1"])).map(tuple),
        frames=st.none() | st.integers(5, 999),
        fps=st.none() | st.floats(0.01, 60),
        plan=plans,
        grouping=st.sampled_from(["consecutive", "rearranged"]),
        window=windows,
        cache=st.none()
        | st.builds(
            CacheChoice,
            preset=st.sampled_from(["full", "kivi_g32", "kivi_g128"]),
            sink_tokens=st.none() | st.integers(0, 9),
            recent_tokens=st.none() | st.integers(0, 999),
        )
        | st.builds(CacheChoice, quantizer=st.sampled_from(["/q", "a b/c", "null", "1"])),
    )
)
def test_what_is_written_is_read_back_the_same(adaptation: Adaptation) -> None:
    assert parse_adaptation(write_adaptation(adaptation), where="a.yaml") == adaptation
    assert adaptation_of(adaptation_values(adaptation), where="") == adaptation


@pytest.mark.parametrize("name", sorted(KV_ALONE))
def test_a_cache_alone_changes_neither_plan_nor_window(name: str) -> None:
    adaptation = load_adaptation(CONFIGS / f"{name}.yaml")
    assert adaptation == Adaptation(cache=CacheChoice(preset=name.removeprefix("kv/")))


def test_an_empty_file_is_the_model_as_it_is() -> None:
    assert parse_adaptation("# nothing\n", where="a.yaml") == Adaptation()
    assert Adaptation() == Adaptation(plan=UniformPlan(stride=None), grouping="consecutive", window=NoWindow())
    assert write_adaptation(Adaptation()) == "{}\n"
    assert set(PLANS) == {"uniform", "progressive", "slowfast"}
    assert set(WINDOWS) == {"none", "linear", "ntk", "yarn", "visual_yarn"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windw: {kind: ntk}", "a.yaml: 'windw' is unknown; did you mean 'window'"),
        ("window: {kind: ntk, scal: 2}", "a.yaml: window: 'scal' is unknown; did you mean 'scale'"),
        ("window: {kind: visual_yarm}", "a.yaml: window: kind 'visual_yarm' is unknown; did you mean 'visual_yarn'"),
        ("window: {scale: 2}", "a.yaml: window: has no kind. Kinds: none, linear, ntk, yarn, visual_yarn"),
        ("window: {kind: [ntk]}", "a.yaml: window: kind ..ntk.. is unknown"),
        ("window: ntk", "a.yaml: window must be a mapping of names to values, got 'ntk'"),
        ("window: {kind: ntk, scale: fast}", "a.yaml: window: scale is 'fast'; it must be a number or null"),
        ("window: {kind: ntk, scale: 0.5}", "a.yaml: window: scale is 0.5, which makes a window below"),
        ("window: {kind: ntk, temperature: 1}", "window: temperature is 1; it must be true or false"),
        ("window: {kind: yarn, ramp: 3}", "window: ramp is 3; it must be one of paper, index"),
        ("window: {kind: yarn, ramp: papr}", "window: ramp 'papr' is unknown; did you mean 'paper'"),
        (
            "plan: {kind: uniform, stride: 2.5}",
            "plan: stride is 2.5; it must be a whole number or a list .a whole number",
        ),
        ("plan: {kind: uniform, stride: [1, 2, 3]}", r"plan: stride is \[1, 2, 3\]; it must be"),
        ("plan: {kind: uniform, stride: true}", "plan: stride is True; it must be a whole number"),
        (
            "plan: {kind: progressive, high_stride: 8, low_stride: 2}",
            "a.yaml: plan: low_stride is 2; it must be at least",
        ),
        ("frames: 0", "a.yaml: frames is 0"),
        ("frames: true", "a.yaml: frames is True; it must be a whole number or null"),
        ("window: {kind: ntk, scale: true}", "window: scale is True; it must be a number or null"),
        ("frames: many", "a.yaml: frames is 'many'; it must be a whole number or null"),
        ("fps: .nan", "a.yaml: fps is nan"),
        ("backbones: llava_onevision", "a.yaml: backbones is 'llava_onevision'; it must be a list .a word, ..."),
        ("grouping: rearange", "a.yaml: grouping 'rearange' is unknown; did you mean 'rearranged'"),
        ("{frames: 5, plan: {kind: slowfast}}", "frames is 5, but the plan 'slowfast' needs at least 10"),
        ("frames: 5\nframes: 6", "a.yaml: not valid YAML: the key 'frames' stands twice"),
        ("cache: {}", "a.yaml: cache: neither of preset and quantizer is given; give one"),
        ("cache: {preset: kivi_g32, quantizer: q}", "a.yaml: cache: both of preset and quantizer"),
        ("cache: {preset: kivi_g23}", "a.yaml: cache: cache policy 'kivi_g23' is unknown; did you mean 'kivi_g32'"),
        ("cache: {preset: lloyd2}", "cache: preset 'lloyd2' has static parameters: run `longvid calibrate`"),
        ("cache: {preset: kivi_g32, recent_tokens: -1}", "cache: recent_tokens is -1; it must be at least 0"),
        ("cache: {quantizer: q, sink_tokens: 8}", "cache: sink_tokens has no effect: a quantizer keeps"),
        ("cache: {quantizer: ''}", "cache: quantizer is empty; name the folder"),
        ("cache: kivi_g32", "a.yaml: cache must be a mapping of names to values, got 'kivi_g32'"),
        ("cache: {presets: kivi_g32}", "cache: 'presets' is unknown; did you mean 'preset'"),
        ("frames: [", "a.yaml: not valid YAML"),
        ("- frames", "a.yaml must be a mapping"),
    ],
)
def test_a_mistake_names_the_file_the_key_and_the_remedy(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_adaptation(text, where="a.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="cannot be read as an adaptation"):
            load_adaptation(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary.yaml: cannot be read"):
        load_adaptation(tmp_path / "binary.yaml")


def test_a_quantizer_is_looked_for_beside_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "a.yaml").write_text("cache: {quantizer: ../q}")
    (tmp_path / "deeper" / "b.yaml").write_text("cache: {quantizer: /elsewhere/q}")
    monkeypatch.chdir(tmp_path)
    read = load_adaptation("deeper/a.yaml")
    assert read.cache == CacheChoice(quantizer=str(tmp_path / "q"))
    assert load_adaptation("deeper/b.yaml").cache == CacheChoice(quantizer="/elsewhere/q")
    (tmp_path / "copy.yaml").write_text(write_adaptation(read))
    assert load_adaptation("copy.yaml") == read


def test_an_adaptation_for_another_backbone_is_refused() -> None:
    adaptation = Adaptation(backbones=("llava_onevision", "llava"))
    adaptation.check_backbone("llava")
    Adaptation().check_backbone("anything")
    with pytest.raises(UserError, match="for llava_onevision, llava, the model is 'video_llava'; choose another"):
        adaptation.check_backbone("video_llava")


def test_plans_and_notes_of_an_adaptation() -> None:
    adaptation = Adaptation(plan=ProgressivePlan(), grouping="rearranged")
    plan = adaptation.plan_frames(16, VIDEO_LLAVA, available=20)
    assert plan.groups == (tuple(range(0, 16, 2)), tuple(range(1, 16, 2)))
    with pytest.raises(UserError, match="32 frames asked for, but the video has 20; use at most 16"):
        adaptation.plan_frames(32, VIDEO_LLAVA, available=20)
    assert len(adaptation.plan_notes(plan)) == 1
    notes = adaptation.plan_notes(adaptation.plan_frames(16, ONE_VISION))
    assert "rearranging the frames changes nothing here" in notes[1]
    assert notes[0].endswith(f"{4 * 196 + 12 * 16 + 1} visual tokens")
