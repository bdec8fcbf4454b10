"""The losses of `SparseCBM`, against the formulas written out and against sampling."""

import math

import pytest
import torch

from conceptlens.bottleneck.sparse_losses import (
    contrastive_loss,
    gumbel_loss,
    l1_loss,
    similarity_loss,
)


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator, dtype=torch.float64)


def generator():
    return torch.Generator().manual_seed(1)


def mean_surprise(rows, tau, generator, hard, n_draws=20000):
    """The expected −log of samples of each row, by inverse transform of uniform numbers."""
    uniform = torch.rand(n_draws, *rows.shape, generator=generator, dtype=torch.float64)
    noisy = (rows - (-uniform.log()).log()) / tau
    samples = noisy.exp() / noisy.exp().sum(-1, keepdim=True)
    if hard:
        samples = samples.gather(-1, samples.argmax(-1, keepdim=True))
    return float(-samples.log().mean())


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_gumbel_loss_has_the_mean_that_sampling_gives(outputs, tau, hard):
    noise = generator()
    draws = torch.stack([gumbel_loss(outputs, tau, noise, hard=hard) for _ in range(4000)])
    truth = (
        mean_surprise(outputs, tau, generator(), hard)
        + mean_surprise(outputs.T, tau, generator(), hard)
    ) / 2
    assert abs(float(draws.mean()) - truth) < 4 * float(draws.std()) / math.sqrt(4000) + 0.01


def test_hard_samples_pick_concepts_by_their_probability(outputs):
    """Gumbel-max: where τ is small, the loss falls only where the picked entry wins."""
    row = outputs[:1].requires_grad_()
    noise, counts = generator(), torch.zeros(4, dtype=torch.float64)
    for _ in range(3000):
        (gradient,) = torch.autograd.grad(gumbel_loss(row, 1.0, noise, hard=True), row)
        counts[gradient.argmin()] += 1  # the picked concept alone is pushed up
    truth = row.detach().softmax(1)[0]
    assert (counts / 3000 - truth).abs().max() < 0.03


def test_gumbel_loss_follows_its_generator_and_its_device(outputs, device):
    once, again = (gumbel_loss(outputs, 0.7, generator()) for _ in range(2))
    assert torch.equal(once, again)
    there = gumbel_loss(outputs.to(device), 0.7, generator())
    assert there.device.type == device.type
    torch.testing.assert_close(there.cpu(), once)


def test_contrastive_loss_pairs_pictures_and_concepts_by_the_backbone(outputs):
    scores = torch.tensor([[3, 1, 0, 0], [0, 2, 9, 1], [5, 4, 2, 7.0]])
    z = outputs[:3]
    pictures = sum(torch.logsumexp(z[i], 0) - z[i, j] for i, j in [(0, 0), (1, 2), (2, 3)]) / 3
    pairs = [(2, 0), (2, 1), (1, 2), (2, 3)]
    concepts = sum(torch.logsumexp(z[:, j], 0) - z[i, j] for i, j in pairs) / 4
    torch.testing.assert_close(contrastive_loss(z, scores), (pictures + concepts) / 2)


def test_l1_loss_is_the_mean_sum_of_magnitudes_a_concept():
    assert float(l1_loss(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))) == 3.0


def test_similarity_loss_is_one_minus_the_cubed_cosine(outputs):
    scores = outputs.roll(1, 0) * 2 + 1
    cosines = []
    for j in range(4):
        a = (outputs[:, j] - outputs[:, j].mean()) ** 3
        b = (scores[:, j] - scores[:, j].mean()) ** 3
        cosines.append(float(a @ b / (a.norm() * b.norm())))
    assert float(similarity_loss(outputs, scores)) == pytest.approx(1 - sum(cosines) / 4)
    assert float(similarity_loss(outputs, 5 * outputs - 2)) == pytest.approx(0, abs=1e-12)
