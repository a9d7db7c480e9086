"""The small files beside the weights: generation defaults, chat template, tokenizer, meta-RM head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spct.checkpoint.fields import Fields
from spct.checkpoint.folder import Folder
from spct.checkpoint.jsonfile import read_file, read_object
from spct.checkpoint.shards import Shards
from spct.checkpoint.tensorfile import TensorFile
from spct.errors import CheckpointError
from spct.models.head import Pooling

# The head of a sequence-classification checkpoint with one label, as transformers names it.
SCORE_WEIGHT = "score.weight"

_MAX_TOKENIZER_CONFIG_BYTES = 64 << 20
_MAX_TEMPLATE_BYTES = 4 << 20


@dataclass(frozen=True)
class GenerationDefaults:
    """What `generation_config.json`, and where it is silent `config.json`, says about sequences.

    eos_token_ids   every token that ends a sequence
    bos_token_id    None where there is none
    """

    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None


@dataclass(frozen=True)
class MetaHead:
    """The contents of `meta_head.safetensors`: a linear map over the final normed hidden state.

    weight   [E] fp32
    pooling  how the logits of one sample's tokens become its score
    """

    weight: Tensor
    bias: float
    pooling: Pooling


def read_generation(folder: Folder, vocab_size: int) -> GenerationDefaults:
    """Read the EOS ids, one or several.

    Raises: CheckpointError for an id outside of the vocabulary or of another type.
    """
    eos: tuple[int, ...] = ()
    bos: int | None = None
    for name in ("generation_config.json", "config.json"):
        path = folder.file(name)
        if path is None:
            continue
        fields = Fields(read_object(path), str(path))
        eos = eos or _token_ids(fields, "eos_token_id", vocab_size)
        if bos is None:
            first = _token_ids(fields, "bos_token_id", vocab_size)
            bos = first[0] if first else None
    return GenerationDefaults(eos, bos)


def _token_ids(fields: Fields, key: str, vocab_size: int) -> tuple[int, ...]:
    value = fields.raw(key, None)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    # Some configs write -1 for "none".
    ids = [token for token in ids if token != -1]
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            fields.fail(key, f"token ids from 0 to {vocab_size - 1}")
    return tuple(dict.fromkeys(ids))


def read_chat_template(folder: Folder) -> str | None:
    """The source of the chat template, unrendered: `chat_template.jinja` goes before the field of `tokenizer_config.json`.

    The field may be a list of named templates; then the one named "default" counts. Returns None without any.

    Raises: CheckpointError for a file that isn't text, or a field that is neither.
    """
    path = folder.file("chat_template.jinja")
    if path is not None:
        try:
            return read_file(path, _MAX_TEMPLATE_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: expected UTF-8, got another byte at {error.start}") from None
    path = folder.file("tokenizer_config.json")
    if path is None:
        return None
    fields = Fields(read_object(path, _MAX_TOKENIZER_CONFIG_BYTES), str(path))
    value = fields.raw("chat_template", None)
    if isinstance(value, list):
        named = [entry.get("template") for entry in value if isinstance(entry, dict) and entry.get("name") == "default"]
        if not named:
            fields.fail("chat_template", "a string, or a list with a template named 'default'")
        value = named[0]
    if value is not None and not isinstance(value, str):
        fields.fail("chat_template", "a string, or a list of {'name', 'template'}")
    return value


def read_meta_head(folder: Folder, hidden_dim: int, device: torch.device) -> MetaHead | None:
    """Read `meta_head.safetensors` (`weight` [E], `bias` [1], metadata `pooling`: last or mean); None where there is none.

    Raises: CheckpointError for missing, extra, misshapen or non-finite tensors, or an unknown pooling.
    """
    path = folder.file("meta_head.safetensors")
    if path is None:
        return None
    shapes = {"weight": (hidden_dim,), "bias": (1,)}
    with TensorFile(path) as file:
        for name in [*shapes, *file.tensors]:
            if name not in file.tensors:
                raise CheckpointError(f"{path}: tensor {name!r} is missing; expected 'weight' [{hidden_dim}] and 'bias' [1]")
            if name not in shapes:
                raise CheckpointError(f"{path}: tensor {name!r} is not expected; a meta head has 'weight' and 'bias'")
            if file.tensors[name].shape != shapes[name]:
                raise CheckpointError(f"{path}: tensor {name!r}: expected shape {list(shapes[name])}, got {list(file.tensors[name].shape)}")
        pooling = file.metadata.get("pooling", "last")
        if pooling not in ("last", "mean"):
            raise CheckpointError(f"{path}: metadata 'pooling': expected 'last' or 'mean', got {pooling!r}")
        weight, bias = torch.empty(hidden_dim, device=device), torch.empty(1)
        file.copy_into("weight", weight)
        file.copy_into("bias", bias)
    return MetaHead(weight, float(bias), "mean" if pooling == "mean" else "last")


def read_score_head(shards: Shards, hidden_dim: int, device: torch.device) -> MetaHead:
    """Read the head of a sequence-classification checkpoint, `score.weight` [1, E] without a bias, which scores the last token.

    Raises: CheckpointError for numbers that aren't finite; the shape has been checked with those of the other tensors.
    """
    weight = torch.empty(1, hidden_dim, device=device)
    shards.file_of[SCORE_WEIGHT].copy_into(SCORE_WEIGHT, weight)
    return MetaHead(weight[0], 0.0, "last")
