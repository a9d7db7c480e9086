"""In which number formats a model is kept and computed: the one place where this is decided."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spct.errors import ConfigError

_DTYPES: dict[object, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    torch.float32: torch.float32,
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float16,
}
_SCHEMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_SCHEME_DTYPES = {scheme: dtype for dtype, scheme in _SCHEMES.items()}


_INT8_SCHEMES = ("int8", "w8a8")


@dataclass(frozen=True)
class DtypePlan:
    """Number formats of one loaded model.

    scheme       `pack` scheme of the linear layers
    head         `pack` scheme of the LM head, and so of the embedding where they are tied
    weights      dtype of what is not quantised: of an embedding that is not tied, and of every matrix where the scheme isn't int8
    as_stored    a matrix that is stored in another dtype than most is kept in that, so that nothing is lost
    activations  the residual stream and the queries
    kv           a default for the KV cache
    """

    scheme: str
    head: str
    weights: torch.dtype
    as_stored: bool
    activations: torch.dtype
    kv: torch.dtype

    @property
    def quantised(self) -> bool:
        """Whether the linear layers are in int8."""
        return self.scheme in _INT8_SCHEMES


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The torch dtype of an engine's `dtype` option; None for "auto".

    Raises: ConfigError for anything else.
    """
    if dtype == "auto":
        return None
    try:
        return _DTYPES[dtype]
    except (KeyError, TypeError):
        known = ", ".join(repr(name) for name in _DTYPES if isinstance(name, str))
        raise ConfigError(f"dtype: expected 'auto', {known} or the torch.dtype of one, got {dtype!r}") from None


def plan_dtypes(dtype: str | torch.dtype, weights: str, stored: torch.dtype, device: torch.device, backend: str = "auto") -> DtypePlan:
    """Decide the number formats.

    dtype     "auto": arithmetic in fp32 on a CPU, in the stored format elsewhere
    weights   "auto": kept as stored (with an explicit `dtype`: in that), or a `pack` scheme
    stored    dtype of the checkpoint's matrices
    backend   of the kernels

    On a CPU activations are fp32 whatever is stored: the kernels widen 16-bit weights and keys as they read them, which
    halves the memory traffic and loses nothing.

    "int8" is what the device multiplies fastest from int8 weights: on a CPU "w8a8", whose rows are quantised too, for the linear
    layers and the head, with a KV cache in bf16 unless `dtype` says otherwise; for Triton "int8", weights alone, with the head as
    stored, since it decides the draw and Triton has no kernel for it.

    Raises: ConfigError for an unknown dtype or scheme, or "w8a8" where there is no kernel for it.
    """
    asked = parse_dtype(dtype)
    on_cpu = device.type == "cpu"
    activations = torch.float32 if on_cpu else (asked or stored)
    if weights in _INT8_SCHEMES:
        on_triton = not on_cpu or backend == "triton"
        if weights == "w8a8" and on_triton:
            raise ConfigError("weights: 'w8a8' has kernels on a CPU alone; use 'int8', whose activations stay as they are")
        kept = asked or stored
        scheme, head = ("int8", _SCHEMES[kept]) if on_triton else ("w8a8", "w8a8")
        return DtypePlan(scheme, head, kept, asked is None, activations, asked or (torch.bfloat16 if on_cpu else stored))
    kept = asked or stored
    if weights != "auto":
        if weights not in _SCHEME_DTYPES:
            known = ", ".join(map(repr, (*_SCHEME_DTYPES, *_INT8_SCHEMES)))
            raise ConfigError(f"weights: expected 'auto' or one of {known}, got {weights!r}")
        kept = _SCHEME_DTYPES[weights]
    kv = asked or (torch.float32 if on_cpu else stored)
    return DtypePlan(_SCHEMES[kept], _SCHEMES[kept], kept, asked is None and weights == "auto", activations, kv)


def scheme_of(dtype: torch.dtype) -> str:
    """The `pack` scheme that keeps a dtype's numbers as they are."""
    return _SCHEMES[dtype]
