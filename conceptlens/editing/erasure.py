"""Erasing concepts from activations, in closed form.

All three ways give the same small thing, a `LowRank` edit: a number read off the activation for
each erased concept, and a direction that is taken away as often as it says.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor

from ..metrics.checks import as_numbers, check_one_of, check_shape
from ..store import ActivationStore
from .low_rank import LowRank

METHODS = ("leace", "projection", "adapter")
CHUNK = 256  # pictures read from a store at once


class Moments:
    """Means and covariances of activations x ``(C,)`` and labels z ``(m,)``, in one pass.

    Batches are added with `update`; sums are kept in float64, each about a mean of its own, so
    that nothing is lost to cancellation.
    """

    def __init__(self) -> None:
        self.n = 0
        self.channels = 0
        self.dtype = torch.float32
        self.mean = self.scatter = torch.zeros(())

    def update(self, x: Tensor, z: Tensor) -> Moments:
        """Add rows ``(n, C)`` and ``(n, m)``."""
        rows = torch.cat([x.double(), z.to(x.device).double()], 1)
        n, mean = len(rows), rows.mean(0)
        centred = rows - mean
        scatter = centred.T @ centred
        if self.n:
            shift = mean - self.mean
            scatter += self.scatter + torch.outer(shift, shift) * (self.n * n / (self.n + n))
            mean = self.mean + shift * (n / (self.n + n))
        self.n, self.mean, self.scatter = self.n + n, mean, scatter
        self.channels, self.dtype = x.shape[1], torch.promote_types(x.dtype, torch.float32)
        return self

    def of(self, labels: list[int]) -> Moments:
        """The moments with some of the labels only."""
        kept = [*range(self.channels), *(self.channels + i for i in labels)]
        part = copy(self)
        part.mean, part.scatter = self.mean[kept], self.scatter[kept][:, kept]
        return part

    def edit(self, method: str = "leace") -> LowRank:
        """The edit that erases the labels, as `erase` says."""
        constant = (self.zz.diagonal() <= 0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(f"the labels of concepts {constant} never vary: nothing to erase")
        parts = {"leace": _leace, "projection": _projection, "adapter": _adapter}[method](self)
        return LowRank(*(part.to(self.dtype) for part in parts))

    @property
    def x(self) -> Tensor:
        """The mean activation ``(C,)``."""
        return self.mean[: self.channels]

    @property
    def xx(self) -> Tensor:
        """The covariance of activations ``(C, C)``."""
        return self.scatter[: self.channels, : self.channels] / self.n

    @property
    def xz(self) -> Tensor:
        """Their covariance with the labels ``(C, m)``."""
        return self.scatter[: self.channels, self.channels :] / self.n

    @property
    def zz(self) -> Tensor:
        """The covariance of the labels ``(m, m)``."""
        return self.scatter[self.channels :, self.channels :] / self.n


def erase(activations: Tensor | ActivationStore, labels: Any, *, method: str = "leace") -> LowRank:
    """Find the edit that erases concepts from activations.

    Parameters
    ----------
    activations : Tensor or ActivationStore
        ``(n, C)``, or ``(n, P, C)`` of n pictures; a store is read once, in parts.
    labels : Tensor
        The concepts, as 0 and 1 or as numbers. One a row: ``(n,)`` or ``(n, m)``. Of pictures
        with positions also one a position: ``(n, P)`` or ``(n, P, m)``; where there is one a
        picture, it is compared with the mean activation, which is what a head that averages
        reads. Of a vision transformer's head give the class token's rows, ``a[:, 0]``.
    method : {"leace", "projection", "adapter"}
        "leace" erases all that any linear probe could read, changing activations the least
        (in mean square). "projection" takes away the orthogonal projection onto the difference
        of means. Both leave the mean as it is. "adapter" is of rank one a concept: what the
        concept adds to the mean is subtracted as far as a least-squares reader finds the
        concept there, so that activations without it are preserved in mean square.

    Returns
    -------
    LowRank
        A module for `attach`; its tensors have the dtype and device of the activations.

    Raises
    ------
    ValueError
        For labels that do not fit, or that never vary.

    References
    ----------
    Belrose et al., "LEACE: Perfect linear concept erasure in closed form", NeurIPS 2023.
    Lyu et al., "One-dimensional adapter to rule them all", CVPR 2024 (rank one a concept).
    Gandikota et al., "Unified concept editing in diffusion models", WACV 2024 (the closed form).
    """
    check_one_of(method, "method", METHODS)
    moments = Moments()
    for x, z in _rows(activations, labels):
        moments.update(x, z)
    return moments.edit(method)


def project_out(directions: Any, *, centre: Tensor | None = None) -> LowRank:
    """The edit that takes away the orthogonal projection onto given directions ``(k, C)``.

    Parameters
    ----------
    directions : Tensor
        Such as rows of a dictionary or concept activation vectors.
    centre : Tensor, optional
        ``(C,)``, what is left as it is. Default: zero.
    """
    v = check_shape(directions, "directions", "k C")
    basis = _basis(v.T.double())
    if centre is None:
        centre = torch.zeros(v.shape[1], dtype=v.dtype, device=v.device)
    return LowRank(basis.to(v), basis.T.to(v), centre.to(v))


def _leace(moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Project obliquely: whiten, project out the covariance with the labels, colour again."""
    values, vectors = torch.linalg.eigh(moments.xx)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    roots = torch.where(kept, values.clamp(min=0).sqrt(), 0.0)
    inverse = torch.where(kept, 1 / roots.clamp(min=torch.finfo(roots.dtype).tiny), 0.0)
    whiten = (vectors * inverse) @ vectors.T
    basis = _basis(whiten @ moments.xz)
    return whiten @ basis, basis.T @ (vectors * roots) @ vectors.T, moments.x


