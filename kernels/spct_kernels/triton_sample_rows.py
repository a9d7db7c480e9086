"""How the output head's kernels are launched in practice, for `compile_check`: Llama-3.1-8B's, Gemma-2-27B's and SmolLM2's heads."""

from __future__ import annotations

from typing import Any

from spct_kernels.specialisation import Specialisation
from spct_kernels.triton_sample_draw import _decide_kernel
from spct_kernels.triton_sample_head import _final_norm_kernel, _head_kernel, _mark_kernel, _token_logits_kernel
from spct_kernels.triton_sample_options import (
    DRAW_OPTIONS,
    HEAD_16,
    HEAD_16_ON,
    HEAD_32,
    HEAD_32_ON,
    NORM_OPTIONS,
    REDO_BLOCK,
    ROW_BLOCK,
)
from spct_kernels.triton_sample_redo import _redo_draw_kernel, _redo_logits_kernel

_DRAW = {"temperature": "fp32", "top_k": "i32", "top_p": "fp32", "min_p": "fp32", "seed": "i64", "position": "i64"}
_FLOATS = ("scale_ptr", "meta_ptr", "floats_ptr", "logprob_ptr", "best_ptr", "normaliser_ptr", "logits_ptr", "out_ptr")
_TYPES = {
    **{f"{name}_ptr": f"*{kind}" for name, kind in _DRAW.items()},
    **{name: "*fp32" for name in _FLOATS},
    **{name: "*i32" for name in ("allowed_ptr", "banned_ptr", "bits_ptr", "ids_ptr")},
    **{name: "*i64" for name in ("offsets_ptr", "histogram_ptr", "token_ptr", "counters_ptr")},
    **{name: "i32" for name in ("num_rows", "num_ids", "num_tiles", "vocabulary", "head_stride", "hidden_stride", "words")},
    **{name: "fp32" for name in ("softcap", "norm_eps", "meta_bias")},
}
_DIVISIBLE = ("head_stride", "hidden_stride")


def _row(kernel: Any, name: str, dtype: str, constexprs: dict[str, Any], options: dict[str, Any], **more: Any) -> Specialisation:
    """A specialisation whose types follow from the arguments' names and the head's dtype."""
    typed = _TYPES | {name: f"*{dtype}" for name in ("hidden_ptr", "norm_weight_ptr", "meta_weight_ptr", "parts_ptr", "head_ptr")}
    names = [one for one in kernel.arg_names if one not in constexprs]
    divisible = tuple(one for one in names if one.endswith("_ptr") or one in _DIVISIBLE)
    return Specialisation(kernel, name, {one: typed[one] for one in names}, constexprs, divisible, options, **more)


def _split(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(constexprs, launch options) of a configuration."""
    tiles = {name: value for name, value in config.items() if name.startswith("BLOCK")}
    return tiles, {name: value for name, value in config.items() if name not in tiles}


def _head_rows(label: str, dtype: str, width: int, parts: int, softcap: bool, lists: bool, panel: int) -> list[Specialisation]:
    """The kernels that multiply."""
    config, by_target = (HEAD_32, HEAD_32_ON) if dtype == "fp32" else (HEAD_16, HEAD_16_ON)
    tiles, options = _split(config)
    head = {"HAS_SOFTCAP": softcap, "WIDTH": width, "PARTS": parts, "PANEL": panel} | tiles
    masks = {"HAS_ALLOWED": lists, "HAS_BANNED": lists}
    more = {"per_target": by_target, "mma": dtype != "fp32", "wgmma": dtype != "fp32"}
    absent = {} if lists else {"allowed_ptr": None, "banned_ptr": None, "offsets_ptr": None}
    return [
        _row(_head_kernel, label, dtype, head | masks | absent, options, **more),
        _row(_redo_logits_kernel, label, dtype, head | masks | absent, options, **more),
        _row(_token_logits_kernel, label, dtype, head, options, **more),
    ]


def specialisations() -> tuple[Specialisation, ...]:
    """Every kernel of the output head as the engine launches it."""
    rows = _head_rows("bf16 E=4096", "bf16", 4096, 2, False, False, 0)
    rows += _head_rows("bf16 E=4608, soft cap, lists", "bf16", 4608, 3, True, True, 0)
    rows += _head_rows("fp16 E=576, panels", "fp16", 576, 2, False, False, 16)
    rows += _head_rows("fp32 E=576, lists", "fp32", 576, 1, False, True, 0)
    for dtype, width, parts in (("bf16", 4096, 2), ("fp32", 576, 1)):
        norm = {"WIDTH": width, "PARTS": parts, "HAS_META": True, "BLOCK": ROW_BLOCK}
        rows.append(_row(_final_norm_kernel, f"{dtype} E={width}", dtype, norm, NORM_OPTIONS))
    rows.append(_row(_mark_kernel, "lists", "bf16", {"BLOCK": ROW_BLOCK}, NORM_OPTIONS))
    for vocabulary, tiles in ((128_256, 1024), (256_000, 2048)):
        decide = {"FORCE_REDO": False, "ROWS": 1, "BLOCK": tiles}
        rows.append(_row(_decide_kernel, f"V={vocabulary}", "bf16", decide, DRAW_OPTIONS))
        draw = {"VOCABULARY": vocabulary, "BLOCK": REDO_BLOCK}
        rows.append(_row(_redo_draw_kernel, f"V={vocabulary}", "bf16", draw, DRAW_OPTIONS))
    return tuple(rows)
