"""`Estimate`: a mean with its uncertainty, which most metrics return."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean over pictures, or over seeds, with its standard error.

    Attributes
    ----------
    values : Tensor
        ``(n,)``, one value a picture; NaN where the metric is not defined for a picture, which
        leaves the picture out.
    """

    values: Tensor

    @property
    def defined(self) -> Tensor:
        """The values that are not NaN."""
        return self.values[~self.values.isnan()]

    @property
    def mean(self) -> float:
        """The mean of the defined values; NaN where there are none."""
        return float(self.defined.double().mean())

    @property
    def stderr(self) -> float:
        """Standard error of the mean; NaN for fewer than two values."""
        n = len(self.defined)
        return float(self.defined.double().std()) / math.sqrt(n) if n > 1 else math.nan

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's confidence interval of the mean."""
        from scipy.stats import t

        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        half = float(t.ppf((1 + level) / 2, max(len(self.defined) - 1, 1))) * self.stderr
        return self.mean - half, self.mean + half

    def __float__(self) -> float:
        return self.mean

    def __repr__(self) -> str:
        return f"{self.mean:.3f} ± {self.stderr:.3f} (n = {len(self.defined)})"
