"""Claims that ask nothing: INTP's Table 1 number by number, and the embeddings of visual and text tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from longvid_train.adaptation.settings import Adaptation
from longvid_train.cost import intp_table
from longvid_train.evaluation.claims import intp_roofline
from longvid_train.evaluation.claims.answering import encode_clips
from longvid_train.evaluation.claims.catalogue import COMPUTED
from longvid_train.evaluation.claims.embeddings import (
    WORDS,
    Embeddings,
    embeddings_png,
    read_embeddings,
    separation,
    silhouettes,
)
from longvid_train.evaluation.claims.held_out import held_out_clips
from longvid_train.models.backbones import BackboneProcessor, load_backbone


def test_table_1_holds_but_for_its_slip_and_its_caption() -> None:
    found = COMPUTED["intp-roofline"].find(None)
    assert [check.holds for check in found.checks] == [True, False, True, True, False]
    assert "8 of 9 numbers" in found.checks[1].here and "32 frames at 2 bits 18.0, printed 22.9" in found.checks[1].here
    assert found.checks[4].here.startswith("8 frames take 7.0 ms at 2039 GB/s; 18.6 ms are printed")
    assert "| 128 | 2 | 30.4 | 20.4 | 15.1 | 2.1 |" in found.tables
    values = json.loads(json.dumps(found.values))
    assert len(values["rows"]) == 9 and values["rows"][0]["decode_ms"] == pytest.approx(18.6, abs=0.05)
    assert found.plots["roofline.png"].startswith(b"\x89PNG")


def test_a_wrong_roofline_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intp_table, "TOKENS_A_FRAME", 257)
    found = intp_roofline.CLAIM.find(None)
    assert [check.holds for check in found.checks] == [False] * 5


def test_silhouettes_are_the_textbook_s() -> None:
    points = np.array([[0.0], [1.0], [10.0], [12.0]])
    kinds = np.array([True, True, False, False])
    assert np.allclose(silhouettes(points, kinds), [1 - 1 / 11, 1 - 1 / 10, 1 - 2 / 9.5, 1 - 2 / 11.5])


def test_separation_tells_clusters_from_a_mixture() -> None:
    rng = np.random.default_rng(0)
    cloud = rng.standard_normal((60, 8))
    mixed, own = separation(Embeddings(visual=cloud[:30], text=cloud[30:], words=("",) * 30))
    apart, all_own = separation(Embeddings(visual=cloud[:30], text=cloud[30:] + 20.0, words=("",) * 30))
    assert mixed.low < 0.05 and own < 0.8
    assert apart.low > 0.8 and all_own == 1.0


def test_embeddings_are_the_projector_s_tokens_and_the_table_s_words(untrained_onevision: Path) -> None:
    backbone = load_backbone(untrained_onevision, dtype="float32")
    processor = BackboneProcessor.load(untrained_onevision, backbone.facts)
    clips = held_out_clips(episodes=3, duration_s=8.0, frames=8, seed=0, seen_only=True)
    found = read_embeddings(backbone, processor, clips)
    tokens = encode_clips(backbone, processor, clips, Adaptation().plan_frames(8, backbone.facts.grid)).double()
    assert found.visual.shape == (24, 128)
    for index, point in enumerate(found.visual):
        clip, frame = divmod(index, 8)
        of_frame = tokens[clip, 4 * frame : 4 * frame + 4].numpy()
        assert (of_frame == point).all(axis=1).any(), index
    assert set(WORDS) <= set(found.words) and len(found.words) == len(found.text)
    (sea,) = processor.tokenizer.encode(" sea", add_special_tokens=False)
    row = found.text[found.words.index("sea")]
    assert torch.equal(torch.tensor(row), backbone.model.get_input_embeddings().weight[sea].double())


def test_the_picture_is_drawn() -> None:
    rng = np.random.default_rng(0)
    found = Embeddings(visual=rng.standard_normal((70, 6)), text=rng.standard_normal((30, 6)), words=("sea",) * 30)
    assert embeddings_png(found).startswith(b"\x89PNG")
