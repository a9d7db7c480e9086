"""Tiles of shared-prefix attention, from the layer's shape, its dtypes and the device.

Two families. `few`: memory traffic bounds a decode of few rows, and small tiles keep many programs reading. `many`: where k rows of G
heads read the same keys, k * G FLOPs come with every byte, and beyond the device's ridge (A100 153, H100 295 FLOP/B in 16 bits) tiles
have to be tall, so that a key tile serves more rows once it was loaded. Under `deterministic` the family follows from G alone, so that no
bit of a row depends on the batch; otherwise from the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from spct_kernels.errors import BackendError
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


MANY_HEADS = 8
"""Query heads a KV head from which on a layer always takes the tall tiles: 32 samples are beyond an A100's ridge, 37 beyond an H100's."""
MANY = 256
"""Rows times heads from which on tall tiles are taken where the batch may decide: between the two ridges."""


def tile_options(shape: Shape, device: torch.device, num_rows: int, deterministic: bool) -> TileOptions:
    """The tiles of a layer on a device for a batch, whose number of rows counts only where it may."""
    few, many = families(shape, target(device))
    return many if is_many(shape.group, num_rows, deterministic) else few


def is_many(group: int, num_rows: int, deterministic: bool) -> bool:
    """Whether the tall tiles are meant."""
    return group >= MANY_HEADS or (not deterministic and group * num_rows >= MANY)


def options_of_work(shape: Shape, device: torch.device, block_keys: int, rows_per_tile: int) -> TileOptions:
    """The tiles that a work list was made for.

    Raises: BackendError if it was made for another shape or device.
    """
    found = families(shape, target(device))
    for options in reversed(found):  # of more heads than a tile has rows, both take one row
        if (options.block_n, options.rows_per_tile(shape.group)) == (block_keys, rows_per_tile):
            return options
    known = ", ".join(f"{one.rows_per_tile(shape.group)} x {one.block_n}" for one in found)
    raise BackendError(f"work: expected a list for tiles of {known} (rows x keys), got {rows_per_tile} x {block_keys}; take `work_of`'s")


def families(shape: Shape, name: str) -> tuple[TileOptions, TileOptions]:
    """(few, many) on a target, by its name. Both cut the keys alike.

    few: 64 rows a tile where one warp group's matrix instruction has as many, so that decode and prefill round alike; what a decode
    wastes is arithmetic that its memory traffic hides (64 rows x 64 keys x 128 dims take about 800 cycles of an H100's multiprocessor,
    their 32 KiB about 2400). On targets without it the small instruction's order does not depend on the rows, and 16 do.
    many: twice the rows with twice the warps, or, where 16 rows were enough, 64. The same as few where taller tiles gain nothing (fp32 has
    no tensor cores to fill) or do not fit the registers (more than 128 dims: 292 bytes spilled on sm_90, 104 on sm_80).
    """
    largest = max(shape.key_dim, shape.value_dim)
    # Folding keeps two states: with more than 128 value dimensions they do not fit the registers.
    fold = shape.value_dim <= 128
    if shape.wide:
        one = TileOptions(16, 16 if largest > 128 else 32, 4, 1, fold)
        return one, one
    if name in ("sm_90", "sm_100", "cpu"):
        few = TileOptions(64, 64 if largest <= 64 else 32 if largest <= 128 else 16, 4 if largest <= 128 else 8, 3, fold)
        many = replace(few, block_m=128, num_warps=8)
    else:
        few = TileOptions(16, 32, 4, 3 if largest <= 128 else 2, fold)
        many = replace(few, block_m=64, num_stages=2)
    return few, many if largest <= 128 else few


def compile_options(shape: Shape, name: str) -> dict[str, int]:
    """Launch options beside the tiles: registers that ptxas may take where it would spill a few to leave room for more programs.

    128 for fp32 products on targets whose other kernels keep ptxas's own choice (72 or 80 there, of which 8 bytes spilled): four programs
    fit a multiprocessor.
    """
    if not name.startswith("sm_"):
        return {}
    if name in ("sm_90", "sm_100"):
        return {"maxnreg": 128} if shape.wide else {}
    return {"maxnreg": 255}
