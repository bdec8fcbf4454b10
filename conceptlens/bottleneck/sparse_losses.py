"""The losses that train the bottleneck layer of `SparseCBM`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def gumbel_loss(
    outputs: Tensor, tau: float, generator: torch.Generator, *, hard: bool = False
) -> Tensor:
    """−log of a Gumbel-softmax sample over the concepts, and of one over the batch, averaged.

    Parameters
    ----------
    outputs : Tensor
        ``(n, k)`` of the bottleneck layer.
    tau : float
        The temperature: the lower, the nearer the samples are to one-hot.
    generator : torch.Generator
        On the CPU; the noise is moved to the outputs.
    hard : bool
        Average over the entries alone that the one-hot sample picks. (The logarithm of its other
        entries is infinite.)
    """
    halves = []
    for dim in (0, 1):
        draws = torch.empty(outputs.shape, dtype=torch.float64).exponential_(generator=generator)
        noisy = (outputs - draws.log().to(outputs)) / tau
        surprise = -noisy.log_softmax(dim)
        halves.append(surprise.amin(dim).mean() if hard else surprise.mean())
    return (halves[0] + halves[1]) / 2


def contrastive_loss(outputs: Tensor, scores: Tensor) -> Tensor:
    """Symmetric cross-entropy between the pictures of a batch and the concepts.

    Each picture is paired with the concept that the backbone finds most like it, and each concept
    with its most like picture of the batch. (The authors' code pairs the i-th picture with the i-th
    concept.)

    Parameters
    ----------
    outputs : Tensor
        ``(n, k)`` of the bottleneck layer.
    scores : Tensor
        ``(n, k)`` of the backbone.
    """
    halves = (
        -outputs.log_softmax(dim).gather(dim, scores.argmax(dim, keepdim=True)).mean()
        for dim in (0, 1)
    )
    return sum(halves, outputs.new_zeros(())) / 2


def l1_loss(weight: Tensor) -> Tensor:
    """The sum of the magnitudes of the layer's weights ``(k, k)`` over the number of concepts."""
    return weight.abs().sum() / len(weight)


def similarity_loss(outputs: Tensor, scores: Tensor) -> Tensor:
    """1 − the cosine over the batch of outputs and scores, both ``(n, k)``, centred and cubed.

    The cube makes the pictures count that a concept fits best.
    """
    a, b = (normalize((m - m.mean(0)) ** 3, dim=0) for m in (outputs, scores))
    return 1 - (a * b).sum(0).mean()
