"""What the options of bottleneck models may be, wherever a model has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checks import check_backbone, check_number, check_whole

# The least of each option that is a whole number.
WHOLE = {
    "max_epochs": 1, "batch_size": 1, "patience": 1, "finetune_epochs": 0, "hidden": 1,
    "n_lambdas": 1, "lora_rank": 1, "random_state": 0,
}  # fmt: skip
# The most of each option that is a number from 0, and whether 0 itself may be.
INFINITY = float("inf")
NUMBERS = {
    "lr": (INFINITY, False), "weight_decay": (INFINITY, True), "concept_weight": (INFINITY, True),
    "global_weight": (INFINITY, True), "dropout": (1.0, True), "strength": (INFINITY, True),
    "similarity_weight": (INFINITY, True), "penalty": (INFINITY, False), "lam": (INFINITY, False),
    "tau_start": (INFINITY, False), "tau_end": (INFINITY, False), "scale": (INFINITY, False),
    "nonzeros": (INFINITY, False),
}  # fmt: skip
OPTIONAL = {"patience", "lora_rank", "strength", "penalty", "lam"}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise for the first option that is not what a model takes, naming it.

    Raises
    ------
    TypeError
        For what is no number where one is needed, or no backbone.
    ValueError
        For a number out of range.
    """
    for name, value in options.items():
        if value is None and name in OPTIONAL:
            continue
        if name in WHOLE:
            check_whole(value, name, WHOLE[name])
        elif name in NUMBERS:
            most, zero = NUMBERS[name]
            check_number(value, name, high=most, above=not zero)
        elif name == "validation_fraction":
            check_number(value, name, high=1)
        elif name == "interpretability":
            check_number(value, name, -1, 1)
        elif name == "backbone" and value is not None:
            check_backbone(value)
