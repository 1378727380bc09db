"""The claims' questions, cells, checks and pages, on tiny untrained backbones and on made-up scores."""

import copy
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from longvid_train.adaptation.reading import load_adaptation
from longvid_train.adaptation.settings import Adaptation
from longvid_train.errors import UserError
from longvid_train.evaluation.claims import answering
from longvid_train.evaluation.claims.answering import Answered, answer_clips, encode_clips
from longvid_train.evaluation.claims.catalogue import ALL, CLAIMS, choose_claims
from longvid_train.evaluation.claims.cells import BackboneAnswers, CellStore, Grid, Scores, run_grid
from longvid_train.evaluation.claims.checking import Settings, check_claim
from longvid_train.evaluation.claims.claim import keeps, no_better
from longvid_train.evaluation.claims.held_out import KINDS, held_out_clips
from longvid_train.evaluation.claims.methods import INTP_METHODS, TUNED, VISUAL_WINDOW_METHODS, tuned_method
from longvid_train.evaluation.claims.pages import checks_table, claim_png, claim_values, scores_table
from longvid_train.evaluation.statistics import bootstrap_mean
from longvid_train.models.backbones import BackboneProcessor, generate, load_backbone
from longvid_train.rope.extension import extended
from longvid_train.rope.scale import TokenCounts

CONFIGS = Path(__file__).parents[2] / "configs" / "adaptations"


@pytest.fixture(scope="module")
def onevision(untrained_onevision: Path):
    backbone = load_backbone(untrained_onevision, dtype=torch.float32)
    return backbone, BackboneProcessor.load(untrained_onevision, backbone.facts)


def cell(scores: list[float]) -> list[Answered]:
    kinds = [KINDS[index % len(KINDS)] for index in range(len(scores))]
    return [
        Answered(episode=str(index), kind=kind, question="?", truth="a", answer="a" if score else "b", score=score)
        for index, (kind, score) in enumerate(zip(kinds, scores, strict=True))
    ]


def made_scores(claim, right) -> Scores:
    """``right(method, frames)`` is the share of right answers of 300."""
    return Scores(
        {
            (method.name, count): cell([float(index < round(300 * right(method.name, count))) for index in range(300)])
            for method in claim.grid.methods
            for count in claim.grid.frames
        }
    )


def test_the_methods_are_the_shipped_adaptations() -> None:
    methods = {method.file: method for method in (*VISUAL_WINDOW_METHODS, *INTP_METHODS)}
    assert len(methods) == 13
    for file, method in methods.items():
        assert load_adaptation(CONFIGS / f"{file}.yaml") == method.adaptation


def test_held_out_questions_are_of_the_test_split_and_follow_the_seed() -> None:
    drawn = held_out_clips(episodes=4, duration_s=8.0, frames=8, seed=1, seen_only=True)
    assert drawn == held_out_clips(episodes=4, duration_s=8.0, frames=8, seed=1, seen_only=True)
    assert drawn != held_out_clips(episodes=4, duration_s=8.0, frames=8, seed=2, seen_only=True)
    for one in drawn:
        assert one.clip.episode.split == "test"
        assert tuple(question.kind for question in one.questions) == KINDS


def test_the_same_is_asked_at_every_number_of_frames_where_the_claim_says_so() -> None:
    few = held_out_clips(episodes=4, duration_s=24.0, frames=8, seed=1, seen_only=False)
    many = held_out_clips(episodes=4, duration_s=24.0, frames=64, seed=1, seen_only=False)
    assert [one.questions for one in few] == [one.questions for one in many]
    assert [len(one.clip.times_s) for one in many] == [64] * 4


