"""How good an extraction is: reconstruction, sparsity, distance of reconstructions from the data.

Letters: `a` and `rebuilt` are rows of activations ``(n, C)``, `codes` are ``(n, k)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..batching import in_batches
from .checks import check_shape
from .result import Estimate


def relative_error(a: Any, rebuilt: Any) -> float:
    """‖a − rebuilt‖ / ‖a‖ (Frobenius): 0 for a perfect reconstruction, 1 for zeros."""
    a, rebuilt = _pair(a, rebuilt)
    size = float(a.norm())
    if size == 0:
        raise ValueError("a holds only zeros, so an error relative to it does not exist")
    return float((a - rebuilt).norm()) / size


def r2(a: Any, rebuilt: Any) -> float:
    """The share of the variance of `a` that `rebuilt` explains, over all channels together.

    1 for a perfect reconstruction, 0 for the channels' means, below 0 for worse than these.
    """
    a, rebuilt = _pair(a, rebuilt)
    total = float((a - a.mean(0)).square().sum())
    if total == 0:
        raise ValueError("all rows of a are equal, so there is no variance to explain")
    return 1 - float((a - rebuilt).square().sum()) / total


def l0(codes: Any) -> Estimate:
    """Number of concepts in a row that are not zero, from 0 to k."""
    return Estimate((check_shape(codes, "codes", "n k") != 0).sum(1).double().cpu())


def hoyer(codes: Any) -> Estimate:
    """Hoyer's sparsity of each row: 0 where all concepts are equal, 1 where one is alone.

    It is (√k − ‖u‖₁ / ‖u‖₂) / (√k − 1); rows of zeros are left out.

    References
    ----------
    Hoyer, "Non-negative matrix factorization with sparseness constraints", JMLR 2004.
    """
    u = _codes(codes)
    root = math.sqrt(u.shape[1])
    return Estimate((root - u.sum(1) / u.norm(dim=1)) / (root - 1))


def gini(codes: Any) -> Estimate:
    """Gini index of each row: 0 where all concepts are equal, 1 − 1/k where one is alone.

    Rows of zeros are left out.

    References
    ----------
    Hurley & Rickard, "Comparing measures of sparsity", IEEE Trans. Information Theory 2009.
    """
    u = _codes(codes).sort(1).values
    k = u.shape[1]
    weights = 2 * torch.arange(1, k + 1, dtype=u.dtype) - k - 1
    return Estimate(u @ weights / (k * u.sum(1)))


def frechet_distance(a: Any, b: Any) -> float:
    """Fréchet distance between Gaussians fitted to two sets of rows, squared, as in FID.

    ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½): 0 for equal means and covariances.

    Parameters
    ----------
    a, b : Tensor
        ``(n, C)`` and ``(m, C)``, with at least two rows each.

    References
    ----------
    Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017.
    """
    a, b = _pair(a, b, same_rows=False)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs two rows or more, got {len(a)} and {len(b)}")
    c_a, c_b = (torch.cov(rows.T).reshape(rows.shape[1], -1) for rows in (a, b))
    values, vectors = torch.linalg.eigh(c_a)
    root = vectors * values.clamp(min=0).sqrt()  # c_a = root rootᵀ
    # Σ_a Σ_b has the eigenvalues of rootᵀ Σ_b root, which is symmetric.
    cross = torch.linalg.eigvalsh(root.T @ c_b @ root).clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return max(float(means + c_a.trace() + c_b.trace() - 2 * cross), 0.0)


def wasserstein(a: Any, b: Any, *, n_directions: int = 64, seed: int = 0) -> float:
    """Sliced 1-Wasserstein distance: the mean distance of the sets' shadows on random lines.

    Parameters
    ----------
    a, b : Tensor
        ``(n, C)`` and ``(m, C)``.
    n_directions : int
        Number of lines.
    seed : int
        Fixes the lines.

    References
    ----------
    Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures", JMIV 2015.
    """
    a, b = _pair(a, b, same_rows=False)
    if n_directions < 1:
        raise ValueError(f"n_directions must be at least 1, got {n_directions}")
    noise = torch.randn(
        a.shape[1], n_directions, generator=torch.Generator().manual_seed(seed), dtype=a.dtype
    )
    lines = torch.nn.functional.normalize(noise, dim=0).to(a)
    x, y = (a @ lines).sort(0).values, (b @ lines).sort(0).values
    # The quantile functions are constant between these levels; compare them in the middle.
    n, m = len(x), len(y)
    levels = torch.cat([torch.arange(1, n + 1) / n, torch.arange(1, m + 1) / m]).double().sort()[0]
    widths = levels.diff(prepend=levels.new_zeros(1))
    middle = levels - widths / 2
    i, j = ((middle * size).long().clamp(max=size - 1).to(a.device) for size in (n, m))
    return float((widths.to(a)[:, None] * (x[i] - y[j]).abs()).sum(0).mean())


def ood_score(rebuilt: Any, a: Any, batch_size: int = 1024) -> float:
    """How far reconstructions lie from the real rows, relative to how far these lie apart.

    The mean distance of a rebuilt row to the nearest real row, divided by that of a real row to
    the nearest other real row. 0: every reconstruction is a real row; about 1: they could be real
    rows; far above 1: they are nothing that the network has seen.

    Parameters
    ----------
    rebuilt : Tensor
        ``(m, C)``.
    a : Tensor
        The real rows ``(n, C)``, n ≥ 2.
    batch_size : int
        The most rows whose distances to `a` are held at once.
    """
    a, rebuilt = _pair(a, rebuilt, same_rows=False)
    if len(a) < 2:
        raise ValueError(f"a must hold two rows or more, got {len(a)}")

    def nearest(rows: Tensor, rank: int) -> float:
        # The product form of the distance would lose the digits of near neighbours.
        def block(part: Tensor) -> Tensor:
            distances = torch.cdist(part, a, compute_mode="donot_use_mm_for_euclid_dist")
            return distances.kthvalue(rank, dim=1).values

        return float(in_batches(block, rows, batch_size).mean())

    apart = nearest(a, 2)  # the nearest of all is the row itself
    if apart == 0:
        raise ValueError("every row of a occurs twice: remove the duplicates")
    return nearest(rebuilt, 1) / apart


def coherence(features: Any, concepts: Any) -> Tensor:
    """How alike a concept's crops are: their mean cosine, pair by pair, about the common mean.

    Parameters
    ----------
    features : Tensor
        ``(n, C)``, one row a crop, from any network.
    concepts : Tensor
        ``(n,)`` integers from 0 to k − 1: the concept that each crop is shown for.

    Returns
    -------
    Tensor
        ``(k,)``, from −1 to 1: 1 where the concept's crops are all the same, about 0 where they
        are drawn from all crops at random, NaN for a concept with fewer than two crops.
    """
    rows = check_shape(features, "features", "n C").detach().double().cpu()
    owners = check_shape(concepts, "concepts", "n", n=len(rows)).cpu()
    if owners.is_floating_point() or owners.min() < 0:
        raise ValueError("concepts must hold integers from 0 up, got others")
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    members = torch.nn.functional.one_hot(owners.long()).double()
    count = members.sum(0)
    # ‖Σ x‖² = Σ ‖x‖² + the cosines of all ordered pairs
    pairs = (members.T @ rows).square().sum(1) - members.T @ rows.square().sum(1)
    return pairs / (count * (count - 1))


def _pair(a: Any, b: Any, same_rows: bool = True) -> tuple[Tensor, Tensor]:
    """Both as float64: in float32 sums of many squares lose digits."""
    a = check_shape(a, "a", "n C").detach()
    sizes = {"n": len(a)} if same_rows else {}
    b = check_shape(b, "the other rows", "n C", C=a.shape[1], **sizes).detach()
    return a.double(), b.double().to(a.device)


def _codes(codes: Any) -> Tensor:
    u = check_shape(codes, "codes", "n k").detach().double().abs().cpu()
    if u.shape[1] < 2:
        raise ValueError("sparsity within a row needs two concepts or more, got 1")
    return u
