"""The one way from a checkpoint to a decoder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from spct.checkpoint.adapter import read_adapter
from spct.checkpoint.config import HeadKind, read_spec
from spct.checkpoint.dtypes import DtypePlan, parse_dtype, plan_dtypes
from spct.checkpoint.folder import find_folder
from spct.checkpoint.shards import Shards
from spct.checkpoint.sidecars import (
    SCORE_WEIGHT,
    GenerationDefaults,
    MetaHead,
    read_chat_template,
    read_generation,
    read_meta_head,
    read_score_head,
)
from spct.checkpoint.weights import WeightReader, check_tensors, read_weights, stored_dtype
from spct.models.decoder import Decoder
from spct.models.spec import ModelSpec


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint, loaded.

    spec            what the decoder is
    decoder         its weights and forward pass
    folder          where the files are
    tokenizer_path  `tokenizer.json`, there but unread
    generation      EOS and BOS ids
    chat_template   source of the chat template, or None
    dtypes          number formats of weights, activations and (by default) the KV cache
    weights_digest  hash of the stored weights, the meta head and the adapter
    """

    spec: ModelSpec
    decoder: Decoder
    folder: Path
    tokenizer_path: Path
    generation: GenerationDefaults
    chat_template: str | None
    dtypes: DtypePlan
    weights_digest: str


def load(
    folder_or_id: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    weights: str = "auto",
    scan: bool = True,
    adapter: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    revision: str | None = None,
    head: HeadKind = "lm",
    deterministic: bool = True,
) -> LoadedModel:
    """Load a Hugging Face folder, a hub id or "embedded".

    dtype      "auto", "float32"/"fp32", "bfloat16"/"bf16", "float16"/"fp16" or a torch.dtype
    weights    "auto" (as stored, or as `dtype` says) or a `pack` scheme; "int8" quantises while it reads (see `plan_dtypes`)
    scan       refuse NaN and Inf in the weights; int8 can't hold them, so under it they are always refused
    adapter    a LoRA folder, merged into the weights
    revision   of a hub id
    head       "lm", or "score" for a sequence-classification checkpoint with one label: its `score.weight` becomes the meta row of
               the output head, and the embedding table stands where an LM head would be (nothing is to be drawn from it)
    deterministic   as `Decoder`'s

    Cost: one pass over the files; peak memory near the weights' own size.

    Raises: ConfigError for an option or a name that makes no sense; CheckpointError, naming file and tensor, for a folder
    that can't be loaded. Nothing is kept of a checkpoint that is refused.
    """
    parse_dtype(dtype)
    folder = find_folder(folder_or_id, revision)
    spec = read_spec(folder.required("config.json", "expected a Hugging Face model folder"), head)
    tokenizer_path = folder.required("tokenizer.json", "only fast tokenizers are read; save it with transformers' save_pretrained")
    generation = read_generation(folder, spec.vocab_size)
    chat_template = read_chat_template(folder)
    target = torch.device(device)
    with Shards(folder) as shards:
        check_tensors(spec, shards, {SCORE_WEIGHT: (1, spec.hidden_dim)} if head == "score" else None)
        dtypes = plan_dtypes(dtype, weights, stored_dtype(spec, shards), target, backend)
        if head == "score":
            meta_head: MetaHead | None = read_score_head(shards, spec.hidden_dim, target)
        else:
            meta_head = read_meta_head(folder, spec.hidden_dim, target)
        merged = read_adapter(adapter, spec) if adapter is not None else None
        reader = WeightReader(shards, dtypes, target, scan, merged.deltas if merged else {})
        if merged is not None:
            reader.hash.update(merged.digest)
        if meta_head is not None:
            reader.hash.update(f"{meta_head.bias!r}:{meta_head.pooling};".encode() + meta_head.weight.cpu().numpy().tobytes())
        loaded = read_weights(spec, reader)
    decoder = Decoder(spec, loaded.weights, backend, deterministic)
    if meta_head is not None:
        output = decoder.head
        output.meta_weight, output.meta_bias, output.pooling = meta_head.weight, meta_head.bias, meta_head.pooling
    return LoadedModel(spec, decoder, folder.path, tokenizer_path, generation, chat_template, dtypes, loaded.digest)
