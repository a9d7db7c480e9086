"""One optimiser step from several micro-batches, whose gradients are computed in parallel and added in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from spct.training.policy import Policy, TokenScores
from spct.training.ranks import current
from spct.training.sample_batches import TokenBatch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did.

    loss     summed over the micro-batches of all ranks
    norm     of the gradient, before it was clipped
    skipped  loss or gradient was not finite: the weights and the optimiser's state are as before
    scores   of every micro-batch of this rank, detached, under the weights before the step
    """

    loss: float
    norm: float
    skipped: bool
    scores: tuple[TokenScores, ...]


class Learner:
    """AdamW over what a policy trains.

    lr            of a step that names none
    workers       threads, each with a micro-batch of its own
    max_norm      gradients are scaled down to that norm
    """

    def __init__(self, policy: Policy, *, lr: float, weight_decay: float, workers: int, max_norm: float = 1.0) -> None:
        self.policy, self.max_norm, self.workers = policy, max_norm, workers
        self._parameters = policy.parameters()
        self._optimiser = torch.optim.AdamW(self._parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
        self._pool = ThreadPoolExecutor(workers)

    def map(self, function: Callable[[int], T], indices: Sequence[int]) -> list[T]:
        """Compute the function of every index in the worker threads, each with one thread of torch; results in their order."""
        # A thread of torch's keeps the number that it first sees, and the engine's calls come from another thread.
        torch.set_num_threads(1)
        return list(self._pool.map(function, indices))

    def step(
        self,
        batches: Sequence[TokenBatch],
        loss: Callable[[int, TokenScores], Tensor],
        *,
        lr: float | None = None,
        check: Callable[[Sequence[TokenScores]], None] | None = None,
    ) -> StepResult:
        """Minimise the sum of loss(i, scores of batch i) over the batches, those of all ranks, by one step.

        batches  of this rank, perhaps none
        check  sees the detached scores of all batches before anything changes, and may raise

        Gradients of at most `workers` micro-batches are held at once.
        """

        def gradients(i: int) -> tuple[tuple[Tensor, ...], float, TokenScores]:
            scores = self.policy.scores(batches[i])
            value = loss(i, scores)
            grads = torch.autograd.grad(value, self._parameters)
            return grads, float(value.detach()), TokenScores(scores.logprob.detach(), scores.entropy)

        total, seen = 0.0, []
        sums: list[Tensor] | None = None
        for start in range(0, len(batches), self.workers):
            here = range(start, min(start + self.workers, len(batches)))
            for grads, value, scores in self.map(gradients, here):
                total += value
                seen.append(scores)
                sums = list(grads) if sums is None else [a.add_(b) for a, b in zip(sums, grads, strict=True)]
        if check is not None:
            check(seen)
        # What is not finite on one rank is so in the sums, and all skip the step.
        sums = current().add([torch.zeros_like(p) for p in self._parameters] if sums is None else sums)
        total = sum(current().gather(total))
        for parameter, grad in zip(self._parameters, sums, strict=True):
            parameter.grad = grad
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self.max_norm))
        # NaN fails every comparison.
        finite = abs(total) < float("inf") and norm < float("inf")
        if finite:
            for group in self._optimiser.param_groups:
                group["lr"] = lr if lr is not None else group["lr"]
            self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return StepResult(total, norm, not finite, tuple(seen))

    def state(self) -> dict[str, Any]:
        """Give the optimiser's state, for a training state."""
        return self._optimiser.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self._optimiser.load_state_dict(state)

    def restart(self) -> None:
        """Forget all moments, as at the start."""
        self._optimiser.state.clear()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
