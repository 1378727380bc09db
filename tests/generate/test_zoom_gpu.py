"""Zooming on a GPU: the same choices as on a CPU, with the fused attention of the device."""

from typing import Any

import pytest

from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.zoom.answering import ZoomOutcome
from tests.generate.zoom_models import answering_of, plan_of, prompt_of, tiny_model

pytestmark = pytest.mark.gpu


def outcome_on(device: str) -> ZoomOutcome:
    model: Any = tiny_model().to(device)
    answering = answering_of(model, draft_tokens=5, zoomed_frames=2, adjusted_tokens=2, every_sentences=1)
    return answering.answer(prompt_of(model, plan_of()), GenerationOptions(max_new_tokens=20))


def test_choices_and_answer_are_those_of_the_cpu() -> None:
    here, there = outcome_on("cuda"), outcome_on("cpu")
    assert [frame.chosen for frame in here.trace.overview] == [frame.chosen for frame in there.trace.overview]
    assert here.generated == there.generated
    assert here.trace.adjustments == there.trace.adjustments
    scores = [[frame.score for frame in one.trace.overview] for one in (here, there)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert 0 < here.trace.seconds.adjustment_s < here.trace.seconds.total_s
