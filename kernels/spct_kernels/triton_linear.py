"""The `triton` backend of linear layers: a batch-invariant matrix product; maths and reference in `linear`.

The weight is the first operand of the tensor cores' product and the rows are the second: out^T [O, T] = weight [O, I] @ x^T [I, T].
So 64 outputs always fill the instruction's long side, a decode of 8 rows and a prefill of 4096 run the same kind of instruction in
the same order along I, and only the number of rows side by side differs: a row's bits depend on the layer's shape alone.

A layer with few outputs is cut along I in segments that depend on the shape alone, too. One program a segment where rows are few
(fp32 partial sums, added in order by a second kernel), all segments in one program where they are many: the same additions.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from spct_kernels.errors import BackendError
from spct_kernels.linear import PackedLinear
from spct_kernels.specialisation import TARGETS, ModelShape, Specialisation
from spct_kernels.triton_common import COMPILE, check_runnable, dot, kernel, narrow, next_power_of_2, target

_FULL_GRID = 264
"""Programs that keep a GPU busy: two on each of an H100's 132 multiprocessors. A constant, so that no bit depends on the device."""
_MIN_SEGMENT = 512
"""Inputs of a segment: below, writing the partial sums costs more than 1/16 of reading the weight for 16 rows."""
_REDUCE_BLOCK = 1024
_QUANTISED = (torch.int8, torch.float8_e4m3fn)
_FP8 = "fp8e4nv"
_WITHOUT_FP8 = ("sm_80", "sm_86", "sm_87")
"""Targets whose instructions do not convert e4m3; on gfx942, which has another fp8, Triton converts it by bits."""