def test_answers_are_those_of_one_question_alone_under_the_window(onevision) -> None:
    backbone, processor = onevision
    method = next(one for one in VISUAL_WINDOW_METHODS if one.name == "visual_yarn")
    clips = held_out_clips(episodes=2, duration_s=16.0, frames=16, seed=0, seen_only=True)
    plan = method.adaptation.plan_frames(16, backbone.facts.grid)
    tokens = encode_clips(backbone, processor, clips, plan)
    assert tokens.shape == (2, 16 * 4 + 1, 128)
    answered = answer_clips(backbone, processor, clips, tokens, plan, method.adaptation)
    assert len(answered) == 6
    for index, one in enumerate(answered):
        ids = processor.prompt_ids(one.question, plan.visual_tokens)
        counts = TokenCounts(visual=64, total=ids.shape[1] + 6)
        with extended(backbone.model, method.adaptation.window, counts=counts, trained=backbone.facts.trained) as used:
            made = generate(backbone, ids, tokens[index // 3], max_new_tokens=6, do_sample=False)
        assert used.scale == 2.0  # 64 visual tokens on a window of 8 frames
        assert processor.tokenizer.decode(made[0], skip_special_tokens=True).strip() == one.answer
        assert one.score == float(one.answer == one.truth)


def test_methods_that_rotate_alike_share_their_answers(onevision, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the language window nothing is extended: one generation answers for all that show the same tokens."""
    backbone, processor = onevision
    methods = {one.name: one for one in VISUAL_WINDOW_METHODS}
    batches: list[int] = []
    monkeypatch.setattr(answering, "generate", lambda *given, **more: batches.append(1) or generate(*given, **more))

    def held_out(frames: int, seed: int):
        return held_out_clips(episodes=2, duration_s=16.0, frames=frames, seed=seed, seen_only=True)

    def asked(name: str, answers: BackboneAnswers, seed: int = 0) -> int:
        before = len(batches)
        answers(methods[name], 16, seed)
        return len(batches) - before

    shared = BackboneAnswers(lambda _: backbone, processor, held_out)
    assert [asked(name, shared) for name in ("none", "yarn", "ntk", "linear")] == [1, 0, 0, 0]
    assert [asked(name, shared) for name in ("visual_yarn", "visual_ntk", "visual_yarn_progressive")] == [1, 1, 1]
    assert asked("none", shared, seed=1) == 1  # other clips
    for name in ("yarn", "visual_yarn"):
        alone = BackboneAnswers(lambda _: backbone, processor, held_out)
        assert alone(methods[name], 16, 0) == shared(methods[name], 16, 0)
    weights = [backbone, copy.deepcopy(backbone)]
    tuned = BackboneAnswers(lambda method: weights[method.name == "yarn"], processor, held_out)
    assert [asked(name, tuned) for name in ("none", "yarn", "ntk")] == [1, 1, 0]  # other weights answer for themselves


def test_a_run_goes_on_where_it_stopped_and_answers_as_one_run(onevision, tmp_path: Path) -> None:
    backbone, processor = onevision
    methods = (VISUAL_WINDOW_METHODS[0], VISUAL_WINDOW_METHODS[-1])
    grid = Grid(methods=methods, frames=(8, 16))
    asked: list[tuple[int, int]] = []

    def held_out(frames: int, seed: int):
        asked.append((frames, seed))
        return held_out_clips(episodes=2, duration_s=float(frames), frames=frames, seed=seed, seen_only=True)

    def run(folder: Path) -> Scores:
        store = CellStore(folder, {"model": "a"})
        answers = BackboneAnswers(lambda _: backbone, processor, held_out)
        return run_grid(grid, (0, 1), answers, store, on_progress=progress.append_pair)

    class Progress(list[tuple[int, int]]):
        def append_pair(self, done: int, cells: int) -> None:
            self.append((done, cells))

    progress = Progress()
    whole = run(tmp_path / "a")
    assert asked == [(8, 0), (8, 1), (16, 0), (16, 1)] and progress == [(n, 8) for n in range(1, 9)]
    (tmp_path / "a" / f"visual_yarn_progressive_{methods[1].digest()}_16_1.json").unlink()
    asked.clear()
    again = run(tmp_path / "a")
    assert asked == [(16, 1)]
    for method in methods:
        for frames in grid.frames:
            assert np.array_equal(whole.values(method.name, frames), again.values(method.name, frames))
    assert len(whole.values("none", 8, 16)) == 2 * 2 * 2 * len(KINDS)


def test_cells_of_another_model_are_refused(tmp_path: Path) -> None:
    CellStore(tmp_path, {"model": "a", "episodes": 4})
    CellStore(tmp_path, {"episodes": 4, "model": "a"})
    with pytest.raises(UserError, match="another model; choose another --out"):
        CellStore(tmp_path, {"model": "b", "episodes": 4})


def test_gains_are_paired() -> None:
    random.seed(0)
    base = [float(random.random() < 0.5) for _ in range(300)]
    better = [1.0 if index % 10 == 0 else score for index, score in enumerate(base)]
    scores = Scores({("a", 8): cell(base), ("b", 8): cell(better)})
    gain = scores.gain(("b", 8), ("a", 8))
    assert gain.mean == pytest.approx(np.mean(better) - np.mean(base))
    assert gain.low > 0  # unpaired intervals of two means near .5 would overlap
    assert scores.interval("b", 8).low < scores.interval("a", 8).high
    assert len(scores.values("a", 8, kind="order")) == 100


def test_visual_window_checks_hold_for_the_paper_s_order_and_fail_without_it() -> None:
    claim = CLAIMS["visual-window"]
    rank = {"none": 0.2, "yarn": 0.4, "visual_yarn": 0.7, "visual_yarn_progressive": 0.7}
    paper = claim.checks(made_scores(claim, lambda method, frames: 0.95 if frames == 8 else rank.get(method, 0.1)))
    assert [check.holds for check in paper] == [True] * 5
    assert not any("LoRA" in check.paper for check in paper)
    flat = claim.checks(made_scores(claim, lambda method, frames: 0.5))
    assert [check.holds for check in flat] == [False, False, False, False, True]
    worse = dict.fromkeys(rank, 0.5) | {"visual_yarn_progressive": 0.3}
    assert not claim.checks(made_scores(claim, lambda method, frames: worse.get(method, 0.1)))[-1].holds


def test_intp_checks_hold_for_the_paper_s_curve_and_fail_without_it() -> None:
    claim = CLAIMS["intp-frames"]
    curve = {8: 0.5, 16: 0.7, 32: 0.75, 64: 0.6}
    loss = {("intp_consecutive", frames): 0.2 for frames in curve} | {("intp", 8): 0.1}
    paper = claim.checks(made_scores(claim, lambda method, frames: curve[frames] - loss.get((method, frames), 0.0)))
    assert [check.holds for check in paper] == [True] * 5
    rising = claim.checks(made_scores(claim, lambda method, frames: 0.9 if frames == 64 else 0.5))
    assert [check.holds for check in rising] == [False] * 5
    assert rising[0].here == "+0.0 points (+0.0 to +0.0); one group is neither rearranged nor stretched"


def test_no_difference_needs_enough_answers_to_exclude_one() -> None:
    """Few answers or a loss of the margin do not keep; a small loss that is sure does."""
    unsure, small, large = bootstrap_mean([-1.0, 1.0] * 20), bootstrap_mean([-0.01] * 40), bootstrap_mean([-0.06] * 40)
    assert [keeps(one) for one in (unsure, small, large)] == [False, True, False]
    assert [no_better(one) for one in (unsure, small, large)] == [False, True, True]
    assert not no_better(bootstrap_mean([0.06] * 40))


def test_intervals_draw_whole_episodes() -> None:
    """Three equal answers an episode, at two numbers of frames: as sure as one answer an episode."""
    once = [float(index % 3 == 0) for index in range(60)]

    def cells(per_episode: int) -> list[Answered]:
        return [
            Answered(episode=str(index), kind="needle", question=str(place), truth="a", answer="", score=score)
            for index, score in enumerate(once)
            for place in range(per_episode)
        ]

    worse = [replace(one, score=0.0) for one in cells(3)]
    scores = Scores({("a", 8): cells(3), ("a", 16): cells(3), ("b", 8): worse, ("b", 16): worse})
    assert scores.interval("a", 8, 16) == replace(Scores({("a", 8): cells(1)}).interval("a", 8), n=360)
    assert scores.gain_beyond("a", "b", (8, 16)) == scores.interval("a", 8, 16)
    with pytest.raises(AssertionError):
        Scores({("a", 8): cells(1), ("b", 8): [replace(one, episode="z") for one in cells(1)]}).gain(("a", 8), ("b", 8))


def test_answers_under_another_adaptation_are_not_read(tmp_path: Path) -> None:
    store, method = CellStore(tmp_path, {"model": "a"}), VISUAL_WINDOW_METHODS[0]
    store.write(method, 8, 0, cell([1.0, 0.0]))
    assert store.read(method, 8, 0) == cell([1.0, 0.0])
    assert store.read(replace(method, adaptation=VISUAL_WINDOW_METHODS[-1].adaptation), 8, 0) is None
    assert store.read(replace(method, weights="b"), 8, 0) is None
    assert len({one.digest() for one in (*VISUAL_WINDOW_METHODS, *INTP_METHODS)}) == 12  # "none" is in both


@pytest.mark.parametrize("changed", ["chat_template.jinja", "preprocessor_config.json"])
def test_answers_of_a_model_with_another_processor_are_refused(
    untrained_onevision: Path, tmp_path: Path, changed: str
) -> None:
    models = tmp_path / "models"
    shutil.copytree(untrained_onevision, models / "nano_onevision")
    claim = CLAIMS["zoomvlm"]
    claim = replace(claim, grid=replace(claim.grid, methods=claim.grid.methods[:1]), checks=lambda scores: ())
    settings = Settings(out=tmp_path / "out", episodes=2, seeds=1, models=models, llama_vid=None)
    for _ in range(2):
        assert check_claim(claim, settings, shows_progress=False).values["scores"][0]["n"] == 2 * len(KINDS)
    with (models / "nano_onevision" / changed).open("a", encoding="utf-8") as file:
        file.write(" ")
    with pytest.raises(UserError, match="another model; choose another --out"):
        check_claim(claim, settings, shows_progress=False)


def test_pages_hold_every_number(tmp_path: Path) -> None:
    claim = CLAIMS["intp-frames"]
    scores = made_scores(claim, lambda method, frames: frames / 100)
    checks = claim.checks(scores)
    table = checks_table([(claim.name, checks)])
    assert table.count("\n") == 1 + len(checks) and "does not reproduce here" in table
    rows = scores_table(claim, scores).splitlines()
    assert len(rows) == 2 + len(claim.grid.methods)
    assert rows[2].startswith("| no extension | **8** ") and "**64**" in rows[2]
    values = json.loads(json.dumps(claim_values(claim, scores, checks)))
    found = {(one["method"], one["frames"], one["kind"]): one for one in values["scores"]}
    assert len(found) == 5 * 4 * 4
    assert found["intp", 32, "all"]["mean"] == pytest.approx(0.32) and found["intp", 32, "all"]["n"] == 300
    assert claim_png(claim, scores).startswith(b"\x89PNG")


def test_claims_are_chosen_by_name() -> None:
    assert [claim.name for claim in choose_claims([])] == list(ALL)
    assert {"visual-window", "intp-roofline", "zoomvlm", "zoomvlm-ablations", "embeddings"} <= ALL.keys()
    assert {"intp-kv-bits-llama-vid", "llama-vid-tokens", "llama-vid-long-video"} <= ALL.keys()
    assert [claim.name for claim in choose_claims(["intp-frames"])] == ["intp-frames"]
    with pytest.raises(UserError, match="did you mean 'visual-window'"):
        choose_claims(["visual-windw"])


def test_without_an_extension_the_model_is_as_it_is() -> None:
    assert VISUAL_WINDOW_METHODS[0].adaptation.window.extends is False
    assert VISUAL_WINDOW_METHODS[0].adaptation.plan == Adaptation().plan


def test_an_adapter_adds_its_row_and_its_check() -> None:
    claim = CLAIMS["visual-window"]
    grid = replace(claim.grid, methods=(*claim.grid.methods, tuned_method(Adaptation(), "0123")))
    scores = made_scores(replace(claim, grid=grid), lambda method, frames: 0.6 if method == TUNED else 0.5)
    (check,) = [check for check in claim.checks(scores) if "LoRA" in check.paper]
    assert check.holds and check.here.startswith("+10.0 points")
