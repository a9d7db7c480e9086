"""The small ops of a decoder layer: normalisation, rotary positions with the append to the KV cache, gated activation."""

from __future__ import annotations

import torch
from torch import Tensor

from spct_kernels.checks import FLOAT_DTYPES, bind, check_dtype
from spct_kernels.dispatch import cpu_ops, resolve, triton_kernels
from spct_kernels.elementwise_reference import (
    add_rms_norm_reference,
    gated_activation_reference,
    rms_norm_reference,
    rope_append_reference,
)
from spct_kernels.errors import InputError
from spct_kernels.registry import Case, Cost, Inputs, Op, register

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: str = "auto") -> Tensor:
    """Root-mean-square normalisation: x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv 1910.07467).

    x        [T, E]  fp32, bf16 or fp16; arithmetic in fp32
    weight   [E]     any of these; a family that stores weight - 1 adds the 1 on load
    returns  [T, E]  x's dtype

    Cost: x read once, the result written once. Invariant: a row's bits depend on that row alone.
    Raises: InputError if shapes, dtypes or devices disagree; BackendError if the backend is missing.
    """
    bind(x=(x, "T E"), weight=(weight, "E"))
    check_dtype("x", x, FLOAT_DTYPES)
    chosen = resolve(backend, x.device, x.dtype)
    if chosen == "reference":
        return rms_norm_reference(x, weight, eps)
    if chosen == "triton":
        return triton_kernels("elementwise").rms_norm(x.contiguous(), weight.contiguous(), eps)  # type: ignore[no-any-return] # imported by name
    return cpu_ops().rms_norm(x.contiguous(), weight.contiguous(), eps)  # type: ignore[no-any-return] # torch.ops is untyped


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Residual connection and the norm after it: (rms_norm(x + residual), x + residual) in one pass.

    x         [T, E]  fp32, bf16 or fp16
    residual  [T, E]  x's dtype
    weight    [E]     any of these
    returns   ([T, E], [T, E])  x's dtype; the norm is that of the sum as it is stored

    Cost: two reads and two writes of [T, E]. Invariant: a row's bits depend on that row alone.
    Raises: InputError if shapes, dtypes or devices disagree; BackendError if the backend is missing.
    """
    bind(x=(x, "T E"), residual=(residual, "T E"), weight=(weight, "E"))
    check_dtype("x", x, FLOAT_DTYPES)
    check_dtype("residual", residual, (x.dtype,))
    chosen = resolve(backend, x.device, x.dtype)
    if chosen == "reference":
        return add_rms_norm_reference(x, residual, weight, eps)
    if chosen == "triton":
        return triton_kernels("elementwise").add_rms_norm(x.contiguous(), residual.contiguous(), weight.contiguous(), eps)  # type: ignore[no-any-return] # imported by name
    return cpu_ops().add_rms_norm(x.contiguous(), residual.contiguous(), weight.contiguous(), eps)  # type: ignore[no-any-return] # torch.ops is untyped


def gated_activation(gate_up: Tensor, kind: str, *, backend: str = "auto") -> Tensor:
    """Gated activation of an MLP (Shazeer 2020, arXiv 2002.05202): act(gate) * up.

    gate_up  [T, 2I]  fp32, bf16 or fp16: gate in the first half, up in the second; arithmetic in fp32
    kind     "silu", "gelu_tanh" (the tanh form) or "gelu" (the exact one)
    returns  [T, I]   gate_up's dtype

    Cost: gate_up read once, the result written once. Invariant: a row's bits depend on that row alone.
    Raises: InputError for an odd width, an unknown kind or dtype; BackendError if the backend is missing.
    """
    dims = bind(gate_up=(gate_up, "T width"))
    if dims["width"] % 2:
        raise InputError(f"gate_up: expected an even width (gate and up halves), got {dims['width']}")
    if kind not in ACTIVATIONS:
        raise InputError(f"kind: expected one of {', '.join(ACTIVATIONS)}, got {kind!r}")
    check_dtype("gate_up", gate_up, FLOAT_DTYPES)
    chosen = resolve(backend, gate_up.device, gate_up.dtype)
    if chosen == "reference":
        return gated_activation_reference(gate_up, kind)
    if chosen == "triton":
        return triton_kernels("elementwise").gated_activation(gate_up.contiguous(), kind)  # type: ignore[no-any-return] # imported by name
    return cpu_ops().gated_activation(gate_up.contiguous(), ACTIVATIONS.index(kind))  # type: ignore[no-any-return] # torch.ops is untyped


def rope_append(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
    q_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Rotary positions and the append to the KV cache, in one pass over the fused projection.

    qkv      [T, (H+2K)*D]     fp32, bf16 or fp16: query heads, key heads, value heads
    cos      [T, D_rot/2]      fp32, one row per token; D_rot <= D dimensions turn, the rest pass through
    sin      [T, D_rot/2]      fp32
    slots    [T]               int32, where each token's key and value go; all different
    k_cache  [num_slots, K, D] fp32, bf16 or fp16; written at `slots`
    v_cache  [num_slots, K, D] k_cache's dtype; written at `slots`
    q_norm   [D] or None       per-head RMS norm of the queries before the rotation (Qwen3); with it k_norm [D]
    q_dtype  of the queries that come back; None: qkv's
    returns  [T, H, D]         the turned queries, rounded once to q_dtype

    Rotation: half-split, (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the halves of the first D_rot dimensions
    (Su et al. 2021, arXiv 2104.09864). Cost: qkv read once, the queries and T slots of both caches written once. Invariant: a
    row's bits depend on that row alone.
    Raises: InputError if shapes, dtypes or devices disagree; BackendError if the backend is missing.
    """
    kv_shape = "S K D"
    dims = {"K": num_kv_heads, "D": head_dim, "width": (num_heads + 2 * num_kv_heads) * head_dim}
    bind(
        dims,
        qkv=(qkv, "T width"),
        cos=(cos, "T pairs"),
        sin=(sin, "T pairs"),
        slots=(slots, "T"),
        k_cache=(k_cache, kv_shape),
        v_cache=(v_cache, kv_shape),
    )
    if 2 * dims["pairs"] > head_dim:
        raise InputError(f"cos: expected at most head_dim/2 = {head_dim // 2} columns, got {dims['pairs']}")
    check_dtype("qkv", qkv, FLOAT_DTYPES)
    check_dtype("slots", slots, (torch.int32,))
    check_dtype("v_cache", v_cache, (k_cache.dtype,))
    q_dtype = qkv.dtype if q_dtype is None else q_dtype
    if q_dtype not in FLOAT_DTYPES:
        raise InputError(f"q_dtype: expected a floating-point dtype or None, got {q_dtype}")
    if (q_norm is None) != (k_norm is None):
        raise InputError("q_norm, k_norm: expected both or neither, got one")
    if q_norm is not None and k_norm is not None:
        bind(dims, q_norm=(q_norm, "D"), k_norm=(k_norm, "D"))
    options = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    chosen = resolve(backend, qkv.device, qkv.dtype)
    if chosen == "reference":
        return rope_append_reference(
            qkv, cos, sin, slots, k_cache, v_cache, **options, q_norm=q_norm, k_norm=k_norm, norm_eps=norm_eps, q_dtype=q_dtype
        )
    if q_norm is not None and k_norm is not None:
        q_norm, k_norm = q_norm.float().contiguous(), k_norm.float().contiguous()
    arguments = (qkv.contiguous(), cos.float().contiguous(), sin.float().contiguous(), slots.contiguous(), k_cache, v_cache)
    shape = (num_heads, num_kv_heads, head_dim, q_norm, k_norm, norm_eps)
    if chosen == "triton":
        return triton_kernels("rope_append").rope_append(*arguments, *shape).to(q_dtype)  # type: ignore[no-any-return] # imported by name
    return cpu_ops().rope_append(*arguments, *shape, q_dtype)  # type: ignore[no-any-return] # torch.ops is untyped


