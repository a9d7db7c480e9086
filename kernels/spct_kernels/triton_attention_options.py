"""Tiles of shared-prefix attention, from the layer's shape, its dtypes and the device: no bit of a row depends on the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spct_kernels.triton_common import target


@dataclass(frozen=True, slots=True)
class Shape:
    """What a layer's attention looks like.

    group                 query heads a KV head
    key_dim, value_dim    of a head
    query_dtype, cache_dtype
    """

    group: int
    key_dim: int
    value_dim: int
    query_dtype: torch.dtype
    cache_dtype: torch.dtype

    @property
    def wide(self) -> bool:
        """True where products are fp32: queries in fp32, or another 16-bit type than the cache's."""
        return self.query_dtype == torch.float32 or self.cache_dtype not in (self.query_dtype, torch.int8)


@dataclass(frozen=True, slots=True)
class TileOptions:
    """Rows times heads and keys of a tile, how its kernel is launched, and whether a program may fold splits."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    fold: bool = True

    def rows_per_tile(self, group: int) -> int:
        """Rows of a program: all heads of a KV head side by side, as far as they fit."""
        return self.block_m // min(group, self.block_m)

    def stages(self, folds: bool) -> int:
        """Tiles in flight: one less where a program folds splits, whose second state a third tile would push out of the registers."""
        return min(self.num_stages, 2) if folds else self.num_stages


def tile_options(shape: Shape, device: torch.device) -> TileOptions:
    """The tiles of a layer on a device."""
    return options_on(shape, target(device))


def options_on(shape: Shape, name: str) -> TileOptions:
    """The same by the target's name.

    64 rows a tile: one warp group's matrix instruction, so that decode and prefill round alike; what a decode wastes is arithmetic
    that its memory traffic hides (64 rows x 64 keys x 128 dims take about 800 cycles of an H100's multiprocessor, their 32 KiB about
    2400). On targets without it the small instruction's order does not depend on the rows, and 16 do.
    """
    largest = max(shape.key_dim, shape.value_dim)
    # Folding keeps two states: with more than 128 value dimensions they do not fit the registers.
    fold = shape.value_dim <= 128
    if shape.wide:
        return TileOptions(16, 16 if largest > 128 else 32, 4, 1, fold)
    if name in ("sm_90", "sm_100", "cpu"):
        return TileOptions(64, 64 if largest <= 64 else 32 if largest <= 128 else 16, 4 if largest <= 128 else 8, 3, fold)
    return TileOptions(16, 32, 4, 3 if largest <= 128 else 2, fold)


def compile_options(name: str) -> dict[str, int]:
    """Launch options beside the tiles: where ptxas would spill a few registers to reach 128 or 168, it may use them all."""
    return {"maxnreg": 255} if name.startswith("sm_") and name not in ("sm_90", "sm_100") else {}
