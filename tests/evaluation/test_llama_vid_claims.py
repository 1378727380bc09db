"""The claims about LLaMA-VID: the images asked about, the models that answer, and checks that can fail."""

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

import longvid_train
from longvid_train.data.conversation import ConversationOptions, LoadedMedium, MediumLayout, encode_prompt
from longvid_train.data.manifest import Turn
from longvid_train.data.templates import template_by_name
from longvid_train.errors import UserError
from longvid_train.evaluation.claims import asking, llama_vid_variants
from longvid_train.evaluation.claims.answering import Answered
from longvid_train.evaluation.claims.asking import frames_of
from longvid_train.evaluation.claims.catalogue import CLAIMS
from longvid_train.evaluation.claims.cells import Scores
from longvid_train.evaluation.claims.llama_vid_answers import Compared, ComparedAnswers
from longvid_train.evaluation.claims.llama_vid_tokens import held_out_stills
from longvid_train.evaluation.claims.llama_vid_variants import FOLDER, VARIANTS, load_variant
from longvid_train.evaluation.claims.models_plot import models_png
from longvid_train.evaluation.claims.pages import claim_values, scores_table
from longvid_train.files import sha256_file, write_json
from longvid_train.generate.chat import FramesRequest, VideoChat
from longvid_train.models.adapter import AdapterRecord, read_adapter
from longvid_train.models.fingerprint import fingerprint
from longvid_train.models.llama_vid import LlamaVidProcessor, build_llama_vid
from longvid_train.models.llama_vid.adapted import load_adapted
from longvid_train.models.lora import LoraExport, LoraShape, insert_lora
from longvid_train.world.render import render_frame
from longvid_train.world.rows import still_of
from tests.generate.tiny_checkpoint import save_tiny_checkpoint

TOKENS, LONG = CLAIMS["llama-vid-tokens"], CLAIMS["llama-vid-long-video"]
PARTS = Path(longvid_train.__file__).parent / "assets" / "nano"
BERT = Path(__file__).parents[2] / "configs" / "llama_vid" / "nano" / "bert.json"
FULL = {"both": ("context_attention", "content_projector"), "content": ("content_projector",)}
FULL["bert"] = (*FULL["both"], "text_decoder")


def made_scores(claim, right) -> Scores:
    """``right(method, kind)`` is the share of right answers of 20 of each kind and number of frames."""
    return Scores(
        {
            (method.name, frames): [
                Answered(
                    episode=f"{kind}-{frames}-{index}",
                    kind=kind,
                    question="?",
                    truth="a",
                    answer="",
                    score=float(index < round(20 * right(method.name, kind))),
                )
                for kind in claim.kinds
                for index in range(20)
            ]
            for method in claim.grid.methods
            for frames in claim.grid.frames
        }
    )


def untrained_variant(name: str, work: Path, models: Path) -> Path:
    """A variant as its two stages leave it, but for training: a base model of its own and a random adapter."""
    variant = VARIANTS[name]
    bert = llama_vid_variants.AutoConfig.for_model(**json.loads(BERT.read_text()))
    decoder = {"qformer": PARTS / "qformer", "bert": bert, "none": None}[variant.text_decoder]
    torch.manual_seed(5)
    model = build_llama_vid(
        vision_tower=PARTS / "tower",
        language_model=PARTS / "language_model",
        text_decoder=decoder,
        visual_token_id=4,
        use_content=variant.content,
    )
    base = work / name / "base"
    model.save_pretrained(base)
    tokenizer = llama_vid_variants.AutoTokenizer.from_pretrained(PARTS / "tokenizer")
    LlamaVidProcessor.for_model(model.config, tokenizer, tokenizer).save_pretrained(base)
    shape = LoraShape(
        r=2,
        alpha=4,
        dropout=0.0,
        target_modules=("language_model.model.layers.0.self_attn.q_proj",),
        modules_to_save=FULL[name],
    )
    insert_lora(model, shape)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    folder = models / FOLDER / name
    folder.mkdir(parents=True)
    LoraExport(model, shape, "base").save_pretrained(folder)
    record = AdapterRecord.of(model.config, base=base, base_fingerprint=fingerprint(base), folder=folder)
    record.save_pretrained(folder)
    parts = {part: sha256_file(PARTS / file) for part, file in llama_vid_variants.PART_FILES.items()}
    write_json(folder / llama_vid_variants.PROVENANCE, {"parts": parts})
    shutil.copyfile(BERT, models / FOLDER / "bert.json")
    return base


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    work = tmp_path_factory.mktemp("variants")
    (work / "models").mkdir()
    (work / "models" / "nano").symlink_to(PARTS)
    with torch.random.fork_rng(devices=[]):
        bases = {name: untrained_variant(name, work, work / "models") for name in FULL}
    return work / "models", bases


