"""The step loop's decisions, driven by a model that is a hash: no tensors, thousands of steps a second."""

import random

import pytest

from spct.cache.pages import PagePool
from spct.cache.tree import PrefixTree
from spct.scheduling.scheduler import Scheduler
from spct.scheduling.sequence import Group, Sequence
from spct.types import SamplingParams

EOS = 0


class HashModel:
    """Draws depend on the tokens that a sequence sees through its slots, so a lost, stale or misplaced slot shows."""

    def __init__(self, lengths=None):
        self.memory = {}
        self.lengths = lengths or {}
        self.rows_per_step = []

    def run(self, step):
        states = {}
        if step.layout is not None:
            layout = step.layout
            tokens = layout.token_ids()
            assert len(tokens) == layout.num_rows
            for row in range(layout.num_rows):
                self.memory[int(layout.row_slot[row])] = (int(layout.row_position[row]), int(tokens[row]))
            for row in range(layout.num_rows):
                states[row] = self._read(layout, row)
            self.rows_per_step.append(layout.num_rows)
        drawn = []
        for sequence, row in zip(step.draws, step.draw_rows, strict=True):
            state = states[row] if row >= 0 else sequence.prompt_node.final_hidden
            if not sequence.token_ids:
                sequence.prompt_node.final_hidden = state
            assert state == tuple(sequence.prompt) + tuple(sequence.token_ids)
            length = self.lengths.get(sequence.noise_seed)
            if length is not None and len(sequence.token_ids) + 1 >= length:
                drawn.append(EOS)
            else:
                drawn.append(1 + hash((state, sequence.noise_seed)) % 1000)
        return drawn

    def _read(self, layout, row):
        path, node = [], int(layout.row_node[row])
        while node >= 0:
            path.append(node)
            node = int(layout.node_parent[node])
        tokens, position = [], 0
        for node in reversed(path):
            for slot in layout.node_slots[layout.node_offset[node] : layout.node_offset[node + 1]]:
                if position > layout.row_position[row]:
                    break
                held_position, token = self.memory[int(slot)]
                assert held_position == position
                tokens.append(token)
                position += 1
        return tuple(tokens)


def make_group(prompts, *, max_tokens=20, number=0, sampling=None):
    group = Group(sampling or SamplingParams(max_tokens=max_tokens), frozenset([EOS]))
    for i, prompt in enumerate(prompts):
        group.add(Sequence(group, i, tuple(prompt), number * 1000 + i, max_tokens, (number, i)))
    return group


def check_rows_are_contiguous(layout):
    """Rows below every node follow each other, parents come first."""
    for node, parent in enumerate(layout.node_parent):
        assert parent < node
    for node in range(len(layout.node_parent)):
        below = []
        for row, leaf in enumerate(layout.row_node):
            while leaf >= 0:
                if leaf == node:
                    below.append(row)
                leaf = layout.node_parent[leaf]
        assert below == list(range(below[0], below[0] + len(below))) if below else True


def run_all(scheduler, model, *, check=True, max_steps=20000):
    steps = 0
    while scheduler.has_work:
        step = scheduler.schedule()
        assert step is not None
        if check and step.layout is not None:
            check_rows_are_contiguous(step.layout)
        drawn = model.run(step)
        scheduler.commit(step, drawn, [0.0] * len(drawn), None)
        if check:
            scheduler.tree.ledger()
        steps += 1
        assert steps < max_steps, "no progress"
    return steps


def make_scheduler(num_pages=1000, max_batch=8, max_prefill_tokens=32, page_size=16):
    return Scheduler(PrefixTree(PagePool(num_pages, page_size)), max_batch=max_batch, max_prefill_tokens=max_prefill_tokens)


def tokens(group):
    return [tuple(s.token_ids) for s in group.sequences]


def alone(prompts, lengths=None, **kwargs):
    scheduler, group = make_scheduler(max_batch=1000, max_prefill_tokens=10**6), make_group(prompts, **kwargs)
    scheduler.submit(group)
    run_all(scheduler, HashModel(lengths))
    return tokens(group)


