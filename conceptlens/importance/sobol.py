"""Sobol indices of concepts: the share of a class's score that each concept decides."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..model import ConceptModel
from .result import Importance
from .score import ClassScore, bootstrap, stderr_over_pictures

ORDERS = ("total", "first")


def sobol(
    cm: ConceptModel,
    codes: Tensor,
    target: int | str,
    *,
    n_designs: int = 32,
    order: str = "total",
    seed: int = 0,
    batch_size: int = 256,
) -> Importance:
    """Estimate the Sobol indices of the concepts' masks.

    A mask m ∈ [0, 1]ᵏ scales each concept at all positions; the score is
    ``cm.classify(m * codes)[:, target]``. Where it is affine in m, which is tested numerically,
    the indices are exact: βᵢ² / Σⱼ βⱼ². Elsewhere total indices are Jansen's estimator and first
    order ones Saltelli's, on a scrambled Sobol sequence.

    Parameters
    ----------
    cm : ConceptModel
        Only ``classify`` is used, without gradients.
    codes : Tensor
        ``(n, P, k)``, the pictures' codes.
    target : int or str
        The class, by index or by one of ``cm.class_names``.
    n_designs : int
        Number N of design points; N (k + 2) scores a picture. A power of two keeps the
        sequence balanced.
    order : {"total", "first"}
        Which index.
    seed : int
        Fixes design and bootstrap.
    batch_size : int
        The most code grids given to ``classify`` at once.

    Returns
    -------
    Importance
        ``values`` are means over the pictures; ``stderr`` comes from a bootstrap over design
        points and pictures.

    References
    ----------
    Fel et al., "Look at the variance!", NeurIPS 2021; Jansen, Comput. Phys. Commun. 1999;
    Saltelli et al., Comput. Phys. Commun. 2010.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
    if n_designs < 2:
        raise ValueError(f"n_designs must be at least 2, got {n_designs}")
    score = ClassScore.of(cm, codes, target, batch_size)
    n, _, k = codes.shape
    slopes = score.affine_slopes(seed)
    if slopes is not None:
        per_image = _shares(slopes**2)
        stderr = stderr_over_pictures(per_image, seed)
        method = f"Sobol {order}, exact (affine head)"
    else:
        a, b = _design(n_designs, k, seed)
        f_a, f_b, f_ab = _evaluate(score.masked, a, b)
        per_image = _estimate(f_a, f_b, f_ab, order)

        def resampled(pictures: Tensor, points: Tensor) -> Tensor:
            parts = [f[pictures][..., points] for f in (f_a, f_b, f_ab)]
            return _estimate(parts[0], parts[1], parts[2], order).mean(0)

        stderr = bootstrap(resampled, n, n_designs, seed).std(0)
        method = f"Sobol {order}, N = {n_designs}"
    constant = int((per_image == 0).all(1).sum())
    if constant:
        warnings.warn(
            f"the score of class {target!r} does not vary with the concepts for {constant} of "
            f"{n} pictures: their indices are 0",
            RuntimeWarning,
            stacklevel=2,
        )
    return score.importance(per_image, stderr, method)


def _design(n_designs: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two independent designs ``(N, k)`` from one scrambled Sobol sequence."""
    from scipy.stats import qmc

    points = qmc.Sobol(2 * k, rng=seed).random(n_designs)  # warns unless N is a power of two
    return torch.from_numpy(points[:, :k]), torch.from_numpy(points[:, k:])


def _evaluate(
    score: Callable[[Tensor], Tensor], a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f(A) ``(n, 1, N)``, f(B) ``(n, 1, N)`` and, for each concept, f(AB) ``(n, k, N)``."""
    n_designs, k = a.shape
    mixed = a.repeat(k, 1, 1)  # mixed[i] is A with column i from B
    mixed[range(k), :, range(k)] = b.T
    f = score(torch.cat([a, b, mixed.flatten(0, 1)]))
    f_a, f_b, f_ab = f.split([n_designs, n_designs, k * n_designs], dim=1)
    return f_a[:, None], f_b[:, None], f_ab.unflatten(1, (k, n_designs))


def _estimate(f_a: Tensor, f_b: Tensor, f_ab: Tensor, order: str) -> Tensor:
    """Indices ``(n, k)``; 0 where the score is constant."""
    both = torch.cat([f_a, f_b], 2)
    variance = both.var(2, correction=0)
    if order == "total":
        part = ((f_a - f_ab) ** 2).mean(2) / 2
    else:
        # Centring changes nothing in expectation and lowers the estimator's variance.
        part = ((f_b - both.mean(2, keepdim=True)) * (f_ab - f_a)).mean(2)
    return torch.where(variance > 0, part / variance.clamp(min=1e-300), 0.0)


def _shares(parts: Tensor) -> Tensor:
    total = parts.sum(1, keepdim=True)
    return torch.where(total > 0, parts / total.clamp(min=1e-300), 0.0)
