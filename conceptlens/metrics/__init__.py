"""Metrics of extractions, importances, maps and whole explanations, as plain functions."""

from .faithfulness import Curve, c_deletion, c_insertion, c_mu_fidelity, complexity
from .matching import match
from .places import iou, pointing_game, relevance_inside
from .recovery import (
    MapRecovery,
    Recovery,
    aucs,
    importance_recovery,
    map_recovery,
    recovery,
)
from .result import Estimate

__all__ = [
    "Curve",
    "Estimate",
    "MapRecovery",
    "Recovery",
    "aucs",
    "c_deletion",
    "c_insertion",
    "c_mu_fidelity",
    "complexity",
    "importance_recovery",
    "iou",
    "map_recovery",
    "match",
    "pointing_game",
    "recovery",
    "relevance_inside",
]
