"""Prefix tree and pages: sharing, splitting, eviction, and a ledger that adds up after every step."""

import random

import numpy as np
import pytest

from spct.cache.pages import PagePool
from spct.cache.tree import PrefixTree


def make_tree(num_pages=64, page_size=16):
    return PrefixTree(PagePool(num_pages, page_size))


def slots_of(node):
    return np.concatenate([n.slots[: len(n.tokens)] for n in node.path()])


def tokens_of(node):
    return [t for n in node.path() for t in n.tokens]


def test_a_known_prompt_costs_nothing():
    tree = make_tree()
    first = tree.acquire(range(40))
    free = tree.pool.num_free
    assert tree.acquire(range(40)) is first
    assert tree.pool.num_free == free
    assert tree.missing(range(40)) == 0
    assert tree.missing(range(50)) == 10


@pytest.mark.parametrize("cut", [1, 7, 15, 16, 17, 31, 39])
def test_a_split_moves_no_slot(cut):
    tree = make_tree()
    long = tree.acquire(range(40))
    before = slots_of(long).copy()
    long.num_computed = 40
    other = tree.acquire([*range(cut), *range(100, 110)])
    assert np.array_equal(slots_of(long), before)
    assert np.array_equal(slots_of(other)[:cut], before[:cut])
    assert tokens_of(long) == list(range(40))
    assert [n.num_computed for n in long.path()] == [cut, 40 - cut]
    assert other.parent is long.parent and other.parent.num_users == 2
    tree.ledger()


@pytest.mark.parametrize("computed", [0, 3, 10, 20])
def test_a_split_divides_what_is_computed(computed):
    tree = make_tree()
    node = tree.acquire(range(20))
    node.num_computed = computed
    tree.acquire(range(10))
    assert [n.num_computed for n in node.path()] == [min(computed, 10), max(computed - 10, 0)]


def test_a_prompt_that_ends_inside_a_node_ends_at_its_own_node():
    tree = make_tree()
    tree.acquire(range(30))
    short = tree.acquire(range(12))
    assert short.end == 12 and tokens_of(short) == list(range(12))


def test_the_coldest_leaf_is_evicted_first_and_never_a_used_one():
    tree = make_tree(num_pages=6)
    used = tree.acquire([1] * 32)
    a = tree.acquire([2] * 32)
    b = tree.acquire([3] * 32)
    tree.release(b)
    tree.release(a)
    assert tree.ledger().cached == 4
    c = tree.acquire([4] * 32)
    assert c is not None
    assert tree.missing([3] * 32) == 32, "b was released first"
    assert tree.missing([2] * 32) == 0
    assert tree.missing([1] * 32) == 0
    assert tree.acquire([5] * 64) is None, "only a's two pages can be had"
    assert used.num_users == 1
    tree.ledger()


def test_a_parent_becomes_evictable_after_its_children():
    tree = make_tree(num_pages=4)
    a = tree.acquire([*[1] * 16, *[2] * 16])
    b = tree.acquire([*[1] * 16, *[3] * 16])
    tree.release(a)
    tree.release(b)
    assert tree.acquire([9] * 64) is not None
    assert tree.ledger().free == 0


def test_a_failed_acquire_changes_nothing():
    tree = make_tree(num_pages=3)
    tree.acquire([1] * 32)
    before = tree.ledger()
    assert tree.acquire([*[1] * 32, *[2] * 32]) is None
    assert tree.ledger() == before


def test_forgotten_prefixes_are_freed_when_their_last_user_leaves():
    tree = make_tree()
    node = tree.acquire(range(40))
    other = tree.acquire([*range(20), 99])
    tree.forget(node)
    assert tree.missing(range(40)) == 40
    assert tree.ledger().referenced > 0
    fresh = tree.acquire(range(40))
    assert fresh is not node
    for each in (node, other, fresh):
        tree.release(each)
    ledger = tree.ledger()
    assert (ledger.referenced, ledger.cached) == (0, 3)


def test_private_nodes_grow_by_pages_and_leave_nothing():
    tree = make_tree(num_pages=4)
    prompt = tree.acquire(range(5))
    private = tree.open_sequence(prompt)
    assert tree.grow(private, 1) and len(private.slots) == 16
    assert tree.grow(private, 16) and len(private.slots) == 16
    assert tree.grow(private, 33) and len(private.slots) == 48
    assert not tree.grow(private, 49)
    assert len(np.unique(np.concatenate([private.slots, prompt.slots]))) == 48 + 5
    tree.close_sequence(private)
    tree.release(prompt)
    assert tree.ledger().free == 3 and tree.ledger().cached == 1


@pytest.mark.parametrize("seed", range(20))
def test_random_use_keeps_the_ledger_and_every_token_in_place(seed):
    rng = random.Random(seed)
    tree = make_tree(num_pages=rng.choice([8, 20, 60]), page_size=rng.choice([1, 4, 16]))
    content: dict[int, tuple[int, int]] = {}
    held = []
    for _ in range(300):
        action = rng.random()
        if action < 0.5:
            prompt = [rng.randrange(3) for _ in range(rng.randrange(1, 30))]
            node = tree.acquire(prompt)
            if node is not None:
                assert tokens_of(node) == prompt
                for position, (slot, token) in enumerate(zip(slots_of(node), prompt, strict=True)):
                    part = next(n for n in node.path() if n.start <= position < n.end)
                    if position - part.start < part.num_computed:
                        assert content[int(slot)] == (position, token), "a computed token lost its slot"
                    content[int(slot)] = (position, token)
                for part in node.path():
                    part.num_computed = len(part.tokens)
                private = tree.open_sequence(node)
                tree.grow(private, rng.randrange(0, 20))
                for slot in private.slots:
                    content[int(slot)] = (-1, -1)
                held.append((node, private))
        elif held and action < 0.9:
            node, private = held.pop(rng.randrange(len(held)))
            tree.close_sequence(private)
            tree.release(node)
        elif action < 0.95 and held:
            tree.forget(rng.choice(held)[0])
        ledger = tree.ledger()
        assert ledger.total == tree.pool.num_pages
    for node, private in held:
        tree.close_sequence(private)
        tree.release(node)
    tree.clear()
    assert tree.ledger().free == tree.pool.num_pages
