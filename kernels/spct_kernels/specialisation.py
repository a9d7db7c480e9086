"""What `compile_check` compiles: one kernel with the types, constants and launch options that the engine uses in practice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LENGTHS = frozenset({"WIDTH", "VOCABULARY", "SEGMENT", "SEGMENTS", "NUM_HEADS", "NUM_KV_HEADS"})
"""Constants that only say how long something is. Of compilations that differ in these alone, the longest stands for all."""

TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")

SHARED_BYTES = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "sm_120": 101_376, "gfx942": 65_536}
"""Shared memory that one program may take.

Sources: CUDA C++ programming guide, "Technical specifications per compute capability"; CDNA 3 instruction set, LDS.
"""


@dataclass(frozen=True, slots=True)
class Specialisation:
    """One way in which a Triton kernel is launched.

    kernel      the @triton.jit function
    name        what is special, unique among the kernel's: "bf16, E=4096"
    signature   run-time argument -> Triton's name of its type: {"x_ptr": "*bf16", "num_rows": "i32"}
    constexprs  every tl.constexpr argument
    divisible   run-time arguments that are multiples of 16: torch's pointers, most widths
    options     launch options: num_warps, num_stages
    per_target  target -> what differs there, options and constexprs alike
    mma         True: a tensor-core instruction has to be there
    wgmma       True: on sm_90 it has to be a warp-group one
    targets     that have the types
    """

    kernel: Any
    name: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    divisible: tuple[str, ...] = ()
    options: Mapping[str, int] = field(default_factory=dict)
    per_target: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mma: bool = False
    wgmma: bool = False
    targets: tuple[str, ...] = TARGETS

    @property
    def kernel_name(self) -> str:
        """The kernel's public name: "_head_kernel" is "head"."""
        return str(self.kernel.__name__).strip("_").removesuffix("_kernel")

    @property
    def kind(self) -> tuple[Any, ...]:
        """Everything but the name and LENGTHS: what makes it another compilation than its neighbours."""
        per_target = sorted((target, tuple(sorted(values.items()))) for target, values in self.per_target.items())
        constants = sorted((name, repr(value)) for name, value in self.constexprs.items() if name not in LENGTHS)
        return self.kernel_name, tuple(sorted(self.signature.items())), tuple(constants), tuple(per_target), self.divisible

    def features(self, target: str) -> frozenset[tuple[str, str]]:
        """What of this compilation on a target should be compiled at least once: its types, constants and launch options."""
        constexprs, options = self.on(target)
        values = constexprs | options | {name: kind for name, kind in self.signature.items() if kind.startswith("*")}
        return frozenset((name, repr(value)) for name, value in values.items() if name not in LENGTHS)

    def on(self, target: str) -> tuple[dict[str, Any], dict[str, int]]:
        """(constexprs, launch options) on one of TARGETS."""
        constexprs, options = dict(self.constexprs), dict(self.options)
        for name, value in self.per_target.get(target, {}).items():
            (constexprs if name in constexprs else options)[name] = value
        return constexprs, options


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how the kernels are compiled for it.

    dtype           of weights and activations: "bf16", "fp16", "fp32"; kv_dtype of the caches, "" as dtype, "i8" with scales
    width           of the residual stream; inner_width of the feed-forward
    bias            of which projections: "qkv", "output", "gate_up", "down"
    windows         a layer's attention is windowed, for every kind of layer
    panel           outputs side by side in the weights' layout
    """

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    width: int
    inner_width: int
    vocabulary: int
    dtype: str = "bf16"
    kv_dtype: str = ""
    activation: str = "silu"
    bias: frozenset[str] = frozenset()
    windows: tuple[bool, ...] = (False,)
    attention_softcap: bool = False
    final_softcap: bool = False
    qk_norm: bool = False
    rotary_dim: int = 0
    panel: int = 1
    has_meta: bool = True

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def cache_dtype(self) -> str:
        """Of keys and values."""
        return self.kv_dtype or self.dtype

    @property
    def projections(self) -> tuple[tuple[str, int, int], ...]:
        """(name, outputs, inputs) of a layer's matrices."""
        attended = self.num_heads * self.head_dim
        return (
            ("qkv", (self.num_heads + 2 * self.num_kv_heads) * self.head_dim, self.width),
            ("output", self.width, attended),
            ("gate_up", 2 * self.inner_width, self.width),
            ("down", self.width, self.inner_width),
        )


_QKV = frozenset({"qkv"})
MODELS = (
    ModelShape("llama 8B", 32, 8, 128, 4096, 14336, 128_256),
    ModelShape(
        "gemma 27B", 32, 16, 128, 4608, 36864, 256_000,
        activation="gelu_tanh", windows=(True, False), attention_softcap=True, final_softcap=True,
    ),
    ModelShape("qwen2.5 7B", 28, 4, 128, 3584, 18944, 152_064, bias=_QKV),
    ModelShape("qwen3 8B", 32, 8, 128, 4096, 12288, 151_936, qk_norm=True),
    ModelShape("llama 1B", 32, 8, 64, 2048, 8192, 128_256, dtype="fp16"),
    ModelShape("embedded", 6, 2, 32, 192, 512, 1024, dtype="fp32"),
)  # fmt: skip
"""The models whose steps are compiled: those that are benchmarked, one more dtype, and the one that is shipped.

Sources: their config.json (meta-llama/Llama-3.1-8B, google/gemma-2-27b, Qwen/Qwen2.5-7B, Qwen/Qwen3-8B, meta-llama/Llama-3.2-1B).
"""
