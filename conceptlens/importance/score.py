"""The score of one class as a function of codes, and of masks over whole concepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backbone import class_index
from ..batching import in_batches
from ..checks import check_finite, check_tensor, check_whole
from ..progress import bar
from .result import Importance

N_BOOTSTRAP = 200
# Scores that deviate from an affine function by no more than this share of their range are affine.
AFFINE_TOLERANCE = 1e-4
N_AFFINE_CHECKS = 8


class PassesNoGradients(TypeError):
    """A method by gradients was given a model that records none."""


@dataclass(frozen=True, eq=False)
class ClassScore:
    """The logit of class `index`, for the pictures whose codes ``(n, P, k)`` are given."""

    cm: Any
    codes: Tensor
    index: int
    batch_size: int

    @classmethod
    def of(cls, cm: Any, codes: Tensor, target: int | str, batch_size: int) -> ClassScore:
        """Check what the user gave."""
        if not hasattr(cm, "classify"):
            raise TypeError(f"cm must be a ConceptModel, with classify, got {type(cm).__name__}")
        check_tensor(codes, "codes", "n, P, k")
        check_finite(codes, "codes")
        check_whole(batch_size, "batch_size")
        index = class_index(target, getattr(cm, "class_names", None))
        return cls(cm, codes.detach(), index, batch_size)

    @property
    def target(self) -> str:
        """The class's name."""
        names = getattr(self.cm, "class_names", None)
        return f"class {self.index}" if names is None else names[self.index]

    @property
    def concept_names(self) -> list[str]:
        """One name a concept."""
        default = [f"concept {i}" for i in range(self.codes.shape[2])]
        return list(getattr(self.cm, "concept_names", default))

    def __call__(self, codes: Tensor) -> Tensor:
        """The logits ``(b,)`` of codes ``(b, P, k)``; gradients flow if the codes ask for them."""
        logits: Tensor = self.cm.classify(codes)
        if self.index >= logits.shape[1]:
            raise ValueError(f"class {self.index} does not exist: there are {logits.shape[1]}")
        if codes.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            raise PassesNoGradients(
                "the model's classify passes no gradients to the codes: use a method that needs "
                "none, such as method='occlusion' or 'shapley', or sobol"
            )
        return logits[:, self.index]

    def masked(self, masks: Tensor) -> Tensor:
        """The scores ``(n, m)`` under masks ``(m, k)``, in float64 on the CPU.

        A mask scales each concept at all positions.
        """
        return self.evaluate(lambda _, row: masks[row], len(masks))

    def evaluate(self, mask_of: Callable[[Tensor, Tensor], Tensor], m: int) -> Tensor:
        """The scores ``(n, m)`` under m masks a picture, in float64 on the CPU.

        Masks ``(b, k)`` are made as they are needed, from pictures and rows ``(b,)``.
        """
        n = len(self.codes)
        with torch.no_grad(), bar("scores", n * m, "score") as progress:

            def block(pairs: Tensor) -> Tensor:
                picture = pairs // m
                masks = mask_of(picture, pairs % m).to(self.codes)
                scores = self(self.codes[picture.to(self.codes.device)] * masks[:, None])
                progress.update(len(pairs))
                return scores.double().cpu()

            return in_batches(block, torch.arange(n * m), self.batch_size).reshape(n, m)

    def affine_slopes(self, seed: int) -> Tensor | None:
        """The slopes ``(n, k)`` where every picture's score is affine in the mask, else None.

        The candidate is the tangent at the first picture's codes: a head that is affine has it
        everywhere, so that one score a picture, under a random mask, is enough of a check.
        """
        generator = torch.Generator().manual_seed(seed)
        tangent = self._tangent(self.codes[:1])
        if tangent is None:
            return None
        gradient, offset = tangent
        codes = self.codes.repeat(-(-N_AFFINE_CHECKS // len(self.codes)), 1, 1)
        masks = torch.rand(len(codes), 1, codes.shape[2], generator=generator).to(codes)
        parts = _over_positions(gradient, codes)
        expected = offset + (parts * masks[:, 0]).double().sum(1).cpu()
        with torch.no_grad():
            found = in_batches(
                lambda rows: self(codes[rows] * masks[rows]).double().cpu(),
                torch.arange(len(codes), device=codes.device),
                self.batch_size,
            )
        slopes = parts[: len(self.codes)].double().cpu()
        scale = parts.abs().amax(1).double().cpu()
        is_affine = ((found - expected).abs() <= AFFINE_TOLERANCE * scale).all()
        return slopes if is_affine else None

    def _tangent(self, codes: Tensor) -> tuple[Tensor, Tensor] | None:
        """Gradient and value at zero of the affine function that touches the score at `codes`."""
        codes = codes.clone().requires_grad_()
        with torch.enable_grad():
            try:
                value = self(codes).sum()
            except PassesNoGradients:
                return None
        (gradient,) = torch.autograd.grad(value, codes)
        offset = value.detach() - (gradient * codes.detach()).sum()
        return gradient, offset.double().cpu()


def _over_positions(gradient: Tensor, codes: Tensor) -> Tensor:
    return torch.einsum("opk,npk->nk", gradient, codes)


def bootstrap(
    estimate: Callable[[Tensor, Tensor], Tensor], n: int, n_designs: int, seed: int
) -> Tensor:
    """Draws of the estimate from resampled pictures ``(n,)`` and their points ``(n, N)``."""
    generator = torch.Generator().manual_seed(seed)
    draws = [
        estimate(
            torch.randint(n, (n,), generator=generator),
            torch.randint(n_designs, (n, n_designs), generator=generator),
        )
        for _ in range(N_BOOTSTRAP)
    ]
    return torch.stack(draws)


def result(
    score: ClassScore,
    per_image: Tensor,
    method: str,
    seed: int,
    *,
    stderr: Tensor | None = None,
    names: list[str] | None = None,
) -> Importance:
    """The mean over pictures of ``(n, k)``, by default with its standard error over pictures."""
    if stderr is None:
        n, generator = len(per_image), torch.Generator().manual_seed(seed)
        draws = torch.randint(n, (N_BOOTSTRAP, n), generator=generator)
        stderr = per_image[draws].mean(1).std(0)
    return Importance(
        values=per_image.mean(0),
        stderr=stderr,
        per_image=per_image,
        method=method,
        target=score.target,
        concept_names=score.concept_names if names is None else names,
    )
