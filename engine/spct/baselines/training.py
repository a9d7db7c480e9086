"""Training of the baselines, from a judge's weights, on the requests that the judge was trained on.

Every step is a function of the seed, its number and the weights before it, so a run that was killed and resumed ends with the bits of one
that was not (same machine, thread settings and versions).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from spct.assembly import choose_device
from spct.baselines.config import BaselineConfig
from spct.baselines.learners import Learner, make_learner
from spct.baselines.sidecar import write_form
from spct.checkpoint.folder import find_folder
from spct.errors import CheckpointError, ConfigError
from spct.training.checkpoints import load_state, save_atomically
from spct.training.optimisers import learning_rate
from spct.training.session import RunProgress

STATE_FILE = "training_state.safetensors"
# What a resumed run may change: where it runs and how long, never what it computes.
_FREE = ("output", "device", "workers", "save_every", "time_limit")


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """How a run ended: steps done and to do, and the loss per item (or per demonstration token), smoothed."""

    step: int
    steps: int
    loss: float

    @property
    def finished(self) -> bool:
        """All steps are done."""
        return self.step >= self.steps


def train(config: BaselineConfig) -> BaselineResult:
    """Train, or go on training, and write the folder.

    Raises: ConfigError, CheckpointError or InputError if model, data or folder can't be used.
    """
    source = find_folder(config.model).path
    if source.resolve() == config.output.resolve():
        raise ConfigError(f"output: expected another folder than the model's, got {str(config.output)!r} for both")
    config.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    state = load_state(config.output / STATE_FILE) if (config.output / STATE_FILE).exists() else None
    if state is not None:
        _refuse_other_settings(config, state)
    learner = make_learner(config, source, choose_device(config.device))
    body, head = learner.parameters()
    groups: list[dict[str, Any]] = [{"params": body, "peak": config.lr}, *([{"params": head, "peak": config.head_lr}] if head else [])]
    optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    step, loss = 0, float("nan")
    if state is not None:
        learner.load_state(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, loss = int(state["step"]), float(state["loss"])
    began = saved_at = time.monotonic()

    def save() -> None:
        told = {"step": step, "loss": loss, "settings": _deciding(config), "model": learner.state(), "optimiser": optimiser.state_dict()}
        save_atomically(config.output / STATE_FILE, told)

    metrics = config.output / "metrics.jsonl"
    with RunProgress(config.form, config.steps, step, metrics) as progress, ThreadPoolExecutor(config.workers) as pool:
        while step < config.steps and not (config.time_limit is not None and time.monotonic() - began > config.time_limit):
            rate = learning_rate(step, steps=config.steps, warmup=max(1, config.steps // 20), decay=config.steps, peak=1.0)
            row = _step(config, learner, optimiser, step, rate, pool)
            loss = row["loss"] if loss != loss else 0.95 * loss + 0.05 * row["loss"]
            step += 1
            progress.record(step, row, f"{config.form} loss {loss:.3f}")
            if time.monotonic() - saved_at > config.save_every:
                save()
                saved_at = time.monotonic()
    save()
    if step >= config.steps:
        learner.save(config.output)
        write_form(config.output, config.form)
    return BaselineResult(step, config.steps, loss)


def _step(
    config: BaselineConfig, learner: Learner, optimiser: torch.optim.Optimizer, step: int, rate: float, pool: ThreadPoolExecutor
) -> dict[str, Any]:
    """One step over the items of that number, in micro-batches that threads share; what it measured."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    lessons = [learner.lesson(step * config.prompts + i) for i in range(config.prompts)]
    cuts = _cuts([learner.num_tokens(lesson) for lesson in lessons], config.micro_tokens)

    def gradients(cut: Sequence[int]) -> tuple[tuple[Tensor | None, ...], float, int]:
        loss, count = learner.loss([lessons[i] for i in cut])
        return torch.autograd.grad(loss, parameters, allow_unused=True), float(loss.detach()), count

    outcomes = list(pool.map(gradients, cuts))
    total, count = sum(value for _, value, _ in outcomes), sum(number for _, _, number in outcomes)
    for grads, _, _ in outcomes:
        # In the order of the cuts, whichever thread was first.
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                parameter.grad = grad / count if parameter.grad is None else parameter.grad.add_(grad / count)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    # NaN fails every comparison: such a step leaves the weights alone and is counted by its row.
    skipped = not (abs(total) < float("inf") and norm < float("inf"))
    if not skipped:
        for group in optimiser.param_groups:
            group["lr"] = rate * group["peak"]
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return {"loss": total / count, "norm": norm, "lr": rate * config.lr, "skipped": skipped}


def _cuts(sizes: Sequence[int], micro_tokens: int) -> list[list[int]]:
    """Micro-batches of items, like lengths together; those without a token learn nothing and stand in none."""
    cuts: list[list[int]] = []
    room = 0
    for i in sorted((i for i, size in enumerate(sizes) if size), key=lambda i: (sizes[i], i)):
        if not cuts or sizes[i] > room:
            cuts.append([])
            room = micro_tokens
        cuts[-1].append(i)
        room -= sizes[i]
    return cuts


def _deciding(config: BaselineConfig) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(config).items() if name not in _FREE}


def _refuse_other_settings(config: BaselineConfig, state: dict[str, Any]) -> None:
    path, before, now = config.output / STATE_FILE, state.get("settings"), _deciding(config)
    if not isinstance(before, dict) or before.keys() != now.keys():
        raise CheckpointError(f"{path}: expected a state of a baseline and of this version; start afresh in another folder")
    for name, value in now.items():
        if before[name] != value:
            raise ConfigError(f"{name}: expected {before[name]}, with which {path} began, got {value}; give the same, or another folder")
