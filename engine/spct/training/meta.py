"""Training of the meta RM: which samples of the judge to trust. Two forms learn from the same samples.

fused    a linear head on the judge's final hidden state: on a frozen judge, or trained together with it, held in place by an anchor
scalar   the separate model of the paper (DeepSeek-GRM, arXiv 2504.02495): sequence classification over prompt and sample

Every step is a function of the seed, its number and the weights before it, so a run that was killed and resumed ends with the bits of one
that was not (same machine, thread settings and versions).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from spct.checkpoint.folder import find_folder
from spct.engine import Engine
from spct.errors import CheckpointError, ConfigError
from spct.prompting import JudgePrompt
from spct.training.checkpoints import load_state, save_atomically
from spct.training.folder import copy_text_side
from spct.training.meta_config import JUDGE, MetaConfig
from spct.training.meta_data import MetaItem, draw_meta_items
from spct.training.meta_heads import fit_head, pooled_states
from spct.training.meta_metrics import correctness_loss, pairs_within, within_item_loss
from spct.training.meta_scorers import FusedScorer, ScalarScorer, write_meta_head
from spct.training.optimisers import learning_rate
from spct.training.policy import Policy
from spct.training.ranks import Ranks, current
from spct.training.session import RunProgress

STATE_FILE = "training_state.safetensors"
SAMPLES_FILE = "samples.jsonl"
# What a resumed run may change: where it runs and how long, never what it computes.
_FREE = ("output", "form", "device", "save_every", "time_limit", "workers")


@dataclass(frozen=True, slots=True)
class MetaResult:
    """How the training of a form ended: steps done and to do, and whether the folder is finished."""

    form: str
    step: int
    steps: int

    @property
    def finished(self) -> bool:
        """All steps are done."""
        return self.step >= self.steps


def draw(config: MetaConfig) -> list[MetaItem]:
    """Draw the samples that `output` does not hold yet; return all items.

    Raises: as `draw_meta_items`; CheckpointError, ConfigError if the judge can't be loaded.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    ranks = current()
    if config.adapter is not None:
        if ranks.is_first:
            _merge(config, config.adapter)
        ranks.wait()
    with Engine.from_pretrained(config.judge, **{**config.engine_options, "device": str(ranks.device(config.device))}) as engine:
        return draw_meta_items(engine, config.data, config.sampling, config.output / SAMPLES_FILE)


def _merge(config: MetaConfig, adapter: Path) -> None:
    """Writes the judge with its adapter merged in: the same bits every time, so that what was drawn with it stays valid."""
    base, folder = find_folder(config.model).path, config.output / JUDGE
    folder.mkdir(exist_ok=True)
    copy_text_side(base, folder, adapter=adapter)
    Policy(base, device=torch.device("cpu"), adapter=adapter).save_whole(folder)


def train_form(config: MetaConfig, form: str, items: Sequence[MetaItem]) -> MetaResult:
    """Train one form on the training split of `items`, or go on training it, and write its folder.

    Raises: ConfigError or CheckpointError if the judge can't be trained, or the folder was begun with other settings.
    """
    judge = find_folder(config.judge).path
    folder = config.output / form
    if folder.resolve() == judge.resolve():
        raise ConfigError(f"output: expected another folder than the judge's, got {str(folder)!r} for both")
    folder.mkdir(parents=True, exist_ok=True)
    learnt = [item for item in items if item.split == "train" and item.samples]
    if not learnt:
        raise ConfigError("items: expected items with samples to train on, got none; draw more, or allow more tokens")
    device = current().device(config.device)
    if form == "scalar":
        scalar = ScalarScorer(config.start or judge, device)
        return _descend(config, form, scalar, learnt, folder)
    fused = FusedScorer(Policy(judge, device=device), JudgePrompt(judge), config.pooling, anchored=config.anchored)
    states = pooled_states(fused, learnt, folder / "states")
    weight, bias = current().first(fit_head(states, learnt, config.within))
    if config.joint:
        with torch.no_grad():
            fused.head.weight.copy_(weight[None])
            fused.head.bias.fill_(bias)
        if config.anchor > 0:
            fused.keep_reference()
        return _descend(config, form, fused, learnt, folder)
    if current().is_first:
        _copy_judge(judge, folder)
        write_meta_head(folder, weight, bias, config.pooling)
    return MetaResult(form, 1, 1)


