"""Sparse autoencoders: overcomplete dictionaries whose codes come from one encoder product."""

from .estimator import SparseAutoencoder
from .recovered import loss_recovered

__all__ = ["SparseAutoencoder", "loss_recovered"]
