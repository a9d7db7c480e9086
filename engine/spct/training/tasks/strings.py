"""Working on strings of spaced letters or words: reverse, replace, join, repeat, capitals, count, first and last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from spct.training.tasks.answers import Question, answered
from spct.training.tasks.constraints import WORDS
from spct.training.tasks.core import Problem

LETTERS = tuple("bdegklmnoprstu")
POOL = tuple(word for category in sorted(WORDS) for word in WORDS[category])
MARKS = {"dash": "-", "plus": "+", "slash": "/", "star": "*"}
TIMES = {2: "two", 3: "three", 4: "four"}
SENTENCES = ("The result is {}.", "I get {}.", "That gives {}.", "It becomes {}.", "The outcome is {}.")
ENDS = ("The result is {}.", "It is {}.", "That is {}.", "I choose {}.")
ASKS = {
    "reverse": ("Write {s} backwards.", "Reverse {s}.", "Turn {s} around."),
    "capitals": ("Write {s} in capitals.", "Turn {s} into capitals.", "Change {s} to upper case."),
    "small": ("Write {s} in small letters.", "Turn {s} into small letters.", "Change {s} to lower case."),
    "replace": ("In {s} replace {a} by {b}.", "Change {a} to {b} in {s}.", "Write {s} with {b} in place of {a}."),
    "join": ("Join {s} with a {m}.", "Put a {m} between {s}.", "Write {s} with a {m} in between."),
    "repeat": ("Repeat {s} {n} times.", "Write {s} {n} times.", "Say {s} {n} times in a row."),
    "count": ("How many times does {a} occur in {s}?", "Count {a} in {s}.", "How often is {a} in {s}?"),
    "first": ("What comes first in {s}?", "Name the first of {s}.", "Which is the first in {s}?"),
    "last": ("What comes last in {s}?", "Name the last of {s}.", "Which is the last in {s}?"),
}
ODDS = {"reverse": 16, "capitals": 9, "small": 6, "replace": 16, "join": 9, "repeat": 10, "count": 12, "first": 11, "last": 11}


@dataclass(frozen=True, slots=True)
class Change:
    """A rule applied to a string.

    shown   the entries as the task shows them
    right   the entries of the right result
    wrong   draws the entries of a result that may be wrong
    words   what else the task names, for its phrasing
    steps   how a critique gets there, where that is more than the result
    """

    shown: list[str]
    right: list[str]
    wrong: Callable[[Random], list[str]]
    words: dict[str, str] = field(default_factory=dict)
    steps: str = ""


def draw(rng: Random) -> Problem:
    """Draw a string and what is to be done with it."""
    kind = rng.choices(list(ODDS), list(ODDS.values()))[0]
    spelled = kind in ("capitals", "small") or (kind not in ("join", "repeat") and rng.random() < 0.6)
    pool = LETTERS if spelled else POOL
    change = CHANGES[kind](rng, kind, pool)
    text = (" and " if kind == "join" else " ").join(change.shown)
    noun = "the letters " if spelled else "the words " if len(change.shown) > 1 else "the word "
    return answered(
        Question(
            facts=f"strings {kind} {text} {sorted(change.words.items())}",
            task=rng.choice(ASKS[kind]).format(s=noun + text, **change.words),
            right=" ".join(change.right),
            steps=change.steps or " ".join(change.right),
            wrong=lambda rng: _wrong(rng, change),
            sentences=ENDS if kind in ("first", "last", "count") else SENTENCES,
            joined=" " if len(change.right) > 1 else "",
        ),
        rng,
    )


def _wrong(rng: Random, change: Change) -> str:
    while (entries := change.wrong(rng)) == change.right:
        pass
    return " ".join(entries)


def _swapped(rng: Random, entries: list[str]) -> list[str]:
    """Exchange two neighbours."""
    i = rng.randrange(len(entries) - 1)
    return [*entries[:i], entries[i + 1], entries[i], *entries[i + 2 :]]


def _reverse(rng: Random, kind: str, pool: tuple[str, ...]) -> Change:
    entries = rng.sample(pool, rng.randint(2, 4))
    right = entries[::-1]
    return Change(entries, right, lambda rng: rng.choice((entries, _swapped(rng, right), right[:-1])))


def _case(rng: Random, kind: str, pool: tuple[str, ...]) -> Change:
    small = rng.sample(pool, rng.randint(2, 4))
    capitals = [entry.upper() for entry in small]
    shown, right = (small, capitals) if kind == "capitals" else (capitals, small)
    return Change(shown, right, lambda rng: [rng.choice(pair) for pair in zip(shown, right, strict=True)])


def _replace(rng: Random, kind: str, pool: tuple[str, ...]) -> Change:
    *entries, new = rng.sample(pool, rng.randint(3, 4) + 1)
    i = rng.randrange(len(entries))
    right = [*entries[:i], new, *entries[i + 1 :]]

    def wrong(rng: Random) -> list[str]:
        j = rng.randrange(len(entries))
        return rng.choice((entries, [*entries[:j], new, *entries[j + 1 :]], [*entries[:i], rng.choice(pool), *entries[i + 1 :]]))

    return Change(entries, right, wrong, {"a": entries[i], "b": new})


def _join(rng: Random, kind: str, pool: tuple[str, ...]) -> Change:
    a, b = rng.sample(pool, 2)
    name = rng.choice(sorted(MARKS))
    mark = MARKS[name]
    return Change([a, b], [a, mark, b], lambda rng: rng.choice(([b, mark, a], [a, rng.choice(sorted(MARKS.values())), b])), {"m": name})


def _repeat(rng: Random, kind: str, pool: tuple[str, ...]) -> Change:
    word, times = rng.choice(pool), rng.choice(sorted(TIMES))
    return Change([word], [word] * times, lambda rng: [word] * rng.choice((times - 1, times + 1)), {"n": TIMES[times]})


def _count(rng: Random, kind: str, pool: tuple[str, ...]) -> Change:
    """Count one entry among up to three different ones; the steps carry the count along."""
    kinds = rng.sample(pool, 3)
    entries = [rng.choice(kinds) for _ in range(rng.randint(3, 4))]
    counted = rng.choice(entries)
    steps, number = [], 0
    for entry in entries:
        number += entry == counted
        steps.append(f"{entry} {number}")
    others = [str(n) for n in range(len(entries) + 1) if abs(n - number) <= 2]
    return Change(entries, [str(number)], lambda rng: [rng.choice(others)], {"a": counted}, " ".join(steps))


def _end(rng: Random, kind: str, pool: tuple[str, ...]) -> Change:
    entries = rng.sample(pool, rng.randint(3, 4))
    return Change(entries, [entries[0 if kind == "first" else -1]], lambda rng: [rng.choice(entries)])


CHANGES: dict[str, Callable[[Random, str, tuple[str, ...]], Change]] = {
    "reverse": _reverse,
    "capitals": _case,
    "small": _case,
    "replace": _replace,
    "join": _join,
    "repeat": _repeat,
    "count": _count,
    "first": _end,
    "last": _end,
}
