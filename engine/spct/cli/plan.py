"""What a model needs and what fits, from its small files alone: no weights are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from spct.assembly import choose_device
from spct.checkpoint.config import read_spec
from spct.checkpoint.dtypes import DtypePlan, plan_dtypes
from spct.checkpoint.folder import find_folder
from spct.checkpoint.shards import Shards
from spct.checkpoint.sidecars import read_meta_head
from spct.checkpoint.weights import check_tensors, stored_dtype
from spct.config import EngineConfig
from spct.limits import Limits, num_pages_of, plan_limits
from spct.models.kv import bytes_per_slot
from spct.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A checkpoint and the engine that would run it.

    meta_pooling  how the meta-RM head's logits become a score; None without a head
    kv_dtype      of keys and values
    slot_bytes    KV memory of one token over all layers
    """

    folder: Path
    spec: ModelSpec
    dtypes: DtypePlan
    device: torch.device
    meta_pooling: str | None
    config: EngineConfig
    limits: Limits
    kv_dtype: torch.dtype
    slot_bytes: int

    def samples_at_once(self, prompt_len: int, max_tokens: int) -> int:
        """Samples of one request whose keys and values fit into the KV memory together (more run after one another)."""
        free = self.limits.num_pages - num_pages_of(prompt_len)
        return max(0, min(free // num_pages_of(max_tokens), self.limits.max_samples))


def plan_model(model: str, config: EngineConfig) -> ModelPlan:
    """Reads a model's configuration and the headers of its weights.

    Raises: ConfigError, CheckpointError, CapacityError as the engine would, weights' values aside.
    """
    folder = find_folder(model)
    spec = read_spec(folder.required("config.json", "expected a Hugging Face model folder"))
    device = choose_device(config.device)
    with Shards(folder) as shards:
        check_tensors(spec, shards)
        dtypes = plan_dtypes(config.dtype, config.weights, stored_dtype(spec, shards), device)
    head = read_meta_head(folder, spec.hidden_dim, torch.device("cpu"))
    kv_dtype = dtypes.kv if config.kv_dtype == "auto" else getattr(torch, config.kv_dtype)
    slot_bytes = bytes_per_slot(spec, kv_dtype)
    return ModelPlan(
        folder=folder.path,
        spec=spec,
        dtypes=dtypes,
        device=device,
        meta_pooling=None if head is None else head.pooling,
        config=config,
        limits=plan_limits(spec.max_context, slot_bytes, config),
        kv_dtype=kv_dtype,
        slot_bytes=slot_bytes,
    )


def num_distinct_tokens(prompts: Iterable[tuple[int, ...]]) -> int:
    """Tokens of a prefix tree over `prompts`: what is prefilled when what they share is computed once."""
    total = 0
    previous: tuple[int, ...] = ()
    for prompt in sorted(prompts):
        shared = next((i for i, (a, b) in enumerate(zip(previous, prompt, strict=False)) if a != b), min(len(previous), len(prompt)))
        total += len(prompt) - shared
        previous = prompt
    return total
