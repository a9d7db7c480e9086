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

from spct_kernels.linear import PackedLinear
from spct_kernels.specialisation import TARGETS, Specialisation
from spct_kernels.triton_common import COMPILE, check_runnable, dot, kernel, narrow, next_power_of_2, target

_FULL_GRID = 264
"""Programs that keep a GPU busy: two on each of an H100's 132 multiprocessors. A constant, so that no bit depends on the device."""
_MIN_SEGMENT = 512
"""Inputs of a segment: below, writing the partial sums costs more than 1/16 of reading the weight for 16 rows."""
_REDUCE_BLOCK = 1024


@kernel("num_rows")
def _linear_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    num_inputs: tl.tensor,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    CUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    PANEL: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_I: tl.constexpr,
) -> None:
    """BLOCK_O outputs of BLOCK_T rows. CUT: one segment a program, its sums to out_ptr [SEGMENTS, T, O] in fp32; else all of them.

    WIDE: operands become fp32, where x and the weight are stored in different dtypes. PANEL: width of the weight's panels.
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
            accumulator = dot(weight, x, accumulator)
        total += accumulator
    inside = output_inside[:, None] & row_inside[None, :]
    offsets = rows.to(tl.int64)[None, :] * num_outputs + outputs[:, None]
    if CUT:
        tl.store(out_ptr + first.to(tl.int64) * num_rows * num_outputs + offsets, total, mask=inside)
    else:
        if HAS_BIAS:
            total += tl.load(bias_ptr + outputs, mask=output_inside, other=0.0)[:, None]
        tl.store(out_ptr + offsets, narrow(total, out_ptr.dtype.element_ty), mask=inside)


@kernel("num_sums")
def _add_segments_kernel(
    partial_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_sums: tl.tensor,
    num_outputs: tl.tensor,
    SEGMENTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK results: the partial sums [SEGMENTS, T * O] in the order of their segments, then the bias."""
    sums = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = sums < num_sums
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for segment in tl.static_range(SEGMENTS):
        total += tl.load(partial_ptr + segment * num_sums.to(tl.int64) + sums, mask=inside, other=0.0)
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
    """`spct_kernels.linear` of contiguous x and an fp32 bias."""
    check_runnable(x, _linear_kernel)
    rows, inputs = x.shape
    outputs = weight.shape[0]
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    panels = weight.panels
    wide = x.dtype != panels.dtype or x.dtype == torch.float32
    tiles = _tiles(rows, wide, target(x.device))
    num_segments, length = segments(outputs, inputs, tiles["BLOCK_I"])
    programs = -(-outputs // tiles["BLOCK_O"]) * -(-rows // tiles["BLOCK_T"])
    cut = num_segments > 1 and programs < _FULL_GRID
    sums = torch.empty((num_segments, rows, outputs), dtype=torch.float32, device=x.device) if cut else out
    bias_or_any = out if bias is None else bias
    grid = (-(-outputs // tiles["BLOCK_O"]), -(-rows // tiles["BLOCK_T"]), num_segments if cut else 1)
    constants: dict[str, Any] = {"SEGMENTS": num_segments, "HAS_BIAS": bias is not None}
    _linear_kernel[grid](
        x, panels, bias_or_any, sums, rows, outputs, inputs,
        **constants, SEGMENT=length, CUT=cut, WIDE=wide, PANEL=panels.shape[2], **tiles, **COMPILE,
    )  # fmt: skip
    if cut:
        blocks = (-(-out.numel() // _REDUCE_BLOCK),)
        _add_segments_kernel[blocks](sums, bias_or_any, out, out.numel(), outputs, **constants, BLOCK=_REDUCE_BLOCK, num_warps=4, **COMPILE)
    return out


def specialisations() -> tuple[Specialisation, ...]:
    """Llama-3.1-8B's layers at decode and prefill, both layouts of the weight, fp16 and fp32."""
    rows = []
    for name, dtype, count, outputs, inputs, panel in (
        ("8B qkv, 16 rows", "bf16", 16, 6144, 4096, 1),
        ("8B qkv, 64 rows", "bf16", 64, 6144, 4096, 1),
        ("8B down, prefill", "bf16", 4096, 4096, 14336, 1),
        ("8B qkv, 32 rows, panels", "fp16", 32, 6144, 4096, 16),
        ("1B out, fp32", "fp32", 16, 2048, 2048, 1),
    ):
        wide = dtype == "fp32"
        tiles = _tiles(count, wide, "sm_90")
        options = {key: tiles.pop(key) for key in ("num_warps", "num_stages")}
        num_segments, length = segments(outputs, inputs, tiles["BLOCK_I"])
        cut = num_segments > 1 and count <= 64
        shared = {"SEGMENTS": num_segments, "HAS_BIAS": True}
        layout = {"SEGMENT": length, "CUT": cut, "WIDE": wide, "PANEL": panel}
        pointers = {"x_ptr": f"*{dtype}", "weight_ptr": f"*{dtype}", "bias_ptr": "*fp32", "out_ptr": "*fp32" if cut else f"*{dtype}"}
        rows.append(
            Specialisation(
                _linear_kernel,
                name=name,
                signature=pointers | dict.fromkeys(("num_rows", "num_outputs", "num_inputs"), "i32"),
                constexprs=shared | layout | tiles,
                divisible=(*pointers, "num_outputs", "num_inputs"),
                options=options | COMPILE,
                per_target={name: _tiles(count, wide, name) for name in TARGETS},
                mma=not wide,
                wgmma=not wide,
            )
        )
        if cut:
            reduced = {"partial_ptr": "*fp32", "bias_ptr": "*fp32", "out_ptr": f"*{dtype}"}
            rows.append(
                Specialisation(
                    _add_segments_kernel,
                    name=name,
                    signature=reduced | {"num_sums": "i32", "num_outputs": "i32"},
                    constexprs=shared | {"BLOCK": _REDUCE_BLOCK},
                    divisible=(*reduced, "num_outputs"),
                    options={"num_warps": 4} | COMPILE,
                )
            )
    return tuple(rows)
