"""Concept-based explanations of image classifiers.

The public names are listed in ``__init__.pyi``; each is imported when it is first used, so that
``import conceptlens`` costs little more than ``import torch``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
