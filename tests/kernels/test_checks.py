"""The shape checker: what it binds and what its messages say."""

from __future__ import annotations

import pytest
import torch

from spct_kernels.checks import bind, check_dtype
from spct_kernels.errors import InputError


def test_symbols_bind_across_tensors():
    dims = bind(q=(torch.zeros(3, 4, 16), "T H D"), k=(torch.zeros(9, 2, 16), "S K D"))
    assert dims == {"T": 3, "H": 4, "D": 16, "S": 9, "K": 2}
    assert bind({"T": 3}, x=(torch.zeros(3, 2), "T 2")) == {"T": 3}


@pytest.mark.parametrize(
    ("shape", "text", "expected"),
    [
        ((40, 8, 64), "S K D", "k: expected shape (S, K, D=128), got (40, 8, 64)"),
        ((40, 8), "S K D", "k: expected shape (S, K, D=128), got (40, 8)"),
        ((5,), "T", "k: expected shape (T=3,), got (5,)"),
        ((4, 5), "S 3", "k: expected shape (S, 3), got (4, 5)"),
        ((4, 5), "S S", "k: expected shape (S, S), got (4, 5)"),
        ((), "E", "k: expected shape (E=7,), got ()"),
    ],
)
def test_messages_name_what_is_known(shape, text, expected):
    with pytest.raises(InputError) as caught:
        bind({"E": 7}, q=(torch.zeros(3, 2, 128), "T H D"), k=(torch.zeros(shape), text))
    assert str(caught.value) == expected


def test_devices_and_dtypes():
    with pytest.raises(InputError, match="b: expected all tensors on one device, cpu, got meta"):
        bind(a=(torch.zeros(2), "n"), b=(torch.zeros(2, device="meta"), "n"))
    with pytest.raises(InputError, match="a: expected dtype float32, bfloat16, got int64"):
        check_dtype("a", torch.zeros(2, dtype=torch.int64), (torch.float32, torch.bfloat16))