@kernel("num_rows")
def _linear_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    num_inputs: tl.tensor,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    CUT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    PANEL: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_I: tl.constexpr,
) -> None:
    """BLOCK_O outputs of BLOCK_T rows. CUT: one segment a program, its sums to out_ptr [SEGMENTS, T, O] in fp32; else all of them.

    WIDE: operands become fp32, where x and the weight are stored in different dtypes. PANEL: width of the weight's panels.
    HAS_SCALE: the weight is int8 or fp8 (e4m3), exact in x's dtype, and each output's sum is multiplied by its scale.
    """
    outputs = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    rows = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    first = tl.program_id(2)
    columns = tl.arange(0, BLOCK_I)
    output_inside, row_inside = outputs < num_outputs, rows < num_rows
    x_rows = x_ptr + rows.to(tl.int64)[None, :] * num_inputs
    weight_rows = weight_ptr + ((outputs // PANEL).to(tl.int64) * num_inputs * PANEL + outputs % PANEL)[:, None]
    total = tl.zeros([BLOCK_O, BLOCK_T], dtype=tl.float32)
    for segment in tl.range(0, 1 if CUT else SEGMENTS, num_stages=1):
        begin = (first + segment) * SEGMENT
        end = tl.minimum(begin + SEGMENT, num_inputs)
        accumulator = tl.zeros([BLOCK_O, BLOCK_T], dtype=tl.float32)
        for step in tl.range(0, SEGMENT, BLOCK_I):
            inputs = begin + step + columns
            inside = inputs < end
            weight = tl.load(weight_rows + inputs[None, :] * PANEL, mask=output_inside[:, None] & inside[None, :], other=0.0)
            x = tl.load(x_rows + inputs[:, None], mask=inside[:, None] & row_inside[None, :], other=0.0)
            if WIDE:
                weight, x = weight.to(tl.float32), x.to(tl.float32)
            elif HAS_SCALE:
                weight = narrow(weight.to(tl.float32), x.dtype)
            accumulator = dot(weight, x, accumulator)
        total += accumulator
    inside = output_inside[:, None] & row_inside[None, :]
    offsets = rows.to(tl.int64)[None, :] * num_outputs + outputs[:, None]
    if CUT:
        tl.store(out_ptr + first.to(tl.int64) * num_rows * num_outputs + offsets, total, mask=inside)
    else:
        if HAS_SCALE:
            total *= tl.load(scale_ptr + outputs, mask=output_inside, other=0.0)[:, None]
        if HAS_BIAS:
            total += tl.load(bias_ptr + outputs, mask=output_inside, other=0.0)[:, None]
        tl.store(out_ptr + offsets, narrow(total, out_ptr.dtype.element_ty), mask=inside)


@kernel("num_sums")
def _add_segments_kernel(
    partial_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_sums: tl.tensor,
    num_outputs: tl.tensor,
    SEGMENTS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK results: the partial sums [SEGMENTS, T * O] in the order of their segments, then the scale and the bias."""
    sums = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = sums < num_sums
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for segment in tl.static_range(SEGMENTS):
        total += tl.load(partial_ptr + segment * num_sums.to(tl.int64) + sums, mask=inside, other=0.0)
    if HAS_SCALE:
        total *= tl.load(scale_ptr + sums % num_outputs, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + sums % num_outputs, mask=inside, other=0.0)
    tl.store(out_ptr + sums, narrow(total, out_ptr.dtype.element_ty), mask=inside)


def segments(outputs: int, inputs: int, block_inputs: int) -> tuple[int, int]:
    """(number of segments along I, their length), from the layer's shape alone: enough programs for a GPU at few rows."""
    wanted = min(-(-_FULL_GRID // -(-outputs // 64)), inputs // _MIN_SEGMENT, 8)
    if wanted <= 1:
        return 1, max(inputs, 1)
    length = -(-inputs // (wanted * block_inputs)) * block_inputs
    return -(-inputs // length), length


def _tiles(rows: int, wide: bool, name: str) -> dict[str, int]:
    """Tile of a launch on a target: the number of rows decides only how many stand side by side, which no bit depends on."""
    if wide:
        return {"BLOCK_O": 64, "BLOCK_T": 16, "BLOCK_I": 32, "num_warps": 4, "num_stages": 2}
    if rows <= 64:
        return {"BLOCK_O": 64, "BLOCK_T": max(16, next_power_of_2(rows)), "BLOCK_I": 64, "num_warps": 4, "num_stages": 4}
    # Two accumulators of 128 x 128 fit the registers where the tensor cores read from shared memory.
    many = 128 if name in ("sm_90", "sm_100") else 64
    return {"BLOCK_O": 128, "BLOCK_T": many, "BLOCK_I": 64, "num_warps": 8, "num_stages": 3 if many == 128 else 2}


def linear(x: Tensor, weight: PackedLinear, bias: Tensor | None) -> Tensor:
    """`spct_kernels.linear` of contiguous x and an fp32 bias.

    Raises: BackendError for an fp8 weight on a GPU that does not have it.
    """
    if torch.compiler.is_compiling():
        return torch.ops.spct_triton.linear(x, weight.panels, weight.shape[0], bias, weight.scale)  # type: ignore[no-any-return] # untyped
    check_runnable(x, _linear_kernel)
    rows, inputs = x.shape
    outputs = weight.shape[0]
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    panels, scale = weight.panels, weight.scale
    wide = x.dtype == torch.float32 or panels.dtype not in (x.dtype, *_QUANTISED)
    name = target(x.device)
    if panels.dtype == torch.float8_e4m3fn and name in _WITHOUT_FP8:
        raise BackendError(f"scheme 'fp8': expected a GPU from sm_89 on, got {name}; pack the weight as 'int8'")
    tiles = _tiles(rows, wide, name)
    num_segments, length = segments(outputs, inputs, tiles["BLOCK_I"])
    grid, cut = _grid(rows, outputs, num_segments, tiles)
    sums = torch.empty((num_segments, rows, outputs), dtype=torch.float32, device=x.device) if cut else out
    constants: dict[str, Any] = {"SEGMENTS": num_segments, "HAS_SCALE": scale is not None, "HAS_BIAS": bias is not None}
    _linear_kernel[grid](
        x, panels, scale, bias, sums, rows, outputs, inputs,
        **constants, SEGMENT=length, CUT=cut, WIDE=wide, PANEL=panels.shape[2], **tiles, **COMPILE,
    )  # fmt: skip
    if cut:
        blocks = (-(-out.numel() // _REDUCE_BLOCK),)
        _add_segments_kernel[blocks](
            sums, scale, bias, out, out.numel(), outputs, **constants, BLOCK=_REDUCE_BLOCK, num_warps=4, **COMPILE
        )  # fmt: skip
    return out


def _grid(rows: int, outputs: int, num_segments: int, tiles: dict[str, int]) -> tuple[tuple[int, int, int], bool]:
    """(programs, whether the segments are programs of their own): where the tiles alone do not fill a GPU."""
    across, down = -(-outputs // tiles["BLOCK_O"]), -(-rows // tiles["BLOCK_T"])
    cut = num_segments > 1 and across * down < _FULL_GRID
    return (across, down, num_segments if cut else 1), cut


def model_rows(model: ModelShape) -> list[Specialisation]:
    """A layer's four products at 1, 32, 64 (decode), 100 and 4096 rows (prefill)."""
    return [
        row
        for name, outputs, inputs in model.projections
        for count in (1, 32, 64, 100, 4096)
        for row in _rows(f"{model.name} {name}, {count} rows", model, (count, outputs, inputs), name in model.bias)
    ]


def _rows(name: str, model: ModelShape, shape: tuple[int, int, int], has_bias: bool, scheme: str = "") -> list[Specialisation]:
    """The compilations of one call: rows, outputs and inputs; scheme: of the weight, where it is not the model's dtype."""
    count, outputs, inputs = shape
    wide, has_scale = model.dtype == "fp32", bool(scheme)
    per_target = {target: _tiles(count, wide, target) for target in TARGETS}
    num_segments, length = segments(outputs, inputs, per_target["sm_90"]["BLOCK_I"])
    cut = _grid(count, outputs, num_segments, per_target["sm_90"])[1]
    assert all(_grid(count, outputs, num_segments, tiles)[1] == cut for tiles in per_target.values()), name
    options = {key: per_target["sm_90"][key] for key in ("num_warps", "num_stages")}
    tiles = {key: value for key, value in per_target["sm_90"].items() if key.startswith("BLOCK")}
    shared = {"SEGMENTS": num_segments, "HAS_SCALE": has_scale, "HAS_BIAS": has_bias}
    absent = {name: None for name, there in (("scale_ptr", has_scale), ("bias_ptr", has_bias)) if not there}
    factors = {name: "*fp32" for name in ("scale_ptr", "bias_ptr") if name not in absent}
    pointers = {"x_ptr": f"*{model.dtype}", "weight_ptr": f"*{scheme or model.dtype}"} | factors
    pointers["out_ptr"] = "*fp32" if cut else f"*{model.dtype}"
    rows = [
        Specialisation(
            _linear_kernel,
            name=name,
            signature=pointers | dict.fromkeys(("num_rows", "num_outputs", "num_inputs"), "i32"),
            constexprs=shared | absent | {"SEGMENT": length, "CUT": cut, "WIDE": wide, "PANEL": model.panel} | tiles,
            divisible=(*pointers, "num_outputs", "num_inputs"),
            options=options | COMPILE,
            per_target=per_target,
            mma=not wide,
            wgmma=not wide,
            targets=tuple(target for target in TARGETS if scheme != _FP8 or target not in _WITHOUT_FP8),
        )
    ]
    if cut:
        reduced = {"partial_ptr": "*fp32", "out_ptr": f"*{model.dtype}"} | factors
        rows.append(
            Specialisation(
                _add_segments_kernel,
                name=name,
                signature=reduced | {"num_sums": "i32", "num_outputs": "i32"},
                constexprs=shared | absent | {"BLOCK": _REDUCE_BLOCK},
                divisible=(*reduced, "num_outputs"),
                options={"num_warps": 4} | COMPILE,
            )
        )
    return rows


def other_rows() -> list[Specialisation]:
    """Weights in int8 and fp8, and the panels of a weight that was packed on a CPU."""
    plain = ModelShape("", 32, 8, 128, 4096, 14336, 128_256)
    panels = ModelShape("", 32, 8, 128, 4096, 14336, 128_256, dtype="fp16", panel=16)
    rows = [
        row
        for name, scheme in (("int8", "i8"), ("fp8", _FP8))
        for count in (16, 4096)
        for row in _rows(f"{name} weight, {count} rows", plain, (count, 4096, 14336), True, scheme)
    ]
    return [*rows, *_rows("panels, 32 rows", panels, (32, 6144, 4096), False)]
