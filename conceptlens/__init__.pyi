from ._version import __version__
from .backbone import Backbone, NotCuttableError
from .craft import CRAFT
from .explanation import Concept, Crop, Explanation
from .extraction.nmf import NMF
from .extraction.semi_nmf import SemiNMF
from .images import Pictures, UnreadableImageError
from .importance.result import Importance
from .importance.sobol import sobol
from .maps import concept_maps
from .model import ConceptModel, DictionaryModel
from .store import ActivationStore, StoreError

__all__ = [
    "CRAFT",
    "NMF",
    "ActivationStore",
    "Backbone",
    "Concept",
    "ConceptModel",
    "Crop",
    "DictionaryModel",
    "Explanation",
    "Importance",
    "NotCuttableError",
    "Pictures",
    "SemiNMF",
    "StoreError",
    "UnreadableImageError",
    "__version__",
    "concept_maps",
    "sobol",
]
