"""The output head of a decoder: final norm, LM head, truncation, keyed draw, log-probability and meta-RM logit in one op."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from spct_kernels.checks import FLOAT_DTYPES, bind, check_dtype
from spct_kernels.dispatch import resolve, triton_kernels
from spct_kernels.errors import BackendError, InputError
from spct_kernels.packed import PackedLinear
from spct_kernels.sample_cpu import fused_sample_cpu, token_logits_cpu
from spct_kernels.sample_reference import Draw, TokenLists, fused_sample_reference, token_logits_reference


class SampleOutput(NamedTuple):
    """What one step of sampling gives, a row per sequence.

    token    [T] int64  -1 where a logit was NaN or +Inf, or where no token had a mass
    logprob  [T] fp32   natural log, under the untempered and untruncated distribution; NaN where token is -1
    meta     [T] fp32   the meta-RM head's logit; None without one
    """

    token: Tensor
    logprob: Tensor
    meta: Tensor | None


def fused_sample(
    hidden: Tensor,
    norm_weight: Tensor,
    lm_head: Tensor | PackedLinear,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
    norm_eps: float,
    meta_weight: Tensor | None = None,
    meta_bias: float = 0.0,
    softcap: float | None = None,
    allowed: TokenLists | None = None,
    banned: TokenLists | None = None,
    backend: str = "auto",
) -> SampleOutput:
    """Draws the next token of every row by the Gumbel-max rule with keyed noise, and gives its log-probability and meta logit.

    hidden       [T, E]  fp32, bf16 or fp16, before the final norm
    norm_weight  [E]     of hidden / sqrt(mean(hidden^2) + norm_eps) * norm_weight, in fp32; norm_eps 0 is legal
    lm_head      [V, E]  fp32, bf16 or fp16, or a PackedLinear of these or (on a CPU) "w8a8", for which the normed rows are quantised
    temperature  [T]     fp32; 0 is greedy (ties to the lower id)
    top_k        [T]     int32; keeps exactly k, ties to the lower id; 0 switches it off
    top_p        [T]     fp32; the token that crosses it stays in, one always stays; 1 switches it off
    min_p        [T]     fp32; keeps what has this fraction of the best token's probability; 0 switches it off
    seed         [T]     int64, position [T] int64: the key of the row's noise, with the vocabulary id and nothing else
    meta_weight  [E]     fp32, bf16 or fp16, or None: meta = normed hidden . meta_weight + meta_bias
    softcap      logits become softcap * tanh(logits / softcap), before everything else; never the meta logit
    allowed      (offsets [T+1], ids): only these ids, and the log-probability over them; an empty list is no restriction
    banned       (offsets [T+1], ids): these are never drawn; the log-probability stays that of the whole distribution
    returns      token [T], logprob [T], meta [T] or None

    Truncation acts in the order top-k, top-p, min-p after the temperature, each on what the one before left. A row with a NaN or
    +Inf logit (before the soft cap; among the allowed ids where there are any), or with no token left, gives token -1 and NaN;
    its neighbours do not change. Noise: see `philox`; the winner is decided in fp64.

    Cost: the head read once, 2TEV FLOPs. Invariant: a row's bits depend on that row alone, not on the batch or the threads.
    Raises: InputError if shapes, dtypes, devices, token ids or (on a CPU) a parameter's range are wrong; BackendError if the
    backend is missing.
    Sources: Gumbel-max, C. Maddison, D. Tarlow, T. Minka, "A* sampling", 2014; nucleus, A. Holtzman et al., 2020.
    """
    dims = _check_head(hidden, norm_weight, lm_head, norm_eps, softcap)
    if meta_weight is not None:
        bind(dims, hidden=(hidden, "T E"), meta_weight=(meta_weight, "E"))
        check_dtype("meta_weight", meta_weight, FLOAT_DTYPES)
    draw = _checked_draw(dims, hidden, temperature, top_k, top_p, min_p, seed, position)
    allowed = checked_lists("allowed", allowed, dims["T"], dims["V"], hidden.device)
    banned = checked_lists("banned", banned, dims["T"], dims["V"], hidden.device)
    head = (hidden, norm_weight, norm_eps, lm_head, softcap)
    chosen = resolve(backend, hidden.device)
    if chosen != "cpu" and hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_ranges(draw)
    if chosen == "triton":
        _check_triton_head(lm_head)
        return SampleOutput(*triton_kernels("sample").fused_sample_triton(head, draw, meta_weight, meta_bias, allowed, banned))
    if chosen == "reference":
        return SampleOutput(*fused_sample_reference(head, draw, meta_weight, meta_bias, allowed, banned))
    try:
        return SampleOutput(*fused_sample_cpu(head, draw, meta_weight, meta_bias, allowed, banned))
    except RuntimeError:
        _check_ranges(draw)  # the C++ op looks at every row, for less than Python's calls cost
        raise


def token_logits(
    hidden: Tensor,
    norm_weight: Tensor,
    lm_head: Tensor | PackedLinear,
    offsets: Tensor,
    token_ids: Tensor,
    *,
    norm_eps: float,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Logits of some ids per row, such as those of the scores, without the rest of the vocabulary.

    hidden, norm_weight, lm_head, norm_eps, softcap   as in `fused_sample`
    offsets    [T+1]  int32 or int64; row i asks for token_ids[offsets[i]:offsets[i+1]], which may be empty and may repeat
    token_ids  [N]    int32 or int64
    returns    [N]    fp32, after the soft cap; equal to the logits that `fused_sample` draws from

    Cost: the listed rows of the head, 2NE FLOPs. Invariant: a logit's bits depend on its row and id alone.
    Raises: InputError if shapes, dtypes, devices or token ids are wrong; BackendError if the backend is missing.
    """
    dims = _check_head(hidden, norm_weight, lm_head, norm_eps, softcap)
    lists = checked_lists("token_ids", (offsets, token_ids), dims["T"], dims["V"], hidden.device)
    assert lists is not None
    head = (hidden, norm_weight, norm_eps, lm_head, softcap)
    chosen = resolve(backend, hidden.device)
    if chosen == "triton":
        _check_triton_head(lm_head)
        return triton_kernels("sample").token_logits_triton(head, lists)  # type: ignore[no-any-return] # imported lazily
    run = token_logits_reference if chosen == "reference" else token_logits_cpu
    return run(head, lists)


