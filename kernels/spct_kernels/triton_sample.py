"""The `triton` backend of the output head: five launches a step (norm, tiles, decision, and two that redo uncertified rows).

No step of it waits for the device, and per-row parameters are data: a captured step serves any mix of them. Sources: the fused
head with per-tile maxima, "FlashSampling", 2026; the certificate is explained in `triton_sample_draw`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spct_kernels.linear import PackedLinear
from spct_kernels.sample_reference import Draw, Head, TokenLists
from spct_kernels.triton_common import check_runnable, next_power_of_2
from spct_kernels.triton_sample_draw import NUM_COUNTERS, _decide_kernel
from spct_kernels.triton_sample_head import _final_norm_kernel, _head_kernel, _mark_kernel, _token_logits_kernel
from spct_kernels.triton_sample_options import (
    DRAW_OPTIONS,
    NORM_OPTIONS,
    REDO_BLOCK,
    ROW_BLOCK,
    ROWS_INTERPRETED,
    decide_options,
    head_options,
    listed_options,
    num_parts,
)
from spct_kernels.triton_sample_redo import _redo_draw_kernel, _redo_logits_kernel
from spct_kernels.triton_sample_tile import BINS, NUM_FLOATS, NUM_IDS

_counters: dict[torch.device, Tensor] = {}


@dataclass(frozen=True, slots=True)
class _PreparedHead:
    """A head as the kernels take it.

    parts   [P, T, E]  in the head's dtype: normed hidden states, but for `scale` [T]
    weight             [V, E], or panels
    common             the constants and options of every kernel that multiplies
    """

    parts: Tensor
    scale: Tensor
    meta: Tensor | None
    histogram: Tensor
    weight: Tensor
    num_rows: int
    vocabulary: int
    weight_stride: int
    softcap: float | None
    common: dict[str, Any]

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is multiplied: states, their rows' factors, weight."""
        return self.parts, self.scale, self.weight

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows, ids, and elements between two rows of the weight."""
        return self.num_rows, self.vocabulary, self.weight_stride

    @property
    def num_tiles(self) -> int:
        return _tiles(self.vocabulary, int(self.common["BLOCK_V"]))

    @property
    def grid(self) -> tuple[int, int]:
        return _tiles(self.num_rows, int(self.common["BLOCK_T"])), self.num_tiles


def certificate_counts(device: torch.device | str) -> tuple[int, int]:
    """(rows drawn under a truncation, those of them that had no certificate and were redone), since the start; waits for the device."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    counters = _counters.get(device)
    if counters is None:
        return 0, 0
    drawn, redone = counters.tolist()
    return int(drawn), int(redone)


