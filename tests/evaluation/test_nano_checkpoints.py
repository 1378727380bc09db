"""The shipped nano backbones: whole folders, with their record, that answer held-out questions."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

import longvid_train
from longvid_train.adaptation.settings import Adaptation
from longvid_train.evaluation.claims.answering import answer_clips, encode_clips
from longvid_train.evaluation.claims.held_out import held_out_clips
from longvid_train.models.backbones import BackboneProcessor, generate, load_backbone, video_tokens
from longvid_train.video import UniformFrames, read_clip
from longvid_train.world.build import episode_frames
from longvid_train.world.encode import write_mp4
from longvid_train.world.plan import Job

ASSETS = Path(longvid_train.__file__).parent / "assets"
MOST_BYTES = 8_000_000
LEAST = {"nano_onevision": 0.85, "nano_video_llava": 0.85}


@pytest.fixture(scope="module", params=sorted(LEAST))
def shipped(request):
    folder = ASSETS / request.param
    backbone = load_backbone(folder, dtype=torch.float32)
    return folder, backbone, BackboneProcessor.load(folder, backbone.facts)


def test_folders_are_small_and_say_how_they_were_made(shipped) -> None:
    folder, backbone, _ = shipped
    assert sum(file.stat().st_size for file in folder.iterdir()) < MOST_BYTES
    record = json.loads((folder / "provenance.json").read_text())
    assert {"commit", "data_hash", "command", "device", "seconds", "recipe", "final_metrics"} <= record.keys()
    assert backbone.facts.trained.visual == 8 * backbone.facts.grid.frame_tokens(backbone.facts.grid.stride)
    assert backbone.model.generation_config.eos_token_id == backbone.model.config.text_config.eos_token_id


def test_held_out_needles_are_found_at_the_trained_frames(shipped) -> None:
    folder, backbone, processor = shipped
    clips = held_out_clips(episodes=40, duration_s=8.0, frames=8, seed=11, seen_only=True)
    plan = Adaptation().plan_frames(8, backbone.facts.grid)
    tokens = encode_clips(backbone, processor, clips, plan)
    answered = answer_clips(backbone, processor, clips, tokens, plan, Adaptation())
    for kind in ("needle", "order"):
        scores = [one.score for one in answered if one.kind == kind]
        assert len(scores) == 40
        assert sum(scores) / 40 >= LEAST[folder.name], kind


def test_a_file_is_answered_as_its_frames_are(shipped, tmp_path: Path) -> None:
    """Compression costs few answers: at least 8 of 10 needles are found in mp4 files of the world's quality."""
    _, backbone, processor = shipped
    right = 0
    clips = held_out_clips(episodes=10, duration_s=8.0, frames=8, seed=12, seen_only=True)
    plan = Adaptation().plan_frames(8, backbone.facts.grid)
    for number, one in enumerate(clips):
        job = Job(
            path=f"{number}.mp4", episode=one.clip.episode, size_px=112, fps=Fraction(4), gop=16, crf=18, time_s=None
        )
        write_mp4(tmp_path / job.path, episode_frames(job), fps=job.fps)
        frames = read_clip(tmp_path / job.path, UniformFrames(count=8)).frames
        tokens = video_tokens(backbone, processor.pixel_values(frames), plan)
        question = one.questions[0]
        ids = processor.prompt_ids(question.text, plan.visual_tokens)
        made = generate(backbone, ids, tokens, max_new_tokens=6, do_sample=False)
        right += processor.tokenizer.decode(made[0], skip_special_tokens=True).strip() == question.answer
    assert right >= 8
