"""Packed weights of linear layers: the scheme names the storage and the arithmetic, the layout is made for the device's kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spct_kernels.checks import FLOAT_DTYPES, bind, check_dtype
from spct_kernels.errors import InputError

SCHEMES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
    "w8a8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
"""Scheme -> dtype that the weight is stored in. "int8" and "fp8" quantise weights alone and multiply in fp32, "w8a8" the rows too."""
SCALED = frozenset({"int8", "w8a8", "fp8"})
"""Schemes with a scale per output."""
SHARD_AXES = ("column", "row", "vocabulary", "replicated")

PANEL = 16
"""Outputs that stand side by side in the CPU's layout [ceil(O/16), I, 16]; the last panel is padded with zeros. On other devices a
panel has one output: [O, I, 1], the plain matrix."""
GROUP = 4
"""Inputs of one output that stand side by side under "w8a8", as integer dot products take them: [ceil(O/16), ceil(I/4), 16, 4]."""

MAX_W8A8_INPUTS = (2**31 - 1) // 127**2
"""Inputs whose products are sure to fit a sum in int32."""

_SMALLEST = 127 * torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """A weight [O, I], packed for `linear`.

    panels      [ceil(O/P), I, P]  in the scheme's dtype; P = 16 on a CPU, 1 elsewhere; "w8a8": [ceil(O/16), ceil(I/4), 16, 4]
    scheme      a key of SCHEMES
    shape       (O, I)
    shard_axis  how tensor parallelism would cut it: "column", "row", "vocabulary" or "replicated"
    scale       [O] fp32 under "int8", "w8a8" and "fp8": the weight is panels * scale; else None
    sums        [ceil(O/16), 16] int32 under "w8a8": of each output's int8 weights; else None
    """

    panels: Tensor
    scheme: str
    shape: tuple[int, int]
    shard_axis: str = "replicated"
    scale: Tensor | None = None
    sums: Tensor | None = None

    @classmethod
    def empty(cls, shape: tuple[int, int], scheme: str, device: torch.device, shard_axis: str = "replicated") -> PackedLinear:
        """A packed weight still without its numbers: `write` fills it.

        Raises: InputError for an unknown scheme or axis, or under "w8a8" for a device other than the CPU or too many inputs.
        """
        if scheme not in SCHEMES:
            raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
        if shard_axis not in SHARD_AXES:
            raise InputError(f"shard_axis: expected one of {', '.join(SHARD_AXES)}, got {shard_axis!r}")
        layout = _layout(shape, scheme, device)
        sums = None
        if scheme == "w8a8":
            if device.type != "cpu":
                raise InputError(f"scheme 'w8a8': expected a weight on the CPU, the only device with a kernel, got {device}; use 'int8'")
            if shape[1] > MAX_W8A8_INPUTS:
                raise InputError(f"scheme 'w8a8': expected at most {MAX_W8A8_INPUTS} inputs, whose sums fit int32, got {shape[1]}")
            sums = torch.zeros((layout[0], PANEL), dtype=torch.int32)
        panels = torch.empty(layout, dtype=SCHEMES[scheme], device=device)
        panels[-1:].zero_()  # what pads the last panel is read
        scale = torch.ones(shape[0], device=device) if scheme in SCALED else None
        return cls(panels, scheme, shape, shard_axis, scale, sums)

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weight takes, and that a decode step reads."""
        return sum(part.numel() * part.element_size() for part in (self.panels, self.scale, self.sums) if part is not None)

    @property
    def device(self) -> torch.device:
        """The device that holds the weight."""
        return self.panels.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which `write` loses nothing that the scheme keeps: the storage's, fp32 where there is a scale."""
        return torch.float32 if self.scale is not None else self.panels.dtype

    @property
    def panel(self) -> int:
        """Outputs of one panel: `write` begins at a multiple of it."""
        return self.panels.shape[2]

    def unpack(self) -> Tensor:
        """The weight as `linear` uses it: [O, I] fp32, after the scheme's rounding."""
        outputs, inputs = self.shape
        # [panels, outputs of a panel, inputs], the inputs of a "w8a8" group beside one another
        weight = self.panels.transpose(1, 2).flatten(2) if self.sums is not None else self.panels.transpose(1, 2)
        weight = weight.flatten(0, 1)[:outputs, :inputs].float()
        return weight if self.scale is None else weight * self.scale[:, None]

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, [len(ids), I] in the storage dtype (fp32 with a scale): the embedding of tokens where it is tied.

        ids  [n]  integer, 0 <= id < O
        """
        ids = ids.long()
        stored = self.panels.view(torch.uint8) if self.scheme == "fp8" else self.panels  # torch doesn't gather fp8
        rows = stored[ids // self.panel, :, ids % self.panel]
        if self.scheme == "fp8":
            rows = rows.view(torch.float8_e4m3fn)
        if self.sums is not None:
            rows = rows.flatten(1)[:, : self.shape[1]]
        return rows if self.scale is None else rows.float() * self.scale[ids, None]

    def write(self, first: int, weight: Tensor) -> None:
        """Writes outputs [first, first + n), rounding them to the scheme's storage; the others stay as they are.

        first   a multiple of `panel`; where first + n is not, it is O
        weight  [n, I]  floating point

        Raises: InputError if the rows do not fit there, or for NaN or Inf where the scheme can't hold them.
        """
        outputs, inputs = self.shape
        num_rows = weight.shape[0]
        last = first + num_rows
        if weight.shape[1] != inputs or first < 0 or last > outputs or first % self.panel or (last % self.panel and last != outputs):
            raise InputError(
                f"weight: expected whole panels of {self.panel} outputs of {self.shape}, got {tuple(weight.shape)} from {first}"
            )
        if num_rows == 0:
            return
        panels = self.panels[first // self.panel : -(-last // self.panel)]
        if self.scale is not None:
            quantise = quantise_fp8 if self.scheme == "fp8" else quantise_int8
            weight, self.scale[first:last] = quantise(weight)
        whole, rest = divmod(num_rows, self.panel)
        if self.sums is None:
            panels[:whole].copy_(weight[: num_rows - rest].view(whole, self.panel, inputs).transpose(1, 2))
            if rest:
                panels[whole, :, :rest].copy_(weight[num_rows - rest :].t())
            return
        self.sums.view(-1)[first:last] = weight.sum(dim=1, dtype=torch.int32)
        num_panels, num_groups = panels.shape[:2]
        padded = weight.new_zeros((num_panels * PANEL, num_groups * GROUP))
        padded[:num_rows, :inputs] = weight
        panels.copy_(padded.view(num_panels, PANEL, num_groups, GROUP).transpose(1, 2))

    def replace(self, weight: Tensor) -> None:
        """Writes another weight [O, I] into the same memory, so that a live engine sees it with its next step.

        Raises: InputError if the shape differs, or for NaN or Inf where the scheme can't hold them.
        """
        if tuple(weight.shape) != self.shape:
            raise InputError(f"weight: expected shape {self.shape} as packed, got {tuple(weight.shape)}")
        self.write(0, weight)


def _layout(shape: tuple[int, int], scheme: str, device: torch.device) -> tuple[int, ...]:
    """Shape of the panels of a weight (O, I)."""
    outputs, inputs = shape
    width = PANEL if device.type == "cpu" else 1
    if scheme == "w8a8":
        return -(-outputs // width), -(-inputs // GROUP), width, GROUP
    return -(-outputs // width), inputs, width


def packed_bytes(shape: tuple[int, int], scheme: str, device: torch.device) -> int:
    """`PackedLinear.nbytes` of a weight (O, I) before it is packed."""
    layout = _layout(shape, scheme, device)
    scale = 4 * shape[0] if scheme in SCALED else 0
    sums = 4 * layout[0] * layout[2] if scheme == "w8a8" else 0
    return math.prod(layout) * SCHEMES[scheme].itemsize + scale + sums


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per output: (weight / scale rounded to nearest even, scale), scale = largest magnitude / 127.

    weight   [O, I]  floating point
    returns  [O, I] int8, [O] fp32: no number errs by more than half its row's scale. A row whose largest magnitude is below
             127 * 2^-126, for which fp32 has no exact scale, counts as zeros, with a scale of 1
    Raises: InputError for NaN or Inf, which int8 can't hold.
    """
    scaled, scale = _scaled(weight, 127.0, "a scheme in int8")
    return scaled.round_().clamp_(-127, 127).to(torch.int8), scale


