"""Sobol indices of concepts: the share of a class's score that each concept decides."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..checks import check_number, check_seed, check_whole
from ..model import ConceptModel
from .indices import ESTIMATORS, ORDERS, Affine, Scores, estimate, exact, pairs
from .result import Importance
from .score import ClassScore, bootstrap, result

DESIGNS = ("sobol", "halton", "lhs", "random")
TOP = 3  # how many concepts `tolerance` wants settled
TIE = 1e-6  # concepts whose indices differ by no more are interchangeable


def sobol(
    cm: ConceptModel,
    codes: Tensor,
    target: int | str,
    *,
    n_designs: int = 32,
    order: str = "total",
    estimator: str | None = None,
    design: str = "sobol",
    tolerance: float | None = None,
    max_designs: int = 1024,
    seed: int = 0,
    batch_size: int = 64,
) -> Importance:
    """Estimate the Sobol indices of the concepts' masks.

    A mask m ∈ [0, 1]ᵏ scales each concept at all positions; the score is
    ``cm.classify(m * codes)[:, target]``. Where it is affine in m, which is tested numerically,
    the indices are exact: βᵢ² / Σⱼ βⱼ². Elsewhere they are sampled, with two savings that change
    no expectation: each picture has a design of its own, so that errors average out over
    pictures, and the part of the score that is affine is taken out of the sampling.

    Parameters
    ----------
    cm : ConceptModel
        Only ``classify`` is used.
    codes : Tensor
        ``(n, P, k)``, the pictures' codes.
    target : int or str
        The class, by index or by one of ``cm.class_names``.
    n_designs : int
        Number N of design points a picture; N (k + 2) scores, for pairs N (2 k + 2). A power of
        two keeps the Sobol sequence balanced.
    order : {"total", "first", "second"}
        What a concept decides alone and with others, what it decides alone, or what each pair
        decides beyond what its two do alone.
    estimator : {"jansen", "saltelli", "janon", "homma-saltelli", "glen-isaacs"}, optional
        Default: Jansen's for total indices, Saltelli's for the others.
    design : {"sobol", "halton", "lhs", "random"}
        How masks are drawn: scrambled Sobol or Halton sequence, Latin hypercube, independent.
    tolerance : float, optional
        Double N, keeping the scores that there are, until no more than this share of the
        bootstrap's draws of the design has another set of three most important concepts.
    max_designs : int
        The largest N that `tolerance` may lead to; a warning says when it was not enough.
    seed : int
        Fixes design and bootstrap.
    batch_size : int
        The most code grids given to ``classify`` at once.

    Returns
    -------
    Importance
        ``values`` are means over the pictures; ``stderr`` comes from a bootstrap over design
        points and pictures. For ``order="second"`` each entry is a pair, "a × b".

    Raises
    ------
    ValueError
        For an unknown option or class, or codes of another shape.

    References
    ----------
    Fel et al., "Look at the variance!", NeurIPS 2021; `conceptlens.importance.indices` names the
    estimators' papers.

    Examples
    --------
    >>> from torch import nn
    >>> from conceptlens import NMF, Backbone, DictionaryModel
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    >>> bb, x = Backbone(model, "1"), torch.rand(6, 3, 32, 32)
    >>> cm = DictionaryModel(bb, NMF(3).fit(bb.activations(x).flatten(0, 1)))
    >>> importance = sobol(cm, cm.encode(x), target=2)
    >>> tuple(importance.values.shape), importance.method
    ((3,), 'Sobol total, exact (affine head)')
    """
    _check(n_designs, order, estimator, design)
    check_whole(max_designs, "max_designs")
    check_seed(seed)
    if tolerance is not None:
        check_number(tolerance, "tolerance", high=1)
    score = ClassScore.of(cm, codes, target, batch_size)
    names = score.concept_names
    if order == "second":
        names = [f"{names[i]} × {names[j]}" for i, j in zip(*pairs(len(names)), strict=True)]
    slopes = score.affine_slopes(seed)
    if slopes is not None:
        _warn_if_constant((slopes == 0).all(1), target)
        method = f"Sobol {order}, exact (affine head)"
        return result(score, exact(slopes, order), method, seed, names=names)
    estimator = estimator or ("jansen" if order == "total" else "saltelli")
    for f, affine in _samples(score, design, n_designs, order, seed):
        sample = _Sample(f, affine, order, estimator)
        if tolerance is None or sample.doubt(seed) <= tolerance:
            break
        if 2 * sample.n_designs > max_designs:
            warnings.warn(
                f"the {TOP} most important concepts are not settled with N = {sample.n_designs}: "
                f"{sample.doubt(seed):.0%} of the bootstrap's draws have others, tolerance is "
                f"{tolerance:.0%}; raise max_designs, or take the order as undecided",
                RuntimeWarning,
                stacklevel=2,
            )
            break
    _warn_if_constant(f.variance[:, 0] == 0, target)
    method = f"Sobol {order} ({estimator}), N = {sample.n_designs}"
    stderr = sample.draws(seed).std(0)
    return result(score, sample.indices(), method, seed, stderr=stderr, names=names)


@dataclass(frozen=True, eq=False)
class _Sample:
    """Scores of n pictures on N design points each, and what is made of them."""

    f: Scores
    affine: Affine
    order: str
    estimator: str

    @property
    def n_designs(self) -> int:
        return self.f.a.shape[2]

    def indices(self) -> Tensor:
        return estimate(self.f, self.order, self.estimator, self.affine)

    def draws(self, seed: int, same_pictures: bool = False) -> Tensor:
        """The mean over pictures, by bootstrap over design points and, if asked, pictures."""
        n = len(self.f.a)

        def draw(pictures: Tensor, points: Tensor) -> Tensor:
            pictures = torch.arange(n) if same_pictures else pictures
            f, affine = self.f.at(pictures, points), self.affine.at(pictures, points)
            return estimate(f, self.order, self.estimator, affine).mean(0)

        return bootstrap(draw, n, self.n_designs, seed)

    def doubt(self, seed: int) -> float:
        """The share of draws of the design in which another concept enters the first three."""
        ranking = self.indices().mean(0).argsort(descending=True)
        if len(ranking) <= TOP:
            return 0.0
        draws = self.draws(seed, same_pictures=True)[:, ranking]
        lead = draws[:, :TOP].amin(1) - draws[:, TOP:].amax(1)
        return float((lead < -TIE).double().mean())


def _samples(
    score: ClassScore, design: str, n_designs: int, order: str, seed: int
) -> Iterator[tuple[Scores, Affine]]:
    """Scores, and affine functions near them, on N, 2 N, 4 N, … points a picture."""
    n, _, k = score.codes.shape
    draw = _sampler(design, 2 * k, seed)
    points = torch.empty(n, 0, 2 * k, dtype=torch.float64)
    scores = torch.empty(n, 2 + (2 * k if order == "second" else k), 0, dtype=torch.float64)
    while True:
        new = torch.from_numpy(np.stack([draw(n_designs) for _ in range(n)]))
        points = torch.cat([points, new], 1)
        scores = torch.cat([scores, _evaluate(score, new, scores.shape[1])], 2)
        f = Scores.split(scores, k)
        yield f, Affine.fit(f, *points.chunk(2, 2))
        n_designs = points.shape[1]


def _evaluate(score: ClassScore, points: Tensor, columns: int) -> Tensor:
    """The scores ``(n, columns, N)`` on A, B, each ABᵢ and, if asked for, each BAᵢ."""
    a, b = points.chunk(2, 2)
    _, n_designs, k = a.shape
    one = torch.eye(k, dtype=torch.bool)
    none = torch.zeros(1, k, dtype=torch.bool)
    from_b = torch.cat([none, ~none, one, ~one])  # which entries of a column's masks are B's

    def mask_of(picture: Tensor, row: Tensor) -> Tensor:
        column, point = row // n_designs, row % n_designs
        return torch.where(from_b[column], b[picture, point], a[picture, point])

    return score.evaluate(mask_of, columns * n_designs).unflatten(1, (columns, n_designs))


def _sampler(design: str, dimensions: int, seed: int) -> Callable[[int], np.ndarray]:
    """Return the function that draws the design's next N points ``(N, dimensions)``."""
    from scipy.stats import qmc

    if design == "random":
        rng = np.random.default_rng(seed)
        return lambda n: rng.random((n, dimensions))
    # Sobol's warns unless N is a power of two.
    engine = {"sobol": qmc.Sobol, "halton": qmc.Halton, "lhs": qmc.LatinHypercube}[design]
    return engine(dimensions, rng=seed).random


def _check(n_designs: int, order: str, estimator: str | None, design: str) -> None:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
    if estimator is not None and estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {tuple(ESTIMATORS)}, got {estimator!r}")
    if design not in DESIGNS:
        raise ValueError(f"design must be one of {DESIGNS}, got {design!r}")
    check_whole(n_designs, "n_designs", 2)


def _warn_if_constant(constant: Tensor, target: int | str) -> None:
    if constant.any():
        warnings.warn(
            f"the score of class {target!r} does not vary with the concepts for "
            f"{int(constant.sum())} of {len(constant)} pictures: their indices are 0",
            RuntimeWarning,
            stacklevel=3,
        )
