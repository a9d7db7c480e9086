"""Format constraints on a list: how many entries, in which order, with which words, beginning and end."""

from __future__ import annotations

import itertools
from random import Random

from spct.training.tasks.core import Aspect, Problem, State
from spct.training.tasks.manner import NAMES, assemble, brief_aspect, name_aspect, polite_aspect

WORDS = {
    "fruits": tuple(["apple", "pear", "plum", "fig", "cherry", "grape", "lemon", "melon", "mango", "peach"]),
    "animals": tuple(["cat", "dog", "horse", "cow", "goat", "sheep", "lion", "bear", "wolf", "mouse"]),
    "tools": tuple(["hammer", "saw", "drill", "rope", "knife", "spade", "file", "brush", "nail", "wrench"]),
    "foods": tuple(["bread", "rice", "soup", "cheese", "salad", "cake", "fish", "milk", "egg", "honey"]),
}


def draw(rng: Random) -> Problem:
    """Draw a list task, of words or of numbers to be sorted."""
    return _words(rng) if rng.random() < 0.8 else _numbers(rng)


def _words(rng: Random) -> Problem:
    category = rng.choice(sorted(WORDS))
    pool = WORDS[category]
    count = rng.randint(2, 5)
    include, avoid, first, last = rng.sample(pool, 4)
    addressee = rng.choice(NAMES)
    ends = [_edge("start", first, 0), _edge("end", last, -1)]
    aspects = [_count(count, category), _include(include), _avoid(avoid), rng.choice(ends), polite_aspect(), brief_aspect()]
    aspects.append(name_aspect(addressee))
    facts = f"constraints {category} {count} {include} {avoid} {first} {last}"
    task = rng.choice(("Write a list of {}.", "Name some {}.", "List a few {}.")).format(category)
    active = {a.label for a in aspects}

    def respond(rng: Random, flaws: frozenset[str]) -> tuple[str, State]:
        length = _wrong_count(rng, count) if "count" in flaws else count
        free = [w for w in pool if w not in (include, avoid, first, last)]
        entries = rng.sample(free, min(length, len(free)))
        spots = list(range(len(entries)))
        if "start" in active and "start" not in flaws:
            entries[0] = first
            spots.remove(0)
        if "end" in active and "end" not in flaws and len(entries) - 1 in spots:
            entries[-1] = last
            spots.remove(len(entries) - 1)
        rng.shuffle(spots)
        if "must include" not in flaws and spots:
            entries[spots.pop()] = include
        if "must avoid" in flaws and spots:
            entries[spots.pop()] = avoid
        return _finish(rng, entries, flaws, addressee)

    return Problem(facts, task, tuple(_rotate_main(rng, aspects)), respond)


def _numbers(rng: Random) -> Problem:
    count = rng.randint(3, 5)
    rising = rng.random() < 0.6
    include = str(rng.randint(4, 30))
    avoid = str(rng.choice([n for n in range(4, 31) if str(n) != include]))
    addressee = rng.choice(NAMES)
    aspects = [_order(rising), _count(count, "numbers"), _include(include), _avoid(avoid), polite_aspect(), brief_aspect()]
    aspects.append(name_aspect(addressee))
    facts = f"constraints numbers {count} {rising} {include} {avoid}"
    task = rng.choice(("Write a list of numbers up to 40.", "Name some numbers up to 40.", "List a few numbers up to 40."))

    def respond(rng: Random, flaws: frozenset[str]) -> tuple[str, State]:
        length = _wrong_count(rng, count) if "count" in flaws else count
        entries = rng.sample([n for n in range(1, 41) if str(n) not in (include, avoid)], length)
        spots = list(range(len(entries)))
        rng.shuffle(spots)
        if "must include" not in flaws:
            entries[spots.pop()] = int(include)
        if "must avoid" in flaws and spots:
            entries[spots.pop()] = int(avoid)
        entries.sort(reverse=not rising)
        if "order" in flaws and len(entries) > 1:
            i = rng.randrange(len(entries) - 1)
            entries[i], entries[i + 1] = entries[i + 1], entries[i]
        return _finish(rng, [str(n) for n in entries], flaws, addressee)

    return Problem(facts, task, tuple(_rotate_main(rng, aspects)), respond)


def _finish(rng: Random, entries: list[str], flaws: frozenset[str], addressee: str) -> tuple[str, State]:
    state: State = {"entries": entries}
    listed = ", ".join(entries)
    main = rng.choice(("Here is the list: {}.", "The list: {}.", "My list is {}.")).format(listed)
    return assemble(rng, main, state, flaws, name=addressee), state


def _rotate_main(rng: Random, aspects: list[Aspect]) -> list[Aspect]:
    """Put one of the list's own aspects first: any of them can be the main one."""
    own = [a for a in aspects if a.label not in ("polite", "brief", "name")]
    main = rng.choice(own)
    return [main, *(a for a in aspects if a is not main)]


def _wrong_count(rng: Random, count: int) -> int:
    return rng.choice([n for n in (count - 1, count + 1, count + 2) if n >= 1])


def _entries(state: State) -> list[str]:
    entries = state["entries"]
    return entries if isinstance(entries, list) else []


def _count(count: int, category: str) -> Aspect:
    def check(state: State) -> tuple[str, bool]:
        entries = _entries(state)
        return ", ".join(f"{e} {i}" for i, e in enumerate(entries, 1)) if category != "numbers" else _numbered(entries), len(
            entries
        ) == count

    return Aspect("count", (f"give exactly {count} entries", f"list {count} entries"), str(count), "", check)


def _numbered(entries: list[str]) -> str:
    return ", ".join(f"{e} is {i}" for i, e in enumerate(entries, 1))


def _order(rising: bool) -> Aspect:
    word = "up" if rising else "down"

    def check(state: State) -> tuple[str, bool]:
        entries = _entries(state)
        pairs = list(itertools.pairwise(entries))
        marks = ["up" if int(b) > int(a) else "down" for a, b in pairs]
        written = ", ".join([entries[0], *(f"{e} {m}" for e, m in zip(entries[1:], marks, strict=True))])
        return written, all(m == word for m in marks)

    asks = ("sort from small to large", "go from low to high") if rising else ("sort from large to small", "go from high to low")
    return Aspect("order", asks, word, "", check)


def _include(word: str) -> Aspect:
    return Aspect(
        "must include",
        (f"include {word}", f"use {word}"),
        word,
        "",
        lambda state: (word if word in _entries(state) else "none", word in _entries(state)),
    )


def _avoid(word: str) -> Aspect:
    return Aspect(
        "must avoid",
        (f"avoid {word}", f"leave out {word}"),
        f"no {word}",
        "",
        lambda state: (word if word in _entries(state) else "none", word not in _entries(state)),
    )


def _edge(label: str, word: str, index: int) -> Aspect:
    return Aspect(
        label,
        (f"{label} with {word}", f"{label} the list with {word}"),
        word,
        "",
        lambda state: (_entries(state)[index], _entries(state)[index] == word),
    )
