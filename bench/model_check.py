"""Checks that come before a timing: an op by the project's tolerance, a model against transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spct import Engine

LOGIT_TOLERANCE = 1e-3
TOKENS = range(3, 67)


def assert_within_rule(name: str, actual: Tensor, same_dtype: Tensor, exact: Tensor, magnitude: float = 0.0) -> None:
    """err(kernel, fp64) <= 2 err(torch in the same dtype, fp64) + 4 fp32 roundings of the largest value; integers are equal.

    magnitude  of what the values are differences of, where that is larger: a log-probability is a logit less a log-sum-exp
    """
    assert actual.shape == exact.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    if not actual.is_floating_point():
        assert torch.equal(actual, exact), f"{name}: {int((actual != exact).sum())} of {exact.numel()} integers differ"
        return
    assert torch.equal(actual.isfinite(), exact.isfinite()), f"{name}: other places are finite"
    finite = exact.isfinite()
    if not finite.any():
        return
    error, allowed = ((values[finite].double() - exact[finite]).abs().max().item() for values in (actual, same_dtype))
    floor = 4 * torch.finfo(torch.float32).eps * max(magnitude, exact[finite].abs().max().item())
    assert error <= 2 * allowed + floor, f"{name}: error {error:.2e} against fp64, torch's own is {allowed:.2e}"


def assert_logits(engine: Engine, folder: Path) -> None:
    """The engine's logits over a short text are those of transformers in fp32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = model(torch.tensor([list(TOKENS)])).logits[0]
    worst = float((engine.logits(list(TOKENS)) - expected).abs().max())
    assert worst <= LOGIT_TOLERANCE, f"{folder.name}: logits differ from transformers by {worst:.2e}"
