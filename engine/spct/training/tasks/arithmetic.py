"""Arithmetic in a short story: sums, products, differences, with working written out in single-digit steps."""

from __future__ import annotations

from random import Random

from spct.training.tasks.core import ESSENTIAL, Aspect, Problem, State
from spct.training.tasks.manner import (
    NAMES,
    assemble,
    brief_aspect,
    equals,
    found_or_none,
    name_aspect,
    off_value,
    polite_aspect,
    unit_aspect,
)

UNITS = ("kg", "km", "liters", "euros", "minutes", "meters", "points", "hours")
THINGS = tuple(["apples", "pens", "books", "cups", "boxes", "cards", "coins", "stamps", "plates", "shells", "tickets", "stones"])


def steps_of_sum(total: int, addend: int, sign: str = "+") -> tuple[str, int]:
    """Write `total` ± `addend` as a step with the units and a step with the tens; return the text and the outcome."""
    parts = []
    for part in (addend % 10, addend // 10 * 10):
        if part:
            after = total + part if sign == "+" else total - part
            parts.append(f"{total} {sign} {part} = {after}")
            total = after
    return ", ".join(parts), total


def near_miss(rng: Random, right: int) -> str:
    """Return a wrong number: one digit off, digits swapped, or far away."""
    swapped = right % 10 * 10 + right // 10
    options = [right + 1, right - 1, right + 10, right - 10, right + 2, right + rng.randint(11, 30), right - 2]
    if swapped != right and swapped > 9:
        options.append(swapped)
    return str(rng.choice([o for o in options if 1 <= o <= 99 and o != right]))


def draw(rng: Random) -> Problem:
    """Draw a story with one number to work out."""
    kind = rng.choices(("add_small", "times", "add3", "times_plus", "add", "minus"), (40, 22, 12, 8, 9, 9))[0]
    who, thing, unit = rng.choice(NAMES), rng.choice(THINGS), rng.choice(UNITS)
    measured = rng.random() < 0.6
    a, b, c = rng.randint(11, 69), rng.randint(11, 60), rng.randint(2, 9)
    if kind in ("add", "add_small"):
        a, b = (rng.randint(2, 9), c) if kind == "add_small" else (a, min(b, 99 - a))
        expression = f"{a} + {b}"
        steps, result = steps_of_sum(a, b)
        story = rng.choice(("{who} has {a} {x} and gets {b} {x} more.", "{who} counts {a} {x} here and {b} {x} there."))
        ask = "What is the total?"
    elif kind == "add3":
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        expression = f"{a} + {b} + {c}"
        first, subtotal = steps_of_sum(a, b)
        second, result = steps_of_sum(subtotal, c)
        steps = f"{first}, {second}"
        story = rng.choice(("{who} has {a} {x}, then {b} {x}, then {c} {x}.", "There are {a} {x}, {b} {x} and {c} {x} for {who}."))
        ask = "What is the sum?"
    elif kind == "minus":
        b = rng.randint(5, a - 3)
        expression = f"{a} - {b}"
        steps, result = steps_of_sum(a, b, "-")
        story = rng.choice(("{who} has {a} {x} and gives away {b} {x}.", "{who} starts with {a} {x} and loses {b} {x}."))
        ask = "How much is left?"
    else:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        result = a * b
        expression, steps = f"{a} * {b}", f"{a} * {b} = {result}"
        story = rng.choice(("{who} fills {a} bags with {b} {x} each.", "{who} buys {a} packs of {b} {x}."))
        if kind == "times_plus" and result <= 90:
            expression += f" + {c}"
            steps += f", {result} + {c} = {result + c}"
            result += c
            story += rng.choice((" Then come {c} {x} more.", " {c} {x} are added."))
        ask = "What is the total?"
    noun = unit if measured else thing
    task = f"{story.format(who=who, a=a, b=b, c=c, x=noun)} {rng.choice((ask, ask, 'Work it out.'))}"
    right = str(result)
    check = equals("exact result", right).check
    asks = ("give the exact result", "get the number right", "be exact")
    aspects = [Aspect("exact result", asks, steps, right, check, implied=ESSENTIAL)]
    addressee = rng.choice(NAMES)
    aspects += [unit_aspect(noun), name_aspect(addressee), polite_aspect(), brief_aspect(), _working(expression)]

    def respond(rng: Random, flaws: frozenset[str]) -> tuple[str, State]:
        state: State = {}
        shown = near_miss(rng, result) if "exact result" in flaws else right
        pool = UNITS if measured else THINGS
        written_unit = off_value(rng, noun, pool) if "unit" in flaws else noun
        state["exact result"], state["unit"] = shown, written_unit
        quantity = f"{shown} {written_unit}".strip()
        main = rng.choice(("The result is {}.", "That makes {}.", "It comes to {}.", "The outcome is {}.")).format(quantity)
        state["working"] = None
        if "working" not in flaws:
            state["working"] = expression
            main = f"{rng.choice(('Working:', 'I take'))} {expression}. {main}"
        return assemble(rng, main, state, flaws, name=addressee), state

    return Problem(f"arithmetic {expression} {noun} {who}", task, tuple(aspects), respond)


def _working(expression: str) -> Aspect:
    return Aspect(
        "working",
        ("show the working", "show how it is worked out"),
        expression,
        expression,
        lambda state: (found_or_none(state.get("working")), state.get("working") == expression),
    )
