"""Linear layers with packed weights: the scheme names the storage and the arithmetic, the packing is made for the CPU kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spct_kernels.checks import FLOAT_DTYPES, bind, check_dtype
from spct_kernels.dispatch import cpu_ops, resolve, triton_kernels
from spct_kernels.errors import BackendError, InputError
from spct_kernels.registry import Case, Cost, Inputs, Op, register

SCHEMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
SHARD_AXES = ("column", "row", "vocabulary", "replicated")

PANEL = 16
"""Outputs that stand side by side in the CPU's layout [ceil(O/16), I, 16]; the last panel is padded with zeros. On other devices a
panel has one output: [O, I, 1], the plain matrix."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """A weight [O, I], packed for `linear`.

    panels      [ceil(O/P), I, P]  in the scheme's dtype; P = 16 on a CPU, 1 elsewhere
    scheme      "fp32", "bf16", "fp16" or "int8": storage; products and sums are fp32
    shape       (O, I)
    shard_axis  how tensor parallelism would cut it: "column", "row", "vocabulary" or "replicated"
    scale       [O] fp32 under "int8": the weight is panels * scale; else None
    """

    panels: Tensor
    scheme: str
    shape: tuple[int, int]
    shard_axis: str = "replicated"
    scale: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weight takes, and that a decode step reads."""
        return sum(part.numel() * part.element_size() for part in (self.panels, self.scale) if part is not None)

    @property
    def device(self) -> torch.device:
        """The device that holds the weight."""
        return self.panels.device

    def unpack(self) -> Tensor:
        """The weight as `linear` uses it: [O, I] fp32, after the scheme's rounding."""
        outputs, inputs = self.shape
        weight = self.panels.transpose(1, 2).reshape(-1, inputs)[:outputs].float()
        return weight if self.scale is None else weight * self.scale[:, None]

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, [len(ids), I] in the storage dtype (int8: fp32): the embedding of tokens where it is tied to the head.

        ids  [n]  integer, 0 <= id < O
        """
        ids = ids.long()
        width = self.panels.shape[2]
        rows = self.panels[ids // width, :, ids % width]
        return rows if self.scale is None else rows.float() * self.scale[ids, None]

    def replace(self, weight: Tensor) -> None:
        """Writes another weight [O, I] into the same memory, so that a live engine sees it with its next step.

        Raises: InputError if the shape differs.
        """
        if tuple(weight.shape) != self.shape:
            raise InputError(f"weight: expected shape {self.shape} as packed, got {tuple(weight.shape)}")
        if self.scale is not None:
            weight, scale = quantise_int8(weight)
            self.scale.copy_(scale)
        _fill(self.panels, weight)


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per output: (weight / scale rounded to nearest even, scale), scale = largest magnitude / 127.

    weight   [O, I]  floating point
    returns  [O, I] int8, [O] fp32 (1 for a row of zeros): no number errs by more than half its row's scale
    Raises: InputError for NaN or Inf, which int8 can't hold.
    """
    wide = weight.detach().float()
    largest = wide.abs().amax(dim=1) if wide.shape[1] else wide.new_zeros(len(wide))
    if not bool(largest.isfinite().all()):
        row = int((~largest.isfinite()).nonzero()[0])
        raise InputError(f"weight: expected finite numbers for scheme 'int8', got NaN or Inf in row {row}; pack it as 'fp32' or 'bf16'")
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def _fill(panels: Tensor, weight: Tensor) -> None:
    """Writes [O, I] into [ceil(O/P), I, P], rounding to the panels' dtype."""
    outputs, inputs = weight.shape
    width = panels.shape[2]
    whole = outputs // width
    panels[:whole].copy_(weight[: whole * width].view(whole, width, inputs).transpose(1, 2))
    if outputs % width:
        panels[whole].zero_()
        panels[whole, :, : outputs % width].copy_(weight[whole * width :].t())


def pack(weight: Tensor, scheme: str, *, shard_axis: str = "replicated") -> PackedLinear:
    """Packs a weight for `linear`, rounding it to the scheme's storage.

    weight      [O, I]  fp32, bf16, fp16 or fp64
    scheme      "fp32", "bf16", "fp16", or "int8" (weight only, symmetric, a scale per output)
    shard_axis  "column", "row", "vocabulary" or "replicated"
    returns     the packed weight, on weight's device; it shares no memory with `weight`

    Cost: one read of the weight, one write of its packed form.
    Raises: InputError for an unknown scheme or axis, a weight that is not a floating-point matrix, or NaN or Inf under int8.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    if shard_axis not in SHARD_AXES:
        raise InputError(f"shard_axis: expected one of {', '.join(SHARD_AXES)}, got {shard_axis!r}")
    dims = bind(weight=(weight, "O I"))
    check_dtype("weight", weight, FLOAT_DTYPES)
    outputs, inputs = dims["O"], dims["I"]
    width = PANEL if weight.device.type == "cpu" else 1
    weight, scale = quantise_int8(weight) if scheme == "int8" else (weight.detach(), None)
    panels = torch.empty((-(-outputs // width), inputs, width), dtype=SCHEMES[scheme], device=weight.device)
    _fill(panels, weight.contiguous())
    return PackedLinear(panels, scheme, (outputs, inputs), shard_axis, scale)


def linear_reference(x: Tensor, weight: PackedLinear, bias: Tensor | None) -> Tensor:
    """X @ weight.T + bias in fp32 (fp64 where x is fp64), rounded to x's dtype."""
    wide = x if x.dtype == torch.float64 else x.float()
    return F.linear(wide, weight.unpack().to(wide.dtype), None if bias is None else bias.to(wide.dtype)).to(x.dtype)


