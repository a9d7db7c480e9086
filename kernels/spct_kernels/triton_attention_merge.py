"""Folding of attention states, and the kernel that folds a row's partial results; maths in `triton_attention`."""

from __future__ import annotations

import triton.language as tl

from spct_kernels.triton_common import device, kernel, narrow


@device
def fold(before: tl.tensor, after: tl.tensor) -> tl.tensor:
    """The state of two runs of keys one after the other: (maximum, total, out [.., dims]) each."""
    largest = tl.maximum(before[0], after[0])
    base = tl.where(largest == float("-inf"), 0.0, largest)
    first, second = tl.exp2(before[0] - base), tl.exp2(after[0] - base)
    total = before[1] * first + after[1] * second
    return largest, total, before[2] * first[:, None] + after[2] * second[:, None]


@device
def finish(maximum: tl.tensor, total: tl.tensor, out: tl.tensor) -> tl.tensor:
    """(output, natural log-sum-exp) of a state; zeros and -inf where nothing was seen."""
    nothing = total == 0.0
    divisor = tl.where(nothing, 1.0, total)
    return out / divisor[:, None], tl.where(nothing, float("-inf"), (maximum + tl.log2(divisor)) * 0.6931471805599453)


@kernel()
def merge_kernel(
    row_first_ptr: tl.tensor,
    row_count_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    partial_state_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    num_heads: tl.tensor,
    VALUE_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
) -> None:
    """One row and head: its partial results in order; zeros where it has none. A row with one was written by its program."""
    row, head = tl.program_id(0), tl.program_id(1)
    count = tl.load(row_count_ptr + row)
    if count != 1:
        dims = tl.arange(0, BLOCK_DV)[None, :]
        inside = dims < VALUE_DIM
        place = tl.load(row_first_ptr + row).to(tl.int64) * num_heads + head
        one = tl.arange(0, 1)
        state = tl.full([1], float("-inf"), dtype=tl.float32), tl.zeros([1], dtype=tl.float32), tl.zeros([1, BLOCK_DV], dtype=tl.float32)
        number = count * 0
        while number < count:
            at = place + number.to(tl.int64) * num_heads
            maximum, total = tl.load(partial_state_ptr + at * 2 + one), tl.load(partial_state_ptr + at * 2 + 1 + one)
            out = tl.load(partial_ptr + at * VALUE_DIM + dims, mask=inside, other=0.0)
            state = fold(state, (maximum, total, out))
            number += 1
        result, lse = finish(state[0], state[1], state[2])
        index = row.to(tl.int64) * num_heads + head
        tl.store(out_ptr + index * VALUE_DIM + dims, narrow(result, out_ptr.dtype.element_ty), mask=inside)
        tl.store(lse_ptr + index + one, lse)
