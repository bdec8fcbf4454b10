"""How much each concept matters: `ESTIMATORS` lists the ways to say so, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .attribute import METHODS, attribute
from .result import Importance
from .sobol import sobol

# Each is called with (cm, codes, target, seed=0).
ESTIMATORS: dict[str, Callable[..., Importance]] = {
    "sobol": sobol,
    "sobol_first": partial(sobol, order="first"),
    **{method: partial(attribute, method=method) for method in METHODS},
}
