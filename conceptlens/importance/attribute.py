"""Signed importance of concepts from gradients of a class's score, or from removing concepts."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..batching import in_batches
from ..checks import check_seed
from ..model import ConceptModel
from . import perturbation
from .result import Importance
from .score import ClassScore, result

N_SAMPLES = 32
NOISE = 0.15  # standard deviation, as a share of the range of the picture's codes
COMPLETENESS = 1e-3
FIRST_STEPS, MAX_STEPS = 32, 1024


def attribute(
    cm: ConceptModel,
    codes: Tensor,
    target: int | str,
    *,
    method: str = "integrated_gradients",
    seed: int = 0,
    batch_size: int = 64,
) -> Importance:
    """Attribute the score of a class to the concepts.

    The score is ``cm.classify(codes)[:, target]``; what is attributed to a concept at each
    position is summed over positions. The baseline of a concept is 0, its absence.

    Parameters
    ----------
    cm : ConceptModel
        Only ``classify`` is used.
    codes : Tensor
        ``(n, P, k)``, the pictures' codes.
    target : int or str
        The class, by index or by one of ``cm.class_names``.
    method : str
        By gradients: "saliency" (absolute gradient), "gradient_x_input", "integrated_gradients"
        (completeness within 1e-3: steps are doubled until it holds), and, over noise that is
        added to the codes, the gradient's mean "smoothgrad", variance "vargrad" and mean square
        "squaregrad"; "tcav", whether the score rises along the concept.
        By removing concepts: "occlusion", "rise", "hsic" and "shapley" (exact for up to 12
        concepts, else sampled).
    seed : int
        Fixes noise, masks and bootstrap.
    batch_size : int
        The most code grids given to ``classify`` at once.

    Returns
    -------
    Importance
        ``values`` are means over the pictures, signed, in the logit's unit but for the
        gradients' (logit per code), their squares, HSIC and TCAV (none); ``stderr`` comes from
        a bootstrap over pictures.

    Raises
    ------
    ValueError
        For an unknown method or class, or codes of another shape.
    TypeError
        If a method by gradients is given a model whose ``classify`` passes none on.

    References
    ----------
    Simonyan et al., 2014 (saliency); Shrikumar et al., 2016 (gradient × input); Sundararajan et
    al., 2017 (integrated gradients); Smilkov et al., 2017; Adebayo et al., 2018 (VarGrad); Hooker
    et al., 2019 (SquareGrad); Kim et al., 2018 (TCAV); Zeiler & Fergus, 2014 (occlusion); Petsiuk
    et al., 2018 (RISE); Novello et al., 2022 (HSIC); Lundberg & Lee, 2017 (Shapley). Fel et al.,
    "A Holistic Approach to Unifying Automatic Concept Extraction and Concept Importance
    Estimation", NeurIPS 2023, compares them in concept space.

    Examples
    --------
    >>> from torch import nn
    >>> from conceptlens import NMF, Backbone, DictionaryModel
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    >>> bb, x = Backbone(model, "1"), torch.rand(6, 3, 32, 32)
    >>> cm = DictionaryModel(bb, NMF(3).fit(bb.activations(x).flatten(0, 1)))
    >>> importance = attribute(cm, cm.encode(x), target=2, method="occlusion")
    >>> tuple(importance.per_image.shape)
    (6, 3)
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {sorted(METHODS)}, got {method!r}")
    check_seed(seed)
    score = ClassScore.of(cm, codes, target, batch_size)
    per_image = METHODS[method](score, seed)
    if not per_image.any():
        warnings.warn(
            f"all concepts have zero importance for class {target!r} by {method}: its score does "
            "not depend on them there (codes that are all zero, a saturated head, a class that the "
            "concepts do not enter, or, for vargrad, a head that is affine)",
            RuntimeWarning,
            stacklevel=2,
        )
    name = method.replace("_x_", " × ").replace("_", " ")
    return result(score, per_image, name, seed)


