"""Reading a short table: look up, compare, add, count."""

from __future__ import annotations

from random import Random

from spct.training.tasks.arithmetic import near_miss, steps_of_sum
from spct.training.tasks.core import ESSENTIAL, Aspect, Problem, State
from spct.training.tasks.manner import (
    NAMES,
    assemble,
    brief_aspect,
    equals,
    name_aspect,
    off_value,
    polite_aspect,
    source_aspect,
    unit_aspect,
)

UNITS = ("points", "coins", "cards", "goals", "books", "stamps", "tickets", "meters")
COLORS = ("red", "blue", "green", "white", "black", "brown", "pink", "gray")
TEAMS = ("team", "color", "shirt", "cap")


def draw(rng: Random) -> Problem:
    """Draw a table of three to five rows and a question about it."""
    kind = rng.choices(("look_up", "color", "most", "least", "both", "count"), (40, 25, 9, 8, 8, 10))[0]
    people = rng.sample(NAMES, rng.randint(3, 5))
    if kind in ("count", "color"):
        task, right, steps, pool, unit = _colors(rng, kind, people)
    else:
        task, right, steps, pool, unit = _numbers(rng, kind, people)
    facts = f"table {kind} {task}"
    check = equals("exact result", right).check
    asks = ("give the exact result", "read the table correctly", "be exact")
    aspects = [Aspect("exact result", asks, steps, right, check, implied=ESSENTIAL)]
    addressee = rng.choice(NAMES)
    source = f"{rng.choice(('page', 'table'))} {rng.randint(1, 9)}"
    aspects += [name_aspect(addressee), polite_aspect(), brief_aspect(), source_aspect(source)]
    if unit is not None:
        aspects.append(unit_aspect(unit))

    def respond(rng: Random, flaws: frozenset[str]) -> tuple[str, State]:
        state: State = {}
        shown = right
        if "exact result" in flaws:
            shown = rng.choice([p for p in pool if p != right]) if pool and rng.random() < 0.75 else ""
            if not shown:
                shown = near_miss(rng, int(right)) if right.isdigit() else rng.choice([p for p in pool if p != right])
        state["exact result"] = shown
        quantity = shown
        if unit is not None:
            written = off_value(rng, unit, UNITS) if "unit" in flaws else unit
            state["unit"] = written
            quantity = f"{shown} {written}".strip()
        main = rng.choice(("The result is {}.", "The table says {}.", "It is {}.", "The outcome is {}.")).format(quantity)
        return assemble(rng, main, state, flaws, name=addressee, source=source), state

    return Problem(facts, task, tuple(aspects), respond)


def _numbers(rng: Random, kind: str, people: list[str]) -> tuple[str, str, str, tuple[str, ...], str | None]:
    """A table of numbers: task, right value, steps, plausible wrong values, unit."""
    unit = rng.choice(UNITS)
    top = 48 if kind == "both" else 99
    values = rng.sample(range(2, top), len(people))
    rows = ", ".join(f"{p} {v}" for p, v in zip(people, values, strict=True))
    table = f"{rng.choice(('Table', 'Results', 'List'))} of {unit}: {rows}."
    if kind == "look_up":
        i = rng.randrange(len(people))
        ask = rng.choice(("How many {u} does {p} have?", "What is the number of {u} for {p}?")).format(u=unit, p=people[i])
        return f"{table} {ask}", str(values[i]), f"{people[i]} {values[i]}", tuple(map(str, values)), unit
    if kind == "both":
        i, j = rng.sample(range(len(people)), 2)
        steps, total = steps_of_sum(values[i], values[j])
        ask = rng.choice(("How many {u} do {p} and {q} have together?", "What is the sum of {u} for {p} and {q}?"))
        written = f"{people[i]} {values[i]}, {people[j]} {values[j]}, {steps}"
        wrong = (str(values[i]), str(values[j]), near_miss(rng, total))
        return f"{table} {ask.format(u=unit, p=people[i], q=people[j])}", str(total), written, wrong, unit
    word, better = ("most", max) if kind == "most" else ("fewest", min)
    parts, lead = [], 0
    for i, value in enumerate(values):
        if i and better(values[lead], value) == value:
            lead = i
        parts.append(f"{people[i]} {value}" + (f" {'more' if kind == 'most' else 'less'}" if i and lead == i else ""))
    ask = rng.choice(("Who has the {w} {u}?", "Which person has the {w} {u}?")).format(w=word, u=unit)
    return f"{table} {ask}", people[lead], f"{', '.join(parts)}, so {people[lead]}", tuple(people), None


def _colors(rng: Random, kind: str, people: list[str]) -> tuple[str, str, str, tuple[str, ...], str | None]:
    """A table of colors: task, right value, steps, plausible wrong values, unit."""
    palette = rng.sample(COLORS, 3)
    colors = [rng.choice(palette) for _ in people]
    what = rng.choice(TEAMS)
    rows = ", ".join(f"{p} {c}" for p, c in zip(people, colors, strict=True))
    table = f"{rng.choice(('Table', 'Results', 'List'))} of {what}: {rows}."
    if kind == "color":
        i = rng.randrange(len(people))
        ask = rng.choice(("What is the {w} of {p}?", "Which {w} does {p} have?")).format(w=what, p=people[i])
        return f"{table} {ask}", colors[i], f"{people[i]} {colors[i]}", tuple(palette), None
    color = rng.choice(colors)
    hits = [p for p, c in zip(people, colors, strict=True) if c == color]
    steps = ", ".join(f"{p} {n}" for n, p in enumerate(hits, 1))
    ask = rng.choice(("How many people have {c}?", "How often is it {c}?")).format(c=color)
    others = tuple(str(n) for n in range(1, 6) if abs(n - len(hits)) <= 2)
    return f"{table} {ask}", str(len(hits)), f"{color}: {steps}, so {len(hits)}", others, None
