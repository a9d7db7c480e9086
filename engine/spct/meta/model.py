"""A second model under the same kind of loop: it reads the k samples of a request below one prefill of each order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch

from spct import checkpoint
from spct.cache.pages import PagePool
from spct.cache.tree import PrefixTree
from spct.checkpoint import LoadedModel
from spct.config import EngineConfig
from spct.errors import CapacityError, InputError, SpctError
from spct.limits import PAGE_SIZE, Limits, num_pages_of, plan_limits
from spct.meta.prompt import MetaPrompt
from spct.meta.runner import ScalarRunner
from spct.models.kv import KVCache, bytes_per_slot
from spct.runner.loop import StepLoop
from spct.scheduling.scheduler import Scheduler
from spct.scheduling.sequence import Group
from spct.scheduling.sequence import Sequence as TokenSequence
from spct.types import SamplingParams, ScoreRequest

# One draw a sequence: the score stands where the first token would.
_READ_ONCE = SamplingParams(samples=1, temperature=0.0, max_tokens=1, ignore_eos=True)

Order = tuple[int, ...]


class MetaModel:
    """The scalar meta RM of the paper: a raw logit for every sample, read at its last token.

    loop     drives it, as an engine's own loop drives the judge
    digest   hash of weights, tokenizer and template
    """

    def __init__(self, model: LoadedModel, prompt: MetaPrompt, loop: StepLoop, limits: Limits) -> None:
        self.prompt = prompt
        self.loop = loop
        self.digest = f"{model.weights_digest}:{prompt.digest}"
        self._limits = limits

    def encode(self, request: ScoreRequest, orders: Iterable[Order]) -> dict[Order, tuple[int, ...]]:
        """Encode the prompt of every distinct order.

        Raises: InputError if the template refuses the request; CapacityError if a prompt leaves no room for a sample.
        """
        most = self._limits.max_context
        prompts = {order: self.prompt.encode(request, order, max_tokens=most) for order in dict.fromkeys(orders)}
        for ids in prompts.values():
            if not self._fits(len(ids) + 1):
                raise CapacityError(
                    f"meta_model: its prompt for this request has {len(ids)} tokens and its context or KV memory ends at "
                    f"{self._most_tokens()}; shorten the request, raise kv_memory or use another meta model"
                )
        return prompts

    def group(self, prompts: Mapping[Order, tuple[int, ...]], orders: Sequence[Order], texts: Sequence[str | None], arrival: int) -> Group:
        """A group with a sequence for every sample that can be read, to be submitted to `loop`.

        prompts  from `encode`
        orders   of the samples
        texts    of the samples; None: there is nothing to read

        A sample that is too long for the model, or that its vocabulary can't spell, gets no sequence and so no score.
        """
        group = Group(_READ_ONCE, frozenset())
        for i, (order, text) in enumerate(zip(orders, texts, strict=True)):
            if text is None:
                continue
            try:
                ids = (*prompts[order], *self.prompt.continuation(text))
            except InputError:
                continue
            if self._fits(len(ids)):
                group.add(TokenSequence(group, i, ids, 0, 1, (arrival, i)))
        return group

    def scores(self, group: Group, num_samples: int) -> list[float | None]:
        """The raw logit of every sample of a finished group; None for one that was not read or has no finite score.

        Raises: the error that ended the group before its time.
        """
        if group.error is not None:
            raise group.error
        found: list[float | None] = [None] * num_samples
        for sequence in group.sequences:
            if sequence.finish_reason == "length":
                found[sequence.index] = sequence.meta_logits[-1]
        return found

    def _most_tokens(self) -> int:
        return min(self._limits.max_context, self._limits.num_pages * PAGE_SIZE)

    def _fits(self, num_tokens: int) -> bool:
        return num_tokens <= self._limits.max_context and num_pages_of(num_tokens) <= self._limits.num_pages


def load_meta_model(model: str, config: EngineConfig, device: torch.device) -> MetaModel:
    """Load a sequence-classification folder with one label and everything that runs it.

    model    a folder or a hub id
    config   of the engine: dtype, weights, backend, batch and prefill limits hold for this model too; `kv_memory` is given to each of
             the two, `max_context`, `template` and `adapter` are the judge's own

    Raises: CheckpointError if the folder can't be loaded; ConfigError for a name or an option that makes no sense.
    """
    try:
        loaded = checkpoint.load(
            model,
            dtype=config.dtype,
            weights=config.weights,
            scan=config.check_weights,
            device=device,
            backend=config.backend,
            deterministic=config.deterministic,
            head="score",
        )
        prompt = MetaPrompt(loaded.folder)
    except SpctError as error:
        raise type(error)(f"meta_model: {error}") from error
    kv_dtype = loaded.dtypes.kv if config.kv_dtype == "auto" else getattr(torch, config.kv_dtype)
    limits = plan_limits(loaded.spec.max_context, bytes_per_slot(loaded.spec, kv_dtype), dataclasses.replace(config, max_context=None))
    kv = KVCache.allocate(loaded.spec, limits.num_pages * PAGE_SIZE, kv_dtype, device)
    scheduler = Scheduler(
        PrefixTree(PagePool(limits.num_pages, PAGE_SIZE)), max_batch=config.max_batch, max_prefill_tokens=config.max_prefill_tokens
    )
    runner = ScalarRunner(loaded.decoder, kv, backend=config.backend, deterministic=config.deterministic)
    return MetaModel(loaded, prompt, StepLoop(scheduler, runner), limits)
