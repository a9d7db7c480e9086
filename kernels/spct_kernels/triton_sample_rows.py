"""How the output head's kernels are launched for a model, for `compile_rows`."""

from __future__ import annotations

from typing import Any

from spct_kernels.specialisation import ModelShape, Specialisation
from spct_kernels.triton_common import next_power_of_2
from spct_kernels.triton_sample_draw import _decide_kernel
from spct_kernels.triton_sample_head import _final_norm_kernel, _head_kernel, _mark_kernel, _token_logits_kernel
from spct_kernels.triton_sample_options import (
    DECIDE_ON,
    DRAW_OPTIONS,
    HEAD_16,
    HEAD_16_ON,
    HEAD_32,
    HEAD_32_ON,
    NORM_OPTIONS,
    REDO_BLOCK,
    ROW_BLOCK,
    listed_options,
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


def _row(
    kernel: Any, name: str, dtype: str, constexprs: dict[str, Any], options: dict[str, Any], types: Any = None, **more: Any
) -> Specialisation:
    """A specialisation whose types follow from the arguments' names and the head's dtype; `types` are the exceptions."""
    stored = ("hidden_ptr", "norm_weight_ptr", "meta_weight_ptr", "parts_ptr", "head_ptr")
    typed = _TYPES | {name: f"*{dtype}" for name in stored} | (types or {})
    names = [one for one in kernel.arg_names if one not in constexprs]
    divisible = tuple(one for one in names if one.endswith("_ptr") or one in _DIVISIBLE)
    return Specialisation(kernel, name, {one: typed[one] for one in names}, constexprs, divisible, options, **more)


def _split(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(constexprs, launch options) of a configuration."""
    tiles = {name: value for name, value in config.items() if name.startswith("BLOCK")}
    return tiles, {name: value for name, value in config.items() if name not in tiles}


def _head_rows(model: ModelShape, parts: int, lists: tuple[bool, bool]) -> list[Specialisation]:
    """The kernels that multiply; lists: of allowed ids, of banned ids."""
    config, by_target = (HEAD_32, HEAD_32_ON) if model.dtype == "fp32" else (HEAD_16, HEAD_16_ON)
    tiles, options = _split(config)
    panel = model.panel if model.panel > 1 else 0
    head = {"HAS_SOFTCAP": model.final_softcap, "WIDTH": model.width, "PARTS": parts, "PANEL": panel} | tiles
    masks: dict[str, Any] = {"HAS_ALLOWED": lists[0], "HAS_BANNED": lists[1]}
    more = {"per_target": by_target, "mma": model.dtype != "fp32", "wgmma": model.dtype != "fp32"}
    absent = {"allowed_ptr": lists[0], "offsets_ptr": lists[0], "banned_ptr": lists[1]}
    masks |= {name: None for name, there in absent.items() if not there}
    label = f"{model.name}, {parts} parts{', allowed' * lists[0]}{', banned' * lists[1]}"
    own = listed_options(panel)
    listed = more | {"per_target": {target: values | own for target, values in by_target.items()}}
    return [
        _row(_head_kernel, label, model.dtype, head | masks, options, **more),
        _row(_redo_logits_kernel, label, model.dtype, head | masks, options, **more),
        _row(_token_logits_kernel, f"{model.name}, {parts} parts", model.dtype, head, options | own, **listed),
    ]


def model_rows(model: ModelShape) -> list[Specialisation]:
    """Every kernel of the output head as the engine launches it: norm and meta weights in fp32, lists of banned ids at most."""
    parts = {"fp32": 1, "fp16": 2, "bf16": 3}[model.dtype]
    rows = [row for banned in (False, True) for row in _head_rows(model, parts, (False, banned))]
    absent = {} if model.has_meta else {"meta_weight_ptr": None, "meta_ptr": None}
    norm = {"WIDTH": model.width, "PARTS": parts, "HAS_META": model.has_meta, "BLOCK": ROW_BLOCK} | absent
    weights = {} if absent else {"meta_weight_ptr": "*fp32"}
    rows.append(_row(_final_norm_kernel, model.name, model.dtype, norm, NORM_OPTIONS, types={"norm_weight_ptr": "*fp32"} | weights))
    rows.append(_row(_mark_kernel, "lists", model.dtype, {"BLOCK": ROW_BLOCK}, NORM_OPTIONS))
    tiles = next_power_of_2(-(-model.vocabulary // HEAD_16["BLOCK_V"]))
    decide = {"FORCE_REDO": False, "ROWS": 1, "BLOCK": tiles}
    rows.append(_row(_decide_kernel, f"V={model.vocabulary}", model.dtype, decide, DRAW_OPTIONS, per_target=DECIDE_ON))
    draw = {"VOCABULARY": model.vocabulary, "BLOCK": REDO_BLOCK}
    rows.append(_row(_redo_draw_kernel, f"V={model.vocabulary}", model.dtype, draw, DRAW_OPTIONS))
    return rows


def other_rows() -> list[Specialisation]:
    """Lists of allowed ids, a bf16 norm before a bf16 head (two parts a number), and the panels of a weight packed on a CPU."""
    two = ModelShape("bf16 norm", 1, 1, 16, 4096, 16, 128_256)
    panels = ModelShape("panels", 1, 1, 16, 576, 16, 49_152, dtype="fp16", panel=16)
    listed = ModelShape("soft cap", 1, 1, 16, 4608, 16, 256_000, final_softcap=True)
    return [*_head_rows(two, 2, (False, False)), *_head_rows(panels, 2, (False, False)), *_head_rows(listed, 3, (True, True))]
