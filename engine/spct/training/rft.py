"""Rejective fine-tuning of a judge (arXiv 2504.02495, section 3.2): it learns from those of its own samples that were right.

A round samples N critiques of every request with the weights as they are; drops the incorrect ones, and whole requests that all N got
right; for a request that none got right it may draw one hinted sample, with the truth in its prompt, kept if correct and trained on
without the hint; then fine-tunes on what is left. Sampling and training both go on where a killed run left them, and end bitwise alike.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from spct.errors import SpctError
from spct.training.labelled import LabelledRequest
from spct.training.optimisers import learning_rate
from spct.training.policy import TokenScores
from spct.training.ranks import current
from spct.training.sample_batches import Example
from spct.training.session import RunProgress, Session, TrainingSetup, at_least, stream_seed
from spct.training.trajectories import Drawn, Trajectory, TrajectoryFile, outcome_of, statistics
from spct.types import Judgement, Sample, SamplingParams, ScoreRequest, Turn, VotingParams
from spct.voting.orders import in_request_order

TRAJECTORIES, STATISTICS = "trajectories.jsonl", "statistics.json"
HINT = "The best response is: Response {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RftConfig(TrainingSetup):
    """What a run of rejective fine-tuning does; see `TrainingSetup` for the rest.

    rounds       of sampling and training
    requests     per round, new ones in every round
    samples      per request
    temperature  of the sampling
    hinted       one hinted sample for a request that no sample got right (with two or more responses)
    keep         trajectories of one request at most
    epochs       over what a round has kept
    prompts      prompts per training step, each with its kept samples
    weights      of the engine that samples, as `spct score --weights`: with "int8" it draws faster, from weights that are rounded; what
                 is trained is not, and a sample is right or wrong whoever drew it
    warmup       fraction of a round's steps with rising learning rate; it falls over the second half

    Raises: ConfigError if a value makes no sense.
    """

    rounds: int = 1
    requests: int = 512
    samples: int = 3
    temperature: float = 1.0
    hinted: bool = False
    keep: int = 3
    epochs: int = 2
    prompts: int = 16
    weights: str = "auto"
    warmup: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what can't be trained."""
        TrainingSetup.__post_init__(self)
        at_least(self, 1, "rounds", "requests", "samples", "keep", "epochs", "prompts")
        at_least(self, 0, "warmup")
        SamplingParams(samples=self.samples, temperature=self.temperature, max_tokens=self.max_tokens)


@dataclass(frozen=True, slots=True)
class RftResult:
    """How a run ended: training steps done, whether all rounds are, steps skipped because of NaN, and statistics by round."""

    step: int
    finished: bool
    skipped: int
    statistics: list[dict[str, Any]]


def run(config: RftConfig) -> RftResult:
    """Sample and train, or go on with it, and write the model folder.

    Raises: ConfigError, InputError or CheckpointError if the start can't be read; SpctError if a round keeps nothing to train on.
    """
    session = Session(config, weights=config.weights)
    try:
        return _Run(session, config).run()
    finally:
        session.close()


