"""Dictionaries: from activations to concepts."""
