"""Kernels of generative reward models: shared-prefix attention, fused sampling, packed linear layers and the small ops.

Usable alone: nothing here imports `spct`. Every op takes `backend="auto"`, or the name of one of `dispatch.BACKENDS`.
"""

from spct_kernels import attention_cases as _attention_cases  # noqa: F401 - registers the op
from spct_kernels import custom_ops as _custom_ops  # noqa: F401 - registers the Triton backend's ops with torch
from spct_kernels import fakes as _fakes  # noqa: F401 - registers the C++ ops with torch's tracing
from spct_kernels import sample_cases as _sample_cases  # noqa: F401 - registers the ops
from spct_kernels.attention import shared_prefix_attention
from spct_kernels.elementwise import add_rms_norm, gated_activation, rms_norm, rope_append
from spct_kernels.errors import BackendError, InputError, KernelError
from spct_kernels.linear import linear
from spct_kernels.packed import PackedLinear, pack
from spct_kernels.plan import AttentionPlan
from spct_kernels.sample import SampleOutput, fused_sample, token_logits

__all__ = [
    "AttentionPlan",
    "BackendError",
    "InputError",
    "KernelError",
    "PackedLinear",
    "SampleOutput",
    "add_rms_norm",
    "fused_sample",
    "gated_activation",
    "linear",
    "pack",
    "rms_norm",
    "rope_append",
    "shared_prefix_attention",
    "token_logits",
]
