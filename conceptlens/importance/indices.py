"""Sobol indices from scores on pairs of designs: the estimators, and an affine control variate.

A and B are independent designs of N masks; ABᵢ is A with concept i from B, BAᵢ is B with concept i
from A. Two scores whose masks share some concepts correlate by what those concepts, alone and
together, decide of the score: a first order index is the correlation of f(B) and f(ABᵢ), which
share concept i; a total index is one less that of f(A) and f(ABᵢ), which share all others; the
closed index of a pair is that of f(BAᵢ) and f(ABⱼ). An estimator estimates a correlation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ORDERS = ("total", "first", "second")
VARIANCE = 1 / 12  # of an entry of a mask, uniform on [0, 1]
_Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores ``(n, 1, N)`` on A and B, ``(n, k, N)`` on ABᵢ and, for pairs, on BAᵢ."""

    a: Tensor
    b: Tensor
    ab: Tensor
    ba: Tensor | None = None

    @classmethod
    def split(cls, f: Tensor, k: int) -> Scores:
        """Of scores ``(n, columns, N)`` in the order A, B, AB₁ … ABₖ, BA₁ … BAₖ."""
        ba = f[:, 2 + k :] if f.shape[1] > 2 + k else None
        return cls(f[:, :1], f[:, 1:2], f[:, 2 : 2 + k], ba)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Scores:
        """The same scores, changed by `fn`."""
        ba = None if self.ba is None else fn(self.ba)
        return Scores(fn(self.a), fn(self.b), fn(self.ab), ba)

    def centred(self) -> Scores:
        """Without the mean over A and B: no index changes, most of them vary less."""
        mean = torch.cat([self.a, self.b], 2).mean(2, keepdim=True)
        return self.map(lambda f: f - mean)

    def at(self, pictures: Tensor, points: Tensor) -> Scores:
        """Some pictures ``(n',)``, each at some of its design points ``(n', N')``."""
        return self.map(lambda f: f[pictures].gather(2, points[:, None].expand(-1, f.shape[1], -1)))

    @property
    def variance(self) -> Tensor:
        """The variance ``(n, 1)`` over A and B."""
        return torch.cat([self.a, self.b], 2).var(2, correction=0)


@dataclass(frozen=True, eq=False)
class Affine:
    """Affine functions of the mask near the pictures' scores: slopes ``(n, k)``, and values."""

    slopes: Tensor
    scores: Scores

    @classmethod
    def fit(cls, f: Scores, a: Tensor, b: Tensor) -> Affine:
        """Least squares over all masks, from designs ``(n, N, k)``."""
        ones = torch.ones_like(a[..., :1])
        x_a, x_b = torch.cat([ones, a], 2), torch.cat([ones, b], 2)
        step = torch.cat([0 * ones, b - a], 2)  # ABᵢ is A with its entry i moved by step i
        cross = x_a.mT @ step
        gram = (1 + a.shape[2]) * x_a.mT @ x_a + x_b.mT @ x_b + cross + cross.mT
        gram += torch.diag_embed((step**2).sum(1))
        moment = x_a.mT @ (f.a + f.ab.sum(1, keepdim=True)).mT + x_b.mT @ f.b.mT
        moment[:, 1:] += (step[..., 1:].mT * f.ab).sum(2, keepdim=True)
        slopes = torch.linalg.lstsq(gram, moment).solution[:, 1:]  # (n, k, 1)
        # Any slopes serve; none where a concept changes nothing keeps its index exactly 0.
        slopes = slopes * (f.ab != f.a).any(2, keepdim=True)
        on_a, on_b = (a @ slopes).mT, (b @ slopes).mT
        change = slopes * (b - a).mT
        on_ba = None if f.ba is None else on_b - change
        return cls(slopes[..., 0], Scores(on_a, on_b, on_a + change, on_ba))

    def at(self, pictures: Tensor, points: Tensor) -> Affine:
        """Some pictures, each at some of its design points."""
        return Affine(self.slopes[pictures], self.scores.at(pictures, points))


# -- estimators: covariance and variance of y and y2, which z is independent of --------------------