def _captum(score: ClassScore, codes: Tensor, algorithm: str, **options: object) -> Tensor:
    """The attribution ``(n, P, k)`` by captum's `algorithm`."""
    from captum import attr

    compute = getattr(attr, algorithm)(score).attribute

    def block(codes: Tensor) -> Tensor:
        with torch.enable_grad():
            return compute(codes.clone().requires_grad_(), **options).detach()

    return in_batches(block, codes, score.batch_size)


def _gradient(score: ClassScore, codes: Tensor) -> Tensor:
    return _captum(score, codes, "Saliency", abs=False)


def _by_concept(attribution: Tensor) -> Tensor:
    """``(n, P, k)`` summed over positions, in float64 on the CPU."""
    return attribution.sum(1).double().cpu()


def _saliency(score: ClassScore, seed: int) -> Tensor:
    return _by_concept(_gradient(score, score.codes).abs())


def _gradient_x_input(score: ClassScore, seed: int) -> Tensor:
    return _by_concept(_captum(score, score.codes, "InputXGradient"))


def _tcav(score: ClassScore, seed: int) -> Tensor:
    return (_by_concept(_gradient(score, score.codes)) > 0).double()


def integrated_gradients(score: ClassScore, seed: int, max_steps: int = MAX_STEPS) -> Tensor:
    """Integrated gradients whose sum is f(u) − f(0): steps are doubled where it is not."""
    slopes = score.affine_slopes(seed)
    if slopes is not None:  # the gradient is the same all the way
        return slopes
    f = score.masked(torch.tensor([[1.0], [0.0]]).expand(2, score.codes.shape[2]))
    expected = f[:, 0] - f[:, 1]
    values = torch.zeros(len(score.codes), score.codes.shape[2], dtype=torch.float64)
    wrong = torch.arange(len(values))
    steps = FIRST_STEPS
    while len(wrong) and steps <= max_steps:
        codes = score.codes[wrong.to(score.codes.device)]
        options = {"n_steps": steps, "internal_batch_size": score.batch_size}
        values[wrong] = _by_concept(_captum(score, codes, "IntegratedGradients", **options))
        gap = (values.sum(1) - expected).abs()
        # A total near zero is left over from parts that cancel, so they bound what is asked.
        allowed = COMPLETENESS * expected.abs() + 1e-6 * values.abs().sum(1)
        wrong = (gap > allowed).nonzero()[:, 0]
        steps *= 2
    if len(wrong):
        warnings.warn(
            f"integrated gradients of {len(wrong)} of {len(values)} pictures miss the difference "
            f"of the scores by up to {float(gap.max()):.2g} after {max_steps} steps",
            RuntimeWarning,
            stacklevel=4,
        )
    return values


def _noisy_gradients(score: ClassScore, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and mean square ``(n, P, k)`` of the gradient at noisy codes.

    captum's NoiseTunnel draws from the global generator, batch by batch, so that its result
    depends on the size of batches.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = score.codes
    width = NOISE * (codes.amax((1, 2), keepdim=True) - codes.amin((1, 2), keepdim=True))
    mean = square = torch.zeros((), dtype=torch.float64)
    for _ in range(N_SAMPLES):
        noise = torch.randn(codes.shape, generator=generator).to(codes)
        gradient = _gradient(score, codes + width * noise).double().cpu()
        mean = mean + gradient / N_SAMPLES
        square = square + gradient**2 / N_SAMPLES
    return mean, square


def _smoothgrad(score: ClassScore, seed: int) -> Tensor:
    return _by_concept(_noisy_gradients(score, seed)[0])


def _vargrad(score: ClassScore, seed: int) -> Tensor:
    mean, square = _noisy_gradients(score, seed)
    return _by_concept((square - mean**2).clamp(min=0))


def _squaregrad(score: ClassScore, seed: int) -> Tensor:
    return _by_concept(_noisy_gradients(score, seed)[1])


METHODS: dict[str, Callable[[ClassScore, int], Tensor]] = {
    "saliency": _saliency,
    "gradient_x_input": _gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "smoothgrad": _smoothgrad,
    "vargrad": _vargrad,
    "squaregrad": _squaregrad,
    "tcav": _tcav,
    "occlusion": perturbation.occlusion,
    "rise": perturbation.rise,
    "hsic": perturbation.hsic,
    "shapley": perturbation.shapley,
}