class _Run:
    def __init__(self, session: Session, config: RftConfig) -> None:
        self.session, self.config, self.ranks = session, config, current()
        state = session.state or {"step": 0, "round": 0, "round_step": 0, "skipped": 0, "seconds": 0.0}
        self.step: int = state["step"]
        self.round: int = state["round"]
        self.round_step: int = state["round_step"]
        self.skipped: int = state["skipped"]
        self.before: float = state["seconds"]
        self.began = self.saved_at = time.monotonic()
        self.file = TrajectoryFile(config.output / TRAJECTORIES, self.ranks)

    def run(self) -> RftResult:
        try:
            if self.session.state is None:
                # From here on the settings are known, which a resumed run must not change.
                self.save()
            while self.round < self.config.rounds and not self.all_stop():
                if (self.round_step or self.sample()) and self.train():
                    self.round, self.round_step = self.round + 1, 0
                    self.session.learner.restart()
                    self.save()
                    # No row of the next round may outlive a kill that the weights behind it don't.
                    self.ranks.wait()
            self.save()
        finally:
            self.file.close()
        return RftResult(self.step, self.round >= self.config.rounds, self.skipped, statistics(self.file.rows))

    def is_over_time(self) -> bool:
        return self.config.time_limit is not None and time.monotonic() - self.began >= self.config.time_limit

    def all_stop(self) -> bool:
        """The time limit has come on rank 0, whose clock is that of all where they act together."""
        return self.ranks.first(self.is_over_time())

    def save(self) -> None:
        seconds = self.before + time.monotonic() - self.began
        self.session.save(self.step, round=self.round, round_step=self.round_step, skipped=self.skipped, seconds=seconds)
        self.saved_at = time.monotonic()

    def sample(self) -> bool:
        """Draw what the round still lacks; False if the time limit came first.

        Weights change between rounds only, so whoever drew the rows that are there already had the same.
        """
        config = self.config
        done = {row.index for row in self.file.of_round(self.round)}
        start = self.round * config.requests
        wanted = self.ranks.deal([i for i in range(start, start + config.requests) if i not in done])
        if wanted:
            self.session.refresh_engine()
            with closing(self.drawn(wanted)) as drawn:
                for row in drawn:
                    self.file.append(row)
                    # Each rank by its own clock: they draw without waiting for each other.
                    if self.is_over_time():
                        break
        self.file.exchange()
        if len(self.file.of_round(self.round)) < config.requests:
            return False
        if self.ranks.is_first:
            self.report()
        return True

    def report(self) -> None:
        """Write the statistics of all rounds, atomically."""
        config = self.config
        report = json.dumps(statistics(self.file.rows), indent=2) + "\n"
        beside = config.output / (STATISTICS + ".tmp")
        beside.write_text(report, encoding="utf-8")
        beside.replace(config.output / STATISTICS)

    def drawn(self, wanted: Sequence[int]) -> Generator[Drawn]:
        """Sample requests; those that no sample got right once more with a hint."""
        items = {i: self.session.requests.draw(i) for i in wanted}
        failed: list[tuple[int, Judgement]] = []
        for i, judgement in self.session.judge(items.items(), self.sampling("plain"), VotingParams(filter="none")):
            row = self.sorted_out(i, items[i], judgement.samples)
            if row.outcome == "none_correct" and self.config.hinted and len(items[i].request.responses) > 1:
                failed.append((i, judgement))
            else:
                yield row
        plain = dict(failed)
        shown = {i: self.in_some_order(i, items[i]) for i in plain}
        hinted = ((i, replace(item, request=with_hint(item))) for i, (item, _) in shown.items())
        for i, judgement in self.session.judge(hinted, self.sampling("hinted", 1), VotingParams(filter="none", orders="given")):
            row = self.sorted_out(i, items[i], plain[i].samples)
            item, order = shown[i]
            (sample,) = judgement.samples
            kept: tuple[Trajectory, ...] = ()
            if self.session.is_correct(item, sample.scores):
                kept = (_trajectory(replace(sample, order=order, scores=in_request_order(sample.scores or (), order)), hinted=True),)
            yield replace(row, hinted=1, kept=kept)

    def sampling(self, kind: str, samples: int | None = None) -> SamplingParams:
        """Give the sampling of this round: no noise is shared between rounds, nor between plain and hinted samples."""
        config = self.config
        seed = stream_seed(config.seed, "rft", self.round, kind)
        return SamplingParams(samples=samples or config.samples, temperature=config.temperature, max_tokens=config.max_tokens, seed=seed)

    def in_some_order(self, index: int, item: LabelledRequest) -> tuple[LabelledRequest, tuple[int, ...]]:
        """Permute the responses, so that the hint names every place alike."""
        order = list(range(len(item.request.responses)))
        Random(f"rft/{self.config.seed}/{self.round}/{index}").shuffle(order)
        return item.in_order(order), tuple(order)

    def sorted_out(self, index: int, item: LabelledRequest, samples: tuple[Sample, ...]) -> Drawn:
        """Apply the rule of rejection to the samples of a request."""
        correct = [self.session.is_correct(item, s.scores) for s in samples]
        outcome = outcome_of(correct)
        right = [s for s, c in zip(samples, correct, strict=True) if c]
        kept = tuple(_trajectory(s, hinted=False) for s in right[: self.config.keep]) if outcome == "mixed" else ()
        invalid = sum(s.scores is None for s in samples)
        return Drawn(self.round, index, item.domain, outcome, len(samples), sum(correct), invalid, 0, kept)

    def train(self) -> bool:
        """Fine-tune on what the round has kept; False if the time limit came first.

        Raises: SpctError if nothing was kept.
        """
        config = self.config
        examples = self.examples()
        if not examples:
            raise SpctError(
                f"round {self.round}: no trajectory of {config.requests} requests was kept (see {config.output / STATISTICS}); "
                "the judge is always or never right on them: draw more, or train it on demonstrations first (spct train sft)"
            )
        per_epoch = -(-len(examples) // config.prompts)
        steps, done_before = config.epochs * per_epoch, self.step - self.round_step
        with RunProgress("rft", done_before + steps, self.step, config.output / "metrics.jsonl") as progress:
            while self.round_step < steps and not self.all_stop():
                epoch, place = divmod(self.round_step, per_epoch)
                order = list(range(len(examples)))
                Random(f"rft/{config.seed}/{self.round}/epoch/{epoch}").shuffle(order)
                row = self.train_step([examples[i] for i in order[place * config.prompts : (place + 1) * config.prompts]], steps)
                self.step, self.round_step = self.step + 1, self.round_step + 1
                progress.record(self.step, {"round": self.round, "epoch": epoch, **row}, f"rft loss {row['loss'] or math.nan:.3f}")
                if time.monotonic() - self.saved_at >= config.save_every:
                    self.save()
        return self.round_step >= steps

    def examples(self) -> list[Example]:
        """Put the kept samples behind the prompts that they are trained on: one example per request and order, never a hint."""
        prompt = self.session.engine.prompt
        examples = []
        for row in self.file.of_round(self.round):
            behind: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
            for trajectory in row.kept:
                behind.setdefault(trajectory.order, []).append(trajectory.token_ids)
            request = self.session.requests.draw(row.index).request
            examples += [Example(prompt.encode(request, order), tuple(samples)) for order, samples in behind.items()]
        return examples

    def train_step(self, examples: list[Example], steps: int) -> dict[str, Any]:
        """One step of cross-entropy, averaged over the tokens of the samples."""
        config, started = self.config, time.monotonic()
        count = sum(len(sample) for example in examples for sample in example.samples)
        tokens = sum(example.num_tokens for example in examples)
        own = [examples[i] for i in self.ranks.weigh([example.num_tokens for example in examples])]
        _, batches = self.session.policy.batches(own, config.micro_tokens)

        def loss(_: int, scores: TokenScores) -> Any:
            return -scores.logprob.sum() / count

        warmup, decay = round(config.warmup * steps), steps // 2
        rate = learning_rate(self.round_step, steps=steps, warmup=warmup, decay=decay, peak=config.lr)
        result = self.session.learner.step(batches, loss, lr=rate)
        self.skipped += result.skipped
        seconds = time.monotonic() - started
        finite = {k: v if math.isfinite(v) else None for k, v in (("loss", result.loss), ("norm", result.norm))}
        return {**finite, "lr": rate, "tokens": tokens, "tokens_per_s": round(tokens / seconds, 1), "skipped_steps": self.skipped}


def with_hint(item: LabelledRequest) -> ScoreRequest:
    """Give a request whose query ends with the truth, in the words of the paper; its responses are shown as given."""
    request, line = item.request, HINT.format((item.best or 0) + 1)
    if isinstance(request.query, str):
        return replace(request, query=f"{request.query}\n{line}")
    *before, last = request.query
    assert isinstance(last, Turn)
    return replace(request, query=(*before, Turn(last.role, f"{last.content}\n{line}")))


def _trajectory(sample: Sample, *, hinted: bool) -> Trajectory:
    assert sample.scores is not None
    return Trajectory(sample.order, sample.token_ids, sample.scores, hinted)
