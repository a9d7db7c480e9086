"""The tensors of a GGUF file -> safetensors under a checkpoint's own names, a few gigabytes at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

from spct.checkpoint.shards import INDEX, SINGLE
from spct.conversion.gguf_config import ROPE_FACTORS
from spct.conversion.gguf_file import GGUFFile
from spct.errors import CheckpointError
from spct.models.parameters import parameters
from spct.models.spec import ModelSpec

MAX_SHARD_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class _Source:
    """One tensor of the checkpoint and how it is made.

    stored      its name in the GGUF file
    num_heads   of a matrix whose rows llama.cpp keeps in pairs for its rotation; 0: as they are
    offset      what llama.cpp added to the stored numbers
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    num_heads: int
    offset: float


def write_weights(file: GGUFFile, spec: ModelSpec, folder: Path, dtype: torch.dtype, max_shard_bytes: int = MAX_SHARD_BYTES) -> int:
    """Write every weight of the model in `dtype`; gives the number of parameters.

    Memory: one shard, and one tensor in fp32.

    Raises: CheckpointError, naming the tensor, where one is missing, left over, of another shape, not finite or beyond `dtype`.
    """
    sources = list(_sources(file, spec))
    _check(file, sources)
    shards = list(_split(sources, dtype.itemsize, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({source.name: _convert(file, source, dtype) for source in shard}, folder / name, metadata={"format": "pt"})
        weight_map |= {source.name: name for source in shard}
    num_parameters = sum(prod(source.shape) for source in sources)
    if len(shards) > 1:
        index = {"metadata": {"total_size": num_parameters * dtype.itemsize}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return num_parameters


def _sources(file: GGUFFile, spec: ModelSpec) -> Iterator[_Source]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = get_tensor_name_map(architecture, spec.num_layers)
    for parameter in parameters(spec):
        for index, piece in enumerate(parameter.pieces):
            base, _, suffix = piece.name.rpartition(".")
            num_heads = 0
            # Its "llama" rotates neighbouring numbers, checkpoints rotate the two halves of a head; the others are stored as published.
            if file.architecture == "llama" and parameter.key in ("qkv", "qkv_bias") and index < 2:
                num_heads = (spec.num_heads, spec.layers[0].kv.num_kv_heads)[index]
            yield _Source(piece.name, piece.shape, f"{names.get_name(base)}.{suffix}", num_heads, parameter.offset)


def _check(file: GGUFFile, sources: list[_Source]) -> None:
    for source in sources:
        if source.stored not in file.tensors:
            raise CheckpointError(f"{file.path}: tensor {source.stored!r} is missing; expected a whole model of {file.architecture!r}")
        if (got := file.shape(source.stored)) != source.shape:
            raise CheckpointError(f"{file.path}: tensor {source.stored!r}: expected shape {source.shape}, got {got}")
    left_over = sorted(set(file.tensors) - {source.stored for source in sources} - {ROPE_FACTORS})
    if left_over:
        raise CheckpointError(
            f"{file.path}: {len(left_over)} tensors that no {file.architecture!r} of the engine has, such as {left_over[0]!r}; "
            "adapters and models with experts or images can't be converted"
        )


def _split(sources: list[_Source], itemsize: int, max_bytes: int) -> Iterator[list[_Source]]:
    shard: list[_Source] = []
    shard_bytes = 0
    for source in sources:
        num_bytes = prod(source.shape) * itemsize
        if shard and shard_bytes + num_bytes > max_bytes:
            yield shard
            shard, shard_bytes = [], 0
        shard.append(source)
        shard_bytes += num_bytes
    yield shard


def _convert(file: GGUFFile, source: _Source, dtype: torch.dtype) -> torch.Tensor:
    values = file.values(source.stored)
    if source.num_heads:
        pairs = values.reshape(source.num_heads, source.shape[0] // source.num_heads // 2, 2, *source.shape[1:])
        values = pairs.swapaxes(1, 2).reshape(source.shape)
    if not torch.isfinite(values).all():
        raise CheckpointError(f"{file.path}: tensor {source.stored!r} holds NaN or Inf; fetch the file again")
    converted = (values - source.offset if source.offset else values).to(dtype)
    if not torch.isfinite(converted).all():
        raise CheckpointError(f"{file.path}: tensor {source.stored!r} holds numbers that {dtype} can't; use --dtype bf16 or fp32")
    return converted.contiguous()
