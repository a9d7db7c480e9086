"""Comparing and sorting: which of some named things has the most, the least or the second most, and all in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from spct.training.tasks.answers import Question, answered
from spct.training.tasks.constraints import WORDS
from spct.training.tasks.core import Aspect, Problem
from spct.training.tasks.manner import NAMES, equals


@dataclass(frozen=True, slots=True)
class Trait:
    """What things are compared in: a heading, the things, the word that asks, and the words for most, least, more and less."""

    heading: str
    pool: tuple[str, ...]
    who: str
    high: str
    low: str
    higher: str
    lower: str


TRAITS = (
    Trait("Age in years", NAMES, "Who", "oldest", "youngest", "older", "younger"),
    Trait("Height in cm", NAMES, "Who", "tallest", "smallest", "taller", "smaller"),
    Trait("Weight in kg", WORDS["animals"], "Which", "heaviest", "lightest", "heavier", "lighter"),
    Trait("Speed in km", WORDS["animals"], "Which", "fastest", "slowest", "faster", "slower"),
    Trait("Price in euros", (*WORDS["fruits"], *WORDS["foods"]), "Which", "dearest", "cheapest", "dearer", "cheaper"),
    Trait("Length in cm", WORDS["tools"], "Which", "longest", "shortest", "longer", "shorter"),
)
KINDS, ODDS = ("pair", "most", "second", "order"), (30, 34, 12, 24)
ASKS = {
    "pair": ("{who} is {more}, {a} or {b}?", "{who} is the {more} of {a} and {b}?"),
    "most": ("{who} is the {most}?", "{who} of them is the {most}?", "Find the {most}."),
    "second": ("{who} is the second {most}?", "Find the second {most}."),
    "order": ("Put them in order, the {most} first.", "Sort them from the {most} to the {least}.", "List them, starting with the {most}."),
}
ONE = ("The result is {}.", "It is {}.", "That is {}.", "I choose {}.", "The right one is {}.")
ALL = ("The order is {}.", "Sorted: {}.", "In order: {}.", "The result is {}.")


def draw(rng: Random) -> Problem:
    """Draw three or four things with a number each and a question about their order."""
    kind = rng.choices(KINDS, ODDS)[0]
    trait, rising = rng.choice(TRAITS), rng.random() < 0.4
    count = 3 if kind in ("second", "order") else rng.randint(3, 4)
    things = rng.sample(trait.pool, count)
    values = _values(rng, count)
    asked = things[:2] if kind == "pair" else things
    rows = dict(zip(things, values, strict=True))
    order = sorted(asked, key=lambda thing: rows[thing] if rising else -rows[thing])
    shown = rng.sample(things, count)
    words = {"who": trait.who, "a": asked[0], "b": asked[1]}
    words["more"] = trait.lower if rising else trait.higher
    words["most"], words["least"] = (trait.low, trait.high) if rising else (trait.high, trait.low)
    table = ", ".join(f"{thing} {rows[thing]}" for thing in shown)
    task = f"{trait.heading}: {table}. {rng.choice(ASKS[kind]).format(**words)}"
    facts = f"sorting {kind} {rising} {trait.heading} {sorted(rows.items())} {asked[:2] if kind == 'pair' else ''}"
    if kind == "order":
        steps = ", ".join(f"{thing} {rows[thing]}" for thing in order)
        return answered(Question(facts, task, ", ".join(order), steps, lambda rng: _misordered(rng, order), ALL, joined=", "), rng)
    right = order[1] if kind == "second" else order[0]
    if kind == "second":
        steps = f"{', '.join(f'{thing} {rows[thing]}' for thing in order[:2])}, so {right}"
    else:
        steps = leading(asked if kind == "pair" else shown, rows, "less" if rising else "more")
    wrong = [thing for thing in asked if thing != right]
    extras: tuple[tuple[Aspect, str, tuple[str, ...]], ...] = ()
    if rng.random() < 0.35:
        value = equals("value", str(rows[right]), ("say the number", "give the number too"))
        extras = ((value, "The number is {}.", tuple(map(str, values))),)
    return answered(Question(facts, task, right, steps, lambda rng: rng.choice(wrong), ONE, extras=extras), rng)


def leading(things: Sequence[str], rows: dict[str, int], mark: str) -> str:
    """Write how the lead changes from thing to thing: every new leader has the mark behind its number, and the last one is named."""
    lead, parts = things[0], []
    for thing in things:
        ahead = rows[thing] > rows[lead] if mark == "more" else rows[thing] < rows[lead]
        lead = thing if ahead else lead
        parts.append(f"{thing} {rows[thing]}" + (f" {mark}" if ahead else ""))
    return f"{', '.join(parts)}, so {lead}"


def _values(rng: Random, count: int) -> list[int]:
    """Draw numbers that differ: single digits, numbers with different tens, or any."""
    draw = rng.random()
    if draw < 0.4:
        return rng.sample(range(1, 10), count)
    if draw < 0.8:
        return [10 * tens + rng.randint(0, 9) for tens in rng.sample(range(1, 10), count)]
    return rng.sample(range(2, 99), count)


def _misordered(rng: Random, order: Sequence[str]) -> str:
    """Return the things in a wrong order."""
    shown = list(order)
    while shown == list(order):
        rng.shuffle(shown)
    return ", ".join(shown)