def test_images_show_two_objects_and_are_asked_each_kind_about_what_they_show() -> None:
    stills = held_out_stills(12, 1, 3)
    assert stills == held_out_stills(12, 1, 3) and stills != held_out_stills(12, 1, 4)
    for one in stills:
        (time_s,) = one.clip.times_s
        shown = one.clip.episode.visible_at(time_s)
        assert one.clip.episode.split == "test" and len(shown) == 2
        assert one.clip.episode.sliding_or_visible_at(time_s) == shown
        assert tuple(question.kind for question in one.questions) == TOKENS.kinds
        needle, count, detail = one.questions
        assert needle.answer == one.clip.episode.scene_at(time_s).name
        assert int(count.answer) == sum(count.text == f"How many times did a {a.shape} appear?" for a in shown)
        assert [a.digit for a in shown if f"the {a.name} carry" in detail.text] == [detail.answer]
        assert still_of(one.clip.episode, time_s).appearances == shown


def test_an_assembled_variant_is_the_model_that_was_trained(models: tuple[Path, dict[str, Path]]) -> None:
    """Its base model is not read: the parts and the adapter alone make the same weights, whatever else was drawn."""
    folder, bases = models
    for name, base in bases.items():
        torch.manual_seed(99)
        before = torch.random.get_rng_state()
        chat = load_variant(folder, name)
        assert torch.equal(torch.random.get_rng_state(), before)
        wanted = load_adapted(base, read_adapter(folder / FOLDER / name, "llama_vid"), merged=True).state_dict()
        found = chat.model.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        assert not chat.model.training


def test_an_image_is_shown_as_in_training(models: tuple[Path, dict[str, Path]]) -> None:
    (still,) = held_out_stills(1, 1, 0)
    chat = load_variant(models[0], "both")
    talk = chat.open([FramesRequest(frames_of(still.clip), still.clip.times_s)])
    made = chat.prompting.encode(talk.with_question(still.questions[0].text), talk.layouts)
    trained = encode_prompt(
        [Turn("user", f"<image>\n{still.questions[0].text}")],
        [LoadedMedium(MediumLayout.without_subtitles("image", 1), pixel_values=torch.zeros(1, 3, 84, 84))],
        chat.prompting.processor,
        template_by_name("vicuna_v1"),
        ConversationOptions(image_content_grid=1),
    )
    assert torch.equal(made.input_ids, trained.input_ids)
    assert made.prompts == trained.prompts
    (time_s,) = still.clip.times_s
    assert (frames_of(still.clip)[0] == render_frame(still.clip.episode, time_s, 112)).all()


