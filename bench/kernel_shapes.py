"""The calls of each op that models make: shapes of SmolLM2-135M and of the embedded model, at prefill and at decode of k rows.

An op without shapes of its own here is measured at the cases that it was registered with, so that none is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import spct_kernels  # noqa: F401 - registers the ops
from spct.benchmark.floor import Peaks
from spct_kernels import pack
from spct_kernels.attention_cases import Tree, decode_tree, make_inputs, prefill_tree
from spct_kernels.registry import Cost, Inputs, Op, ops
from spct_kernels.sample_cases import make_head, make_lists

Build = Callable[[torch.Generator], Inputs]
Shapes = Iterator[tuple[str, Build, bool]]


@dataclass(frozen=True)
class Model:
    """Widths of a decoder."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of a layer's four projections."""
        query = self.heads * self.head_dim
        qkv = query + 2 * self.kv_heads * self.head_dim
        return (qkv, self.hidden), (self.hidden, query), (2 * self.inner, self.hidden), (self.hidden, self.inner)


SMOLLM2 = Model("SmolLM2-135M", 576, 9, 3, 64, 1536, 49_152)
EMBEDDED = Model("embedded", 192, 6, 3, 32, 512, 970)
ROWS = (1, 8, 32, 512)


@dataclass(frozen=True)
class Call:
    """One call of an op that is checked and timed; `is_small` ones run in quick mode too."""

    op: Op
    name: str
    build: Build
    is_small: bool


def calls() -> list[Call]:
    """Every op that has a CPU kernel, at every shape."""
    found = []
    for op in ops():
        if "cpu" in op.backends:
            shapes = _SHAPES[op.name]() if op.name in _SHAPES else _registered(op)
            found += [Call(op, name, build, is_small) for name, build, is_small in shapes]
    return found


def cost_info(cost: Cost, peaks: Peaks | None) -> dict[str, float]:
    """An op's cost, and the microseconds that it takes at the machine's peaks."""
    info: dict[str, float] = {"bytes": cost.bytes, "flops": cost.flops}
    return info if peaks is None else info | {"floor_us": 1e6 * max(cost.bytes / peaks.read, cost.flops / peaks.fp32)}


def _registered(op: Op) -> Shapes:
    for case in op.cases:
        yield case.name, functools.partial(case.build, case.dtypes[0]), True


def _linear(schemes: tuple[str, ...]) -> Shapes:
    for model in (SMOLLM2, EMBEDDED):
        for scheme in schemes:
            for outputs, inputs in model.matrices:
                for rows in ROWS:

                    def build(g: torch.Generator, o: int = outputs, i: int = inputs, r: int = rows, s: str = scheme) -> Inputs:
                        weight = pack(torch.randn((o, i), generator=g) / i**0.5, s)
                        return {"x": torch.randn((r, i), generator=g), "weight": weight, "bias": None}

                    yield f"{model.name} {outputs}x{inputs} {scheme} rows={rows}", build, model is EMBEDDED and rows == 8


def _attention() -> Shapes:
    for model, prefix, suffix in ((SMOLLM2, 1024, 64), (EMBEDDED, 300, 50)):
        heads = (model.heads, model.kv_heads, model.head_dim, model.head_dim)
        trees: list[tuple[str, Tree]] = [(f"decode prefix={prefix} rows={k}", decode_tree(prefix, (suffix,) * k)) for k in (1, 8, 32)]
        trees.append((f"prefill tokens={min(prefix, 512)}", prefill_tree(min(prefix, 512))))
        for label, tree in trees:
            for dtype in (torch.float32, torch.bfloat16):

                def build(g: torch.Generator, t: Tree = tree, h: tuple[int, int, int, int] = heads, d: torch.dtype = dtype) -> Inputs:
                    inputs = make_inputs(t, h, d, g)
                    return inputs | {"q": inputs["q"].float()}

                yield f"{model.name} {label} KV {str(dtype)[6:]}", build, model is EMBEDDED and "rows=8" in label


