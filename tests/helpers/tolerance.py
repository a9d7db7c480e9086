"""The project's one rule of accuracy, and how many random configurations are tried."""

import os

import torch

NUM_CONFIGS = int(os.environ.get("RANDOM_CONFIGS", "200"))
"""Random configurations of every kernel; `make check` raises it to 1,000."""


def assert_within_rule(actual, same_dtype, exact, what=""):
    """err(kernel, fp64) <= 2 err(torch in the same dtype, fp64) + 4 fp32 roundings of the largest value."""
    assert actual.shape == exact.shape and actual.dtype == same_dtype.dtype, what
    finite = exact.isfinite()
    assert torch.equal(actual.isnan(), exact.isnan()), what
    assert torch.equal(actual[~finite].double().nan_to_num(7.0), exact[~finite].nan_to_num(7.0)), what
    if not finite.any():
        return
    exact = exact[finite]
    error, allowed = ((values[finite].double() - exact).abs().max().item() for values in (actual, same_dtype))
    floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()
    assert error <= 2 * allowed + floor, f"{what}: error {error:.3e}, torch's own {allowed:.3e}, floor {floor:.3e}"
