"""What `compile_check` compiles: one kernel with the types, constants and launch options that the engine uses in practice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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

    def on(self, target: str) -> tuple[dict[str, Any], dict[str, int]]:
        """(constexprs, launch options) on one of TARGETS."""
        constexprs, options = dict(self.constexprs), dict(self.options)
        for name, value in self.per_target.get(target, {}).items():
            (constexprs if name in constexprs else options)[name] = value
        return constexprs, options
