"""Rule-based online reinforcement learning of a judge: GRPO on samples that the engine draws from the weights as they are.

A step draws requests, shows each in one random order, samples a group of critiques per prompt, rewards them by the rule, and updates the
weights, which go back into the live engine. Sampling is untruncated at temperature 1, so the sampler's own log-probabilities are those of
the behaviour policy; that they agree with the trainer's on the same tokens is checked in every step. A step is a function of the seed, its
number and the state before it, so a run that was killed and resumed ends bitwise like one that was not. Several processes draw and learn a
share of each step's prompts each, and take the step that one would, up to the rounding of its sums.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from spct.errors import BackendError, ConfigError
from spct.training.grpo import advantages, k3, policy_loss
from spct.training.labelled import LabelledRequest
from spct.training.learner import StepResult
from spct.training.policy import TokenScores
from spct.training.ranks import current
from spct.training.sample_batches import Example, TokenBatch
from spct.training.session import RunProgress, Session, TrainingSetup, at_least, stream_seed
from spct.types import Sample, SamplingParams, VotingParams

# Kernels and transformers sum in different orders; what is beyond this in fp32 is a fault (stale weights, another prompt).
MAX_DRIFT = 1e-3
VOTING = VotingParams(filter="none", orders="given")

Rule = Callable[[LabelledRequest, Sample], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RlConfig(TrainingSetup):
    """What a run of reinforcement learning does; see `TrainingSetup` for the rest.

    steps    length of the run
    prompts  requests per step, each in one order
    group    samples per prompt
    passes   optimiser steps on the samples of one step
    warmup   steps of rising learning rate
    decay    steps of falling learning rate at the end; in between it is constant
    clip     of the ratio between policy and sampler
    beta     weight of the KL to the starting weights; 0 keeps no copy of them

    Raises: ConfigError if a value makes no sense.
    """

    data_seed: int = 2
    steps: int = 100
    prompts: int = 16
    group: int = 8
    passes: int = 1
    warmup: int = 5
    decay: int = 0
    clip: float = 0.2
    beta: float = 0.02

    def __post_init__(self) -> None:
        """Refuse what can't be trained."""
        TrainingSetup.__post_init__(self)
        at_least(self, 1, "steps", "prompts", "passes")
        at_least(self, 2, "group")
        at_least(self, 0, "warmup", "decay", "beta")
        if not 0 < self.clip < 1:
            raise ConfigError(f"clip: expected a number between 0 and 1, got {self.clip!r}")