def jansen(y: Tensor, y2: Tensor, z: Tensor, variance: Tensor) -> _Moments:
    """From the squared difference (Jansen, Comput. Phys. Commun. 1999)."""
    return variance - ((y - y2) ** 2).mean(-1) / 2, variance


def saltelli(y: Tensor, y2: Tensor, z: Tensor, variance: Tensor) -> _Moments:
    """From a difference that cancels what y2 shares with z (Saltelli et al., ibid. 2010)."""
    return (y * (y2 - z)).mean(-1), variance


def homma_saltelli(y: Tensor, y2: Tensor, z: Tensor, variance: Tensor) -> _Moments:
    """From the product (Homma & Saltelli, Reliab. Eng. Syst. Saf. 1996)."""
    return (y * y2).mean(-1), variance


def janon(y: Tensor, y2: Tensor, z: Tensor, variance: Tensor) -> _Moments:
    """With mean and variance from both scores (Janon et al., ESAIM Probab. Stat. 2014)."""
    mean = (y + y2).mean(-1) / 2
    return (y * y2).mean(-1) - mean**2, (y**2 + y2**2).mean(-1) / 2 - mean**2


def glen_isaacs(y: Tensor, y2: Tensor, z: Tensor, variance: Tensor) -> _Moments:
    """Pearson's correlation (Glen & Isaacs, Environ. Model. Softw. 2012)."""
    y, y2 = y - y.mean(-1, keepdim=True), y2 - y2.mean(-1, keepdim=True)
    return (y * y2).mean(-1), ((y**2).mean(-1) * (y2**2).mean(-1)).sqrt()


ESTIMATORS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], _Moments]] = {
    "jansen": jansen,
    "saltelli": saltelli,
    "janon": janon,
    "homma-saltelli": homma_saltelli,
    "glen-isaacs": glen_isaacs,
}


# -- indices ---------------------------------------------------------------------------------------


def estimate(f: Scores, order: str, estimator: str, affine: Affine | None = None) -> Tensor:
    """The indices ``(n, k)``, of pairs ``(n, k (k − 1) / 2)``; 0 where the score is constant.

    Given the affine function near the score as a control variate, the errors that the same masks
    make on it are taken off covariance and variance: only what is not affine is left to chance.
    """
    f = f.centred()
    g = None if affine is None else affine.scores.centred()
    # What each concept decides of the affine function's variance.
    parts = torch.zeros(()) if affine is None else affine.slopes**2 * VARIANCE
    whole = parts.sum(-1, keepdim=True)

    def correlate(pair: Callable[[Scores], tuple[Any, Any, Any]], shared: Tensor) -> _Moments:
        covariance, variance = ESTIMATORS[estimator](*pair(f), f.variance)
        if g is not None:
            error_c, error_v = ESTIMATORS[estimator](*pair(g), g.variance)
            covariance = covariance - error_c + shared
            variance = variance - error_v + whole
        return covariance, variance

    if order == "total":
        covariance, variance = correlate(lambda s: (s.a, s.ab, s.b), whole - parts)
        return _ratio(variance - covariance, variance)
    first = _ratio(*correlate(lambda s: (s.b, s.ab, s.a), parts))
    if order == "first":
        return first
    i, j = pairs(f.ab.shape[1])
    shared = parts if affine is None else parts[:, i] + parts[:, j]
    closed = correlate(lambda s: (s.ba[:, i], s.ab[:, j], torch.zeros_like(s.a)), shared)  # type: ignore[index]
    return _ratio(*closed) - first[:, i] - first[:, j]


def exact(slopes: Tensor, order: str) -> Tensor:
    """The indices of affine scores with these slopes ``(n, k)``."""
    if order == "second":
        return slopes.new_zeros(len(slopes), len(pairs(slopes.shape[1])[0]))
    return _ratio(slopes**2, (slopes**2).sum(1, keepdim=True))


def pairs(k: int) -> tuple[Tensor, Tensor]:
    """The first and the second concepts of all pairs of k concepts."""
    i, j = torch.triu_indices(k, k, 1)
    return i, j


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1e-300), 0.0)
