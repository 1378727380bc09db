"""The claims about bits of the KV cache: the caches asked are the ones named, and the checks can fail."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from longvid_train.evaluation.claims import asking
from longvid_train.evaluation.claims.answering import Answered
from longvid_train.evaluation.claims.asking import ask_clips, chat_under
from longvid_train.evaluation.claims.cache_plot import cache_png
from longvid_train.evaluation.claims.catalogue import CLAIMS
from longvid_train.evaluation.claims.cells import Grid, Scores
from longvid_train.evaluation.claims.claim import Claim
from longvid_train.evaluation.claims.coded import FULL, CodedAnswers
from longvid_train.evaluation.claims.held_out import KINDS, HeldOut, held_out_clips
from longvid_train.evaluation.claims.kv_bits import ADAPTATION, WORDS
from longvid_train.evaluation.claims.pages import claim_png, claim_values, scores_table
from longvid_train.kvcache.checkpoint import CONFIG_NAME
from longvid_train.kvcache.presets import PRESETS
from longvid_train.models.backbones import BackboneProcessor, load_backbone
from longvid_train.world.episode import WorldSettings, make_episode
from tests.generate.tiny_checkpoint import save_tiny_checkpoint

CLAIM, LLAMA_VID = CLAIMS["intp-kv-bits"], CLAIMS["intp-kv-bits-llama-vid"]
BITS = {"static8": 8.0, "lloyd2": 2.5, "kivi_g32": 3.0}


def few(episodes: int, frames: int, seed: int) -> tuple[HeldOut, ...]:
    return held_out_clips(episodes=episodes, duration_s=8.0, frames=frames, seed=seed, seen_only=True)


def method_of(claim: Claim, name: str):
    return next(method for method in claim.grid.methods if method.name == name)


def made_scores(claim: Claim, right) -> Scores:
    """``right(method, kind)`` is the share of right answers of 30 of each kind and number of frames."""
    cells = {}
    for method in claim.grid.methods:
        for frames in claim.grid.frames:
            cells[method.name, frames] = [
                Answered(
                    episode=f"{kind}-{frames}-{index}",
                    kind=kind,
                    question="?",
                    truth="a",
                    answer="",
                    score=float(index < round(30 * right(method.name, kind))),
                    cache_bits=None if method.name == FULL else 2.5,
                    cache_bytes=4096.0 if method.name == FULL else 1024.0,
                )
                for kind in KINDS
                for index in range(30)
            ]
    return Scores(cells)


def test_every_method_is_a_preset_or_full_precision() -> None:
    for claim in (CLAIM, LLAMA_VID):
        assert [method.name for method in claim.grid.methods] == list(WORDS)
        assert WORDS.keys() - PRESETS.keys() == set()


def test_calibration_is_of_other_episodes_than_the_questions() -> None:
    assert CLAIM.coding is not None
    calibration = {one.clip.episode for one in CLAIM.coding.calibration()}
    asked = {one.clip.episode for seed in range(3) for one in CLAIM.held_out(4, 32, seed)}
    assert len(calibration) == 8 and len(asked) == 12 and not calibration & asked


def test_the_costly_claim_asks_about_half_of_the_episodes_and_calibrates_on_as_many() -> None:
    assert CLAIM.coding is not None and LLAMA_VID.coding is not None
    assert [len(claim.held_out(6, 32, 0)) for claim in (CLAIM, LLAMA_VID)] == [6, 3]
    assert len(LLAMA_VID.coding.calibration()) == len(CLAIM.coding.calibration()) == 8
    assert LLAMA_VID.held_out(6, 32, 0) == LLAMA_VID.held_out(30, 32, 0)[:3]


def test_a_long_episode_keeps_its_pauses() -> None:
    calm, _ = LLAMA_VID.held_out(2, 128, 0)
    assert 4 < len(calm.clip.episode.appearances) < 12 and len(calm.clip.times_s) == 128
    busy = make_episode(WorldSettings(duration_s=128.0), split="test", seed=0, index=0)
    assert len(busy.appearances) > 40


def test_answers_come_from_the_named_cache(untrained_onevision: Path, tmp_path: Path, monkeypatch) -> None:
    """Full precision answers as one question alone does; every cache has its bits; frames are encoded once."""
    assert CLAIM.coding is not None
    coding = replace(CLAIM.coding, calibration=partial(few, 2, 32, 99))
    encoded: list[int] = []
    monkeypatch.setattr(
        asking, "frames_of", lambda clip, original=asking.frames_of: encoded.append(1) or original(clip)
    )
    answers = CodedAnswers(untrained_onevision, coding, partial(few, 2), tmp_path)
    full = answers(method_of(CLAIM, FULL), 32, 0)
    assert all(one.cache_bits is None for one in full) and len(encoded) == 2
    numbers = 2 * 4 * 4 * 32  # keys and values of every layer, head and dimension
    positions = [one.cache_bytes / (4 * numbers) for one in full]
    assert all(32 * 4 < count < 32 * 4 + 40 and count == int(count) for count in positions)
    backbone = load_backbone(untrained_onevision, dtype="float32")
    alone = ask_clips(
        chat_under(backbone, BackboneProcessor.load(untrained_onevision, backbone.facts), ADAPTATION), few(2, 32, 0)
    )
    assert [(one.kind, one.question, one.truth, one.answer) for one in full] == [
        (one.kind, one.question, one.truth, one.answer) for one in alone
    ]
    for name, bits in BITS.items():
        found = answers(method_of(CLAIM, name), 32, 0)
        assert {one.cache_bits for one in found} == {bits}
        (held,) = {one.cache_bytes for one in found}
        assert bits / 32 * min(one.cache_bytes for one in full) < held < min(one.cache_bytes for one in full)
        assert [one.question for one in found] == [one.question for one in full]
        assert (tmp_path / name / CONFIG_NAME).is_file()
    assert len(encoded) == 2 + 2 + 2  # the clips, the same asked one by one, and those of the calibration
    exact = answers(method_of(CLAIM, "static8"), 32, 0)
    assert np.mean([mine.answer == theirs.answer for mine, theirs in zip(exact, full, strict=True)]) >= 0.8


def test_a_llama_vid_is_asked_the_same_way(tmp_path: Path) -> None:
    assert LLAMA_VID.coding is not None
    coding = replace(LLAMA_VID.coding, calibration=partial(few, 2, 32, 99))
    answers = CodedAnswers(save_tiny_checkpoint(tmp_path / "model"), coding, partial(few, 1), tmp_path / "q")
    full = answers(method_of(LLAMA_VID, FULL), 32, 0)
    close = answers(method_of(LLAMA_VID, "static8"), 32, 0)
    assert {one.cache_bits for one in close} == {8.0}
    assert [one.answer for one in close] == [one.answer for one in full]


def test_checks_hold_where_nothing_is_lost_and_order_is_as_expected_and_fail_otherwise() -> None:
    lossless = CLAIM.checks(made_scores(CLAIM, lambda method, kind: 0.6))
    assert [check.holds for check in lossless] == [True, True, True, True, False, False, True, True, True, False]
    rank = {"intp2": 0.1, "static2": 0.3, "lloyd2": 0.5, "k4v2": 0.55, "kivi_g32": 0.5}
    ordered = CLAIM.checks(made_scores(CLAIM, lambda method, kind: rank.get(method, 0.6)))
    assert [check.holds for check in ordered] == [False, False, True, True, True, True, False, True, False, True]
    needle = CLAIM.checks(
        made_scores(CLAIM, lambda method, kind: 0.3 if (method, kind) == ("intp2", "needle") else 0.6)
    )
    assert not needle[1].holds and "at 2.50 bits, -30.0 points" in needle[1].here


def test_pages_show_the_bits() -> None:
    grid = Grid(methods=CLAIM.grid.methods, frames=(32,))
    claim = replace(CLAIM, grid=grid)
    scores = made_scores(claim, lambda method, kind: 0.5)
    table = scores_table(claim, scores)
    assert "| full precision: 32.00 bits | **50**" in table and "| 2 bits, INTP's Eq. 3.7: 2.50 bits |" in table
    bits = {one["method"]: one["bits_per_number"] for one in claim_values(claim, scores, ())["bits"]}
    assert bits == {name: 32.0 if name == FULL else 2.5 for name in WORDS}
    assert claim_png(claim, scores).startswith(b"\x89PNG")
    held = {one["method"]: one["bytes_per_question"] for one in claim_values(claim, scores, ())["cache_bytes"]}
    assert held == {name: 4096.0 if name == FULL else 1024.0 for name in WORDS}
    assert cache_png(claim, scores).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["visual-window", "intp-frames"])
def test_other_claims_have_no_bits(name: str) -> None:
    assert CLAIMS[name].coding is None
    scores = Scores(
        {
            (method.name, count): [
                Answered(episode="a", kind=kind, question="", truth="", answer="", score=1.0) for kind in KINDS
            ]
            for method in CLAIMS[name].grid.methods
            for count in CLAIMS[name].grid.frames
        }
    )
    assert claim_values(CLAIMS[name], scores, ())["bits"] == []
