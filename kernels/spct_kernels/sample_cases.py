"""Cases and costs of the output head's ops, and their registration."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from spct_kernels.packed import PackedLinear, pack
from spct_kernels.registry import Case, Cost, Inputs, Op, register
from spct_kernels.sample import SampleOutput, fused_sample, token_logits
from spct_kernels.sample_reference import TokenLists

_SCHEMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def make_head(
    rows: int, width: int, vocabulary: int, packed: bool, dtype: torch.dtype, generator: torch.Generator, scheme: str = ""
) -> Inputs:
    """A hidden state, a norm and a head whose logits have a standard deviation of about 2; scheme: of a packed head, else dtype's."""
    lm_head: Tensor | PackedLinear = (torch.randn((vocabulary, width), generator=generator) * 2 / width**0.5).to(dtype)
    return {
        "hidden": (torch.randn((rows, width), generator=generator) * 3).to(dtype),
        "norm_weight": (torch.rand(width, generator=generator) + 0.5).to(dtype),
        "lm_head": pack(lm_head, scheme or _SCHEMES[dtype]) if packed and isinstance(lm_head, Tensor) else lm_head,
        "norm_eps": 1e-5,
    }


def make_params(rows: int, vocabulary: int, generator: torch.Generator) -> Inputs:
    """Every parameter switched on in some rows and off in others."""

    def sometimes(values: Tensor, off: float) -> Tensor:
        return torch.where(torch.rand(rows, generator=generator) < 0.5, values, off)

    return {
        "temperature": sometimes(torch.rand(rows, generator=generator) + 0.5, 1.0) * (torch.rand(rows, generator=generator) < 0.9),
        "top_k": sometimes(torch.randint(1, vocabulary + 2, (rows,), generator=generator).float(), 0).int(),
        "top_p": sometimes(torch.rand(rows, generator=generator), 1.0),
        "min_p": sometimes(torch.rand(rows, generator=generator) * 0.1, 0.0),
        "seed": torch.randint(-(2**62), 2**62, (rows,), generator=generator),
        "position": torch.randint(0, 2**40, (rows,), generator=generator),
    }


def make_lists(rows: int, vocabulary: int, longest: int, generator: torch.Generator) -> TokenLists:
    """Up to `longest` ids a row, some lists being empty."""
    lengths = torch.randint(0, longest + 1, (rows,), generator=generator)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    return offsets, torch.randint(0, vocabulary, (int(offsets[-1]),), generator=generator, dtype=torch.int32)


def _sample_case(
    name: str, rows: int, width: int, vocabulary: int, *, packed: bool = False, lists: bool = False, scheme: str = "", **options: Any
) -> Case:
    def build(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        head = make_head(rows, width, vocabulary, packed, dtype, generator, scheme)
        inputs = head | make_params(rows, vocabulary, generator) | options
        if lists:
            inputs["allowed"] = make_lists(rows, vocabulary, 9, generator)
            inputs["banned"] = make_lists(rows, vocabulary, 3, generator)
        inputs["meta_weight"] = (torch.randn(width, generator=generator) / width**0.5).to(dtype)
        inputs["meta_bias"] = 0.25
        return inputs

    return Case(name, build)


def _logits_case(
    name: str, rows: int, width: int, vocabulary: int, *, packed: bool = False, softcap: float | None = None, scheme: str = ""
) -> Case:
    def build(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        offsets, token_ids = make_lists(rows, vocabulary, 20, generator)
        head = make_head(rows, width, vocabulary, packed, dtype, generator, scheme)
        return head | {"offsets": offsets, "token_ids": token_ids, "softcap": softcap}

    return Case(name, build)


def _head_bytes(inputs: Inputs, num_rows: int) -> int:
    """Bytes of `num_rows` rows of the head, and of the hidden states."""
    hidden, lm_head = inputs["hidden"], inputs["lm_head"]
    weight: Tensor = lm_head.panels if isinstance(lm_head, PackedLinear) else lm_head
    head_bytes: int = num_rows * lm_head.shape[1] * weight.element_size()
    return head_bytes + int(hidden.numel() * hidden.element_size())


def _sample_cost(inputs: Inputs) -> Cost:
    """The head read once, whatever the number of rows; two FLOPs per row and weight."""
    vocabulary, width = inputs["lm_head"].shape
    return Cost(_head_bytes(inputs, vocabulary), 2 * inputs["hidden"].shape[0] * vocabulary * width)


def _logits_cost(inputs: Inputs) -> Cost:
    """The listed rows of the head; two FLOPs per weight."""
    num_ids = inputs["token_ids"].numel()
    return Cost(_head_bytes(inputs, num_ids), 2 * num_ids * int(inputs["lm_head"].shape[1]))


def _sample_outputs(inputs: Inputs, result: SampleOutput) -> tuple[Tensor, ...]:
    """Tokens are compared bitwise, log-probabilities and meta logits by their error."""
    return tuple(part for part in result if part is not None)


register(
    Op(
        "fused_sample",
        fused_sample,
        functools.partial(fused_sample, backend="reference"),
        [
            _sample_case("one row, one id, width 1", 1, 1, 1),
            _sample_case("no rows", 0, 8, 5),
            _sample_case("rows=13 vocabulary=257", 13, 31, 257),
            _sample_case("rows=33, packed", 33, 64, 1009, packed=True),
            _sample_case("many rows, a small vocabulary", 301, 16, 97, packed=True),
            _sample_case("soft cap", 12, 17, 300, softcap=5.0),
            _sample_case("allowed and banned ids", 24, 32, 129, lists=True, softcap=30.0),
            _sample_case("a large vocabulary", 3, 24, 50_257, packed=True),
        ],
        _sample_cost,
        outputs=_sample_outputs,
    )
)

register(
    Op(
        "token_logits",
        token_logits,
        functools.partial(token_logits, backend="reference"),
        [
            _logits_case("one row", 1, 1, 1),
            _logits_case("no rows", 0, 8, 5),
            _logits_case("rows=13 vocabulary=257", 13, 31, 257),
            _logits_case("packed, soft cap", 9, 300, 1009, packed=True, softcap=5.0),
        ],
        _logits_cost,
    )
)

# The rows that a head in int8 quantises are normed before, so the reference may round one of their numbers to the next step of
# int8 where the kernel's norm differs by an ulp: the cases are small enough that none of their seeds does.
register(
    Op(
        "fused_sample_w8a8",
        fused_sample,
        functools.partial(fused_sample, backend="reference"),
        [
            _sample_case("one row, one id, width 1, w8a8", 1, 1, 1, packed=True, scheme="w8a8"),
            _sample_case("rows=13, w8a8", 13, 30, 257, packed=True, lists=True, softcap=30.0, scheme="w8a8"),
            _sample_case("many rows, a small vocabulary, w8a8", 61, 16, 97, packed=True, scheme="w8a8"),
        ],
        _sample_cost,
        outputs=_sample_outputs,
        triton=False,
    )
)

register(
    Op(
        "token_logits_w8a8",
        token_logits,
        functools.partial(token_logits, backend="reference"),
        [
            _logits_case("one row, w8a8", 1, 1, 1, packed=True, scheme="w8a8"),
            _logits_case("no rows, w8a8", 0, 8, 5, packed=True, scheme="w8a8"),
            _logits_case("soft cap, w8a8", 9, 130, 1009, packed=True, softcap=5.0, scheme="w8a8"),
        ],
        _logits_cost,
        triton=False,
    )
)
