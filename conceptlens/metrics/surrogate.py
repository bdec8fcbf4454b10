"""Surrogate faithfulness: how well the logits are rebuilt from codes, with or without places."""

from __future__ import annotations

from typing import Any

import numpy as np

from .checks import check_shape


def surrogate_faithfulness(
    codes: Any, logits: Any, *, spatial: bool = True, alpha: float = 1.0, seed: int = 0
) -> float:
    """R² on unseen pictures of a ridge regression from codes to the network's logits.

    Parameters
    ----------
    codes : Tensor
        ``(n, P, k)``.
    logits : Tensor
        ``(n, n_classes)``, of the network itself.
    spatial : bool
        Let the surrogate see each concept at each position, else only its mean over them.
    alpha : float
        The ridge penalty on standardised codes.
    seed : int
        Fixes which half of the pictures it is fitted on.

    Returns
    -------
    float
        1 where the codes tell all of the logits, 0 where no more than their means, below for less.

    References
    ----------
    "Towards spatially-aware and optimally faithful concept-based explanations", 2025.
    """
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    codes = check_shape(codes, "codes", "n P k").detach()
    y = check_shape(logits, "logits", "n n_classes", n=len(codes)).detach().double().cpu().numpy()
    if len(y) < 4:
        raise ValueError(f"codes must hold four pictures or more, got {len(y)}")
    x = (codes.flatten(1) if spatial else codes.mean(1)).double().cpu().numpy()
    train, test = np.array_split(np.random.default_rng(seed).permutation(len(y)), 2)
    surrogate = make_pipeline(StandardScaler(), Ridge(alpha)).fit(x[train], y[train])
    return float(surrogate.score(x[test], y[test]))
