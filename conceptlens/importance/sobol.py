"""Sobol indices of concepts: the share of a class's score that each concept decides."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backbone import class_index
from ..batching import in_batches
from .result import Importance

ORDERS = ("total", "first")
N_BOOTSTRAP = 200
# Scores that deviate from an affine function by no more than this share of their range are affine.
AFFINE_TOLERANCE = 1e-4
N_AFFINE_CHECKS = 8


def sobol(
    cm: Any,
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
    if codes.ndim != 3 or 0 in codes.shape:
        raise ValueError(f"codes must have shape (n, P, k), got {tuple(codes.shape)}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
    if n_designs < 2:
        raise ValueError(f"n_designs must be at least 2, got {n_designs}")
    names = getattr(cm, "class_names", None)
    index = class_index(target, names)
    score = _scores(cm, codes.detach(), index, batch_size)
    n, _, k = codes.shape
    generator = torch.Generator().manual_seed(seed)
    slopes = _affine_slopes(score, k, generator)
    if slopes is not None:
        per_image = _shares(slopes**2)
        stderr = _bootstrap(lambda pictures, _: per_image[pictures].mean(0), n, 1, generator)
        method = f"Sobol {order}, exact (affine head)"
    else:
        a, b = _design(n_designs, k, seed)
        f_a, f_b, f_ab = _evaluate(score, a, b)
        per_image = _estimate(f_a, f_b, f_ab, order)

        def resampled(pictures: Tensor, points: Tensor) -> Tensor:
            parts = [f[pictures][..., points] for f in (f_a, f_b, f_ab)]
            return _estimate(parts[0], parts[1], parts[2], order).mean(0)

        stderr = _bootstrap(resampled, n, n_designs, generator)
        method = f"Sobol {order}, N = {n_designs}"
    constant = int((per_image == 0).all(1).sum())
    if constant:
        warnings.warn(
            f"the score of class {target!r} does not vary with the concepts for {constant} of "
            f"{n} pictures: their indices are 0",
            RuntimeWarning,
            stacklevel=2,
        )
    return Importance(
        values=per_image.mean(0),
        stderr=stderr,
        per_image=per_image,
        method=method,
        target=f"class {index}" if names is None else names[index],
        concept_names=list(getattr(cm, "concept_names", [f"concept {i}" for i in range(k)])),
    )


def _scores(cm: Any, codes: Tensor, index: int, batch_size: int) -> Callable[[Tensor], Tensor]:
    """The score as a function of masks ``(m, k)``: ``(n, m)`` in float64 on the CPU."""
    n = len(codes)

    def score(masks: Tensor) -> Tensor:
        masks = masks.to(codes)

        def block(pairs: Tensor) -> Tensor:
            picture, mask = pairs // len(masks), pairs % len(masks)
            logits: Tensor = cm.classify(codes[picture] * masks[mask][:, None])
            if index >= logits.shape[1]:
                raise ValueError(f"class {index} does not exist: there are {logits.shape[1]}")
            return logits[:, index].double().cpu()

        pairs = torch.arange(n * len(masks), device=codes.device)
        with torch.no_grad():
            return in_batches(block, pairs, batch_size).reshape(n, len(masks))

    return score


def _affine_slopes(
    score: Callable[[Tensor], Tensor], k: int, generator: torch.Generator
) -> Tensor | None:
    """The slopes ``(n, k)`` where every picture's score is affine in the mask, else None."""
    corners = torch.cat([torch.zeros(1, k), torch.eye(k)]).double()
    at_corners = score(corners)
    slopes = at_corners[:, 1:] - at_corners[:, :1]
    masks = torch.rand(N_AFFINE_CHECKS, k, generator=generator, dtype=torch.float64)
    deviation = (score(masks) - at_corners[:, :1] - slopes @ masks.T).abs().amax(1)
    scale = slopes.abs().amax(1)
    return slopes if (deviation <= AFFINE_TOLERANCE * scale).all() else None


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


def _bootstrap(
    estimate: Callable[[Tensor, Tensor], Tensor], n: int, n_designs: int, generator: torch.Generator
) -> Tensor:
    """Standard deviation of the estimate over resampled pictures and design points."""
    draws = [
        estimate(
            torch.randint(n, (n,), generator=generator),
            torch.randint(n_designs, (n_designs,), generator=generator),
        )
        for _ in range(N_BOOTSTRAP)
    ]
    return torch.stack(draws).std(0)
