"""Names by what a CLIP says of the pictures that a concept is strong in: CLIP-Dissect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..batching import in_batches
from ..metrics.checks import check_shape
from .names import TOP, Names, best
from .vocabulary import check_words

# The authors' settings: how sure the strongest and the weakest of the strongest pictures is to
# hold the concept, the temperature of the words, and a floor for probabilities.
SURE, LESS_SURE = 0.998, 0.97
TEMPERATURE = 10.0
FLOOR = 1e-7
N_SETS = 200  # of random pictures, which say how common a word is
NUMBERS = 2**26  # the most that are held at once


def by_dissection(
    activations: Any,
    similarities: Any,
    vocabulary: Sequence[str],
    *,
    n_pictures: int = 100,
    top: int = TOP,
    random_state: int = 0,
) -> Names:
    """Name concepts by soft weighted pointwise mutual information, as CLIP-Dissect does.

    Parameters
    ----------
    activations : Tensor or array
        ``(n, k)``: each concept's strength in n probe pictures, for instance its largest code.
        Concepts of any network.
    similarities : Tensor or array
        ``(n, m)``: cosines between the pictures and the words, by any CLIP.
    vocabulary : sequence of str
        m different words.
    n_pictures : int
        How many of the pictures a concept is strongest in to look at. Fewer than the pictures
        that hold the concept.
    top : int
        How many candidates to keep.
    random_state : int
        Fixes the random sets of pictures.

    Returns
    -------
    Names
        Scores are log p(word | the concept's pictures) - log p(word), in nats. The confidence is
        the correlation, over all pictures, of the concept's activation with the similarity of its
        name; 0 for a concept that is the same everywhere.

    Notes
    -----
    The authors take p(word) over all units of a layer, so that a concept's name depends on the
    others, and nothing is left to tell words apart where units are few. Here it is the mean over
    random sets of as many pictures.

    References
    ----------
    Oikarinen & Weng, "CLIP-Dissect: automatic description of neuron representations in deep
    vision networks", ICLR 2023.
    """
    words = check_words(vocabulary)
    strength = check_shape(activations, "activations", "n k").float()
    n = len(strength)
    cosines = check_shape(similarities, "similarities", "n m", n=n, m=len(words)).to(strength)
    if not 1 <= n_pictures <= n:
        raise ValueError(f"n_pictures must be from 1 to the {n} pictures there are: {n_pictures}")
    with torch.no_grad():
        strongest = strength.topk(n_pictures, dim=0).indices.T  # (k, n_pictures)
        generator = torch.Generator().manual_seed(random_state)
        random = torch.stack([torch.randperm(n, generator=generator) for _ in range(N_SETS)])
        random = random[:, :n_pictures].to(cosines.device)
        given = (TEMPERATURE * cosines).softmax(1)  # (n, m), p(word | picture)
        log_common = log_likelihood(given, random).logsumexp(0) - math.log(N_SETS)
        scores = log_likelihood(given, strongest) - log_common
        return best(
            scores,
            words,
            "CLIP-Dissect (soft WPMI)",
            top=top,
            confidence=lambda chosen: _correlation(strength, cosines[:, chosen]),
        )


def log_likelihood(given: Tensor, sets: Tensor) -> Tensor:
    """Log p(word | set of pictures) ``(k, m)``: Σ_i log(1 + s_i (p(word | picture i) - 1)).

    Parameters
    ----------
    given : Tensor
        ``(n, m)``, p(word | picture).
    sets : Tensor
        ``(k, r)``, indices of pictures, surest first; s_i falls from `SURE` to `LESS_SURE`.
    """
    r = sets.shape[1]
    sure = SURE - (SURE - LESS_SURE) * torch.arange(r, device=given.device).to(given) / r

    def of(rows: Tensor) -> Tensor:
        return (1 + sure[:, None] * (given[rows] - 1) + FLOOR).log().sum(1)

    return in_batches(of, sets, max(1, NUMBERS // (r * given.shape[1])))


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of the columns of ``(n, k)`` with those of ``(n, k)``: ``(k,)``."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = a.norm(dim=0) * b.norm(dim=0)
    return (a * b).sum(0) / size.clamp(min=torch.finfo(a.dtype).tiny)
