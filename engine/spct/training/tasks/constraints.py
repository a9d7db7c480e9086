"""Constraints on the form of a list: how many entries, in which order, with which words, beginning, end, marks and numbering."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from random import Random

from spct.training.tasks.core import Aspect, Problem, State
from spct.training.tasks.manner import Manner, assemble, draw_manner

WORDS = {
    "fruits": tuple(["apple", "pear", "plum", "fig", "cherry", "grape", "lemon", "melon", "mango", "peach"]),
    "animals": tuple(["cat", "dog", "horse", "cow", "goat", "sheep", "lion", "bear", "wolf", "mouse"]),
    "tools": tuple(["hammer", "saw", "drill", "rope", "knife", "spade", "file", "brush", "nail", "wrench"]),
    "foods": tuple(["bread", "rice", "soup", "cheese", "salad", "cake", "fish", "milk", "egg", "honey"]),
}
COUNTS = (2, 3, 4)
SEPARATORS = {"commas": ", ", "dashes": " - ", "slashes": " / "}
TASKS = ("Write a list of {}.", "Name some {}.", "List a few {}.", "Give me some {}.", "Think of some {}.")
SENTENCES = ("Here is the list: {}.", "The list: {}.", "My list is {}.", "I suggest {}.", "These are {}.")
UP = ("sort from small to large", "go from low to high", "put the smallest number first")
DOWN = ("sort from large to small", "go from high to low", "put the largest number first")


def draw(rng: Random) -> Problem:
    """Draw a list task, of words or of numbers to be sorted."""
    return _words(rng) if rng.random() < 0.75 else _numbers(rng)


def _words(rng: Random) -> Problem:
    category = rng.choice(sorted(WORDS))
    pool = WORDS[category]
    count = rng.choice(COUNTS)
    include, avoid, first, last = rng.sample(pool, 4)
    edge = rng.choice((_edge("start", first, 0), _edge("end", last, -1)))
    own = [_count(count), _include(include), _avoid(avoid), edge]
    facts = f"constraints {category} {count} {include} {avoid} {first} {last}"

    def fill(rng: Random, flaws: frozenset[str]) -> list[str]:
        length = rng.choice([n for n in COUNTS if n != count]) if "count" in flaws else count
        entries = rng.sample([w for w in pool if w not in (include, avoid, first, last)], length)
        spots = list(range(length))
        if edge.label not in flaws:
            entries[spots.pop(0 if edge.label == "start" else -1)] = first if edge.label == "start" else last
        _place(rng, entries, spots, flaws, include, avoid)
        return entries

    return _problem(rng, facts, category, own, fill)


def _numbers(rng: Random) -> Problem:
    rising, top = rng.random() < 0.6, rng.choice((9, 9, 9, 40))
    include, avoid = (str(n) for n in rng.sample(range(1, top + 1), 2))
    own = [_order(rising), _include(include), _avoid(avoid)]
    facts = f"constraints numbers {top} {rising} {include} {avoid}"

    def fill(rng: Random, flaws: frozenset[str]) -> list[str]:
        length = rng.choice(COUNTS[1:])
        entries = [str(n) for n in rng.sample([n for n in range(1, top + 1) if str(n) not in (include, avoid)], length)]
        _place(rng, entries, list(range(length)), flaws, include, avoid)
        entries.sort(key=int, reverse=not rising)
        if "order" in flaws:
            i = rng.randrange(length - 1)
            entries[i], entries[i + 1] = entries[i + 1], entries[i]
        return entries

    return _problem(rng, facts, f"numbers up to {top}", own, fill)


def _place(rng: Random, entries: list[str], spots: list[int], flaws: frozenset[str], include: str, avoid: str) -> None:
    """Put the word to include and, where that is the flaw, the one to avoid on free spots."""
    rng.shuffle(spots)
    if "must include" not in flaws and spots:
        entries[spots.pop()] = include
    if "must avoid" in flaws and spots:
        entries[spots.pop()] = avoid


def _problem(rng: Random, facts: str, what: str, own: list[Aspect], fill: Callable[[Random, frozenset[str]], list[str]]) -> Problem:
    """Add marks, numbering and manner to the list's own aspects, any of which can be the main one."""
    marks = rng.choice(sorted(SEPARATORS)) if rng.random() < 0.3 else ""
    numbered = not marks and not what.startswith("numbers") and rng.random() < 0.2
    if marks:
        own.append(_separated(marks))
    if numbered:
        own.append(_numbering())
    main = rng.choice(own)
    manner, shared = draw_manner(rng, sourced=0.0)
    aspects = (main, *(aspect for aspect in own if aspect is not main), *shared)

    def respond(rng: Random, flaws: frozenset[str]) -> tuple[str, State]:
        used = marks or "commas"
        if "marks" in flaws:
            used = rng.choice([name for name in sorted(SEPARATORS) if name != marks])
        return _finish(rng, fill(rng, flaws), SEPARATORS[used], numbered and "numbered" not in flaws, flaws, manner)

    return Problem(facts, rng.choice(TASKS).format(what), aspects, respond)


