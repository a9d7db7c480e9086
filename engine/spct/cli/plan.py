"""What a model needs and what fits, from its small files alone: no weights are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from spct.assembly import PAGE_SIZE, plan_pages
from spct.checkpoint.config import read_spec
from spct.checkpoint.dtypes import DtypePlan, plan_dtypes
from spct.checkpoint.folder import find_folder
from spct.checkpoint.shards import Shards
from spct.checkpoint.sidecars import read_meta_head
from spct.checkpoint.weights import check_tensors, stored_dtype
from spct.config import EngineConfig
from spct.errors import CapacityError, ConfigError
from spct.models.kv import bytes_per_slot
from spct.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A checkpoint and the engine that would run it.

    meta_pooling  how the meta-RM head's logits become a score; None without a head
    kv_dtype      of keys and values
    slot_bytes    KV memory of one token over all layers
    num_pages     KV pages of `PAGE_SIZE` tokens that the engine would take
    """

    folder: Path
    spec: ModelSpec
    dtypes: DtypePlan
    device: torch.device
    meta_pooling: str | None
    config: EngineConfig
    max_context: int
    kv_dtype: torch.dtype
    slot_bytes: int
    num_pages: int

    def samples_at_once(self, prompt_len: int, max_tokens: int) -> int:
        """Samples of one request whose keys and values fit into the KV memory together (more run after one another)."""
        free = self.num_pages - _pages(prompt_len)
        return max(0, min(free // _pages(max_tokens), self.config.max_samples))

    def check(self, num_samples: int, prompt_len: int, max_tokens: int) -> None:
        """Refuses what the engine would refuse. Raises: CapacityError."""
        if num_samples > self.config.max_samples:
            raise CapacityError(f"samples: at most max_samples={self.config.max_samples} per request, got {num_samples}")
        if prompt_len + 1 > self.max_context:
            raise CapacityError(f"the prompt has {prompt_len} tokens and the context ends at {self.max_context}; shorten the request")
        needed = _pages(prompt_len) + _pages(min(max_tokens, self.max_context - prompt_len) - 1)
        if needed > self.num_pages:
            raise CapacityError(
                f"a prompt of {prompt_len} tokens with one sample needs {needed} KV pages of {PAGE_SIZE} tokens, "
                f"the engine has {self.num_pages}; raise --kv-memory or lower --max-tokens"
            )


def plan_model(model: str, config: EngineConfig) -> ModelPlan:
    """Reads a model's configuration and the headers of its weights.

    Raises: ConfigError, CheckpointError, CapacityError as the engine would, weights' values aside.
    """
    folder = find_folder(model)
    spec = read_spec(folder.required("config.json", "expected a Hugging Face model folder"))
    device = torch.device(config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    with Shards(folder) as shards:
        check_tensors(spec, shards)
        dtypes = plan_dtypes(config.dtype, config.weights, stored_dtype(spec, shards), device)
    head = read_meta_head(folder, spec.hidden_dim, torch.device("cpu"))
    if config.max_context is not None and config.max_context > spec.max_context:
        raise ConfigError(f"max_context: the checkpoint was made for {spec.max_context} tokens, got {config.max_context}")
    max_context = config.max_context or spec.max_context
    kv_dtype = dtypes.kv if config.kv_dtype == "auto" else getattr(torch, config.kv_dtype)
    slot_bytes = bytes_per_slot(spec, kv_dtype)
    return ModelPlan(
        folder=folder.path,
        spec=spec,
        dtypes=dtypes,
        device=device,
        meta_pooling=None if head is None else head.pooling,
        config=config,
        max_context=max_context,
        kv_dtype=kv_dtype,
        slot_bytes=slot_bytes,
        num_pages=plan_pages(slot_bytes, max_context, config),
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


def _pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_SIZE)
