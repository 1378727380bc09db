"""The ZoomVLM claims: questions asked one by one, what they took, and checks that can fail."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from longvid_train.adaptation.reading import load_adaptation
from longvid_train.adaptation.settings import Adaptation
from longvid_train.errors import UserError
from longvid_train.evaluation.claims.answering import Answered, answer_clips, encode_clips
from longvid_train.evaluation.claims.asking import ask_clips, chat_under
from longvid_train.evaluation.claims.catalogue import CLAIMS
from longvid_train.evaluation.claims.cells import CellStore, Scores
from longvid_train.evaluation.claims.held_out import KINDS, held_out_clips
from longvid_train.evaluation.claims.methods import ZOOM_ABLATIONS, ZOOM_METHODS
from longvid_train.evaluation.claims.pages import claim_png, claim_values, costs_table, question_cost
from longvid_train.generate.chat import Conversation
from longvid_train.models.backbones import BackboneProcessor, load_backbone
from longvid_train.rope.unextended import NoWindow

CONFIGS = Path(__file__).parents[2] / "configs" / "adaptations"
TABLE, ABLATIONS = CLAIMS["zoomvlm"], CLAIMS["zoomvlm-ablations"]
TOKENS = {"vanilla": 33, "slowfast": 21, "pooled": 9, "sampled": 17, "overview": 7}


@pytest.fixture(scope="module")
def onevision(untrained_onevision: Path):
    backbone = load_backbone(untrained_onevision, dtype="float32")
    return backbone, BackboneProcessor.load(untrained_onevision, backbone.facts)


def clips():
    return held_out_clips(episodes=2, duration_s=8.0, frames=8, seed=0, seen_only=True)


def made_scores(claim, right, words=lambda method, index: "b") -> Scores:
    """``right(method, kind)`` is the share of right answers of 100 of each kind."""
    return Scores(
        {
            (method.name, 8): [
                Answered(
                    episode=f"{kind}-{index}",
                    kind=kind,
                    question="?",
                    truth="a",
                    answer=words(method.name, index),
                    score=float(index < round(100 * right(method.name, kind))),
                    visual_tokens=TOKENS.get(method.name, 15),
                    new_tokens=2,
                    seconds=0.1 if method.name == "vanilla" else 0.08,
                )
                for index in range(100)
                for kind in KINDS
            ]
            for method in claim.grid.methods
        }
    )


def test_the_methods_are_the_shipped_adaptations() -> None:
    assert len(ZOOM_METHODS) == 7 and len({one.name for one in (*ZOOM_METHODS, *ZOOM_ABLATIONS)}) == 19
    for method in ZOOM_METHODS:
        assert load_adaptation(CONFIGS / f"{method.file}.yaml") == method.adaptation


def test_asked_alone_they_answer_as_in_a_batch(onevision) -> None:
    backbone, processor = onevision
    for adaptation in (
        Adaptation(window=NoWindow(extrapolate=True)),
        next(one.adaptation for one in ZOOM_METHODS if one.name == "slowfast"),
    ):
        plan = adaptation.plan_frames(8, backbone.facts.grid)
        together = answer_clips(
            backbone, processor, clips(), encode_clips(backbone, processor, clips(), plan), plan, adaptation
        )
        alone = ask_clips(chat_under(backbone, processor, adaptation), clips())
        assert [replace(one, visual_tokens=None, new_tokens=None, seconds=None) for one in alone] == together
        assert {one.visual_tokens for one in alone} == {plan.visual_tokens}
        assert all(one.seconds > 0 and 1 <= one.new_tokens <= 6 for one in alone)


def test_an_adaptation_s_own_frames_are_shown_of_the_same_video(onevision) -> None:
    backbone, processor = onevision
    sampled = next(one.adaptation for one in ZOOM_METHODS if one.name == "sampled")
    found = ask_clips(chat_under(backbone, processor, sampled), clips())
    assert {one.visual_tokens for one in found} == {4 * 4 + 1}
    assert [one.question for one in found] == [question.text for one in clips() for question in one.questions]


def test_what_a_question_took_is_kept_on_disk(tmp_path: Path) -> None:
    store = CellStore(tmp_path, {"model": "a"})
    answers = made_scores(TABLE, lambda method, kind: 1.0).answers("vanilla", 8)
    store.write(ZOOM_METHODS[0], 8, 0, answers)
    assert store.read(ZOOM_METHODS[0], 8, 0) == answers


def paper_order(method: str, kind: str) -> float:
    if kind != "detail":
        return 0.9 if method in ("vanilla", "zoom", "adjusted") else 0.3
    return {"vanilla": 0.6, "zoom": 0.6, "adjusted": 0.9}.get(method, 0.2)


def test_checks_hold_for_the_paper_s_order_and_fail_without_it() -> None:
    paper = made_scores(TABLE, paper_order, lambda method, index: method if method == "adjusted" else "b")
    assert [check.holds for check in TABLE.checks(paper)] == [True] * 7
    flat = TABLE.checks(made_scores(TABLE, lambda method, kind: 0.5))
    assert [check.holds for check in flat] == [False, False, False, False, True, True, False]
    assert "no sentence of these answers ends" in flat[-1].here
    lost = TABLE.checks(made_scores(TABLE, lambda method, kind: 0.9 if method == "vanilla" else 0.3))
    assert not lost[4].holds


def test_fewer_tokens_are_counted() -> None:
    check = TABLE.checks(made_scores(TABLE, paper_order))[5]
    assert check.here == "15.0 in place of 33.0 (0.45)"


def test_ablation_checks_hold_for_the_paper_s_order_and_fail_without_it() -> None:
    rank = {"layers12": 0.8, "layers01": 0.4, "layers23": 0.4, "s3": 0.8, "zoom": 0.5, "k4": 0.8, "k1": 0.3, "m1": 0.7}
    paper = ABLATIONS.checks(made_scores(ABLATIONS, lambda method, kind: rank.get(method, 0.4)))
    assert [check.holds for check in paper] == [True] * 5
    flat = ABLATIONS.checks(made_scores(ABLATIONS, lambda method, kind: 0.5))
    assert not any(check.holds for check in flat)
    more = ABLATIONS.checks(made_scores(ABLATIONS, lambda method, kind: (rank | {"m4": 0.95}).get(method, 0.4)))
    assert not more[-1].holds and more[-1].here.startswith("-25.0 points")  # above no adjustment, below m = 4


def test_pages_say_what_a_question_takes() -> None:
    scores = made_scores(TABLE, paper_order)
    rows = costs_table(TABLE, scores).splitlines()
    assert len(rows) == 2 + 7
    assert rows[2] == "| vanilla | 33.0 | 2.0 | 100 | 20.0 |" and rows[3].endswith("| 21.0 | 2.0 | 80 | 25.0 |")
    values = json.loads(json.dumps(claim_values(TABLE, scores, TABLE.checks(scores))))
    assert len(values["costs"]) == 7 and values["costs"][0]["seconds"] == pytest.approx(0.1)
    assert question_cost(scores, "pooled", 8).visual_tokens == 9
    assert claim_png(TABLE, scores).startswith(b"\x89PNG")
    assert claim_values(CLAIMS["intp-frames"], made_flat(CLAIMS["intp-frames"]), ())["costs"] == []


def made_flat(claim) -> Scores:
    answer = Answered(episode="a", kind="needle", question="?", truth="a", answer="a", score=1.0)
    answers = [replace(answer, kind=kind) for kind in KINDS for _ in range(2)]
    return Scores({(method.name, count): answers for method in claim.grid.methods for count in claim.grid.frames})


def test_methods_that_zoom_answer_and_count_what_they_showed(onevision) -> None:
    backbone, processor = onevision
    methods = {one.name: one.adaptation for one in (*ZOOM_METHODS, *ZOOM_ABLATIONS)}
    shown = {"overview": 6 + 1, "zoom": 6 + 1 + 2 * 4, "k4": 6 + 1 + 4 * 4, "r1": 8 + 1 + 2 * 4}
    for name, tokens in shown.items():
        found = ask_clips(chat_under(backbone, processor, methods[name]), clips()[:1])
        assert {one.visual_tokens for one in found} == {tokens}, name
        assert [one.question for one in found] == [question.text for question in clips()[0].questions]


def test_questions_are_charged_for_their_frames_which_are_encoded_once(
    onevision, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, processor = onevision
    chat = chat_under(backbone, processor, ZOOM_METHODS[0].adaptation)
    kept: list[int] = []
    keep, encode = chat.engine.keep, Conversation.encode
    monkeypatch.setattr(chat.engine, "keep", lambda *given: kept.append(1) or keep(*given))
    monkeypatch.setattr(Conversation, "encode", lambda talk: replace(encode(talk), decode_s=1e6, encode_s=1e7))
    found = ask_clips(chat, clips()[:1])
    assert len(kept) == 1 and len(found) == 3
    assert all(1.1e7 < one.seconds < 1.2e7 for one in found)


def test_a_world_that_cannot_be_asked_every_kind_ends_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^0 of 200 episodes of 8 s, seen at 1 frames, can be asked needle, order"):
        held_out_clips(episodes=2, duration_s=8.0, frames=1, seed=0, seen_only=True)
