"""Arithmetic in a short story: sums, products, differences, worked out in steps with at most one carry."""

from __future__ import annotations

from random import Random

from spct.training.tasks.answers import Question, answered
from spct.training.tasks.core import Problem
from spct.training.tasks.manner import NAMES

UNITS = ("kg", "km", "liters", "euros", "minutes", "meters", "points", "hours")
THINGS = tuple(["apples", "pens", "books", "cups", "boxes", "cards", "coins", "stamps", "plates", "shells", "tickets", "stones"])
KINDS, ODDS = ("add_small", "times", "add3", "times_plus", "add", "minus"), (38, 22, 12, 8, 10, 10)
STORIES = {
    "add_small": (
        "{who} has {a} {x} and gets {b} {x} more.",
        "{who} counts {a} {x} here and {b} {x} there.",
        "{who} finds {a} {x} and then {b} {x}.",
        "There are {a} {x} at first and {b} {x} come for {who}.",
    ),
    "add3": (
        "{who} has {a} {x}, then {b} {x}, then {c} {x}.",
        "There are {a} {x}, {b} {x} and {c} {x} for {who}.",
        "{who} counts {a} {x}, {b} {x} and {c} {x}.",
    ),
    "minus": (
        "{who} has {a} {x} and gives away {b} {x}.",
        "{who} starts with {a} {x} and loses {b} {x}.",
        "From {a} {x} {who} takes {b} {x} away.",
    ),
    "times": (
        "{who} fills {a} bags with {b} {x} each.",
        "{who} buys {a} packs of {b} {x}.",
        "{who} has {a} rows of {b} {x}.",
        "There are {a} boxes with {b} {x} each for {who}.",
    ),
}
MORE = (" Then come {c} {x} more.", " {c} {x} are added.", " And {c} {x} come on top.")
TOTALS = ("What is the total?", "What is the sum?", "How many {x} is that?", "Work it out.")
RESTS = ("How much is left?", "What is left?", "How many {x} are left?", "Work it out.")


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
    if right < 100 and swapped != right and swapped > 9:
        options.append(swapped)
    return str(rng.choice([o for o in options if o >= 1 and o != right and (o <= 99 or right > 90)]))


def draw(rng: Random) -> Problem:
    """Draw a story with one number to work out."""
    kind = rng.choices(KINDS, ODDS)[0]
    who = rng.choice(NAMES)
    units = UNITS if rng.random() < 0.6 else THINGS
    unit = rng.choice(units)
    a, b, c = _operands(rng, kind)
    expression, steps, result = _work(kind, a, b, c)
    story = rng.choice(STORIES.get(kind) or STORIES["times" if kind == "times_plus" else "add_small"])
    story += rng.choice(MORE) if kind == "times_plus" else ""
    ask = rng.choice(RESTS if kind == "minus" else TOTALS)
    question = Question(
        facts=f"arithmetic {expression} {unit} {who}",
        task=f"{story} {ask}".format(who=who, a=a, b=b, c=c, x=unit),
        right=str(result),
        steps=steps,
        wrong=lambda rng: near_miss(rng, result),
        unit=unit,
        units=units,
        working=expression if rng.random() < 0.4 else "",
    )
    return answered(question, rng, sourced=0.1)


def _operands(rng: Random, kind: str) -> tuple[int, int, int]:
    """Draw the numbers of a story, of which the third may go unused."""
    a, b, c = (rng.randint(2, 9) for _ in range(3))
    if kind == "add":
        a = rng.randint(11, 69)
        b = rng.randint(11, min(60, 99 - a))
    elif kind == "minus":
        a = rng.randint(11, 69)
        b = rng.randint(5, a - 3)
    return a, b, c


def _work(kind: str, a: int, b: int, c: int) -> tuple[str, str, int]:
    """Return the expression, the steps and the result."""
    if kind == "minus":
        steps, result = steps_of_sum(a, b, "-")
        return f"{a} - {b}", steps, result
    if kind in ("times", "times_plus"):
        expression, steps, result = f"{a} * {b}", f"{a} * {b} = {a * b}", a * b
    else:
        expression = f"{a} + {b}"
        steps, result = steps_of_sum(a, b)
    if kind in ("add3", "times_plus"):
        expression += f" + {c}"
        steps += f", {result} + {c} = {result + c}"
        result += c
    return expression, steps, result
