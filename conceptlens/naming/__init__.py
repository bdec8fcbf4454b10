"""Names for concepts, each with a confidence and its runners-up."""

from ..text import TextEncoder, sentence_encoder
from .aligned import AlignedText
from .dissection import by_dissection
from .labels import by_labels, by_places
from .names import Names, by_text
from .vocabulary import vocabulary

__all__ = [
    "AlignedText",
    "Names",
    "TextEncoder",
    "by_dissection",
    "by_labels",
    "by_places",
    "by_text",
    "sentence_encoder",
    "vocabulary",
]