def fused_sample_triton(
    head: Head,
    draw: Draw,
    meta_weight: Tensor | None,
    meta_bias: float,
    allowed: TokenLists | None,
    banned: TokenLists | None,
    *,
    redo_all: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, log-probabilities and meta logits; see `fused_sample`. `redo_all` gives no row under a truncation a certificate."""
    if torch.compiler.is_compiling():
        traced = torch.ops.spct_triton.fused_sample(
            *_op_head(head), draw.temperature, draw.top_k, draw.top_p, draw.min_p, draw.seed, draw.position, meta_weight, meta_bias,
            *(allowed or (None, None)), *(banned or (None, None)),
        )  # fmt: skip
        return traced[0], traced[1], None if meta_weight is None else traced[2]
    device, num_rows = head[0].device, head[0].shape[0]
    token = torch.empty(num_rows, dtype=torch.int64, device=device)
    logprob = torch.empty(num_rows, dtype=torch.float32, device=device)
    if num_rows == 0:
        return token, logprob, None if meta_weight is None else torch.empty(0, device=device)
    ready = _prepare(head, draw, meta_weight, meta_bias)
    masks = _Masks.build(ready, allowed, banned, device)
    floats = torch.empty((NUM_FLOATS.value, num_rows, ready.num_tiles), dtype=torch.float32, device=device)
    ids = torch.empty((NUM_IDS.value, num_rows, ready.num_tiles), dtype=torch.int32, device=device)
    _head_kernel[ready.grid](
        *ready.operands, draw.temperature, draw.top_k, draw.top_p, draw.seed, draw.position, *masks.tensors, floats, ids, ready.histogram,
        *ready.sizes, masks.words, ready.softcap or 1.0, **masks.flags, **ready.common,
    )  # fmt: skip
    if device not in _counters:
        _counters[device] = torch.zeros(NUM_COUNTERS, dtype=torch.int64, device=device)
    best, normaliser = torch.empty((2, num_rows), dtype=torch.float32, device=device)
    parameters = (draw.temperature, draw.top_k, draw.top_p, draw.min_p, draw.seed, draw.position)
    decided = ROWS_INTERPRETED if device.type == "cpu" else 1
    _decide_kernel[(_tiles(num_rows, decided),)](
        floats, ids, ready.histogram, *parameters, token, logprob, best, normaliser, _counters[device], num_rows, ready.num_tiles,
        FORCE_REDO=redo_all, ROWS=decided, BLOCK=next_power_of_2(ready.num_tiles), **decide_options(device),
    )  # fmt: skip
    logits = torch.empty((num_rows, ready.vocabulary), dtype=torch.float32, device=device)  # written for redone rows alone
    _redo_logits_kernel[ready.grid](
        *ready.operands, *masks.tensors, token, logits, *ready.sizes, masks.words, ready.softcap or 1.0, **masks.flags, **ready.common
    )  # fmt: skip
    _redo_draw_kernel[(num_rows,)](
        logits, *parameters, token, logprob, best, normaliser, VOCABULARY=ready.vocabulary, BLOCK=REDO_BLOCK, **DRAW_OPTIONS
    )  # fmt: skip
    return token, logprob, ready.meta


def token_logits_triton(head: Head, lists: TokenLists) -> Tensor:
    """Logits of the listed ids; see `token_logits`."""
    offsets, ids = lists
    if torch.compiler.is_compiling():
        return torch.ops.spct_triton.token_logits(*_op_head(head), offsets, ids)  # type: ignore[no-any-return] # torch.ops is untyped
    out = torch.empty(ids.numel(), dtype=torch.float32, device=ids.device)
    if ids.numel() == 0:
        return out
    ready = _prepare(head, None, None, 0.0)
    grid = (_tiles(ids.numel(), ready.common["BLOCK_V"]),)
    num_rows, *sizes = ready.sizes
    _token_logits_kernel[grid](
        *ready.operands, offsets, ids, out, num_rows, ids.numel(), *sizes, ready.softcap or 1.0,
        **ready.common | listed_options(ready.common["PANEL"]),
    )  # fmt: skip
    return out


def _op_head(head: Head) -> tuple[Tensor, Tensor, float, Tensor, int, float | None]:
    """A head as the custom ops take it: tensors and numbers."""
    hidden, norm_weight, norm_eps, lm_head, softcap = head
    weight = lm_head.panels if isinstance(lm_head, PackedLinear) else lm_head
    return hidden, norm_weight, norm_eps, weight, lm_head.shape[0], softcap


def _prepare(head: Head, draw: Draw | None, meta_weight: Tensor | None, meta_bias: float) -> _PreparedHead:
    """Launches the final norm."""
    hidden, norm_weight, norm_eps, lm_head, softcap = head
    check_runnable(hidden, _final_norm_kernel)
    device = hidden.device
    hidden, norm_weight = _rows_contiguous(hidden), _narrow(norm_weight).contiguous()
    weight = lm_head.panels if isinstance(lm_head, PackedLinear) else _rows_contiguous(lm_head)
    num_rows, width = hidden.shape
    parts = torch.empty((num_parts(hidden, norm_weight, weight), num_rows, width), dtype=weight.dtype, device=device)
    scale = torch.empty(num_rows, dtype=torch.float32, device=device)
    meta = None if meta_weight is None else torch.empty(num_rows, dtype=torch.float32, device=device)
    histogram = torch.empty((num_rows if draw else 0, BINS.value), dtype=torch.int64, device=device)
    top_k = draw.top_k if draw else torch.zeros(num_rows, dtype=torch.int32, device=device)
    top_p = draw.top_p if draw else torch.ones(num_rows, dtype=torch.float32, device=device)
    _final_norm_kernel[(num_rows,)](
        hidden, norm_weight, None if meta_weight is None else _narrow(meta_weight).contiguous(), top_k, top_p, parts, scale, meta,
        histogram, num_rows, hidden.stride(0), float(norm_eps), float(meta_bias), WIDTH=width, PARTS=parts.shape[0],
        HAS_META=meta is not None, BLOCK=ROW_BLOCK, **NORM_OPTIONS,
    )  # fmt: skip
    common = head_options(weight.dtype, device) | {
        "WIDTH": width,
        "PARTS": parts.shape[0],
        "HAS_SOFTCAP": softcap is not None,
        "PANEL": weight.shape[2] if weight.dim() == 3 and weight.shape[2] > 1 else 0,
    }
    return _PreparedHead(
        parts, scale, meta, histogram, weight, num_rows, lm_head.shape[0], weight.stride(0), softcap, common
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Masks:
    """The lists as bits [T, words]: which ids are allowed, which are banned; and the offsets of the allowed ones."""

    tensors: tuple[Tensor | None, Tensor | None, Tensor | None]
    flags: dict[str, bool]
    words: int

    @staticmethod
    def build(ready: _PreparedHead, allowed: TokenLists | None, banned: TokenLists | None, device: torch.device) -> _Masks:
        words = (ready.vocabulary + 31) // 32
        bits = [None if one is None else _marked(one, ready, words) for one in (allowed, banned)]
        flags = {"HAS_ALLOWED": allowed is not None, "HAS_BANNED": banned is not None}
        return _Masks((bits[0], bits[1], None if allowed is None else allowed[0]), flags, words)


def _marked(lists: TokenLists, ready: _PreparedHead, words: int) -> Tensor:
    """A bit per row and id, set where the row's list has the id."""
    offsets, ids = lists
    bits = torch.zeros((ready.num_rows, words), dtype=torch.int32, device=ids.device)
    if ids.numel():
        grid = (_tiles(ids.numel(), ROW_BLOCK),)
        _mark_kernel[grid](offsets, ids, bits, ready.num_rows, ids.numel(), ready.vocabulary, words, BLOCK=ROW_BLOCK, **NORM_OPTIONS)
    return bits


def _tiles(count: int, size: int) -> int:
    """How many tiles of a size cover a count."""
    return -(-count // size)


def _narrow(x: Tensor) -> Tensor:
    """fp64, which the kernels don't take, as fp32."""
    return x.detach().float() if x.dtype == torch.float64 else x.detach()


def _rows_contiguous(x: Tensor) -> Tensor:
    """A matrix whose rows are contiguous; it may be a slice of a wider one."""
    x = _narrow(x)
    return x if x.stride(1) == 1 else x.contiguous()
