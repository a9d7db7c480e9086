"""What comes in and what goes out: plain frozen data, importable without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from spct.errors import ConfigError, InputError, SpctError

SampleStatus = Literal["ok", "parse_error", "truncated", "filtered", "pruned", "numeric_error", "cancelled"]
FinishReason = Literal["eos", "length", "numeric_error", "cancelled"]
VoteMethod = Literal["sum", "mean", "soft", "majority"]
FilterMethod = Literal["auto", "meta", "logprob", "none"]
OrderMode = Literal["balanced", "all", "given"]

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: `role` is "system", "user", "assistant" or "tool"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One judging question: score each of `responses` to `query`.

    query       a string, or the turns of a conversation (mappings with "role" and "content" become `Turn`)
    responses   one or more texts to be scored
    reference   a known good answer, shown to the judge
    principles  criteria to judge by, instead of the judge's own
    id          the caller's name for the request; echoed, never interpreted
    samples     overrides `SamplingParams.samples`
    seed        overrides `SamplingParams.seed`

    Raises: InputError if a field has the wrong type or nothing is to be scored.
    """

    query: str | Sequence[Turn | Mapping[str, str]]
    responses: Sequence[str]
    reference: str | None = None
    principles: str | Sequence[str] | None = None
    id: str | int | None = None
    samples: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Normalise sequences to tuples, so that a request can be hashed and never changes under the engine."""
        set_field = object.__setattr__
        if not isinstance(self.query, str):
            set_field(self, "query", _turns(self.query))
        else:
            _text("query", self.query)
        if isinstance(self.responses, str) or not isinstance(self.responses, Sequence):
            raise InputError(f"responses: expected a list of strings, got {_kind(self.responses)}; wrap a single response in a list")
        if not self.responses:
            raise InputError("responses: expected at least one response, got an empty list")
        set_field(self, "responses", tuple(_text(f"responses[{i}]", r) for i, r in enumerate(self.responses)))
        if self.reference is not None:
            _text("reference", self.reference)
        if self.principles is not None and not isinstance(self.principles, str):
            if not isinstance(self.principles, Sequence):
                raise InputError(f"principles: expected a string or a list of strings, got {_kind(self.principles)}")
            set_field(self, "principles", tuple(_text(f"principles[{i}]", p) for i, p in enumerate(self.principles)))
        elif isinstance(self.principles, str):
            _text("principles", self.principles)
        if self.id is not None and (isinstance(self.id, bool) or not isinstance(self.id, str | int)):
            raise InputError(f"id: expected a string or an integer, got {_kind(self.id)}")
        if self.samples is not None:
            _integer("samples", self.samples, 1, 2**31 - 1, InputError)
        if self.seed is not None:
            _integer("seed", self.seed, 0, MAX_SEED, InputError)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How samples are drawn. Truncation acts in the order top-k, top-p, min-p, after the temperature.

    samples      critiques per request
    temperature  0 is greedy
    top_p        1.0 switches it off; the token that crosses it stays in
    top_k        0 switches it off
    min_p        0.0 switches it off; keeps tokens with at least this fraction of the best token's probability
    max_tokens   per sample; a sample that reaches it is `truncated`
    seed         0 .. 2^63 - 1; the only source of randomness
    ignore_eos, min_tokens, stop_token_ids   when a sample may and must end

    Raises: ConfigError if a value is out of range.
    """

    samples: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    ignore_eos: bool = False
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check every range here, so that nothing below has to."""
        _integer("samples", self.samples, 1, 2**31 - 1)
        _real("temperature", self.temperature, 0.0, 1e4)
        _real("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise ConfigError("top_p: expected 0 < top_p <= 1, got 0; use temperature=0 for greedy sampling")
        _integer("top_k", self.top_k, 0, 2**31 - 1)
        _real("min_p", self.min_p, 0.0, 1.0)
        _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _integer("seed", self.seed, 0, MAX_SEED)
        _integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.min_tokens > self.max_tokens:
            raise ConfigError(f"min_tokens: expected at most max_tokens={self.max_tokens}, got {self.min_tokens}")
        object.__setattr__(self, "stop_token_ids", tuple(_integer("stop_token_ids", t, 0, 2**31 - 1) for t in self.stop_token_ids))


@dataclass(frozen=True, slots=True)
class VotingParams:
    """How samples become a reward.

    method      "sum" (the paper's), "mean", "soft" (sum of the scores expected under the model's own distribution where a sample wrote
                its scores), or "majority" (a sample votes for its strict maximum)
    filter      "meta" (meta-RM head), "logprob" (mean log-probability), "none", "auto" (meta where there is a head)
    meta_keep   fraction of the parsed samples that the filter keeps, 0 < f <= 1
    orders      "balanced" (rotations of one permutation), "all" (a fresh shuffle per sample), "given"
    stop_early, prune   not built yet: anything but the default raises

    Raises: ConfigError if a value is unknown, out of range or not built.
    """

    method: VoteMethod = "sum"
    filter: FilterMethod = "auto"
    meta_keep: float = 0.5
    orders: OrderMode = "balanced"
    stop_early: float | None = None
    prune: bool = False

    def __post_init__(self) -> None:
        """Refuse what is unknown and what is not built, by name."""
        _choice("method", self.method, ("sum", "mean", "majority", "soft"))
        _choice("filter", self.filter, ("auto", "meta", "logprob", "none"))
        _choice("orders", self.orders, ("balanced", "all", "given"))
        _real("meta_keep", self.meta_keep, 0.0, 1.0)
        if self.meta_keep == 0.0:
            raise ConfigError("meta_keep: expected 0 < meta_keep <= 1, got 0; 1.0 keeps every sample")
        if self.stop_early is not None:
            raise ConfigError("stop_early: not built in this version; leave it at None")
        if self.prune:
            raise ConfigError("prune: not built in this version; leave it at False")


@dataclass(frozen=True, slots=True)
class Sample:
    """One principle/critique sample of a judgement.

    scores      one integer per response, in the request's order; None unless status is "ok" or "filtered"
    kept        it voted (status "ok")
    meta_score  pooled logit of the meta-RM head; None without a head
    order       order[p] is the index of the response shown at place p
    num_tokens  generated tokens, the EOS included
    logprob     mean log-probability per generated token, natural log; None without tokens
    expected    with soft votes: the expected score of each response, in the request's order; None wherever `scores` is
    token_ids   what was drawn, the EOS included: what training needs, since text may encode to other tokens
    token_logprobs  log-probability of each under the untempered, untruncated distribution
    """

    scores: tuple[int, ...] | None
    status: SampleStatus
    kept: bool
    meta_score: float | None
    order: tuple[int, ...]
    text: str
    num_tokens: int
    logprob: float | None
    token_ids: tuple[int, ...] = ()
    token_logprobs: tuple[float, ...] = ()
    expected: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request.

    prompt_tokens     length of the longest order's prompt
    prefilled_tokens  prompt rows that entered a forward, over all orders; cached prefixes are left out
    generated_tokens  sum over samples
    meta_tokens       rows that entered the forward of a separate meta model, prompts and samples; 0 without one
    """

    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    meta_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock milliseconds of one request: submit to first step, to first token, to the end."""

    queue_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of one request.

    rewards    one per response, in the request's order; None without a valid vote
    best       index of the strict maximum; None on a tie or without a valid vote
    num_votes  samples that voted
    stdev      per response, population standard deviation over its votes; None without a vote
    samples    in the order of their index, as many as asked for; empty with `error`
    error      why the request was refused or failed (only from `score_batch`); None otherwise
    """

    rewards: tuple[float | None, ...]
    best: int | None
    num_votes: int
    stdev: tuple[float | None, ...]
    samples: tuple[Sample, ...]
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    id: str | int | None = None
    index: int = 0
    error: SpctError | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """One raw sample of a prompt.

    token_ids      without the prompt; ends with the EOS where one was drawn
    text           decoded, without the EOS
    logprobs       one per token, natural log, untempered and untruncated
    meta_logits    one per token, from the forward that drew it; None without a meta head
    meta_score     `meta_logits` pooled as the head asks; None without a meta head
    finish_reason  "eos", "length", "numeric_error" or "cancelled"
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    meta_score: float | None
    finish_reason: FinishReason
    meta_logits: tuple[float, ...] | None = None


def _kind(value: object) -> str:
    return type(value).__name__


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}: expected a string, got {_kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: expected valid Unicode, got a lone surrogate at character {error.start}") from None
    return value


def _turns(query: object) -> tuple[Turn, ...]:
    if not isinstance(query, Sequence) or not query:
        raise InputError(f"query: expected a string or a non-empty list of turns, got {_kind(query)}")
    turns = []
    for i, turn in enumerate(query):
        if isinstance(turn, Mapping):
            unknown = set(turn) - {"role", "content"}
            if unknown or "role" not in turn or "content" not in turn:
                raise InputError(f'query[{i}]: expected exactly the keys "role" and "content", got {sorted(map(str, turn))}')
            turn = Turn(turn["role"], turn["content"])
        if not isinstance(turn, Turn):
            raise InputError(f'query[{i}]: expected {{"role", "content"}}, got {_kind(turn)}')
        _text(f"query[{i}].content", turn.content)
        if turn.role not in ("system", "user", "assistant", "tool"):
            raise InputError(f'query[{i}].role: expected "system", "user", "assistant" or "tool", got {turn.role!r}')
        turns.append(turn)
    return tuple(turns)


def _integer(name: str, value: object, low: int, high: int, error: type[SpctError] = ConfigError) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise error(f"{name}: expected an integer from {low} to {high}, got {value!r}")
    return value


def _real(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
