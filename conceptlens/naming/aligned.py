"""`AlignedText`: a text space for a backbone that has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from ..metrics.checks import check_shape
from .names import TOP, Names, by_text
from .vocabulary import check_words

ALPHAS = 10.0 ** np.arange(-4, 5, 0.5)


class AlignedText(BaseEstimator):
    """An affine map from a classifier's feature space to a text space.

    Learnt from the classifier's own head: the weights of a class, which point to its features, are
    to become the embedding of its name. So neither pictures nor captions are needed.

    Parameters
    ----------
    text_encoder : callable
        Maps a list of m texts to unit rows ``(m, e)``; see `sentence_encoder`.
    template : str
        The sentence that a name is put into.
    n_held_out : int
        How many classes are kept back to find out how far names may be trusted.
    random_state : int
        Fixes which.

    Attributes
    ----------
    coef_ : Tensor
        ``(e, C)``, of centred unit weights to centred embeddings; of all classes.
    weight_mean_, text_mean_ : Tensor
        ``(C,)`` and ``(e,)``.
    alpha_ : float
        The strength of the ridge penalty, by cross-validation on the classes not held out.
    retrieval_ : dict of str to float
        Of a map learnt without the held-out classes: in what share of them the true name is the
        nearest ("top-1") or among the five nearest ("top-5") of all held-out names, and what
        guessing gives ("chance top-1", "chance top-5").

    References
    ----------
    Moayeri et al., "Text-to-concept (and back) via cross-model alignment", ICML 2023, who learn
    the map from pictures.
    """

    def __init__(
        self,
        text_encoder: Callable[[list[str]], Tensor],
        *,
        template: str = "{}",
        n_held_out: int = 100,
        random_state: int = 0,
    ) -> None:
        self.text_encoder = text_encoder
        self.template = template
        self.n_held_out = n_held_out
        self.random_state = random_state

    def fit(self, weights: Any, class_names: Sequence[str]) -> AlignedText:
        """Learn from the head's weights ``(n_classes, C)`` and the names of its classes."""
        weights = check_shape(weights, "weights", "n C", n=len(class_names)).detach().float()
        n, n_out = len(weights), self.n_held_out
        if not 5 <= n_out <= n - 10:
            raise ValueError(
                f"n_held_out must be at least 5 and leave 10 of the {n} classes, got {n_out}"
            )
        texts = self._embed(list(class_names)).to(weights)
        x = nn.functional.normalize(weights, dim=1)
        generator = torch.Generator().manual_seed(self.random_state)
        order = torch.randperm(n, generator=generator)
        held_out, kept = order[:n_out], order[n_out:]
        alpha = _best_alpha(x[kept], texts[kept])
        trial = _ridge(x[kept], texts[kept], alpha)
        self.retrieval_ = _retrieval(_apply(trial, x[held_out]), texts[held_out] - trial[2])
        self.alpha_ = alpha
        self.coef_, self.weight_mean_, self.text_mean_ = _ridge(x, texts, alpha)
        self.n_features_in_ = weights.shape[1]
        return self

    def transform(self, directions: Any) -> Tensor:
        """Map directions ``(k, C)`` to unit rows ``(k, e)``, the mean of all names taken off."""
        if not hasattr(self, "coef_"):
            raise NotFittedError("this AlignedText is not fitted yet: call fit first")
        x = check_shape(directions, "directions", "k C", C=self.n_features_in_)
        x = nn.functional.normalize(x.to(self.coef_), dim=1)
        fitted = (self.coef_, self.weight_mean_, self.text_mean_)
        return nn.functional.normalize(_apply(fitted, x), dim=1)

    def name(self, directions: Any, vocabulary: Sequence[str], *, top: int = TOP) -> Names:
        """Name directions ``(k, C)`` of the feature space, such as a dictionary's components."""
        rows = self.transform(directions)

        def encode(words: list[str]) -> Tensor:
            return self._embed(words).to(rows) - self.text_mean_

        names = by_text(rows, check_words(vocabulary), encode, top=top)
        held_out = f"held-out top-5 {self.retrieval_['top-5']:.0%}"
        return Names(names.names, names.confidence, names.candidates, f"aligned text ({held_out})")

    def _embed(self, words: list[str]) -> Tensor:
        return self.text_encoder([self.template.format(word) for word in words])


Fitted = tuple[Tensor, Tensor, Tensor]


def _ridge(x: Tensor, y: Tensor, alpha: float) -> Fitted:
    from sklearn.linear_model import Ridge

    ridge = Ridge(alpha).fit((x - x.mean(0)).cpu().numpy(), (y - y.mean(0)).cpu().numpy())
    return torch.from_numpy(ridge.coef_).to(x), x.mean(0), y.mean(0)


def _apply(fitted: Fitted, x: Tensor) -> Tensor:
    coef, x_mean, _ = fitted
    return (x - x_mean) @ coef.T


def _best_alpha(x: Tensor, y: Tensor, n_folds: int = 5) -> float:
    """The strength under which held-out folds' names are retrieved best (mean reciprocal rank)."""
    folds = torch.arange(len(x)) % n_folds
    quality = []
    for alpha in ALPHAS:
        ranks = []
        for fold in range(n_folds):
            fitted = _ridge(x[folds != fold], y[folds != fold], float(alpha))
            ranks.append(_ranks(_apply(fitted, x[folds == fold]), y[folds == fold] - fitted[2]))
        quality.append(float((1 / (1 + torch.cat(ranks).double())).mean()))
    return float(ALPHAS[int(np.argmax(quality))])


def _ranks(predicted: Tensor, texts: Tensor) -> Tensor:
    """How many of the texts ``(n, e)`` are nearer to each prediction than its own: ``(n,)``."""
    cosines = nn.functional.normalize(predicted, dim=1) @ nn.functional.normalize(texts, dim=1).T
    return (cosines > cosines.diagonal()[:, None]).sum(1)


def _retrieval(predicted: Tensor, texts: Tensor) -> dict[str, float]:
    ranks = _ranks(predicted, texts)
    shares = {f"top-{r}": float((ranks < r).double().mean()) for r in (1, 5)}
    return shares | {f"chance top-{r}": r / len(texts) for r in (1, 5)}