def _descend(config: MetaConfig, form: str, scorer: FusedScorer | ScalarScorer, items: Sequence[MetaItem], folder: Path) -> MetaResult:
    """Gradient steps over body and head, with states on disk."""
    torch.set_num_threads(1)
    steps = max(1, round(config.epochs * len(items) / config.batch))
    body, head = scorer.trained()
    groups = [{"params": body, "name": "body"}, {"params": head, "name": "head"}]
    optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    step, ranks = _resume(config, form, scorer, optimiser, folder / STATE_FILE), current()
    ranks.expect_alike(step, f"the step of {folder / STATE_FILE}")
    began = saved_at = time.monotonic()

    def is_over() -> bool:
        return config.time_limit is not None and ranks.first(time.monotonic() - began > config.time_limit)

    def save() -> None:
        if not ranks.is_first:
            return
        state = {"step": step, "settings": _deciding(config, form), "scorer": scorer.state(), "optimiser": optimiser.state_dict()}
        save_atomically(folder / STATE_FILE, state)

    metrics = folder / "metrics.jsonl"
    with RunProgress(f"meta {form}", steps, step, metrics) as progress, ThreadPoolExecutor(config.workers) as pool:
        while step < steps and not is_over():
            rate = learning_rate(step, steps=steps, warmup=max(1, steps // 20), decay=steps, peak=1.0)
            row = _step(config, scorer, optimiser, _batch(config, items, step), rate, pool)
            step += 1
            progress.record(step, row | {"lr": rate * config.lr}, f"meta {form} loss {row['loss']:.3f}")
            if time.monotonic() - saved_at > config.save_every:
                save()
                saved_at = time.monotonic()
    save()
    if step >= steps and ranks.is_first:
        scorer.save(folder)
    return MetaResult(form, step, steps)


def _step(
    config: MetaConfig,
    scorer: FusedScorer | ScalarScorer,
    optimiser: torch.optim.Optimizer,
    items: Sequence[MetaItem],
    rate: float,
    pool: ThreadPoolExecutor,
) -> dict[str, Any]:
    """One step over a batch of items, cut into micro-batches of whole items that ranks and their threads share; what it measured."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    anchors = isinstance(scorer, FusedScorer) and config.anchor > 0

    def gradients(cut: list[int]) -> tuple[tuple[Tensor | None, ...], dict[str, float]]:
        scored = scorer.score([items[i] for i in cut], anchor=anchors)
        parts = {
            "correctness": correctness_loss(scored.scores, scored.labels),
            "within": within_item_loss(scored.scores, pairs_within(scored.labels, scored.items)),
            "anchor": scored.anchor,
        }
        loss = parts["correctness"] + config.within * parts["within"] + config.anchor * parts["anchor"]
        share = len(cut) / len(items)
        grads = torch.autograd.grad(share * loss, parameters, allow_unused=True)
        return grads, {name: share * float(value.detach()) for name, value in {"loss": loss, **parts}.items()}

    total = dict.fromkeys(("loss", "correctness", "within", "anchor"), 0.0)
    sizes = [sum(example.num_tokens for example in scorer.examples(item)) for item in items]
    # Means are taken within a cut, so all ranks share the cuts that one process would make.
    cuts, ranks = _cuts(sizes, config.micro_tokens), current()
    own = [cuts[i] for i in ranks.weigh([sum(sizes[i] for i in cut) for cut in cuts])]
    for grads, measured in pool.map(gradients, own):
        # In the order of the cuts, whichever thread was first.
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
        for name, value in measured.items():
            total[name] += value
    _add_over_ranks(parameters, ranks)
    shares = ranks.gather(total)
    total = {name: sum(share[name] for share in shares) for name in total}
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    # NaN fails every comparison: such a step leaves the weights alone and is counted by its row.
    skipped = not (abs(total["loss"]) < float("inf") and norm < float("inf"))
    if not skipped:
        for group in optimiser.param_groups:
            group["lr"] = rate * (config.head_lr if group["name"] == "head" else config.lr)
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return {**total, "norm": norm, "skipped": skipped}


def _add_over_ranks(parameters: Sequence[torch.nn.Parameter], ranks: Ranks) -> None:
    """Gives every rank the sum of all gradients; what no loss reaches keeps none, so that its weights don't decay."""
    reached = [any(flags) for flags in zip(*ranks.gather([p.grad is not None for p in parameters]), strict=True)]
    chosen = [p for p, is_reached in zip(parameters, reached, strict=True) if is_reached]
    for parameter, grad in zip(chosen, ranks.add([torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]), strict=True):
        parameter.grad = grad


def _batch(config: MetaConfig, items: Sequence[MetaItem], step: int) -> list[MetaItem]:
    """The items of a step: pass after pass over all of them, each in an order of its own, drawn from the seed."""
    chosen = []
    orders: dict[int, list[int]] = {}
    for number in range(step * config.batch, (step + 1) * config.batch):
        turn, place = divmod(number, len(items))
        if turn not in orders:
            orders[turn] = list(range(len(items)))
            Random(f"meta/{config.seed}/{turn}").shuffle(orders[turn])
        chosen.append(items[orders[turn][place]])
    return chosen


def _cuts(sizes: Sequence[int], micro_tokens: int) -> list[list[int]]:
    """Micro-batches of whole items of these tokens, like lengths together, of about `micro_tokens` each; an item alone may have more."""
    cuts: list[list[int]] = []
    room = 0
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        if sizes[i] > room:
            cuts.append([])
            room = micro_tokens
        cuts[-1].append(i)
        room -= sizes[i]
    return cuts


def _deciding(config: MetaConfig, form: str) -> dict[str, str]:
    """The settings that decide what is computed, as text."""
    return {"form": form, **{k: str(v) for k, v in asdict(config).items() if k not in _FREE}}


def _resume(config: MetaConfig, form: str, scorer: FusedScorer | ScalarScorer, optimiser: torch.optim.Optimizer, path: Path) -> int:
    """Takes up a saved state; 0 where there is none."""
    if not path.exists():
        return 0
    state = load_state(path)
    before, now = state.get("settings"), _deciding(config, form)
    if not isinstance(before, dict) or before.keys() != now.keys():
        raise CheckpointError(f"{path}: expected a state of this method and version; start afresh in another folder")
    for name, value in now.items():
        if before[name] != value:
            raise ConfigError(f"{name}: expected {before[name]}, with which {path} began, got {value}; give the same, or another folder")
    scorer.load_state(state["scorer"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _copy_judge(judge: Path, folder: Path) -> None:
    """Copies a judge's files as they are: its weights have not changed."""
    for path in sorted(judge.iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors") and path.name != "meta_head.safetensors":
            beside = folder / (path.name + ".tmp")
            shutil.copyfile(path, beside)
            beside.replace(folder / path.name)