def _projection(moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    basis = _basis(moments.xz)
    return basis, basis.T, moments.x


def _adapter(moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares both ways: the concepts from activations, and activations from concepts.

    It minimises E‖edit(x) − (x − z d)‖² over linear edits, where d is what a concept adds.
    """
    xx = moments.xx
    ridge = 1e-8 * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    readers = torch.linalg.solve(xx + ridge, moments.xz)
    directions = torch.linalg.pinv(moments.zz, hermitian=True) @ moments.xz.T
    # The mean activation where no concept is present, which the edit leaves as it is.
    return readers, directions, moments.x - moments.mean[moments.channels :] @ directions


def _basis(columns: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span, ``(C, r)``; what is zero but for rounding goes."""
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    return u[:, s > max(columns.shape) * torch.finfo(s.dtype).eps * s[0].clamp(min=1e-300)]


def _rows(activations: Any, labels: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of rows ``(b, C)`` and labels ``(b, m)``."""
    stored = isinstance(activations, ActivationStore)
    if not stored:
        activations = as_numbers(activations, "activations")
    z = as_numbers(labels, "labels")
    shape = tuple(activations.shape)
    if len(shape) not in (2, 3) or z.ndim < 1 or z.ndim > len(shape) or len(z) != shape[0]:
        raise ValueError(
            f"labels of shape {tuple(z.shape)} do not fit activations of shape {shape}: give one "
            "a row, (n,) or (n, m), or one a position, (n, P) or (n, P, m)"
        )
    by_position = len(shape) == 3 and z.ndim > 1 and (z.ndim == 3 or z.shape[1] == shape[1])
    for start in range(0, shape[0], CHUNK):
        a, some = activations[start : start + CHUNK], z[start : start + CHUNK]
        if by_position:
            a, some = a.flatten(0, 1), some.flatten(0, 1)
        elif a.ndim == 3:
            a = a.mean(1)
        a = check_shape(a, "activations", "n C")
        yield a, check_shape(some[:, None] if some.ndim == 1 else some, "labels", "n m", n=len(a))