def test_one_prefill_for_all_samples():
    scheduler, model = make_scheduler(), HashModel()
    group = make_group([range(1, 101)] * 20)
    scheduler.submit(group)
    run_all(scheduler, model)
    assert group.prefilled_tokens == scheduler.stats.num_prefilled == 100
    again = make_group([range(1, 101)] * 3, number=1)
    scheduler.submit(again)
    run_all(scheduler, model)
    assert again.prefilled_tokens == 0


def test_orders_share_what_they_have_in_common():
    scheduler = make_scheduler()
    prompts = [[*range(1, 51), *[200] * 10, *[201] * 10], [*range(1, 51), *[201] * 10, *[200] * 10]]
    group = make_group([prompts[i % 2] for i in range(8)])
    scheduler.submit(group)
    run_all(scheduler, HashModel())
    assert group.prefilled_tokens == 50 + 2 * 20


def test_a_prompt_that_is_the_beginning_of_another_runs_one_row_again():
    scheduler = make_scheduler()
    scheduler.submit(make_group([range(1, 41)] * 2))
    run_all(scheduler, HashModel())
    model, short = HashModel(), make_group([range(1, 21)] * 2, number=1)
    model.memory = {int(s): (n.start + i, n.tokens[i]) for n in scheduler.tree.nodes() for i, s in enumerate(n.slots)}
    scheduler.submit(short)
    run_all(scheduler, model)
    assert short.prefilled_tokens == 1
    assert tokens(short) == alone([range(1, 21)] * 2, number=1)


@pytest.mark.parametrize("max_batch", [1, 3, 8, 64])
@pytest.mark.parametrize("max_prefill_tokens", [1, 7, 64])
def test_tokens_do_not_depend_on_batch_or_chunks(max_batch, max_prefill_tokens):
    rng = random.Random(max_batch)
    prompts = [[[rng.randrange(1, 4) for _ in range(rng.randrange(1, 40))] for _ in range(2)] for _ in range(6)]
    lengths = {number * 1000 + i: rng.randrange(1, 25) for number in range(6) for i in range(5)}
    scheduler = make_scheduler(max_batch=max_batch, max_prefill_tokens=max_prefill_tokens)
    groups = [make_group([pair[i % 2] for i in range(5)], number=n) for n, pair in enumerate(prompts)]
    for group in groups:
        scheduler.submit(group)
    run_all(scheduler, HashModel(lengths))
    for number, group in enumerate(groups):
        assert tokens(group) == alone([prompts[number][i % 2] for i in range(5)], lengths, number=number)


@pytest.mark.parametrize("num_pages", [6, 8, 12, 20])
@pytest.mark.parametrize("page_size", [1, 4])
def test_memory_pressure_changes_no_token(num_pages, page_size):
    num_pages = num_pages if page_size == 4 else num_pages * 4
    rng = random.Random(num_pages)
    prompts = [[rng.randrange(1, 4) for _ in range(rng.randrange(1, 9))] for _ in range(8)]
    lengths = {number * 1000 + i: rng.randrange(1, 13) for number in range(8) for i in range(6)}
    scheduler = make_scheduler(num_pages=num_pages, page_size=page_size, max_batch=8)
    groups = [make_group([p] * 6, number=n, max_tokens=12) for n, p in enumerate(prompts)]
    for group in groups:
        scheduler.submit(group)
    run_all(scheduler, HashModel(lengths))
    if num_pages // (4 // page_size if page_size == 4 else 4) <= 8:
        assert scheduler.stats.num_preemptions > 0, "the test means to preempt"
    for number, group in enumerate(groups):
        assert tokens(group) == alone([prompts[number]] * 6, lengths, number=number, max_tokens=12)
    scheduler.tree.clear()
    assert scheduler.tree.ledger().free == num_pages


