"""Sera: compose self-alignment methods for language models and compare them with evidence."""

from importlib.metadata import version

__version__ = version("sera-core")
