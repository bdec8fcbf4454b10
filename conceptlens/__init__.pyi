from . import bottleneck, datasets, distributed, editing, metrics, naming
from ._version import __version__
from .backbone import Backbone, NotCuttableError
from .class_index import ClassIndex
from .classes import explain_classes
from .clusters import ClusterGraph, cluster_graph
from .comparison import Comparison, compare
from .craft import CRAFT
from .crops import Crop
from .explanation import Concept, Explanation
from .extraction.convex_nmf import ConvexNMF
from .extraction.nmf import NMF
from .extraction.sae import SparseAutoencoder, loss_recovered
from .extraction.semi_nmf import SemiNMF
from .images import Pictures, UnreadableImageError
from .importance.attribute import attribute
from .importance.result import Importance
from .importance.sobol import sobol
from .importance.tcav import TCAV, CAVs, fit_cavs, tcav
from .local import Waterfall, contrastive_maps, waterfall
from .maps import coam, concept_maps
from .model import ConceptModel, DictionaryModel
from .recursion import decompose
from .store import ActivationStore, StoreError

__all__ = [
    "CRAFT",
    "NMF",
    "TCAV",
    "ActivationStore",
    "Backbone",
    "CAVs",
    "ClassIndex",
    "ClusterGraph",
    "Comparison",
    "Concept",
    "ConceptModel",
    "ConvexNMF",
    "Crop",
    "DictionaryModel",
    "Explanation",
    "Importance",
    "NotCuttableError",
    "Pictures",
    "SemiNMF",
    "SparseAutoencoder",
    "StoreError",
    "UnreadableImageError",
    "Waterfall",
    "__version__",
    "attribute",
    "bottleneck",
    "cluster_graph",
    "coam",
    "compare",
    "concept_maps",
    "contrastive_maps",
    "datasets",
    "decompose",
    "distributed",
    "editing",
    "explain_classes",
    "fit_cavs",
    "loss_recovered",
    "metrics",
    "naming",
    "sobol",
    "tcav",
    "waterfall",
]
