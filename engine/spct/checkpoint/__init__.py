"""Checkpoints: Hugging Face folders into decoders, or a typed error that names the file and the tensor."""

from spct.checkpoint.load import LoadedModel, load
from spct.checkpoint.replace import replace_weights

__all__ = ["LoadedModel", "load", "replace_weights"]