def quantise_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """fp8 (e4m3: 3 bits of mantissa, up to 448) per output: (weight / scale rounded to nearest even, scale = largest magnitude / 448).

    weight   [O, I]  floating point
    returns  [O, I] float8_e4m3fn, [O] fp32: no number errs by more than 1/16 of itself or 2^-10 of its row's scale, whichever is
             larger. A row below 448 * 2^-126 counts as zeros, with a scale of 1
    Raises: InputError for NaN or Inf.
    Source: FP8 formats for deep learning, P. Micikevicius et al., 2022 (arXiv 2209.05433).
    """
    scaled, scale = _scaled(weight, 448.0, "scheme 'fp8'")
    return scaled.clamp_(-448, 448).to(torch.float8_e4m3fn), scale


def _scaled(weight: Tensor, highest: float, scheme: str) -> tuple[Tensor, Tensor]:
    """(weight / scale, scale [O]) in fp32, so that each row's largest magnitude becomes `highest`."""
    wide = weight.detach().float()
    largest = _largest(wide)
    if not bool(largest.isfinite().all()):
        row = int((~largest.isfinite()).nonzero()[0])
        raise InputError(f"weight: expected finite numbers for {scheme}, got NaN or Inf in row {row}; pack it as 'fp32' or 'bf16'")
    counts = largest >= highest * torch.finfo(torch.float32).tiny
    scale = torch.where(counts, largest / highest, 1.0)
    return torch.where(counts[:, None], wide / scale[:, None], 0.0), scale


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as "w8a8" multiplies them: x * (127 / largest magnitude) in fp32, rounded to nearest even.

    x        [T, I]  floating point
    returns  [T, I] whole numbers from -127 to 127 in fp32, and the scale [T] fp32 = largest magnitude / 127; a row is x ~ q * scale.
             A row below 127 * 2^-126 counts as zeros, scale 0; one with NaN or Inf gives zeros and the scale NaN
    """
    wide = x.detach().float()
    largest = _largest(wide)
    finite = largest.isfinite()
    counts = finite & (largest >= _SMALLEST)
    # 127 as a tensor: a number divided by a tensor is rounded twice, as a reciprocal and a product.
    inverse = torch.where(counts, torch.full_like(largest, 127.0) / largest, 0.0)
    quantised = torch.where(counts[:, None], (wide * inverse[:, None]).round(), 0.0)
    return quantised, torch.where(counts, largest / 127, torch.where(finite, 0.0, torch.nan))


def _largest(wide: Tensor) -> Tensor:
    """Largest magnitude of each row; 0 for a row without elements."""
    return wide.abs().amax(dim=1) if wide.shape[1] else wide.new_zeros(len(wide))


def pack(weight: Tensor, scheme: str, *, shard_axis: str = "replicated") -> PackedLinear:
    """Packs a weight for `linear`, rounding it to the scheme's storage.

    weight      [O, I]  fp32, bf16, fp16 or fp64
    scheme      "fp32", "bf16", "fp16": storage, with products in fp32; "int8", "fp8": weights alone, symmetric, a scale per output;
                "w8a8": the same weights, and `linear` quantises each row of its input to int8 as well (CPU only)
    shard_axis  "column", "row", "vocabulary" or "replicated"
    returns     the packed weight, on weight's device; it shares no memory with `weight`

    Cost: one read of the weight, one write of its packed form.
    Raises: InputError for an unknown scheme or axis, a weight that is not a floating-point matrix, NaN or Inf in int8 or fp8, or as
    `PackedLinear.empty`.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    dims = bind(weight=(weight, "O I"))
    check_dtype("weight", weight, FLOAT_DTYPES)
    packed = PackedLinear.empty((dims["O"], dims["I"]), scheme, weight.device, shard_axis)
    packed.write(0, weight.detach().contiguous())
    return packed
