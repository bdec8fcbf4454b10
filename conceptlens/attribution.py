"""Attribution methods: which pixels a score depends on.

A score is any function of pictures ``(B, 3, H, W)`` → ``(B, k)``: the presence of k concepts, the
logits of k classes. Each method maps all k scores at once, from the same forward passes, and
returns ``(B, k, H, W)``. What is drawn at random is drawn once for all pictures, from `seed`, so
that a picture's map does not depend on the pictures beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]
Attribution = Callable[..., Tensor]

N_STEPS = 16
N_NOISES = 16
# SmoothGrad's noise, as a share of each picture's range of values.
NOISE = 0.15
# A window is this share of the picture's side, and moves by half of itself.
WINDOW = 1 / 7
N_MASKS = 500
MASK_CELLS = 7
MASK_KEEP = 0.5
# Standard deviation of the blur, as a share of the picture's side.
SMOOTHING = 0.05


def saliency(score: Score, x: Tensor, seed: int = 0) -> Tensor:
    """The largest absolute gradient of the three colours; ≥ 0 (Simonyan et al. 2014)."""
    return _gradients(score, x).abs().amax(2)


def gradient_x_input(score: Score, x: Tensor, seed: int = 0) -> Tensor:
    """Gradient times value, summed over the colours; signed."""
    return (_gradients(score, x) * x[:, None]).sum(2)


def integrated_gradients(score: Score, x: Tensor, seed: int = 0) -> Tensor:
    """Gradients along the way from the mean colour to the picture, times the way; signed.

    A map sums to the score minus that of the picture's mean colour, but for the error of the
    midpoint rule (Sundararajan et al. 2017).
    """
    way = x - _colour(x)
    steps = (torch.arange(N_STEPS) + 0.5) / N_STEPS
    return (_mean(_gradients(score, x - float(1 - t) * way) for t in steps) * way[:, None]).sum(2)


def smooth_integrated_gradients(score: Score, x: Tensor, seed: int = 0) -> Tensor:
    """Integrated gradients blurred by a Gaussian as wide as a twentieth of the picture; signed.

    Single pixels of gradients are speckled; a neighbourhood of them says where a thing is.
    """
    return _blurred(integrated_gradients(score, x), SMOOTHING * min(x.shape[-2:]))


def smoothgrad(score: Score, x: Tensor, seed: int = 0) -> Tensor:
    """The saliency of gradients averaged over noisy copies; ≥ 0 (Smilkov et al. 2017)."""
    generator = torch.Generator().manual_seed(seed)
    spread = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
    noises = (torch.randn(x.shape[1:], generator=generator).to(x) for _ in range(N_NOISES))
    return _mean(_gradients(score, x + NOISE * spread * e) for e in noises).abs().amax(2)


def occlusion(score: Score, x: Tensor, seed: int = 0) -> Tensor:
    """By how much the score falls, on average, when a window over the pixel is covered; signed.

    What is covered takes the picture's mean colour (Zeiler & Fergus 2014).
    """
    before = score(x)
    total, count = x.new_zeros(()), x.new_zeros(())
    for keep in _windows(x.shape[-2], x.shape[-1]):
        covered = 1 - keep.to(x)
        fall = before - score(_covered(x, keep))
        total, count = total + fall[:, :, None, None] * covered, count + covered
    return total / count


def rise(score: Score, x: Tensor, seed: int = 0) -> Tensor:
    """How the score goes with the pixel's being kept by random masks; signed.

    The covariance of score and mask over the mask's variance, which is RISE's weighted mean of
    masks without its constant (Petsiuk et al. 2018).
    """
    generator = torch.Generator().manual_seed(seed)
    zero = x.new_zeros(())
    scores, kept, squares, products = zero, zero, zero, zero
    for _ in range(N_MASKS):
        mask = _random_mask(x.shape[-2], x.shape[-1], generator).to(x)
        s = score(_covered(x, mask))[:, :, None, None]
        scores, kept, squares = scores + s, kept + mask, squares + mask**2
        products = products + s * mask
    covariance = products / N_MASKS - scores * kept / N_MASKS**2
    variance = squares / N_MASKS - (kept / N_MASKS) ** 2
    return covariance / variance.clamp(min=1e-6)


def gradients_by(x: Tensor, scores: Tensor) -> Tensor:
    """The gradients ``(B, k, ...)`` of scores ``(B, k)``, each by its own row of `x`."""
    if not scores.requires_grad:
        raise ValueError(
            "no gradient flows from the scores to the pictures (the extractor may compute outside "
            "torch): take a method that needs none, 'occlusion', 'rise' or 'interpolate'"
        )
    with torch.enable_grad():
        totals = scores.sum(0).unbind()
    return torch.stack([torch.autograd.grad(t, x, retain_graph=True)[0] for t in totals], 1)


def _gradients(score: Score, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return gradients_by(x, score(x))


def _mean(tensors: Iterable[Tensor]) -> Tensor:
    """The mean of tensors of which only one is held at a time."""
    total, n = torch.zeros(()), 0
    for tensor in tensors:
        total, n = total.to(tensor) + tensor, n + 1
    return total / n


def _covered(x: Tensor, keep: Tensor) -> Tensor:
    """The pictures where `keep` is 1, their mean colour where it is 0."""
    colour = _colour(x)
    return colour + keep.to(x) * (x - colour)


def _colour(x: Tensor) -> Tensor:
    """The mean colour of each picture ``(B, 3, 1, 1)``, which stands for nothing being there."""
    return x.mean((2, 3), keepdim=True)


def _blurred(maps: Tensor, sigma: float) -> Tensor:
    """Maps ``(B, k, H, W)`` convolved with a Gaussian that is cut at three sigmas."""
    for axis in (2, 3):
        radius = min(round(3 * sigma), maps.shape[axis] - 1)
        offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
        kernel = torch.exp(-0.5 * (offsets / max(sigma, 1e-6)) ** 2)
        weight = (kernel / kernel.sum()).reshape(1, 1, *((-1, 1) if axis == 2 else (1, -1)))
        padding = (radius, 0) if axis == 2 else (0, radius)
        planes = torch.nn.functional.conv2d(maps.flatten(0, 1)[:, None], weight, padding=padding)
        maps = planes.reshape(maps.shape)
    return maps


def _windows(height: int, width: int) -> Iterable[Tensor]:
    """Masks ``(H, W)``, 0 on a square window and 1 elsewhere, that together cover the picture."""
    side = max(1, round(WINDOW * min(height, width)))
    stride = max(1, side // 2)
    for top in range(0, max(height - side, 0) + stride, stride):
        for left in range(0, max(width - side, 0) + stride, stride):
            keep = torch.ones(height, width)
            keep[top : top + side, left : left + side] = 0
            yield keep


def _random_mask(height: int, width: int, generator: torch.Generator) -> Tensor:
    """A smooth mask ``(H, W)``: a coarse random grid, enlarged and shifted at random."""
    kept = torch.rand(1, 1, MASK_CELLS + 1, MASK_CELLS + 1, generator=generator) < MASK_KEEP
    cell_height, cell_width = -(-height // MASK_CELLS), -(-width // MASK_CELLS)
    size = ((MASK_CELLS + 1) * cell_height, (MASK_CELLS + 1) * cell_width)
    large = torch.nn.functional.interpolate(kept.float(), size, mode="bilinear")[0, 0]
    top = int(torch.randint(cell_height, (), generator=generator))
    left = int(torch.randint(cell_width, (), generator=generator))
    return large[top : top + height, left : left + width]
