"""Tile sizes and launch options of the output head's kernels: they depend on the head's dtype and the device, never on the batch."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from spct_kernels.specialisation import TARGETS
from spct_kernels.triton_common import COMPILE

ROW_BLOCK = 1024
REDO_BLOCK = 512
ROWS_INTERPRETED = 16
"""Rows that one program decides under the interpreter, where an operation's time hardly depends on its length; a GPU takes one."""

NORM_OPTIONS: dict[str, Any] = {"num_warps": 4, "num_stages": 1} | COMPILE
DRAW_OPTIONS: dict[str, Any] = {"num_warps": 8, "num_stages": 1} | COMPILE

# ptxas would spill a few registers to reach 128 (Triton 3.6 on sm_100); it may use them all.
DECIDE_ON: dict[str, dict[str, Any]] = {name: {"maxnreg": 255} for name in TARGETS if name.startswith("sm_")}

# More rows in a tile spill: what an id and a row leave behind takes some 20 registers at 16 numbers a thread. Tiles of other rows
# and the same ids run side by side and find the weights in L2.
HEAD_16: dict[str, Any] = {"BLOCK_T": 32, "BLOCK_V": 128, "BLOCK_E": 64, "num_warps": 8, "num_stages": 3} | COMPILE
HEAD_32: dict[str, Any] = {"BLOCK_T": 32, "BLOCK_V": 128, "BLOCK_E": 32, "num_warps": 8, "num_stages": 3} | COMPILE

HEAD_16_ON: dict[str, dict[str, Any]] = {"gfx942": {"num_stages": 2, "num_warps": 4}}
HEAD_32_ON: dict[str, dict[str, Any]] = {"gfx942": {"num_stages": 2, "num_warps": 4}}


def head_options(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Tile sizes and options of the kernels that multiply, for a head's dtype."""
    base, by_target = (HEAD_32, HEAD_32_ON) if dtype == torch.float32 else (HEAD_16, HEAD_16_ON)
    return dict(base) | by_target.get(target_of(device.type, device.index), {})


def listed_options(panel: int) -> dict[str, Any]:
    """What the kernel of listed ids changes of `head_options`: `panel` is the weight's PANEL.

    Listed ids of panels lie apart, so that each number has a pointer of its own: beside these, tiles loaded ahead spill (20 bytes, sm_100).
    """
    return {"num_stages": 1} if panel else {}


def decide_options(device: torch.device) -> dict[str, Any]:
    """Launch options of the kernel that decides."""
    return DRAW_OPTIONS | DECIDE_ON.get(target_of(device.type, device.index), {})


def num_parts(hidden: Tensor, norm_weight: Tensor, weight: Tensor) -> int:
    """How many numbers of the head's dtype stand for one normed hidden state, so that its fp32 value (nearly) survives.

    fp16 has 11 bits, two of them 22. bf16 has 8: two hold the product of two bf16 numbers, three any fp32 number.
    """
    if weight.dtype == torch.float32:
        return 1
    if weight.dtype == torch.float16:
        return 2
    return 2 if hidden.dtype == torch.bfloat16 and norm_weight.dtype == torch.bfloat16 else 3


@functools.cache
def target_of(kind: str, index: int | None) -> str:
    """The name of a device among `specialisation.TARGETS`, or of the nearest one below it."""
    if kind != "cuda":
        return ""
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(index)
    return f"sm_{major}0"
