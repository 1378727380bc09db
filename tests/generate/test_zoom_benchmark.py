"""The zoom benchmark: the paper's token counts, sentences in drawn words, medians and ratios, mistakes."""

import pytest
import torch

from longvid_train.adaptation.zoom import ZoomChoice
from longvid_train.generate.zoom.prompting import ZoomPrompting
from longvid_train.generate.zoom.sentences import split_sentences
from longvid_train.generate.zoom.trace import ModuleSeconds, ZoomTrace
from longvid_train.models.backbones.llava_next_video import LlavaNextVideo
from longvid_train.models.backbones.processing import BackboneProcessor
from scripts.bench import zoom


@pytest.mark.parametrize("size", ["nano", "7b"])
def test_methods_show_the_paper_s_tokens(size: str) -> None:
    config = zoom.config_of(size)
    facts = LlavaNextVideo.facts_of(config)
    for name, tokens in (("vanilla", 4608), ("slowfast", 3680)):
        adaptation = zoom.METHODS[name]
        assert adaptation.plan_frames(adaptation.frames, facts.grid).visual_tokens == tokens
    processor = BackboneProcessor(
        zoom.word_tokenizer(config), facts, {"size": {"height": 336, "width": 336}}, prompt="<video> {question}"
    )
    plans = {
        name: ZoomPrompting(processor, config, zoom.METHODS[name]).planned.zoom_plan(32)
        for name in ("overview", "zoom", "adjusted")
    }
    assert {name: plan.visual_tokens for name, plan in plans.items()} == {
        "overview": 1408,
        "zoom": 2848,
        "adjusted": 2848,
    }
    assert zoom.METHODS["adjusted"].zoom == ZoomChoice()


def test_every_16th_word_ends_a_sentence() -> None:
    tokenizer = zoom.word_tokenizer(zoom.nano_config())
    text = tokenizer.decode(range(10, 52))
    assert text.startswith("W10 W11") and len(split_sentences(text)[0]) == 3
    assert tokenizer("USER: <video> W16.")["input_ids"] == [zoom.UNKNOWN, 4095, 16]
    assert len(zoom.word_tokenizer(zoom.config_of("7b"))) == 32064


def test_medians_and_ratios() -> None:
    def run(seconds: float) -> dict[str, float]:
        return {
            "visual_tokens": 10,
            "total_s": 2 * seconds,
            "answer_s": seconds,
            "tokens_per_s": 300 / seconds,
            "peak_bytes": 2**20,
        }

    rows = {
        "vanilla": zoom.medians([run(9.0), run(2.0), run(4.0)]),
        "zoom": zoom.medians([run(3.0)]),
        "adjusted": zoom.medians([run(1.0), {"failed": "out of memory"}]),
    }
    assert rows["vanilla"]["answer_s"] == 4.0
    lines = zoom.table(rows).splitlines()
    assert {line.count("|") for line in lines} == {12}
    assert lines[2].startswith("| vanilla | 10 | 75.0 | 1.00 | 8.00 | 1.00 | 1 |")
    assert lines[3].startswith("| zoom | 10 | 100.0 | 1.33 | 6.00 | 0.75 | 1 |")
    assert lines[4].startswith("| adjusted | out of memory |")


def test_shares_of_modules_are_of_all_of_it() -> None:
    trace = ZoomTrace(
        question="",
        answer="",
        video="",
        settings={},
        layers=(0, 1),
        frames_taken=32,
        overview=(),
        pictures=(),
        overview_tokens=0,
        zoom_tokens=0,
        draft="",
        draft_tokens=0,
        sentences=(),
        adjustments=(),
        seconds=ModuleSeconds(prefill_s=2.0, draft_s=1.0, generate_s=4.0, adjustment_s=1.0),
        new_tokens=0,
        notes=(),
    )
    found = zoom.modules_of(trace, 2.0)
    assert found["augmenter_share"] == found["draft_share"] == found["adjusting_share"] == pytest.approx(0.1)
    assert found["share_overview_encode_s"] == pytest.approx(0.2) and found["adjustments"] == 0
    assert zoom.modules_of(None, 2.0) == {}


def test_mistakes_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given, words in (
        (["--device", "cuda"], "torch sees no GPU here"),
        (["--size", "7b"], "--size 7b needs --device cuda"),
    ):
        monkeypatch.setattr("sys.argv", ["zoom", "--out", "unused", *given])
        with pytest.raises(SystemExit) as stopped:
            zoom.main()
        assert stopped.value.code == 2 and words in capsys.readouterr().err
