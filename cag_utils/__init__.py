"""Thin package behind the notebooks of the CAG-VLM study."""

__version__ = "0.1.0"
