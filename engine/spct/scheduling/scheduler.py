"""Which rows run next: admission, chunked prefill beside decoding rows, growth, preemption, and what follows a draw."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from spct.cache.tree import PrefixNode, PrefixTree
from spct.scheduling.layout import Layout, Run, build_layout
from spct.scheduling.sequence import Group, ReadLogprobs, Sequence
from spct.types import FinishReason


@dataclass(eq=False, slots=True)
class Step:
    """One turn of the loop.

    layout      rows of the forward; None if every draw starts from a hidden state that is known already
    is_advance  the layout's structure is that of the step before: only its rows moved on by one token
    draws       sequences that get a token, in the depth-first order of their rows
    draw_rows   for each draw, its row in the forward, or -1: it starts from its prompt's `final_hidden`
    reads       sequences that have drawn their last token and look something up (`next_read`)
    read_rows   for each of them, the last of its rows in the forward
    """

    layout: Layout | None
    is_advance: bool
    draws: list[Sequence]
    draw_rows: list[int]
    reads: list[Sequence] = field(default_factory=list)
    read_rows: list[int] = field(default_factory=list)


@dataclass(slots=True)
class SchedulerStats:
    """Counts since the engine started; `num_waiting` is the present length of the queue."""

    num_steps: int = 0
    num_rows: int = 0
    num_draws: int = 0
    num_prefilled: int = 0
    num_preemptions: int = 0
    num_waiting: int = 0
    num_running: int = 0


class Scheduler:
    """Runs sequences of many groups as rows of one batch, first come first served.

    Progress is certain: the oldest running sequence can always grow, since every younger one can be preempted and every
    unused prefix evicted, and a sequence that could not fit alone is refused before it gets here. A preempted sequence
    keeps its tokens; their keys and values are computed again when it returns.
    """

    def __init__(self, tree: PrefixTree, *, max_batch: int, max_prefill_tokens: int) -> None:
        self.tree = tree
        self.max_batch = max_batch
        self.max_prefill_tokens = max_prefill_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.stats = SchedulerStats()
        self._layout: Layout | None = None

    @property
    def has_work(self) -> bool:
        """Something waits or runs."""
        return bool(self.waiting or self.running)

    def submit(self, group: Group) -> None:
        """Queues all sequences of `group`, in the order of their arrival keys."""
        self.waiting.extend(group.sequences)

    def cancel(self, group: Group) -> None:
        """Ends every unfinished sequence of `group` at once and frees its memory."""
        for sequence in group.sequences:
            if sequence.finish_reason is None:
                self._finish(sequence, "cancelled")
        self.waiting = deque(s for s in self.waiting if s.finish_reason is None)

    def abandon(self) -> None:
        """Forgets a step that was scheduled but not committed; the next one repeats its rows."""
        self._layout = None

    def schedule(self) -> Step | None:
        """The next step; None if there is nothing to do."""
        self._grow()
        self._admit()
        if not self.running:
            return None
        if (step := self._advance()) is not None:
            return step
        runs, drawing, reading = self._runs()
        self._layout = layout = build_layout(runs) if runs else None
        rows = {s: layout.run_end.get(_last_node(s), -1) if layout is not None else -1 for s in drawing}
        draws = sorted(drawing, key=lambda s: rows[s])
        ends = [layout.run_end[_last_node(s)] for s in reading] if layout is not None else []
        return Step(layout, False, draws, [rows[s] for s in draws], reading, ends)

    def commit(
        self,
        step: Step,
        token_ids: SequenceOf[int],
        logprobs: SequenceOf[float],
        meta_logits: SequenceOf[float] | None,
        read_logprobs: SequenceOf[ReadLogprobs | None] = (),
    ) -> list[Group]:
        """Books what a step computed and drew; returns the groups that it finished.

        token_ids    one per draw; -1 where the logits held a NaN or +Inf
        logprobs     one per draw, natural log
        meta_logits  one per draw, or None without a meta head
        read_logprobs  one per read; None where the logits held a NaN or +Inf
        """
        now = time.perf_counter()
        self._book_rows(step, now)
        finished = self._book_reads(step, read_logprobs)
        for i, sequence in enumerate(step.draws):
            group = sequence.group
            group.first_token_s = group.first_token_s or now
            reason: FinishReason | None
            if token_ids[i] < 0:
                assert sequence.prompt_node is not None
                self.tree.forget(sequence.prompt_node)
                reason = "numeric_error"
            else:
                sequence.token_ids.append(token_ids[i])
                sequence.logprobs.append(logprobs[i])
                if meta_logits is not None:
                    sequence.meta_logits.append(meta_logits[i])
                reason = _end_of(sequence)
                if reason == "eos" and group.reader is not None and (reads := group.reader(sequence)):
                    sequence.reads, reason, self._layout = reads, None, None
            if reason is not None:
                self._finish(sequence, reason)
                if group.is_finished:
                    finished.append(group)
        stats = self.stats
        stats.num_steps += 1
        stats.num_draws += len(step.draws)
        stats.num_waiting, stats.num_running = len(self.waiting), len(self.running)
        return finished

    def _grow(self) -> None:
        """Gives every running sequence slots for the tokens that it feeds next; the youngest make room for the oldest."""
        for sequence in sorted(self.running, key=lambda s: s.arrival):
            while sequence.node is not None:
                before = len(sequence.node.slots)
                if self.tree.grow(sequence.node, sequence.num_slots_needed):
                    if len(sequence.node.slots) != before:
                        self._layout = None
                    break
                if len(self.running) == 1:
                    # Alone and still short: nodes that begin in the middle of a prompt waste the rest of a page. Start compact.
                    self.tree.clear()
                self._preempt(max(self.running, key=lambda s: s.arrival))

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_batch:
            sequence = self.waiting[0]
            node = self.tree.acquire(sequence.prompt)
            if node is None and not self.running:
                self.tree.clear()
                node = self.tree.acquire(sequence.prompt)
            if node is None:
                break
            pool = self.tree.pool
            # One page for each running sequence keeps a newcomer from being preempted at the next page boundary.
            headroom = pool.pages_for(sequence.num_slots_needed + 1) + len(self.running)
            if self.running and pool.num_free + pool.num_cached < headroom:
                self.tree.release(node)
                break
            private = self.tree.open_sequence(node)
            if not self.tree.grow(private, sequence.num_slots_needed):
                self.tree.release(node)
                break
            self.waiting.popleft()
            sequence.prompt_node, sequence.node = node, private
            self.running.append(sequence)
            self._layout = None

    def _advance(self) -> Step | None:
        """The step that only moves the last layout on by one token, if that is all there is to do."""
        layout = self._layout
        if layout is None:
            return None
        layout.advance()
        return Step(layout, True, [run.sequence for run in layout.runs], list(range(layout.num_rows)))

    def _runs(self) -> tuple[list[Run], list[Sequence], list[Sequence]]:
        """What enters the forward, who draws after it and who reads. Decoding and reading rows always run; prefill shares a budget."""
        budget = self.max_prefill_tokens
        runs: dict[PrefixNode, Run] = {}
        drawing: list[Sequence] = []
        reading: list[Sequence] = []
        for sequence in sorted(self.running, key=lambda s: s.arrival):
            prompt_node, private = sequence.prompt_node, sequence.node
            assert prompt_node is not None and private is not None
            if not sequence.token_ids and prompt_node.final_hidden is None and prompt_node.is_computed:
                # Nobody's prompt ended here before (the node was split off a longer one): its last row runs once more.
                prompt_node.num_computed -= 1
            is_ready = True
            for node in prompt_node.path():
                lacking = len(node.tokens) - node.num_computed
                if lacking and node not in runs and budget and is_ready:
                    runs[node] = Run(node, node.num_computed, min(budget, lacking), sequence)
                    budget -= runs[node].count
                is_ready &= not lacking or (node in runs and runs[node].count == lacking)
            if sequence.reads is not None:
                if is_ready and (run := _read_run(sequence, private, budget)) is not None:
                    runs[private] = run
                    budget -= 0 if run.reads else run.count
                    reading += [sequence] if run.reads else []
                continue
            pending = sequence.num_pending
            if is_ready and pending == 1:
                runs[private] = Run(private, private.num_computed, 1, sequence)
            elif is_ready and pending and budget:
                runs[private] = Run(private, private.num_computed, min(budget, pending), sequence)
                budget -= runs[private].count
            if is_ready and (not pending or (private in runs and runs[private].count == pending)):
                drawing.append(sequence)
        return list(runs.values()), drawing, reading

    def _book_reads(self, step: Step, read_logprobs: SequenceOf[ReadLogprobs | None]) -> list[Group]:
        """Keeps what was looked up and ends the sequences that need no more; returns the groups that are finished with that."""
        finished = []
        for sequence, logprobs in zip(step.reads, read_logprobs, strict=True):
            assert sequence.reads is not None and sequence.prompt_node is not None
            if logprobs is None:
                self.tree.forget(sequence.prompt_node)
                self._finish(sequence, "numeric_error")
            else:
                sequence.read_logprobs.append(logprobs)
                if len(sequence.read_logprobs) == len(sequence.reads):
                    self._finish(sequence, "eos")
            if sequence.group.is_finished:
                finished.append(sequence.group)
        return finished

    def _book_rows(self, step: Step, now: float) -> None:
        if step.layout is None:
            return
        only_decode = not step.reads and len(step.draws) == step.layout.num_rows == len(step.layout.runs)
        for run in step.layout.runs:
            # What a read fed in place of the sequence's own tokens is not theirs.
            run.node.num_computed = run.first + run.count - len(run.path)
            group = run.sequence.group
            group.first_step_s = group.first_step_s or now
            if not run.node.private:
                group.prefilled_tokens += run.count
                self.stats.num_prefilled += run.count
                only_decode = False
        self.stats.num_rows += step.layout.num_rows
        if not only_decode or len(step.draws) != len(self.running):
            self._layout = None

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        self.waiting.appendleft(sequence)
        sequence.group.num_preemptions += 1
        self.stats.num_preemptions += 1

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        if sequence.node is not None:
            self._leave(sequence)
        group = sequence.group
        group.num_unfinished -= 1
        if group.is_finished:
            group.finished_s = time.perf_counter()

    def _leave(self, sequence: Sequence) -> None:
        assert sequence.node is not None and sequence.prompt_node is not None
        self.tree.close_sequence(sequence.node)
        self.tree.release(sequence.prompt_node)
        sequence.node = sequence.prompt_node = None
        self.running.remove(sequence)
        self._layout = None


def _last_node(sequence: Sequence) -> PrefixNode:
    """The node whose last row the sequence draws from."""
    node = sequence.node if sequence.token_ids else sequence.prompt_node
    assert node is not None
    return node


def _read_run(sequence: Sequence, private: PrefixNode, budget: int) -> Run | None:
    """The rows of a sequence's next read, in its own slots; before them, after a preemption, those that it needs again."""
    read = sequence.next_read
    assert read is not None
    first = read.position - bool(read.asked[0])
    if private.num_computed >= first:
        return Run(private, first, read.position - first + len(read.path), sequence, read.path, reads=True)
    count = min(budget, first - private.num_computed)
    return Run(private, private.num_computed, count, sequence) if count else None


def _end_of(sequence: Sequence) -> FinishReason | None:
    sampling, group = sequence.group.sampling, sequence.group
    token_id, length = sequence.token_ids[-1], len(sequence.token_ids)
    if length >= sampling.min_tokens and (
        token_id in sampling.stop_token_ids or (token_id in group.eos_token_ids and not sampling.ignore_eos)
    ):
        return "eos"
    return "length" if length >= sequence.max_len else None