def linear(x: Tensor, weight: PackedLinear, bias: Tensor | None = None, deterministic: bool = True, *, backend: str = "auto") -> Tensor:
    """Linear layer: x @ weight.T + bias, products and sums in fp32.

    x              [T, I]  fp32, bf16 or fp16
    weight         (O, I)  from `pack`
    bias           [O]     any of these, or None
    deterministic  False: on a GPU cuBLAS may compute it, whose bits depend on T, where x and the weight have one dtype
    returns        [T, O]  x's dtype

    Cost: the packed weight read once for all rows; 2*T*O*I FLOPs. Invariant: a row's bits depend neither on T, nor on its place,
    nor on the threads (the C++ backend holds this also under deterministic=False). An int8 weight has no C++ kernel: "auto" computes
    it with plain torch on a CPU, without that invariant.
    Raises: InputError if shapes, dtypes or devices disagree; BackendError if the backend is missing or has no kernel for the scheme.
    """
    outputs, inputs = weight.shape
    dims = {"O": outputs, "I": inputs}
    if bias is None:
        bind(dims, x=(x, "T I"))
    else:
        bind(dims, x=(x, "T I"), bias=(bias, "O"))
    check_dtype("x", x, FLOAT_DTYPES)
    if weight.device != x.device:
        raise InputError(f"weight: expected on x's device {x.device}, got {weight.device}; pack it there")
    chosen = resolve(backend, x.device, x.dtype)
    if chosen == "cpu" and weight.scheme == "int8":
        if backend == "cpu":
            raise BackendError("backend 'cpu': there is no C++ kernel for scheme 'int8'; pass backend='auto' or 'reference'")
        chosen = "reference"
    if chosen == "reference":
        return linear_reference(x, weight, bias)
    if chosen == "triton" and not deterministic and weight.panels.dtype == x.dtype and weight.panels.shape[2] == 1:
        return F.linear(x, weight.panels[:, :, 0], None if bias is None else bias.to(x.dtype))
    if bias is not None:
        bias = bias.float().contiguous()
    if chosen == "triton":
        return triton_kernels("linear").linear(x.contiguous(), weight, bias)  # type: ignore[no-any-return] # imported by name
    return cpu_ops().linear(x.contiguous(), weight.panels, bias, outputs)  # type: ignore[no-any-return] # torch.ops is untyped


def _case(rows: int, outputs: int, inputs: int, bias: bool, strided: bool = False, int8: bool = False) -> Case:
    def build(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        scheme = "int8" if int8 else next(name for name, stored in SCHEMES.items() if stored == dtype)
        step = 2 if strided else 1
        return {
            "x": torch.randn((rows, inputs * step), generator=generator).to(dtype)[:, ::step],
            "weight": pack(torch.randn((outputs, inputs), generator=generator), scheme),
            "bias": torch.randn(outputs, generator=generator) if bias else None,
        }

    options = "".join(f" {name}" for name, there in (("bias", bias), ("strided", strided), ("int8", int8)) if there)
    return Case(f"rows={rows} outputs={outputs} inputs={inputs}{options}", build)


def _cost(inputs: Inputs) -> Cost:
    x, weight = inputs["x"], inputs["weight"]
    outputs, depth = weight.shape
    return Cost(weight.nbytes + (x.numel() + len(x) * outputs) * x.element_size(), 2 * len(x) * outputs * depth)


register(
    Op(
        "linear",
        linear,
        linear_reference,
        [
            _case(1, 1, 1, False),
            _case(1, 17, 67, True),
            _case(2, 64, 129, False),
            _case(13, 31, 128, True),
            _case(33, 192, 512, False),
            _case(5, 48, 300, True, strided=True),
            _case(0, 16, 32, True),
            _case(200, 70, 61, False),
        ],
        _cost,
    )
)
register(
    Op(
        "linear_int8",
        linear,
        linear_reference,
        [_case(*shape, int8=True) for shape in ((1, 1, 1, False), (1, 17, 67, True), (3, 20, 1100, True), (0, 16, 32, False))],
        _cost,
        backends=("triton",),
    )
)
