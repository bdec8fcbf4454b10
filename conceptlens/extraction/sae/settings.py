"""The estimator's options, checked."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .variants import VARIANTS

_WHOLE = ("n_components", "n_epochs", "batch_size")


@dataclass(frozen=True)
class Settings:
    """What a fit is told; `sparsity` is a number here."""

    n_components: int
    variant: str
    sparsity: float
    n_epochs: int
    batch_size: int
    learning_rate: float
    random_state: int

    @classmethod
    def of(cls, options: dict[str, Any]) -> Settings:
        """Check the options and fill in what depends on the variant.

        Raises
        ------
        ValueError
            Naming the option, what it is and what it may be.
        """
        options = dict(options)
        if options["variant"] not in VARIANTS:
            raise ValueError(f"variant must be one of {list(VARIANTS)}, got {options['variant']!r}")
        variant = VARIANTS[options["variant"]]
        if options["sparsity"] is None:
            options["sparsity"] = variant.sparsity
        for name in _WHOLE:
            if not _is(options[name], Integral) or options[name] < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {options[name]!r}")
        if not _is(options["random_state"], Integral) or options["random_state"] < 0:
            raise ValueError(f"random_state must be from 0, got {options['random_state']!r}")
        for name in ("sparsity", "learning_rate"):
            if not _is(options[name], Real) or not 0 < options[name] < float("inf"):
                raise ValueError(f"{name} must be a number above 0, got {options[name]!r}")
        most = options["n_components"]
        if variant.counts and options["sparsity"] not in range(1, most + 1):
            raise ValueError(
                f"sparsity={options['sparsity']!r}: variant {options['variant']!r} takes the "
                f"number of codes a row that are not zero, from 1 to n_components={most}"
            )
        for name in (*_WHOLE, "random_state"):  # NumPy's numbers too, which JSON does not know
            options[name] = int(options[name])
        for name in ("sparsity", "learning_rate"):
            options[name] = float(options[name])
        return cls(**options)


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
