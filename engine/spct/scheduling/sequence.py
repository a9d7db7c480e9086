"""Tokens in flight: a group asks for samples of one or more prompts, a sequence is one of these samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Protocol

from spct.cache.tree import PrefixNode
from spct.errors import SpctError
from spct.types import FinishReason, SamplingParams


class Read(Protocol):
    """A look at what a sample that has ended might have drawn in place of some of its tokens.

    position  the index of the first of these tokens, 1 or more
    path      tokens that are fed in their place
    asked     1 + len(path) lists of token ids: their log-probabilities are wanted after token position - 1, then after each of `path`
    """

    @property
    def position(self) -> int:
        """Index of the first token that is replaced."""

    @property
    def path(self) -> tuple[int, ...]:
        """What is fed instead."""

    @property
    def asked(self) -> tuple[tuple[int, ...], ...]:
        """Whose log-probabilities are wanted, row by row."""


ReadLogprobs = tuple[tuple[float, ...], ...]


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample while it runs.

    prompt        token ids of its order's prompt
    noise_seed    key of its noise; with the index of a token it fixes every draw
    max_len       tokens that it may generate: `max_tokens`, or what the context leaves
    arrival       (group, sample): who goes first
    reads         what is looked up after its end, best from its last position to its first, since each overwrites the keys and values of
                  what comes after its position; None where nothing is
    read_logprobs   of the reads that are done, a list for each list of `asked`
    prompt_node   end of its prompt in the prefix tree, while it runs
    node          its own tokens in the prefix tree, while it runs
    """

    group: Group
    index: int
    prompt: tuple[int, ...]
    noise_seed: int
    max_len: int
    arrival: tuple[int, int]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    meta_logits: list[float] = field(default_factory=list)
    reads: SequenceOf[Read] | None = None
    read_logprobs: list[ReadLogprobs] = field(default_factory=list)
    prompt_node: PrefixNode | None = None
    node: PrefixNode | None = None
    finish_reason: FinishReason | None = None

    @property
    def num_pending(self) -> int:
        """Own tokens whose keys and values are not in the cache yet: one while it decodes, all after a preemption."""
        return len(self.token_ids) - (self.node.num_computed if self.node is not None else 0)

    @property
    def next_read(self) -> Read | None:
        """What is looked up next, once it has drawn its last token."""
        return None if self.reads is None else self.reads[len(self.read_logprobs)]

    @property
    def num_slots_needed(self) -> int:
        """Own slots that its next step writes or reads."""
        read = self.next_read
        return len(self.token_ids) if read is None else read.position + len(read.path)


@dataclass(eq=False, slots=True)
class Group:
    """All samples of one request.

    eos_token_ids     tokens that end a sample
    sequences         in the order of their sample index
    prefilled_tokens  prompt rows that entered a forward on behalf of this group
    error             why the group ended before its time
    reader            lists what is looked up in a sample that has ended; None (of it, or of what it returns): nothing
    on_finished       called once, from the thread that ran the last step, after the group finished
    """

    sampling: SamplingParams
    eos_token_ids: frozenset[int]
    sequences: list[Sequence] = field(default_factory=list)
    num_unfinished: int = 0
    error: SpctError | None = None
    reader: Callable[[Sequence], SequenceOf[Read] | None] | None = None
    on_finished: Callable[[], None] | None = None
    num_preemptions: int = 0
    prefilled_tokens: int = 0
    submitted_s: float = field(default_factory=time.perf_counter)
    first_step_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None

    @property
    def is_finished(self) -> bool:
        """Every sample has a finish reason."""
        return self.num_unfinished == 0

    def add(self, sequence: Sequence) -> None:
        """Appends a sequence that is still to run."""
        self.sequences.append(sequence)
        self.num_unfinished += 1
