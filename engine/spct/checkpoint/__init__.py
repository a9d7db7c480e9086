"""Checkpoints: Hugging Face folders into decoders, or a typed error that names the file and the tensor."""

from spct.checkpoint.load import LoadedModel, load

__all__ = ["LoadedModel", "load"]