def checked_lists(name: str, lists: TokenLists | None, num_rows: int, vocabulary: int, device: torch.device) -> TokenLists | None:
    """The same lists as (int64 offsets, int32 ids), contiguous.

    Raises: InputError if they are not a list of token ids per row.
    """
    if lists is None:
        return None
    offsets, ids = lists
    bind({"T+1": num_rows + 1}, **{f"{name} offsets": (offsets, "T+1"), f"{name} ids": (ids, "N")})
    for part, tensor in (("offsets", offsets), ("ids", ids)):
        check_dtype(f"{name} {part}", tensor, (torch.int32, torch.int64))
        if tensor.device != device:
            raise InputError(f"{name} {part}: expected a tensor on {device}, got {tensor.device}; move it with .to()")
    if device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere a look would wait for the device
        if int(offsets[0]) != 0 or int(offsets[-1]) != ids.numel() or bool((offsets[1:] < offsets[:-1]).any()):
            raise InputError(f"{name} offsets: expected ascending numbers from 0 to {ids.numel()}, got {offsets.tolist()[:16]}")
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < vocabulary):
            raise InputError(f"{name} ids: expected 0 <= id < {vocabulary}, got {int(ids.min())} … {int(ids.max())}")
    return offsets.long().contiguous(), ids.int().contiguous()


