"""The models, batches and inputs of `bench/gpu.py`: real shapes with random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from spct_kernels import AttentionPlan, pack
from spct_kernels.specialisation import MODELS, ModelShape

TINY = ModelShape("tiny", 4, 2, 16, 64, 96, 300, dtype="fp32")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
IN_FULL = ("llama 8B", "gemma 27B")
"""Models that are measured over the whole grid; the others get one row each."""
LAYERS = {"llama 8B": 32, "gemma 27B": 46, "qwen2.5 7B": 28, "qwen3 8B": 36, "llama 1B": 16, "tiny": 2}


@dataclass(frozen=True, slots=True)
class Batch:
    """k rows below one prefix, each with a suffix of its own."""

    rows: int
    prefix: int
    suffix: int

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"k={self.rows} prefix={self.prefix} suffix={self.suffix}"


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured."""

    models: tuple[ModelShape, ...]
    rows: tuple[int, ...]
    prefixes: tuple[int, ...]
    suffixes: tuple[int, ...]
    repeats: int
    in_full: tuple[str, ...] = field(default=IN_FULL)

    @classmethod
    def choose(cls, *, dry: bool, quick: bool) -> Grid:
        """The grid of the issue; quick: one model and one batch; dry: a tiny model, for the interpreter."""
        if dry:
            return cls((TINY,), (3,), (70,), (5,), 2, ("tiny",))
        models = tuple(model for model in MODELS if model.name in LAYERS)
        if quick:
            return cls(models[:1], (32,), (4096,), (128,), 20)
        return cls(models, (8, 32, 128), (512, 4096, 16384), (64, 512), 50)

    def batches(self, model: ModelShape) -> Iterator[Batch]:
        """The whole grid, or its middle for models that get one row."""
        if model.name not in self.in_full:
            yield Batch(self.rows[len(self.rows) // 2], self.prefixes[len(self.prefixes) // 2], self.suffixes[0])
            return
        for prefix in self.prefixes:
            for rows in self.rows:
                for suffix in self.suffixes:
                    yield Batch(rows, prefix, suffix)


def plan_of(model: ModelShape, batch: Batch, device: torch.device) -> AttentionPlan:
    """A prefix and a node per row, slots in order as a fresh cache gives them."""
    lengths = [batch.prefix] + [batch.suffix] * batch.rows
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    return AttentionPlan.build(
        node_parent=[-1] + [0] * batch.rows,
        node_offset=offsets,
        node_slots=torch.arange(offsets[-1], dtype=torch.int32),
        row_node=list(range(1, batch.rows + 1)),
        row_position=[batch.prefix + batch.suffix - 1] * batch.rows,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        device=device,
    )


def attention_inputs(model: ModelShape, batch: Batch, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Arguments of `shared_prefix_attention`."""
    dtype, slots = DTYPES[model.dtype], batch.prefix + batch.rows * batch.suffix
    shapes = {"q": (batch.rows, model.num_heads, model.head_dim)}
    shapes |= dict.fromkeys(("k_cache", "v_cache"), (slots, model.num_kv_heads, model.head_dim))
    tensors = {name: torch.randn(shape, generator=generator, device=device).to(dtype) for name, shape in shapes.items()}
    softcap = 50.0 if model.attention_softcap else None
    return tensors | {"plan": plan_of(model, batch, device), "scale": model.head_dim**-0.5, "softcap": softcap}


def linear_inputs(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Arguments of `linear` for (rows, outputs, inputs)."""
    rows, outputs, inputs = shape
    weight = torch.randn((outputs, inputs), generator=generator, device=device).to(dtype) / inputs**0.5
    scheme = next(name for name, stored in DTYPES.items() if stored == dtype)
    return {"x": torch.randn((rows, inputs), generator=generator, device=device).to(dtype), "weight": pack(weight, scheme)}


def head_inputs(model: ModelShape, rows: int, top_p: float, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Arguments of `fused_sample`: logits with a standard deviation of about 2, every row's seed its own."""
    dtype = DTYPES[model.dtype]
    full = {"dtype": torch.float32, "device": device}
    head = torch.randn((model.vocabulary, model.width), generator=generator, device=device) * (2 / model.width**0.5)
    return {
        "hidden": torch.randn((rows, model.width), generator=generator, device=device).to(dtype),
        "norm_weight": torch.ones(model.width, device=device, dtype=dtype),
        "lm_head": head.to(dtype),
        "norm_eps": 1e-5,
        "temperature": torch.ones(rows, **full),
        "top_k": torch.zeros(rows, dtype=torch.int32, device=device),
        "top_p": torch.full((rows,), top_p, **full),
        "min_p": torch.zeros(rows, **full),
        "seed": torch.arange(rows, device=device),
        "position": torch.full((rows,), 7, device=device),
        "meta_weight": torch.ones(model.width, device=device) / model.width**0.5,
        "softcap": 30.0 if model.final_softcap else None,
    }
