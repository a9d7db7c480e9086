"""How an engine is set up. The only file that reads the environment."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spct.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_DTYPES = {
    "auto": "auto",
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}


def parse_bytes(value: int | str) -> int:
    """Bytes from an integer or a text such as "512MiB".

    Raises: ConfigError if the text is not a number with a unit, or not positive.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        num_bytes = value
    else:
        match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*([a-zA-Z]*)\s*", str(value))
        if match is None or match[2].lower() not in _UNITS:
            raise ConfigError(f'kv_memory: expected bytes or a text such as "512MiB", got {value!r}')
        num_bytes = int(float(match[1]) * _UNITS[match[2].lower()])
    if num_bytes <= 0:
        raise ConfigError(f"kv_memory: expected a positive amount, got {value!r}")
    return num_bytes


def parse_dtype(value: object) -> str:
    """The canonical name of a dtype: "auto", "float32", "bfloat16" or "float16"; takes a `torch.dtype` too.

    Raises: ConfigError if the dtype is unknown.
    """
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(_DTYPES)}, got {value!r}")
    return _DTYPES[name]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Options of `Engine.from_pretrained`. Flags win over the environment, which wins over these defaults.

    device         "auto" (CUDA if there is one, else CPU), "cpu", "cuda", "cuda:1"
    backend        "auto", or one of the kernels' backends: "cpu", "triton", "reference"
    dtype          storage of weights; "auto" keeps what the checkpoint stores where the device computes in it
    weights        "auto" (as stored; never quantises) or a scheme of `spct_kernels.pack`. "int8": on a CPU every matrix and the LM
                   head in int8, multiplied with rows that are quantised too ("w8a8"); on a GPU weights alone, the head as stored
    kv_memory      bytes for keys and values, or a text such as "512MiB"; None: enough for `max_batch` full contexts,
                   at most a quarter of the memory that is free and 1 GiB (but always one full context)
    kv_dtype       storage of keys and values; "auto": `dtype` where one is given, else fp32 on a CPU (bf16 under
                   weights="int8"), elsewhere the activations' dtype
    max_context    tokens of prompt and sample together; None: what the checkpoint allows
    max_batch      sequences that run in one step
    max_samples    per request
    max_prefill_tokens   prompt rows in one step, beside the decoding rows
    num_threads    of torch's pool; None leaves it alone
    chat_template_kwargs   handed to the checkpoint's chat template
    template       judge template: a name, a path, or None for the adapter's or the checkpoint's own, else "default"
    deterministic  True: a row's bits never depend on the batch
    cuda_graphs    capture decode steps on a GPU as CUDA graphs; tested without a GPU only, hence off
    check_weights  refuse NaN and Inf in the checkpoint
    meta_model     a sequence-classification folder (or hub id) with one label that scores every sample, in the place of the
                   checkpoint's meta head; it gets KV memory of its own, as much as `kv_memory` says

    Raises: ConfigError if a value is unknown or out of range.
    """

    device: str = "auto"
    backend: str = "auto"
    dtype: str = "auto"
    weights: str = "auto"
    kv_memory: int | None = None
    kv_dtype: str = "auto"
    max_context: int | None = None
    max_batch: int = 64
    max_samples: int = 4096
    max_prefill_tokens: int = 512
    num_threads: int | None = None
    adapter: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    deterministic: bool = True
    cuda_graphs: bool = False
    check_weights: bool = True
    meta_model: str | None = None

    def __post_init__(self) -> None:
        """Normalise spellings and refuse what is out of range."""
        set_field = object.__setattr__
        set_field(self, "device", str(self.device))
        set_field(self, "dtype", parse_dtype(self.dtype))
        if isinstance(self.meta_model, os.PathLike):
            set_field(self, "meta_model", os.fspath(self.meta_model))
        if self.meta_model is not None and (not isinstance(self.meta_model, str) or not self.meta_model):
            raise ConfigError(f"meta_model: expected a folder or a hub id, got {self.meta_model!r}")
        set_field(self, "kv_dtype", parse_dtype(self.kv_dtype))
        if self.kv_memory is not None:
            set_field(self, "kv_memory", parse_bytes(self.kv_memory))
        if self.backend not in ("auto", "cpu", "triton", "reference"):
            raise ConfigError(f'backend: expected "auto", "cpu", "triton" or "reference", got {self.backend!r}')
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f'device: expected "auto", "cpu", "cuda" or "cuda:N", got {self.device!r}')
        for name in ("max_context", "max_batch", "max_samples", "max_prefill_tokens", "num_threads"):
            value = getattr(self, name)
            if value is None and name in ("max_context", "num_threads"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: expected a positive integer, got {value!r}")

    @property
    def judge_template(self) -> str | None:
        """The template asked for, or the one that an adapter was trained with; None: the checkpoint's own, else "default"."""
        own = None if self.adapter is None else os.path.join(self.adapter, "judge_template.jinja")
        return own if self.template is None and own is not None and os.path.isfile(own) else self.template

    @classmethod
    def create(cls, options: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> EngineConfig:
        """The configuration from explicit options over `SPCT_*` variables over the defaults.

        Raises: ConfigError if an option or a variable is unknown or its value can't be read.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = set(options) - set(known)
        if unknown:
            raise ConfigError(f"unknown option {sorted(unknown)[0]!r}; known options: {', '.join(known)}")
        return cls(**{**_from_environment(os.environ if environ is None else environ), **options})


_TEXT = ("device", "backend", "dtype", "weights", "kv_dtype", "template", "kv_memory", "adapter", "meta_model")
_INTEGERS = ("max_context", "max_batch", "max_samples", "max_prefill_tokens", "num_threads")
_FLAGS = ("deterministic", "cuda_graphs", "check_weights")
# Read by the kernels' C++ code (csrc), not by the engine.
_KERNEL_VARIABLES = ("SPCT_CPU",)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, text in environ.items():
        if not key.startswith("SPCT_") or key in _KERNEL_VARIABLES:
            continue
        name = key.removeprefix("SPCT_").lower()
        if name in _TEXT:
            options[name] = text
        elif name in _INTEGERS:
            if not re.fullmatch(r"\d{1,18}", text):
                raise ConfigError(f"{key}: expected a positive integer, got {text!r}")
            options[name] = int(text)
        elif name in _FLAGS:
            if text.lower() not in ("0", "1", "true", "false"):
                raise ConfigError(f"{key}: expected 0, 1, true or false, got {text!r}")
            options[name] = text.lower() in ("1", "true")
        else:
            known = ", ".join(f"SPCT_{n.upper()}" for n in (*_TEXT, *_INTEGERS, *_FLAGS))
            raise ConfigError(f"{key}: unknown variable; known: {known}")
    return options
