"""t-SNE: its parts against their definitions, the gradient against autograd, and what a map must show."""

import numpy as np
import pytest
import torch

from longvid_train.evaluation.tsne import affinities, divergence, gradient, principal_components, tsne


def blobs(count: int, dimensions: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Three Gaussian clouds in different directions, and which is whose."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(3), count)
    return rng.standard_normal((3 * count, dimensions)) + gap * np.eye(3, dimensions)[owner], owner


def test_affinities_have_the_perplexity_and_are_a_symmetric_distribution() -> None:
    points, _ = blobs(20, 5, 3.0)
    found = affinities(points, 12.0)
    assert found.sum() == pytest.approx(1.0) and np.allclose(found, found.T) and (found.diagonal() == 0).all()
    # four equally distant neighbours of a corner: a perplexity of 3 is reached by none but the uniform row of 3
    corners = np.eye(4)
    assert np.allclose(affinities(corners, 3.0)[~np.eye(4, dtype=bool)], 1 / 12)


@pytest.mark.parametrize("perplexity", [5.0, 15.0])
def test_every_point_counts_with_as_many_neighbours_as_wanted(perplexity: float) -> None:
    """Far apart pairs of clouds keep the rows' own shares readable: each point's row of the mean has them doubled."""
    points, owner = blobs(20, 5, 1e4)
    found = affinities(points, perplexity)
    assert found[owner[:, None] != owner[None]].max() < 1e-12
    rows = found * len(points)  # (conditional + its transpose) / 2
    entropy = -(rows * np.log(np.maximum(rows, 1e-300))).sum(axis=1)
    assert np.exp(entropy).mean() == pytest.approx(perplexity, rel=0.35)


def test_the_gradient_is_the_divergence_s() -> None:
    points, _ = blobs(8, 4, 1.0)
    wanted = affinities(points, 5.0)
    placed = np.random.default_rng(1).standard_normal((24, 2))
    free = torch.tensor(placed, requires_grad=True)
    kernel = 1 / (1 + torch.cdist(free, free).square())
    kernel = kernel * (1 - torch.eye(24))
    made = kernel / kernel.sum()
    mask = ~torch.eye(24, dtype=torch.bool)
    target = torch.tensor(wanted)
    loss = (target[mask] * (target[mask] / made[mask]).log()).sum()
    loss.backward()
    assert divergence(wanted, placed) == pytest.approx(loss.item(), rel=1e-6)
    assert np.allclose(gradient(wanted, placed), free.grad.numpy(), atol=1e-9)


def test_a_map_keeps_clouds_apart_lowers_the_divergence_and_comes_out_again() -> None:
    points, owner = blobs(25, 10, 8.0)
    placed = tsne(points, perplexity=10.0, steps=400)
    distances = np.linalg.norm(placed[:, None] - placed[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (owner[distances.argmin(axis=1)] == owner).all()
    wanted = affinities(points, 10.0)
    assert divergence(wanted, placed) < 0.5 * divergence(wanted, principal_components(points))
    assert np.array_equal(placed, tsne(points, perplexity=10.0, steps=400))
    assert np.allclose(placed.mean(axis=0), 0.0)


def test_principal_components_are_those_of_the_covariance() -> None:
    points = np.random.default_rng(0).standard_normal((40, 6)) * np.array([5, 3, 1, 1, 1, 1])
    found = principal_components(points)
    values = np.sort(np.linalg.eigvalsh(np.cov(points.T)))[::-1]
    assert np.allclose(np.cov(found.T), np.diag(values[:2]), atol=1e-9)
    assert np.allclose(found, principal_components(points[::-1])[::-1])
