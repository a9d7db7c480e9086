"""The compilations of the attention kernels that real models use, on each target with the tiles that `options_on` gives it."""

from __future__ import annotations

from typing import Any

import torch

from spct_kernels.specialisation import TARGETS, Specialisation
from spct_kernels.triton_attention import _attention_kernel
from spct_kernels.triton_attention_merge import merge_kernel
from spct_kernels.triton_attention_options import Shape, compile_options, options_on
from spct_kernels.triton_common import COMPILE, next_power_of_2

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "i8"}

_POINTERS = {
    "k_scale_ptr": "*fp32",
    "v_scale_ptr": "*fp32",
    "items_ptr": "*i32",
    "segments_ptr": "*i32",
    "steps_ptr": "*i32",
    "tile_slots_ptr": "*i32",
    "row_position_ptr": "*i32",
    "row_first_ptr": "*i32",
    "row_count_ptr": "*i32",
    "lse_ptr": "*fp32",
    "partial_ptr": "*fp32",
    "partial_state_ptr": "*fp32",
}
_STRIDES = dict.fromkeys(("k_slot_stride", "k_head_stride", "v_slot_stride", "v_head_stride"), "i32")
_NUMBERS = {"scale": "fp32", "softcap": "fp32", "window": "i32"}

_BF16, _FP16, _FP32, _INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8


def _attention(name: str, shape: Shape, kv_heads: int, **flags: Any) -> Specialisation:
    """One compilation; flags: SOFTCAP, WINDOW, SCALED, FOLD, GUARD where they are not off."""

    def tiles(target: str) -> dict[str, int]:
        options = options_on(shape, target)
        heads = min(shape.group, options.block_m)
        return {
            "HEADS": heads,
            "BLOCK_M": options.block_m,
            "BLOCK_N": options.block_n,
            "num_warps": options.num_warps,
            "num_stages": options.num_stages,
            **compile_options(target),
        }

    per_target = {target: tiles(target) for target in TARGETS}
    query, cache = f"*{_NAMES[shape.query_dtype]}", f"*{_NAMES[shape.cache_dtype]}"
    pointers = {"q_ptr": query, "k_ptr": cache, "v_ptr": cache, "out_ptr": query} | _POINTERS
    constants: dict[str, Any] = {"SOFTCAP": False, "WINDOW": False, "SCALED": 0, "FOLD": False, "GUARD": False} | flags
    constants |= {
        "NUM_KV_HEADS": kv_heads,
        "GROUP": shape.group,
        "KEY_DIM": shape.key_dim,
        "VALUE_DIM": shape.value_dim,
        "WIDE": shape.wide,
    }
    constants |= {"BLOCK_D": next_power_of_2(shape.key_dim), "BLOCK_DV": next_power_of_2(shape.value_dim)}
    constants |= {name: value for name, value in per_target["sm_90"].items() if name not in ("num_warps", "num_stages", "maxnreg")}
    return Specialisation(
        _attention_kernel,
        name=name,
        signature=pointers | _STRIDES | _NUMBERS,
        constexprs=constants,
        divisible=(*(set(pointers) - {"row_position_ptr", "row_first_ptr", "row_count_ptr"}), *_STRIDES),
        options=COMPILE,
        per_target=per_target,
        mma=not shape.wide,
        wgmma=not shape.wide,
    )


def specialisations() -> tuple[Specialisation, ...]:
    """Llama-3.1-8B, Qwen2.5-7B, Gemma-2-27B and 1B shapes: decode, cut tiles, prefill, windows, quantised caches, fp32."""
    rows = [
        _attention("llama 8B decode", Shape(4, 128, 128, _BF16, _BF16), 8),
        _attention("llama 8B decode, cut tiles", Shape(4, 128, 128, _BF16, _BF16), 8, GUARD=True),
        _attention("llama 8B prefill", Shape(4, 128, 128, _BF16, _BF16), 8, FOLD=True),
        _attention("llama 8B mixed", Shape(4, 128, 128, _BF16, _BF16), 8, FOLD=True, GUARD=True),
        _attention("qwen2.5 7B decode", Shape(7, 128, 128, _BF16, _BF16), 4),
        _attention("gemma 27B decode, window", Shape(2, 128, 128, _BF16, _BF16), 16, SOFTCAP=True, WINDOW=True, GUARD=True),
        _attention("gemma 27B prefill", Shape(2, 128, 128, _BF16, _BF16), 16, SOFTCAP=True, FOLD=True),
        _attention("1B decode", Shape(2, 64, 64, _FP16, _FP16), 4),
        _attention("dim 256 decode", Shape(2, 256, 256, _BF16, _BF16), 8),
        _attention("dim 256 mixed", Shape(2, 256, 256, _BF16, _BF16), 8, GUARD=True),
        _attention("dim 80 decode", Shape(1, 80, 80, _FP16, _FP16), 32),
        _attention("int8 cache, scales a slot", Shape(4, 128, 128, _BF16, _INT8), 8, SCALED=2),
        _attention("fp32 mixed", Shape(3, 64, 64, _FP32, _FP32), 3, FOLD=True, GUARD=True),
    ]
    merge = {"row_first_ptr": "*i32", "row_count_ptr": "*i32", "partial_ptr": "*fp32", "partial_state_ptr": "*fp32", "lse_ptr": "*fp32"}
    for dtype, dim in (("bf16", 128), ("fp16", 64), ("fp32", 256)):
        rows.append(
            Specialisation(
                merge_kernel,
                name=f"{dtype} dim {dim}",
                signature=merge | {"out_ptr": f"*{dtype}", "num_heads": "i32"},
                constexprs={"VALUE_DIM": dim, "BLOCK_DV": dim},
                divisible=("partial_ptr", "partial_state_ptr", "out_ptr", "lse_ptr", "num_heads"),
                options={"num_warps": 1} | COMPILE,
            )
        )
    return tuple(rows)
