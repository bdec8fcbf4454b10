"""Pictures with planted concepts, and readers of the field's data sets."""

from .planted import Planted, PlantedConcepts
from .rules import Formula, Rule, Votes

__all__ = ["Formula", "Planted", "PlantedConcepts", "Rule", "Votes"]
