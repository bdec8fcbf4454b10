"""The HTML report of an explanation: one file, readable anywhere, without scripts."""

from .page import data_uri, render

__all__ = ["data_uri", "render"]
