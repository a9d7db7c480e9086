"""From a model's name and options to the parts of an engine: prompt, weights, KV memory, scheduler, runner."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from spct import checkpoint
from spct.cache.pages import PagePool
from spct.cache.tree import PrefixTree
from spct.checkpoint import LoadedModel
from spct.config import EngineConfig
from spct.errors import BackendError, CapacityError, ConfigError
from spct.models.kv import KVCache, bytes_per_slot
from spct.prompting import JudgePrompt
from spct.runner.runner import ModelRunner
from spct.scheduling.scheduler import Scheduler

PAGE_SIZE = 16
_DEFAULT_KV_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of one engine, wired.

    max_context   tokens of prompt and sample together
    num_pages     KV memory in pages of `PAGE_SIZE` tokens
    """

    model: LoadedModel
    prompt: JudgePrompt
    scheduler: Scheduler
    runner: ModelRunner
    max_context: int
    num_pages: int


def assemble(model: str, config: EngineConfig) -> Assembly:
    """Loads a model and builds everything that runs it.

    Raises: ConfigError, CheckpointError, BackendError as `Engine.from_pretrained`; CapacityError if the KV memory asked for
    holds less than one page for prompt and sample each.
    """
    device = _device(config.device)
    loaded = checkpoint.load(
        model,
        dtype=config.dtype,
        weights=config.weights,
        scan=config.check_weights,
        adapter=config.adapter,
        device=device,
        backend=config.backend,
    )
    prompt = JudgePrompt(loaded.folder, template=config.template, chat_template_kwargs=config.chat_template_kwargs)
    kv_dtype = loaded.dtypes.kv if config.kv_dtype == "auto" else getattr(torch, config.kv_dtype)
    max_context = _max_context(loaded, config)
    num_pages = plan_pages(bytes_per_slot(loaded.spec, kv_dtype), max_context, config)
    kv = KVCache.allocate(loaded.spec, num_pages * PAGE_SIZE, kv_dtype, device)
    scheduler = Scheduler(
        PrefixTree(PagePool(num_pages, PAGE_SIZE)), max_batch=config.max_batch, max_prefill_tokens=config.max_prefill_tokens
    )
    runner = ModelRunner(loaded.decoder, kv, backend=config.backend, deterministic=config.deterministic)
    return Assembly(loaded, prompt, scheduler, runner, max_context, num_pages)


def plan_pages(slot_bytes: int, max_context: int, config: EngineConfig) -> int:
    """KV pages for a model that keeps `slot_bytes` bytes per token, as `EngineConfig.kv_memory` describes.

    Raises: CapacityError if an explicit `kv_memory` holds less than two pages.
    """
    page_bytes = slot_bytes * PAGE_SIZE
    context_pages = -(-max_context // PAGE_SIZE) + 1
    if config.kv_memory is not None:
        num_pages = config.kv_memory // page_bytes
        if num_pages < 2:
            raise CapacityError(
                f"kv_memory: {config.kv_memory} bytes hold {num_pages} pages of {PAGE_SIZE} tokens ({page_bytes} bytes each), "
                f"expected at least 2; one full context of {max_context} tokens needs {context_pages * page_bytes} bytes"
            )
        return num_pages
    limit = min(_available_bytes() // 4, _DEFAULT_KV_BYTES) // page_bytes
    return max(context_pages, min(limit, context_pages * config.max_batch))


def _max_context(loaded: LoadedModel, config: EngineConfig) -> int:
    limit = loaded.spec.max_context
    if config.max_context is None:
        return limit
    if config.max_context > limit:
        raise ConfigError(f"max_context: the checkpoint was made for {limit} tokens, got {config.max_context}")
    return config.max_context


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if name.startswith("cuda") and not has_cuda:
        raise BackendError(f'device: {name!r} asked for, but torch {torch.__version__} sees no CUDA device; use device="cpu"')
    return torch.device(name)


def _available_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
