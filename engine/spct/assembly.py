"""From a model's name and options to the parts of an engine: prompt, weights, KV memory, scheduler, runner."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spct import checkpoint
from spct.cache.pages import PagePool
from spct.cache.tree import PrefixTree
from spct.checkpoint import LoadedModel
from spct.checkpoint.weights import return_freed_memory
from spct.config import EngineConfig
from spct.errors import BackendError
from spct.limits import PAGE_SIZE, Limits, plan_limits
from spct.meta import MetaModel, load_meta_model
from spct.models.kv import KVCache, bytes_per_slot
from spct.prompting import JudgePrompt
from spct.runner.graphs import GraphedRunner
from spct.runner.runner import ModelRunner
from spct.scheduling.scheduler import Scheduler
from spct_kernels.dispatch import resolve
from spct_kernels.errors import KernelError


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of one engine, wired.

    meta   the separate meta model, where one was asked for
    """

    model: LoadedModel
    prompt: JudgePrompt
    scheduler: Scheduler
    runner: ModelRunner
    limits: Limits
    meta: MetaModel | None = None


def assemble(model: str, config: EngineConfig) -> Assembly:
    """Loads a model and builds everything that runs it.

    Raises: ConfigError, CheckpointError, BackendError as `Engine.from_pretrained`; CapacityError if the KV memory asked for
    holds less than one page for prompt and sample each.
    """
    device = choose_device(config.device)
    check_backend(config.backend, device)
    loaded = checkpoint.load(
        model,
        dtype=config.dtype,
        weights=config.weights,
        scan=config.check_weights,
        adapter=config.adapter,
        device=device,
        backend=config.backend,
        deterministic=config.deterministic,
    )
    prompt = JudgePrompt(loaded.folder, template=config.judge_template, chat_template_kwargs=config.chat_template_kwargs)
    return_freed_memory()  # reading a tokenizer leaves some 30 MiB
    kv_dtype = loaded.dtypes.kv if config.kv_dtype == "auto" else getattr(torch, config.kv_dtype)
    limits = plan_limits(loaded.spec.max_context, bytes_per_slot(loaded.spec, kv_dtype), config)
    kv = KVCache.allocate(loaded.spec, limits.num_pages * PAGE_SIZE, kv_dtype, device)
    scheduler = Scheduler(
        PrefixTree(PagePool(limits.num_pages, PAGE_SIZE)), max_batch=config.max_batch, max_prefill_tokens=config.max_prefill_tokens
    )
    kind = GraphedRunner if config.cuda_graphs and device.type == "cuda" else ModelRunner
    runner = kind(loaded.decoder, kv, backend=config.backend, deterministic=config.deterministic)
    meta = None if config.meta_model is None else load_meta_model(config.meta_model, config, device)
    return Assembly(loaded, prompt, scheduler, runner, limits, meta)


def choose_device(name: str) -> torch.device:
    """The device of an engine's `device` option. Raises: BackendError if it asks for CUDA and there is none."""
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if name.startswith("cuda") and not has_cuda:
        raise BackendError(f'device: {name!r} asked for, but torch {torch.__version__} sees no CUDA device; use device="cpu"')
    return torch.device(name)


def check_backend(name: str, device: torch.device) -> None:
    """Refuses a kernel backend that can't compute on the device before anything is loaded. Raises: BackendError."""
    try:
        resolve(name, device)
    except KernelError as error:
        raise BackendError(str(error)) from error
