"""Pictures with planted concepts, small networks for them, and readers of the field's data sets."""

from .awa2 import AwA2
from .base import ConceptDataset, Places
from .broden import Broden
from .celeba import CelebA
from .cub import CUB
from .derm7pt import Derm7pt
from .planted import Planted, PlantedConcepts
from .rules import Formula, Rule, Votes
from .tables import DatasetError
from .textile import Textile
from .tiny_clip import TinyCLIP, tiny_clip
from .zoo import small_cnn, small_vit

__all__ = [
    "CUB",
    "AwA2",
    "Broden",
    "CelebA",
    "ConceptDataset",
    "DatasetError",
    "Derm7pt",
    "Formula",
    "Places",
    "Planted",
    "PlantedConcepts",
    "Rule",
    "Textile",
    "TinyCLIP",
    "Votes",
    "small_cnn",
    "small_vit",
    "tiny_clip",
]
