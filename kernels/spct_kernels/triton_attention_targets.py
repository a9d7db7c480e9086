"""The compilations of the attention kernels that real models use, on each target with the tiles that `options_on` gives it."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from spct_kernels.specialisation import TARGETS, ModelShape, Specialisation
from spct_kernels.triton_attention_kernel import attention_kernel
from spct_kernels.triton_attention_merge import merge_kernel
from spct_kernels.triton_attention_options import Shape, compile_options, families, is_many
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
    "kept_ptr": "*fp32",
}
_STRIDES = dict.fromkeys(("k_slot_stride", "k_head_stride", "v_slot_stride", "v_head_stride"), "i32")
_NUMBERS = {"scale": "fp32", "softcap": "fp32", "window": "i32"}

_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def _attention(name: str, shape: Shape, kv_heads: int, *, batch_is_large: bool = False, **flags: Any) -> Specialisation:
    """One compilation; flags: SOFTCAP, WINDOW, SCALED, FOLD, GUARD where they are not off."""
    many = batch_is_large or is_many(shape.group, 1, deterministic=True)

    def tiles(target: str) -> dict[str, int]:
        options = families(shape, target)[many]
        heads = min(shape.group, options.block_m)
        return {
            "HEADS": heads,
            "BLOCK_M": options.block_m,
            "BLOCK_N": options.block_n,
            "num_warps": options.num_warps,
            "num_stages": options.stages(bool(flags.get("FOLD"))),
            **compile_options(shape, target),
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
        attention_kernel,
        name=name,
        signature=pointers | _STRIDES | _NUMBERS,
        constexprs=constants,
        divisible=(*(set(pointers) - {"row_position_ptr", "row_first_ptr", "row_count_ptr"}), *_STRIDES),
        options=COMPILE,
        per_target=per_target,
        mma=not shape.wide,
        wgmma=not shape.wide,
    )


def model_rows(model: ModelShape) -> list[Specialisation]:
    """Decode and prefill, each with and without tiles that a node cuts, for every kind of layer; and the merge."""
    shape = Shape(model.group, model.head_dim, model.head_dim, _DTYPES[model.dtype], _DTYPES[model.cache_dtype])
    folds = (False, True) if families(shape, TARGETS[0])[0].fold else (False,)
    rows = []
    for window, fold, guard in itertools.product(model.windows, folds, (False, True)):
        name = f"{model.name} {'prefill' if fold else 'decode'}{', cut tiles' if guard else ''}{', window' if window else ''}"
        flags = {"SOFTCAP": model.attention_softcap, "WINDOW": window, "FOLD": fold, "GUARD": guard}
        rows.append(_attention(name, shape, model.num_kv_heads, **flags, SCALED=2 if model.cache_dtype == "i8" else 0))
    signature = {"row_first_ptr": "*i32", "row_count_ptr": "*i32", "partial_ptr": "*fp32", "partial_state_ptr": "*fp32", "lse_ptr": "*fp32"}
    merge = Specialisation(
        merge_kernel,
        name=model.name,
        signature=signature | {"out_ptr": f"*{model.dtype}", "num_heads": "i32"},
        constexprs={"VALUE_DIM": model.head_dim, "BLOCK_DV": next_power_of_2(model.head_dim)},
        divisible=("partial_ptr", "partial_state_ptr", "out_ptr", "lse_ptr"),
        options={"num_warps": 1} | COMPILE,
    )
    return [*rows, merge]


def other_rows() -> list[Specialisation]:
    """What no model of the list has: wide and odd heads, quantised caches, many heads a KV head, batches that decide the tiles."""
    bf16, fp16, int8 = torch.bfloat16, torch.float16, torch.int8
    return [
        _attention("dim 256 decode", Shape(2, 256, 256, bf16, bf16), 8, GUARD=False),
        _attention("dim 256 decode, cut tiles", Shape(2, 256, 256, bf16, bf16), 8, GUARD=True),
        _attention("dim 80 decode", Shape(1, 80, 80, fp16, fp16), 32),
        _attention("int8 cache, scales a slot", Shape(4, 128, 128, bf16, int8), 8, SCALED=2),
        _attention("int8 cache, scales a head", Shape(4, 128, 128, bf16, int8), 8, SCALED=1),
        _attention("group 8 decode", Shape(8, 128, 128, bf16, bf16), 8),
        _attention("group 8 prefill, cut tiles", Shape(8, 128, 128, bf16, bf16), 8, FOLD=True, GUARD=True),
        _attention("dim 64, large batch, prefill", Shape(4, 64, 64, fp16, fp16), 8, batch_is_large=True, FOLD=True),
    ]