def _activations(rows: int, width: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Numbers as a residual stream has them: mostly around 1, some columns ten times that."""
    x = torch.randn((rows, width), generator=generator)
    x[:, :: max(1, width // 3)] *= 10
    return x.to(dtype)


def _norm_case(rows: int, width: int, residual: bool, strided: bool = False) -> Case:
    def build(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        names = ("x", "residual") if residual else ("x",)
        step = 2 if strided else 1
        tensors = {name: _activations(rows, width * step, dtype, generator)[:, ::step] for name in names}
        return {**tensors, "weight": torch.randn(width, generator=generator), "eps": 1e-5}

    return Case(f"rows={rows} width={width}{' strided' if strided else ''}", build)


def _gated_case(rows: int, width: int, kind: str) -> Case:
    def build(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        return {"gate_up": _activations(rows, 2 * width, dtype, generator), "kind": kind}

    return Case(f"rows={rows} width={width} {kind}", build)


def _rope_case(rows: int, heads: tuple[int, int, int], pairs: int, normed: bool, q_dtype: torch.dtype | None = None) -> Case:
    num_heads, num_kv_heads, head_dim = heads

    def build(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        angles = torch.rand((rows, pairs), generator=generator) * 100
        cache = (rows + 3, num_kv_heads, head_dim)
        norms = [torch.rand(head_dim, generator=generator) + 0.5 if normed else None for _ in range(2)]
        return {
            "qkv": torch.randn((rows, (num_heads + 2 * num_kv_heads) * head_dim), generator=generator).to(dtype),
            "cos": angles.cos(),
            "sin": angles.sin(),
            "slots": torch.randperm(rows + 3, generator=generator)[:rows].int(),
            "k_cache": torch.zeros(cache, dtype=dtype),
            "v_cache": torch.zeros(cache, dtype=dtype),
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "q_norm": norms[0],
            "k_norm": norms[1],
            "norm_eps": 1e-6,
            "q_dtype": q_dtype,
        }

    narrow = "" if q_dtype is None else f" {str(q_dtype).removeprefix('torch.')} queries"
    return Case(f"rows={rows} heads={heads} pairs={pairs}{' normed' if normed else ''}{narrow}", build)


def _wide_rope(inputs: Inputs) -> Inputs:
    """Inputs of the fp64 oracle, whose queries are not rounded."""
    wide = {name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for name, value in inputs.items()}
    return {**wide, "q_dtype": None}


def _tensor_bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


_SHAPES = ((1, 1), (1, 64), (3, 17), (33, 576), (0, 16), (257, 31))

register(
    Op(
        "rms_norm",
        rms_norm,
        rms_norm_reference,
        [*(_norm_case(*shape, residual=False) for shape in _SHAPES), _norm_case(5, 67, residual=False, strided=True)],
        lambda inputs: Cost(2 * _tensor_bytes(inputs["x"]), 4 * inputs["x"].numel()),
    )
)
register(
    Op(
        "add_rms_norm",
        add_rms_norm,
        add_rms_norm_reference,
        [*(_norm_case(*shape, residual=True) for shape in _SHAPES), _norm_case(5, 67, residual=True, strided=True)],
        lambda inputs: Cost(4 * _tensor_bytes(inputs["x"]), 5 * inputs["x"].numel()),
    )
)
register(
    Op(
        "gated_activation",
        gated_activation,
        gated_activation_reference,
        [_gated_case(*shape, kind) for kind in ACTIVATIONS for shape in ((1, 1), (3, 17), (33, 192), (0, 16))],
        lambda inputs: Cost(3 * _tensor_bytes(inputs["gate_up"]) // 2, 20 * inputs["gate_up"].numel()),
    )
)
register(
    Op(
        "rope_append",
        rope_append,
        rope_append_reference,
        [
            _rope_case(1, (1, 1, 16), 8, False),
            _rope_case(7, (6, 2, 48), 24, False),
            _rope_case(33, (4, 4, 32), 5, True),
            _rope_case(0, (2, 1, 16), 8, False),
            _rope_case(5, (9, 3, 64), 32, True),
            _rope_case(5, (9, 3, 64), 32, False, torch.bfloat16),
        ],
        lambda inputs: Cost(2 * _tensor_bytes(inputs["qkv"]) + _tensor_bytes(inputs["cos"], inputs["sin"]), 6 * inputs["qkv"].numel()),
        outputs=lambda inputs, result: (result, inputs["k_cache"], inputs["v_cache"]),
        widen=_wide_rope,
    )
)