def _check_head(
    hidden: Tensor, norm_weight: Tensor, lm_head: Tensor | PackedLinear, norm_eps: float, softcap: float | None
) -> dict[str, int]:
    """Dimensions T, E and V; raises InputError for what the norm, the head and the soft cap can't mean."""
    dims = bind(hidden=(hidden, "T E"), norm_weight=(norm_weight, "E"))
    check_dtype("hidden", hidden, FLOAT_DTYPES)
    check_dtype("norm_weight", norm_weight, FLOAT_DTYPES)
    if isinstance(lm_head, PackedLinear):
        if lm_head.scheme == "int8":
            raise InputError("lm_head: expected a head packed as fp32, bf16, fp16 or (on a CPU) w8a8, got 'int8'; pack it as one of these")
        if lm_head.shape[1] != dims["E"]:
            raise InputError(f"lm_head: expected shape (V, E={dims['E']}), got {lm_head.shape}")
        if lm_head.device != hidden.device:
            raise InputError(f"lm_head: expected on hidden's device {hidden.device}, got {lm_head.device}; pack it there")
        dims["V"] = lm_head.shape[0]
    else:
        bind(dims, hidden=(hidden, "T E"), lm_head=(lm_head, "V E"))
        check_dtype("lm_head", lm_head, FLOAT_DTYPES)
    if not 0 < dims["V"] <= 2**31 - 1:
        raise InputError(f"lm_head: expected a vocabulary from 1 to 2^31 - 1, got {dims['V']}")
    if not 0.0 <= norm_eps < math.inf:
        raise InputError(f"norm_eps: expected a finite number >= 0, got {norm_eps!r}")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise InputError(f"softcap: expected a finite number > 0, or None, got {softcap!r}")
    return dims


def _check_triton_head(lm_head: Tensor | PackedLinear) -> None:
    """Raises BackendError for a head that Triton has no kernel for."""
    if isinstance(lm_head, PackedLinear) and lm_head.scheme == "w8a8":
        raise BackendError("backend 'triton': lm_head: there is no kernel for a head packed as 'w8a8'; pack it as fp32, bf16 or fp16")


def _checked_draw(
    dims: dict[str, int],
    hidden: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
) -> Draw:
    """The parameters in the kernels' dtypes; ranges are looked at later, and on a CPU only, where that waits for nothing."""
    bind(
        dims,
        hidden=(hidden, "T E"),
        temperature=(temperature, "T"),
        top_k=(top_k, "T"),
        top_p=(top_p, "T"),
        min_p=(min_p, "T"),
        seed=(seed, "T"),
        position=(position, "T"),
    )
    for name, tensor in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p)):
        check_dtype(name, tensor, FLOAT_DTYPES)
    for name, tensor in (("top_k", top_k), ("seed", seed), ("position", position)):
        check_dtype(name, tensor, (torch.int32, torch.int64))
    return Draw(
        temperature.detach().float().contiguous(),
        (top_k if top_k.dtype == torch.int32 else top_k.clamp(max=2**31 - 1).int()).contiguous(),
        top_p.detach().float().contiguous(),
        min_p.detach().float().contiguous(),
        seed.long().contiguous(),
        position.long().contiguous(),
    )


def _check_ranges(draw: Draw) -> None:
    """Raises InputError that names the first parameter and row out of range."""
    _check_range("temperature", draw.temperature, torch.finfo(torch.float32).max, "a finite number >= 0")
    _check_range("top_k", draw.top_k, 2**31 - 1, "an integer >= 0 (0: off)")
    _check_range("top_p", draw.top_p, 1.0, "a number from 0 to 1 (1: off)")
    _check_range("min_p", draw.min_p, 1.0, "a number from 0 to 1 (0: off)")


def _check_range(name: str, tensor: Tensor, highest: float, expected: str) -> None:
    """Raises InputError that names the first row outside of 0 … highest."""
    values = tensor.numpy()
    if values.size and not (values.min() >= 0 and values.max() <= highest):
        row = int(((values >= 0) & (values <= highest)).argmin())
        raise InputError(f"{name}[{row}]: expected {expected}, got {values[row]}")
