"""Metrics of extractions, importances, maps, explanations and bottleneck models."""

from .bottleneck import (
    Reliability,
    calibration_error,
    class_accuracy,
    completeness,
    concept_accuracy,
    concept_auc,
    effective_concepts,
    leakage,
    overall_concept_accuracy,
    reliability,
)
from .concept_based import GlobalAgreement, cem, cgim, clm
from .depth import Emergence, concept_depth, concept_dynamics, emergence
from .extraction import (
    coherence,
    frechet_distance,
    gini,
    hoyer,
    l0,
    ood_score,
    r2,
    relative_error,
    wasserstein,
)
from .faithfulness import Curve, c_deletion, c_insertion, c_mu_fidelity, complexity
from .matching import match
from .places import iou, pointing_game, relevance_inside
from .probe import (
    HUMAN_LIMIT,
    Learnability,
    ProbeSensitivity,
    learnability,
    normalised_ap,
    probe_sensitivity,
    simplicity_curve,
)
from .recovery import (
    MapRecovery,
    Recovery,
    aucs,
    importance_of_parts,
    importance_recovery,
    map_recovery,
    recovery,
)
from .result import Estimate
from .stability import Stability, match_dictionaries, stability
from .surrogate import surrogate_faithfulness
from .unlearning import UnlearningScores, unlearning_scores

__all__ = [
    "HUMAN_LIMIT",
    "Curve",
    "Emergence",
    "Estimate",
    "GlobalAgreement",
    "Learnability",
    "MapRecovery",
    "ProbeSensitivity",
    "Recovery",
    "Reliability",
    "Stability",
    "UnlearningScores",
    "aucs",
    "c_deletion",
    "c_insertion",
    "c_mu_fidelity",
    "calibration_error",
    "cem",
    "cgim",
    "class_accuracy",
    "clm",
    "coherence",
    "completeness",
    "complexity",
    "concept_accuracy",
    "concept_auc",
    "concept_depth",
    "concept_dynamics",
    "effective_concepts",
    "emergence",
    "frechet_distance",
    "gini",
    "hoyer",
    "importance_of_parts",
    "importance_recovery",
    "iou",
    "l0",
    "leakage",
    "learnability",
    "map_recovery",
    "match",
    "match_dictionaries",
    "normalised_ap",
    "ood_score",
    "overall_concept_accuracy",
    "pointing_game",
    "probe_sensitivity",
    "r2",
    "recovery",
    "relative_error",
    "relevance_inside",
    "reliability",
    "simplicity_curve",
    "stability",
    "surrogate_faithfulness",
    "unlearning_scores",
    "wasserstein",
]
