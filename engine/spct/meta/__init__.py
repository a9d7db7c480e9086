"""The separate meta RM: a scalar reward model, with its own tokenizer and KV memory, that reads whole samples of the judge."""

from spct.meta.model import MetaModel, load_meta_model
from spct.meta.prompt import TEMPLATE_FILE, MetaPrompt

__all__ = ["TEMPLATE_FILE", "MetaModel", "MetaPrompt", "load_meta_model"]
