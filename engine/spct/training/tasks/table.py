"""Reading a short table: look up, compare, add, count."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from spct.training.tasks.answers import Question, answered
from spct.training.tasks.arithmetic import near_miss, steps_of_sum
from spct.training.tasks.core import Problem
from spct.training.tasks.manner import NAMES
from spct.training.tasks.sorting import leading

UNITS = ("points", "coins", "cards", "goals", "books", "stamps", "tickets", "meters")
COLORS = ("red", "blue", "green", "white", "black", "brown", "pink", "gray")
WORN = ("team", "color", "shirt", "cap", "coat", "bag")
HEADS = ("Table of {}: {}.", "Results of {}: {}.", "List of {}: {}.", "Here are the {}: {}.")
SENTENCES = ("The result is {}.", "The table says {}.", "It is {}.", "The outcome is {}.", "I read {}.")
ASKS = {
    "look_up": ("How many {u} does {p} have?", "What is the number of {u} for {p}?", "Look up the {u} of {p}.", "Find the {u} of {p}."),
    "both": ("How many {u} do {p} and {q} have together?", "What is the sum of {u} for {p} and {q}?", "Add the {u} of {p} and {q}."),
    "most": ("Who has the most {u}?", "Which person has the most {u}?", "Find the person with the most {u}."),
    "fewest": ("Who has the fewest {u}?", "Which person has the fewest {u}?", "Find the person with the fewest {u}."),
    "color": ("What is the {u} of {p}?", "Which {u} does {p} have?", "Look up the {u} of {p}."),
    "count": ("How many people have {c}?", "How often is it {c}?", "Count the people with {c}."),
}
ODDS = {"look_up": 38, "color": 25, "most": 8, "fewest": 8, "both": 9, "count": 12}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a kind of question asks for: words of the question, right value, steps, plausible wrong values, unit."""

    words: dict[str, str]
    right: str
    steps: str
    pool: tuple[str, ...]
    unit: str = ""


def draw(rng: Random) -> Problem:
    """Draw a table of three to five rows and a question about it."""
    kind = rng.choices(list(ODDS), list(ODDS.values()))[0]
    people = rng.sample(NAMES, rng.choice((3, 3, 4, 4, 5)))
    if kind in ("count", "color"):
        heading, values, outcome = _colors(rng, kind, people)
    else:
        heading, values, outcome = _numbers(rng, kind, people)
    rows = ", ".join(f"{person} {value}" for person, value in zip(people, values, strict=True))
    task = f"{rng.choice(HEADS).format(heading, rows)} {rng.choice(ASKS[kind]).format(u=heading, **outcome.words)}"
    right, others = outcome.right, [value for value in outcome.pool if value != outcome.right]

    def wrong(rng: Random) -> str:
        return rng.choice(others) if others and (not right.isdigit() or rng.random() < 0.75) else near_miss(rng, int(right))

    facts = f"table {kind} {heading} {rows} {sorted(outcome.words.items())}"
    question = Question(facts, task, right, outcome.steps, wrong, SENTENCES, unit=outcome.unit, units=UNITS if outcome.unit else ())
    return answered(question, rng, sourced=0.4)


def _numbers(rng: Random, kind: str, people: list[str]) -> tuple[str, list[str], Outcome]:
    """A table of numbers and what is asked of it."""
    unit = rng.choice(UNITS)
    numbers = rng.sample(range(2, 48 if kind == "both" else 99), len(people))
    values = [str(n) for n in numbers]
    rows = dict(zip(people, numbers, strict=True))
    if kind == "look_up":
        person = rng.choice(people)
        return unit, values, Outcome({"p": person}, str(rows[person]), f"{person} {rows[person]}", tuple(values), unit)
    if kind == "both":
        p, q = rng.sample(people, 2)
        steps, total = steps_of_sum(rows[p], rows[q])
        wrong = (str(rows[p]), str(rows[q]), near_miss(rng, total))
        return unit, values, Outcome({"p": p, "q": q}, str(total), f"{p} {rows[p]}, {q} {rows[q]}, {steps}", wrong, unit)
    lead = (max if kind == "most" else min)(people, key=rows.__getitem__)
    return unit, values, Outcome({}, lead, leading(people, rows, "more" if kind == "most" else "less"), tuple(people))


def _colors(rng: Random, kind: str, people: list[str]) -> tuple[str, list[str], Outcome]:
    """A table of colors and what is asked of it."""
    palette = rng.sample(COLORS, 3)
    colors = [rng.choice(palette) for _ in people]
    worn = rng.choice(WORN)
    if kind == "color":
        i = rng.randrange(len(people))
        return worn, colors, Outcome({"p": people[i]}, colors[i], f"{people[i]} {colors[i]}", tuple(palette))
    color, steps, number = rng.choice(colors), [], 0
    for person, shown in zip(people, colors, strict=True):
        number += shown == color
        steps.append(f"{person} {shown} {number}")
    others = tuple(str(n) for n in range(1, 6) if abs(n - number) <= 2)
    return worn, colors, Outcome({"c": color}, str(number), " ".join(steps), others)
