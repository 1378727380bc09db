"""The benchmark of the supervised loss compares two computations of the same number."""

import pytest
import torch

from scripts.bench.loss_memory import BASELINE, LOSSES, Cell, labels_of, load_language_model, pass_of, table
from scripts.bench.training_step import film_row, load_llama_vid, training_step


def test_both_losses_and_their_gradients_are_the_same() -> None:
    losses, gradients = {}, {}
    for loss in LOSSES:
        model = load_language_model(578)
        cell = Cell(scope="step", loss=loss, words=578, tokens=40, supervised_share=0.25)
        losses[loss] = float(pass_of(model, cell, 40)())
        gradients[loss] = model.model.layers[0].mlp.up_proj.weight.grad
    assert losses[BASELINE] == pytest.approx(losses["ours"], rel=1e-5)
    torch.testing.assert_close(gradients[BASELINE], gradients["ours"], rtol=1e-3, atol=1e-6)


def test_the_training_steps_of_both_losses_are_the_same_step() -> None:
    """Of 64 tokens, 8 frames: after two steps the weights have moved, and alike."""
    losses, weights = {}, {}
    for loss in LOSSES:
        model = load_llama_vid(578)
        start = model.content_projector[0].weight.detach().clone()
        run = training_step(model, 64, 0.5, plain_loss=loss == BASELINE)
        losses[loss] = [float(run()), float(run())]
        weights[loss] = model.content_projector[0].weight.detach()
        assert not torch.equal(start, weights[loss])
        assert all(parameter.grad is None for parameter in model.vision_tower.parameters())
    assert losses[BASELINE] == pytest.approx(losses["ours"], rel=1e-5)
    assert losses["ours"][0] != losses["ours"][1]
    torch.testing.assert_close(weights[BASELINE], weights["ours"], rtol=1e-4, atol=1e-6)


def test_a_film_row_has_two_placeholders_a_frame_and_supervises_text_alone() -> None:
    model = load_llama_vid(600)
    ids, labels = film_row(model, 20, 0.5)
    assert (ids == 600).tolist()[0] == [i in (0, 1, 8, 9) for i in range(20)]
    assert labels[0, :10].tolist() == [-100] * 10
    assert labels[0, 10:].tolist() == ids[0, 10:].tolist()


def test_the_end_of_the_row_is_supervised() -> None:
    assert labels_of(torch.arange(8)[None], 0.25).tolist() == [[-100] * 6 + [6, 7]]


def test_ratios_are_against_the_baseline_of_the_same_cell() -> None:
    cell = {"scope": "loss", "words": 578, "tokens": 100, "supervised_share": 0.5}
    rows: list[dict[str, object]] = [
        {**cell, "loss": BASELINE, "peak_bytes": 4 * 2**20, "seconds": 2.0},
        {**cell, "loss": "ours", "peak_bytes": 2**20, "seconds": 1.0},
        {**cell, "loss": BASELINE, "failed": "over 24 GiB"},
        {**cell, "loss": "ours", "peak_bytes": 2**20, "seconds": 1.0},
    ]
    lines = table(rows).splitlines()[2:]
    assert [line.split("| ", 5)[5] for line in lines] == [
        "transformers | 4 | 1.00 | 50 | 1.00 |",
        "ours | 1 | 0.25 | 100 | 2.00 |",
        "transformers | over 24 GiB | | | |",
        "ours | 1 |  | 100 |  |",
    ]