def _sample(scheme: str) -> Shapes:
    draws = {"greedy": (0.0, 1.0), "plain": (1.0, 1.0), "top-p 0.95": (1.0, 0.95), "peaked top-p 0.95": (0.05, 0.95)}
    for model in (SMOLLM2, EMBEDDED):
        for rows in (1, 8, 32):
            for label, (temperature, top_p) in draws.items():

                def build(g: torch.Generator, m: Model = model, r: int = rows, t: float = temperature, p: float = top_p) -> Inputs:
                    return make_head(r, m.hidden, m.vocabulary, True, torch.float32, g, scheme) | {
                        "temperature": torch.full((r,), t),
                        "top_k": torch.zeros(r, dtype=torch.int32),
                        "top_p": torch.full((r,), p),
                        "min_p": torch.zeros(r),
                        "seed": torch.arange(r),
                        "position": torch.arange(r) * 7,
                    }

                yield f"{model.name} {scheme} rows={rows} {label}", build, model is EMBEDDED and rows == 8


def _token_logits(scheme: str) -> Shapes:
    for model in (SMOLLM2, EMBEDDED):

        def build(g: torch.Generator, m: Model = model) -> Inputs:
            offsets, ids = make_lists(32, m.vocabulary, 20, g)
            head = make_head(32, m.hidden, m.vocabulary, True, torch.float32, g, scheme)
            return head | {"offsets": offsets, "token_ids": ids, "softcap": None}

        yield f"{model.name} {scheme} rows=32", build, model is EMBEDDED


def _norm(residual: bool) -> Shapes:
    for model in (SMOLLM2, EMBEDDED):
        for rows in ROWS:

            def build(g: torch.Generator, m: Model = model, r: int = rows) -> Inputs:
                names = ("x", "residual") if residual else ("x",)
                tensors = {name: torch.randn((r, m.hidden), generator=g) for name in names}
                return tensors | {"weight": torch.rand(m.hidden, generator=g) + 0.5, "eps": 1e-5}

            yield f"{model.name} rows={rows}", build, model is EMBEDDED and rows == 8


def _gated() -> Shapes:
    for model in (SMOLLM2, EMBEDDED):
        for rows in ROWS:

            def build(g: torch.Generator, m: Model = model, r: int = rows) -> Inputs:
                return {"gate_up": torch.randn((r, 2 * m.inner), generator=g), "kind": "silu"}

            yield f"{model.name} rows={rows}", build, model is EMBEDDED and rows == 8


def _rope() -> Shapes:
    for model in (SMOLLM2, EMBEDDED):
        for rows in ROWS:

            def build(g: torch.Generator, m: Model = model, r: int = rows) -> Inputs:
                angles = torch.rand((r, m.head_dim // 2), generator=g) * 100
                cache = (r + 3, m.kv_heads, m.head_dim)
                return {
                    "qkv": torch.randn((r, (m.heads + 2 * m.kv_heads) * m.head_dim), generator=g),
                    "cos": angles.cos(),
                    "sin": angles.sin(),
                    "slots": torch.randperm(r + 3, generator=g)[:r].int(),
                    "k_cache": torch.zeros(cache),
                    "v_cache": torch.zeros(cache),
                    "num_heads": m.heads,
                    "num_kv_heads": m.kv_heads,
                    "head_dim": m.head_dim,
                    "q_norm": None,
                    "k_norm": None,
                    "norm_eps": 1e-6,
                }

            yield f"{model.name} rows={rows}", build, model is EMBEDDED and rows == 8


_SHAPES: dict[str, Callable[[], Shapes]] = {
    "linear": functools.partial(_linear, ("fp32", "bf16")),
    "linear_int8": functools.partial(_linear, ("int8",)),
    "linear_w8a8": functools.partial(_linear, ("w8a8",)),
    "shared_prefix_attention": _attention,
    "fused_sample": functools.partial(_sample, "fp32"),
    "fused_sample_w8a8": functools.partial(_sample, "w8a8"),
    "token_logits": functools.partial(_token_logits, "fp32"),
    "token_logits_w8a8": functools.partial(_token_logits, "w8a8"),
    "rms_norm": functools.partial(_norm, residual=False),
    "add_rms_norm": functools.partial(_norm, residual=True),
    "gated_activation": _gated,
    "rope_append": _rope,
}
