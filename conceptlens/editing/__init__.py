"""Acting on concepts: change their codes, erase them from a network, find and remove shortcuts."""

from .attach import attach, detach
from .codes import Effect, ablate, scale, set  # noqa: A004, RUF100 - the field's verb
from .counterfactual import Counterfactual, counterfactual
from .debug import Shortcuts, shortcuts, suppress
from .erasure import Moments, erase, project_out
from .erasure_report import ErasureReport, erasure_report
from .low_rank import LowRank
from .unlearning import Unlearned, unlearn

__all__ = [
    "Counterfactual",
    "Effect",
    "ErasureReport",
    "LowRank",
    "Moments",
    "Shortcuts",
    "Unlearned",
    "ablate",
    "attach",
    "counterfactual",
    "detach",
    "erase",
    "erasure_report",
    "project_out",
    "scale",
    "set",
    "shortcuts",
    "suppress",
    "unlearn",
]