def test_every_model_is_asked_the_same_and_an_image_passes_the_tower_once(
    models: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(asking, "frames_of", lambda clip, original=frames_of: drawn.append(1) or original(clip))
    assert TOKENS.compared is not None
    answers = ComparedAnswers(TOKENS.compared, models[0], partial(held_out_stills, 2))
    found = {m.name: answers(m, 1, 0) for m in TOKENS.grid.methods if m.name in FULL}
    assert len(drawn) == 2 and len(found) == 3
    asked = [(q.kind, q.text, q.answer) for one in held_out_stills(2, 1, 0) for q in one.questions]
    for rows in found.values():
        assert [(row.kind, row.question, row.truth) for row in rows] == asked
    assert {name: {row.visual_tokens for row in rows} for name, rows in found.items()} == {
        "content": {1},
        "both": {2},
        "bert": {2},
    }


def test_models_with_different_towers_are_refused(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        save_tiny_checkpoint(tmp_path / name, seed=seed)
    compared = Compared(
        files=lambda folder: (folder / "a" / "config.json", folder / "b" / "config.json", folder / "c"),
        folders=("a", "b"),
        load=lambda folder, name: VideoChat.load(folder / name, device="cpu"),
    )
    with pytest.raises(UserError, match=r"/c does not exist; name the folder of the nano models with --models"):
        compared.check(tmp_path)
    answers = ComparedAnswers(compared, tmp_path, partial(held_out_stills, 1))
    method = TOKENS.grid.methods[0]
    assert len(answers(replace(method, name="a"), 1, 0)) == 3
    with pytest.raises(UserError, match=r"b and .*a have different vision towers"):
        answers(replace(method, name="b"), 1, 0)


def test_adapters_of_other_parts_and_incomplete_ones_are_refused(
    models: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    copy = shutil.copytree(models[0] / FOLDER, tmp_path / FOLDER).parent
    (copy / "nano").symlink_to(PARTS)
    provenance = copy / FOLDER / "both" / "provenance.json"
    write_json(provenance, {"parts": json.loads(provenance.read_text())["parts"] | {"tower": "0" * 64}})
    with pytest.raises(UserError, match=r"tower/model.safetensors is not the part that .*both was trained from"):
        load_variant(copy, "both")
    config = copy / FOLDER / "bert" / "adapter_config.json"
    write_json(config, json.loads(config.read_text()) | {"modules_to_save": ["content_projector", "text_decoder"]})
    with pytest.raises(UserError, match="lacks context_attention, which no pretrained part holds"):
        load_variant(copy, "bert")


def test_checks_about_tokens_hold_where_the_paper_s_order_is_found_and_fail_otherwise() -> None:
    rank = ["content", "bert", "context", "both", "both_4", "both_9", "all_content", "all"]
    ordered = TOKENS.checks(made_scores(TOKENS, lambda method, kind: 0.1 + 0.1 * rank.index(method)))
    assert [check.holds for check in ordered] == [True] * 10
    assert ordered[1].here.startswith("+30.0 points") and "detail +30.0 points" in ordered[1].here
    level = TOKENS.checks(made_scores(TOKENS, lambda method, kind: 0.5))
    assert [check.holds for check in level] == [False] * 10
    pairs = [
        "context>content",
        "both>content",
        "both>context",
        "all>all_content",
        "all>both",
        "both_4>both",
        "both_9>both_4",
        "all>both_9",
        "bert>content",
        "both>bert",
    ]
    for place, pair in enumerate(pairs):
        better, worse = pair.split(">")
        for more, less, holds in ((better, worse, True), (worse, better, False)):
            share = {more: 0.7, less: 0.4}
            checks = TOKENS.checks(made_scores(TOKENS, lambda name, kind, share=share: share.get(name, 0.5)))
            assert checks[place].holds is holds, pair


def test_the_gain_of_the_third_stage_is_checked_over_all_and_by_kind() -> None:
    gain = {"needle": 0.9, "order": 0.5, "count": 0.3, "detail": 0.9}
    checks = LONG.checks(made_scores(LONG, lambda method, kind: gain[kind] if method == "stage3" else 0.5))
    assert [check.holds for check in checks] == [True, True, False, False, True]
    assert checks[0].here.startswith("50 % (") and "+15.0 points" in checks[0].here


def test_long_videos_outgrow_the_second_stage_and_are_asked_four_kinds() -> None:
    shown: set[str] = set()
    for frames, seed in product(LONG.grid.frames, (0, 1)):
        clips = LONG.held_out(4, frames, seed)
        assert len(clips) == 2 and not shown & {one.clip.episode.episode_id for one in clips}
        shown |= {one.clip.episode.episode_id for one in clips}
        for one in clips:
            assert one.clip.episode.duration_s == frames == len(one.clip.times_s)
            assert one.clip.episode.split == "test"
            assert tuple(question.kind for question in one.questions) == LONG.kinds


@pytest.mark.parametrize("claim", [TOKENS, LONG], ids=lambda claim: claim.name)
def test_pages_show_the_claim_s_own_kinds_and_every_model(claim) -> None:
    scores = made_scores(claim, lambda method, kind: claim.kinds.index(kind) / 4)
    table = scores_table(claim, scores)
    parts = " / ".join(str(25 * place) for place in range(len(claim.kinds)))
    assert table.count(f"({parts})") == len(claim.grid.methods) * len(claim.grid.frames)
    kinds = {row["kind"] for row in claim_values(claim, scores, ())["scores"]}
    assert kinds == {"all", *claim.kinds}
    assert models_png(claim, scores).startswith(b"\x89PNG")