def _finish(rng: Random, entries: list[str], separator: str, numbered: bool, flaws: frozenset[str], manner: Manner) -> tuple[str, State]:
    state: State = {"entries": entries, "marks": separator.strip(), "numbered": "1" if numbered else None}
    listed = separator.join(f"{i} {entry}" for i, entry in enumerate(entries, 1)) if numbered else separator.join(entries)
    main = rng.choice(SENTENCES).format(listed)
    return assemble(rng, main, state, flaws, manner), state


def _entries(state: State) -> list[str]:
    entries = state["entries"]
    return entries if isinstance(entries, list) else []


def _count(count: int) -> Aspect:
    """The wish for `count` entries: a check numbers them, and the last number decides."""

    def check(state: State) -> tuple[str, bool]:
        entries = _entries(state)
        return numbered_entries(entries), len(entries) == count

    return Aspect("count", (f"give exactly {count} entries", f"list {count} entries", f"stop after {count} entries"), str(count), "", check)


def numbered_entries(entries: Sequence[str]) -> str:
    """Write "1 apple 2 pear"."""
    return " ".join(f"{i} {entry}" for i, entry in enumerate(entries, 1))


def _order(rising: bool) -> Aspect:
    """The wish for sorted numbers: a check compares neighbours up to the first pair that goes the wrong way."""
    word = "up" if rising else "down"

    def check(state: State) -> tuple[str, bool]:
        return compared(_entries(state), word)

    return Aspect("order", UP if rising else DOWN, word, "", check)


def compared(entries: Sequence[str], word: str) -> tuple[str, bool]:
    """Write "3, 5 up 4 down", up to the first comparison that is not `word`; tell whether all are."""
    written = [f"{entries[0]},"]
    for a, b in itertools.pairwise(entries):
        mark = "up" if int(b) > int(a) else "down"
        written += [b, mark]
        if mark != word:
            return " ".join(written), False
    return " ".join(written), True


def _include(word: str) -> Aspect:
    return Aspect(
        "must include",
        (f"include {word}", f"use {word}", f"have {word} in it"),
        word,
        "",
        lambda state: (word if word in _entries(state) else "none", word in _entries(state)),
    )


def _avoid(word: str) -> Aspect:
    return Aspect(
        "must avoid",
        (f"avoid {word}", f"leave out {word}", f"do without {word}"),
        f"no {word}",
        "",
        lambda state: (word if word in _entries(state) else "none", word not in _entries(state)),
    )


def _edge(label: str, word: str, index: int) -> Aspect:
    return Aspect(
        label,
        (f"{label} with {word}", f"{label} the list with {word}", f"{'begin' if index == 0 else 'close'} with {word}"),
        word,
        "",
        lambda state: (_entries(state)[index], _entries(state)[index] == word),
    )


def _separated(marks: str) -> Aspect:
    """The wish for a certain mark between the entries."""
    mark = SEPARATORS[marks].strip()
    asks = (f"separate the entries with {marks}", f"put {marks} between the entries", f"use {marks} in the list")
    return Aspect("marks", asks, mark, "", lambda state: (str(state["marks"]), state["marks"] == mark))


def _numbering() -> Aspect:
    """The wish for entries with a number before each."""
    return Aspect(
        "numbered",
        ("number the entries", "put a number before each entry"),
        "1",
        "",
        lambda state: (state["numbered"] if isinstance(state["numbered"], str) else "none", bool(state["numbered"])),
    )
