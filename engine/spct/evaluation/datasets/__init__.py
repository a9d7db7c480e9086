"""Benchmarks of judges, from local files in the formats in which they are published, in one normalised form."""

from spct.evaluation.datasets.formats import AUTO, FORMATS, detect, load, read_items
from spct.evaluation.datasets.item import BenchmarkItem, take_in_turn, truth_of

__all__ = ["AUTO", "FORMATS", "BenchmarkItem", "detect", "load", "read_items", "take_in_turn", "truth_of"]
