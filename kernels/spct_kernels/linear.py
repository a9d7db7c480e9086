"""Linear layers with packed weights: the scheme names the storage and the arithmetic, the packing is made for the CPU kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spct_kernels.checks import FLOAT_DTYPES, bind, check_dtype
from spct_kernels.dispatch import cpu_ops, resolve, triton_kernels
from spct_kernels.errors import InputError
from spct_kernels.registry import Case, Cost, Inputs, Op, register

SCHEMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD_AXES = ("column", "row", "vocabulary", "replicated")

PANEL = 16
"""Outputs that stand side by side in the CPU's layout [ceil(O/16), I, 16]; the last panel is padded with zeros. On other devices a
panel has one output: [O, I, 1], the plain matrix."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """A weight [O, I], packed for `linear`.

    panels      [ceil(O/P), I, P]  in the scheme's dtype; P = 16 on a CPU, 1 elsewhere
    scheme      "fp32", "bf16" or "fp16": storage; products and sums are fp32
    shape       (O, I)
    shard_axis  how tensor parallelism would cut it: "column", "row", "vocabulary" or "replicated"
    """

    panels: Tensor
    scheme: str
    shape: tuple[int, int]
    shard_axis: str = "replicated"

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weight takes, and that a decode step reads."""
        return self.panels.numel() * self.panels.element_size()

    @property
    def device(self) -> torch.device:
        """The device that holds the weight."""
        return self.panels.device

    def unpack(self) -> Tensor:
        """The weight as `linear` uses it: [O, I] fp32, after the scheme's rounding."""
        outputs, inputs = self.shape
        return self.panels.transpose(1, 2).reshape(-1, inputs)[:outputs].float()

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, [len(ids), I] in the storage dtype: the embedding of tokens where it is tied to the head.

        ids  [n]  integer, 0 <= id < O
        """
        ids = ids.long()
        width = self.panels.shape[2]
        return self.panels[ids // width, :, ids % width]

    def replace(self, weight: Tensor) -> None:
        """Writes another weight [O, I] into the same memory, so that a live engine sees it with its next step.

        Raises: InputError if the shape differs.
        """
        if tuple(weight.shape) != self.shape:
            raise InputError(f"weight: expected shape {self.shape} as packed, got {tuple(weight.shape)}")
        _fill(self.panels, weight)


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
    scheme      "fp32", "bf16" or "fp16"
    shard_axis  "column", "row", "vocabulary" or "replicated"
    returns     the packed weight, on weight's device; it shares no memory with `weight`

    Cost: one read of the weight, one write of its packed form.
    Raises: InputError for an unknown scheme or axis, or a weight that is not a floating-point matrix.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    if shard_axis not in SHARD_AXES:
        raise InputError(f"shard_axis: expected one of {', '.join(SHARD_AXES)}, got {shard_axis!r}")
    dims = bind(weight=(weight, "O I"))
    check_dtype("weight", weight, FLOAT_DTYPES)
    outputs, inputs = dims["O"], dims["I"]
    width = PANEL if weight.device.type == "cpu" else 1
    panels = torch.empty((-(-outputs // width), inputs, width), dtype=SCHEMES[scheme], device=weight.device)
    _fill(panels, weight.detach().contiguous())
    return PackedLinear(panels, scheme, (outputs, inputs), shard_axis)


def linear_reference(x: Tensor, weight: PackedLinear, bias: Tensor | None) -> Tensor:
    """X @ weight.T + bias in fp32 (fp64 where x is fp64), rounded to x's dtype."""
    wide = x if x.dtype == torch.float64 else x.float()
    return F.linear(wide, weight.unpack().to(wide.dtype), None if bias is None else bias.to(wide.dtype)).to(x.dtype)


def linear(x: Tensor, weight: PackedLinear, bias: Tensor | None = None, deterministic: bool = True, *, backend: str = "auto") -> Tensor:
    """Linear layer: x @ weight.T + bias, products and sums in fp32.

    x        [T, I]  fp32, bf16 or fp16
    weight   (O, I)  from `pack`
    bias     [O]     any of these, or None
    returns  [T, O]  x's dtype

    Cost: the packed weight read once for all rows; 2*T*O*I FLOPs. Invariant: a row's bits depend neither on T, nor on its place,
    nor on the threads (the C++ backend holds this also under deterministic=False).
    Raises: InputError if shapes, dtypes or devices disagree; BackendError if the backend is missing.
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
    if chosen == "reference":
        return linear_reference(x, weight, bias)
    if bias is not None:
        bias = bias.float().contiguous()
    if chosen == "triton":
        return triton_kernels("linear").linear(x.contiguous(), weight, bias)  # type: ignore[no-any-return] # imported by name
    return cpu_ops().linear(x.contiguous(), weight.panels, bias, outputs)  # type: ignore[no-any-return] # torch.ops is untyped


def _case(rows: int, outputs: int, inputs: int, bias: bool, strided: bool = False) -> Case:
    def build(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        scheme = next(name for name, stored in SCHEMES.items() if stored == dtype)
        step = 2 if strided else 1
        return {
            "x": torch.randn((rows, inputs * step), generator=generator).to(dtype)[:, ::step],
            "weight": pack(torch.randn((outputs, inputs), generator=generator), scheme),
            "bias": torch.randn(outputs, generator=generator) if bias else None,
        }

    return Case(f"rows={rows} outputs={outputs} inputs={inputs}{' bias' if bias else ''}{' strided' if strided else ''}", build)


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