@dataclass(frozen=True, slots=True)
class RlResult:
    """How a run ended: steps done, whether that is all, steps skipped because of NaN, and the last step's accuracy."""

    step: int
    finished: bool
    skipped: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one prompt that can be trained on, with their rewards and advantages."""

    example: Example
    behaviour: tuple[tuple[float, ...], ...]
    rewards: tuple[float, ...]
    advantages: tuple[float, ...]

    @property
    def has_signal(self) -> bool:
        """Some sample was better than another."""
        return any(self.advantages)


def run(config: RlConfig, *, rule: Rule | None = None) -> RlResult:
    """Train, or go on training, and write the model folder.

    rule  gives the reward of a sample; None: +1 if it is correct, -1 otherwise

    Raises: ConfigError, InputError or CheckpointError if the start can't be read; BackendError if sampler and trainer disagree.
    """
    session = Session(config)
    try:
        return _Run(session, config, rule).run()
    finally:
        session.close()


class _Run:
    def __init__(self, session: Session, config: RlConfig, rule: Rule | None) -> None:
        self.session, self.config, self.ranks = session, config, current()
        self.rule: Rule = rule or (lambda item, sample: 1.0 if session.is_correct(item, sample.scores) else -1.0)
        state = session.state or {"step": 0, "skipped": 0, "seconds": 0.0, "accuracy": math.nan}
        self.step: int = state["step"]
        self.skipped: int = state["skipped"]
        self.accuracy: float = state["accuracy"]
        self.before: float = state["seconds"]

    def run(self) -> RlResult:
        config, began = self.config, time.monotonic()
        saved_at = began
        self.session.refresh_engine()
        with RunProgress("rl", config.steps, self.step, config.output / "metrics.jsonl") as progress:
            while self.step < config.steps and not self.is_over(began):
                row = self.one_step()
                self.step += 1
                self.accuracy = row["accuracy"]
                progress.record(self.step, row, f"rl accuracy {self.accuracy:.3f}")
                if time.monotonic() - saved_at >= config.save_every:
                    self.save(began)
                    saved_at = time.monotonic()
        self.save(began)
        return RlResult(self.step, self.step >= config.steps, self.skipped, self.accuracy)

    def is_over(self, began: float) -> bool:
        """Tell whether the time limit has come, by rank 0's clock."""
        limit = self.config.time_limit
        return limit is not None and self.ranks.first(time.monotonic() - began >= limit)

    def save(self, began: float) -> None:
        seconds = self.before + time.monotonic() - began
        self.session.save(self.step, skipped=self.skipped, accuracy=self.accuracy, seconds=seconds)

    def one_step(self) -> dict[str, Any]:
        """Sample, update, refresh; return the step's row of metrics."""
        started = time.monotonic()
        groups, row = self.sample()
        sampled = time.monotonic()
        trained = groups if self.config.beta else [g for g in groups if g.has_signal]
        row |= _NOTHING
        if trained:
            row |= self.update(trained, sum(map(_num_drawn, groups)))
            self.skipped += bool(row["skipped"])
            self.session.refresh_engine()
        ended = time.monotonic()
        tokens = sum(map(_num_drawn, groups))
        row |= {"sampling_s": round(sampled - started, 3), "training_s": round(ended - sampled, 3)}
        row |= {"tokens_per_s": round(tokens / (ended - started), 1), "skipped_steps": self.skipped}
        # JSON has no NaN: what was not finite is null.
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}

    def sample(self) -> tuple[list[Group], dict[str, Any]]:
        """Draw a group for each prompt of the step."""
        config = self.config
        items = []
        for i in range(config.prompts):
            item = self.session.requests.draw(self.step * config.prompts + i)
            order = list(range(len(item.request.responses)))
            Random(f"rl/{config.seed}/{self.step}/{i}").shuffle(order)
            items.append(item.in_order(order))
        sampling = SamplingParams(
            samples=config.group, temperature=1.0, max_tokens=config.max_tokens, seed=stream_seed(config.seed, "rl", self.step)
        )
        ranks = self.ranks
        mine = ranks.deal(list(enumerate(items)))
        judged = {i: judgement.samples for i, judgement in self.session.judge(mine, sampling, VOTING)}
        # In the order of the requests, whichever was judged first.
        rewarded = ranks.collect((i, (judged[i], [self.rule(item, s) for s in judged[i]])) for i, item in mine)
        drawn, rewards = zip(*(rewarded[i] for i in range(len(items))), strict=True)
        samples = [s for group in drawn for s in group]
        flat = [r for group in rewards for r in group]
        correct = sum(self.session.is_correct(item, s.scores) for item, group in zip(items, drawn, strict=True) for s in group)
        lengths = [s.num_tokens for s in samples]
        row = {
            "reward": sum(flat) / len(flat),
            "accuracy": correct / len(samples),
            "valid_rate": sum(s.scores is not None for s in samples) / len(samples),
            "length": sum(lengths) / len(lengths),
            "tokens": sum(lengths),
            "zero_variance": sum(max(r) == min(r) for r in rewards) / len(rewards),
        }
        groups = [self.group(*parts) for parts in zip(items, drawn, rewards, strict=True)]
        return [g for g in groups if g.rewards], row

    def group(self, item: LabelledRequest, samples: tuple[Sample, ...], rewards: list[float]) -> Group:
        """Keep what the engine could compute; a sample that ended in NaN has nothing to learn from."""
        usable = [i for i, s in enumerate(samples) if s.status != "numeric_error" and s.token_ids]
        prompt = self.session.engine.prompt.encode(item.request)
        kept = tuple(rewards[i] for i in usable)
        return Group(
            Example(prompt, tuple(samples[i].token_ids for i in usable)),
            tuple(samples[i].token_logprobs for i in usable),
            kept,
            advantages(kept),
        )

    def update(self, groups: list[Group], num_drawn: int) -> dict[str, Any]:
        """Take `passes` optimiser steps on the groups, of which each rank computes its share.

        num_drawn  tokens of all groups that were drawn, whose mean the loss is
        """
        config, session, ranks = self.config, self.session, self.ranks
        groups = [groups[i] for i in ranks.weigh([g.example.num_tokens for g in groups])]
        cuts, batches = session.policy.batches([g.example for g in groups], config.micro_tokens)
        device = session.policy.device
        behaviour = [_per_token([groups[i] for i in cut], "behaviour", device) for cut in cuts]
        advantage = [_per_token([groups[i] for i in cut], "advantages", device) for cut in cuts]
        reference = self.reference(batches)
        outcome: dict[str, Any] = {}
        for turn in range(config.passes):
            clipped: list[Tensor] = [torch.empty(0)] * len(batches)

            def loss(i: int, scores: TokenScores, clipped: list[Tensor] = clipped) -> Tensor:
                value, clipped[i] = policy_loss(scores.logprob, behaviour[i], advantage[i], config.clip)
                if config.beta:
                    value = value + config.beta * k3(scores.logprob, reference[i])
                return value.sum() / num_drawn

            rate = config.lr * min(1.0, (self.step + 1) / (config.warmup + 1), (config.steps - self.step) / (config.decay + 1))
            if turn == 0:
                result = session.learner.step(batches, loss, lr=rate, check=lambda seen: self.check_drift(seen, behaviour))
                outcome = self.row(result, behaviour, reference)
            else:
                result = session.learner.step(batches, loss, lr=rate)
                outcome["skipped"] = outcome["skipped"] or result.skipped
            outcome["clip_share"] = ranks.mean(clipped)
        return outcome

    def reference(self, batches: list[TokenBatch]) -> list[Tensor]:
        """Log-probabilities of the tokens under the frozen start; none where they don't count."""
        if not self.config.beta:
            return []
        with self.session.policy.reference() as scores:
            return self.session.learner.map(lambda i: scores(batches[i]).logprob, range(len(batches)))

    def check_drift(self, scores: Sequence[TokenScores], behaviour: list[Tensor]) -> None:
        """Refuse to train on tokens of which sampler and trainer think differently.

        Raises: BackendError.
        """
        drift = _drift(scores, behaviour)
        if self.config.dtype == "float32" and drift > MAX_DRIFT:
            raise BackendError(
                f"step {self.step}: sampler and trainer disagree by {drift:.3g} in the log-probability of a token, expected at most "
                f"{MAX_DRIFT:g} in fp32; the engine's weights are stale, or engine and transformers compute this model differently"
            )

    def row(self, result: StepResult, behaviour: list[Tensor], reference: list[Tensor]) -> dict[str, Any]:
        """Tell what a step did, over the tokens of all ranks."""
        ranks = self.ranks
        row: dict[str, Any] = {"loss": result.loss, "norm": result.norm, "entropy": ranks.mean([s.entropy for s in result.scores])}
        if self.config.beta:
            row["kl"] = ranks.mean([k3(s.logprob, r) for s, r in zip(result.scores, reference, strict=True)])
        # torch's maximum, unlike Python's, is NaN if a number is.
        row["drift"] = float(torch.tensor(ranks.gather(_drift(result.scores, behaviour))).max())
        return {**row, "skipped": result.skipped}


_NOTHING = dict.fromkeys(("loss", "norm", "kl", "entropy", "clip_share", "drift")) | {"skipped": False}


def _drift(scores: Sequence[TokenScores], behaviour: list[Tensor]) -> float:
    parts = [(s.logprob - b).abs().max() for s, b in zip(scores, behaviour, strict=True)]
    return float(torch.stack(parts).max()) if parts else 0.0


def _num_drawn(group: Group) -> int:
    return sum(map(len, group.example.samples))


def _per_token(groups: list[Group], name: str, device: torch.device) -> Tensor:
    """Values in the order of a batch's tokens; one per sample is repeated for each of its tokens."""
    values: list[float] = []
    for group in groups:
        for sample, own in zip(group.example.samples, getattr(group, name), strict=True):
            values += own if name == "behaviour" else [own] * len(sample)
    return torch.tensor(values, dtype=torch.float32, device=device)