def test_the_batch_stays_full_while_requests_wait():
    rng = random.Random(0)
    scheduler = make_scheduler(max_batch=32, max_prefill_tokens=512)
    lengths = {number * 1000 + i: rng.randrange(5, 60) for number in range(30) for i in range(8)}
    for number in range(30):
        prompt = [rng.randrange(1, 50) for _ in range(rng.randrange(20, 100))]
        scheduler.submit(make_group([prompt] * 8, number=number, max_tokens=100))
    model, full, steps = HashModel(lengths), 0, 0
    while scheduler.has_work:
        step = scheduler.schedule()
        drawn = model.run(step)
        if scheduler.waiting:
            full += len(step.draws)
            steps += 1
        scheduler.commit(step, drawn, [0.0] * len(drawn), None)
    assert steps > 50
    assert full / (32 * steps) >= 0.9, f"{full / (32 * steps):.3f}"


def test_cancelled_groups_leave_no_page_and_touch_no_neighbour():
    rng = random.Random(1)
    scheduler, model = make_scheduler(max_batch=16), HashModel()
    prompts = [[rng.randrange(1, 4) for _ in range(30)] for _ in range(40)]
    groups = [make_group([p] * 4, number=n, max_tokens=15) for n, p in enumerate(prompts)]
    for group in groups:
        scheduler.submit(group)
    steps = 0
    while scheduler.has_work:
        if steps % 5 == 0:
            scheduler.cancel(rng.choice(groups))
            if not scheduler.has_work:
                break
        step = scheduler.schedule()
        drawn = model.run(step)
        scheduler.commit(step, drawn, [0.0] * len(drawn), None)
        scheduler.tree.ledger()
        steps += 1
    cancelled = 0
    for number, group in enumerate(groups):
        assert group.is_finished
        expected = alone([prompts[number]] * 4, number=number, max_tokens=15)
        for sequence, whole in zip(group.sequences, expected, strict=True):
            cancelled += sequence.finish_reason == "cancelled"
            assert tuple(sequence.token_ids) == whole[: len(sequence.token_ids)]
    assert cancelled > 0
    assert scheduler.tree.ledger().referenced == 0


def test_an_abandoned_step_is_repeated():
    scheduler, model, group = make_scheduler(), HashModel(), make_group([range(1, 30)] * 3)
    scheduler.submit(group)
    steps = 0
    while scheduler.has_work:
        step = scheduler.schedule()
        steps += 1
        if steps % 3 == 0:
            model.run(step)
            scheduler.abandon()
            continue
        drawn = model.run(step)
        scheduler.commit(step, drawn, [0.0] * len(drawn), None)
    assert tokens(group) == alone([range(1, 30)] * 3)


def test_numeric_errors_end_a_sample_and_are_never_reused():
    scheduler, model = make_scheduler(), HashModel()
    group = make_group([range(1, 30)] * 2)
    scheduler.submit(group)
    drawn = model.run(step := scheduler.schedule())
    scheduler.commit(step, [-1, drawn[1]], [float("nan"), 0.0], None)
    assert group.sequences[0].finish_reason == "numeric_error"
    assert scheduler.tree.missing(range(1, 30)) == 29
    run_all(scheduler, model)
    assert tokens(group)[1] == alone([range(1, 30)] * 2)[1]
    assert scheduler.tree.ledger().free == 1000


@pytest.mark.parametrize(
    ("sampling", "drawn", "length"),
    [
        (SamplingParams(max_tokens=9), [5, EOS], 2),
        (SamplingParams(max_tokens=9, ignore_eos=True), [5, EOS, 5, EOS, 5, EOS, 5, EOS, 5], 9),
        (SamplingParams(max_tokens=9, min_tokens=4), [5, EOS, EOS, EOS], 4),
        (SamplingParams(max_tokens=9, stop_token_ids=(7,)), [5, 7], 2),
    ],
)
def test_when_a_sample_ends(sampling, drawn, length):
    scheduler, group = make_scheduler(), make_group([[1, 2, 3]], max_tokens=9, sampling=sampling)
    scheduler.submit(group)
    for token in drawn:
        scheduler.commit(scheduler.schedule(), [token], [0.0], None)
    assert group.is_finished and len(group.sequences[0].token_ids) == length
    assert group.sequences[0].finish_reason == ("length" if length == 9 else "eos")
