"""Dates and units: weekdays, dates and clock times some time later or earlier, and conversions with small numbers."""

from __future__ import annotations

from random import Random

from spct.training.tasks.answers import Question, answered
from spct.training.tasks.core import Problem
from spct.training.tasks.manner import NAMES
from spct.training.tasks.passage import DAYS

# Days of each month; February is left out, since its length depends on the year.
MONTHS = {
    "January": 31,
    "March": 31,
    "April": 30,
    "May": 31,
    "June": 30,
    "July": 31,
    "August": 31,
    "September": 30,
    "October": 31,
    "November": 30,
}
FOLLOWING = {**dict(zip(MONTHS, [*list(MONTHS)[1:], "December"], strict=True)), "January": "February"}
# (larger unit, smaller unit, how many of these it holds)
UNITS = (
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("m", "cm", 100),
    ("kg", "g", 1000),
    ("km", "m", 1000),
    ("euros", "cents", 100),
)
ALL_UNITS = tuple(dict.fromkeys(unit for large, small, _ in UNITS for unit in (large, small)))
KINDS, ODDS = ("weekday", "down", "up", "clock", "date", "mixed"), (26, 22, 14, 16, 14, 8)
EVENTS = ("trip", "exam", "party", "match", "concert", "visit")
DAY_SENTENCES = ("It is {}.", "It is on {}.", "The day is {}.", "That is {}.", "It falls on {}.")
CLOCK_SENTENCES = ("It is at {}.", "The time is {}.", "That is at {}.", "It ends at {}.")
NUMBER_SENTENCES = ("That is {}.", "The result is {}.", "It makes {}.", "I get {}.", "It is {}.")


def draw(rng: Random) -> Problem:
    """Draw a question about days, dates, times or units."""
    kind = rng.choices(KINDS, ODDS)[0]
    question = {"weekday": _weekday, "clock": _clock, "date": _date}.get(kind)
    return answered(question(rng) if question else _conversion(rng, kind), rng, sourced=0.2)


def _weekday(rng: Random) -> Question:
    """Count days forwards or backwards, one by one."""
    start, days, later = rng.choice(DAYS), rng.randint(1, 4), rng.random() < 0.65
    i = DAYS.index(start)
    walked = [DAYS[(i + (n if later else -n)) % 7] for n in range(1, days + 1)]
    event, who = rng.choice(EVENTS), rng.choice(NAMES)
    span = f"{days} {'day' if days == 1 else 'days'}"
    if later:
        task = rng.choice(
            (
                "Today is {d}. The {e} of {w} is in {s}. Which day is that?",
                "It is {d} and {w} leaves for the {e} in {s}. On which day?",
                "The {e} of {w} begins on {d} and ends {s} later. Name the day.",
            )
        )
    else:
        task = rng.choice(
            (
                "Today is {d}. The {e} of {w} was {s} ago. Which day was that?",
                "The {e} of {w} is on {d}. Which day is {s} before?",
                "It is {d}. {w} had the {e} {s} ago. On which day?",
            )
        )
    steps = " ".join(f"{n} {day}" for n, day in enumerate(walked, 1))
    wrong = [day for day in DAYS if day != walked[-1]]
    facts = f"units weekday {start} {days} {later} {event} {who}"
    return Question(facts, task.format(d=start, e=event, w=who, s=span), walked[-1], steps, lambda rng: rng.choice(wrong), DAY_SENTENCES)


def _clock(rng: Random) -> Question:
    """Add hours to a time of the day, past midnight now and then."""
    start, hours = rng.randint(1, 23), rng.randint(2, 8)
    total = start + hours
    steps = f"{start} + {hours} = {total}" + (f", {total} - 24 = {total - 24}" if total >= 24 else "")
    right = total % 24
    event, who = rng.choice(EVENTS), rng.choice(NAMES)
    task = rng.choice(
        (
            "The {e} of {w} starts at {a} and takes {b} hours. When does it end?",
            "It is {a} on the clock. The {e} of {w} is in {b} hours. At what time?",
            "{w} leaves for the {e} at {a} and comes back {b} hours later. At what time?",
        )
    )
    wrong = [str(n) for n in range(24) if n != right and (abs(n - right) <= 3 or n in (start, abs(start - hours)))]
    facts = f"units clock {start} {hours} {event} {who}"
    return Question(facts, task.format(e=event, w=who, a=start, b=hours), str(right), steps, lambda rng: rng.choice(wrong), CLOCK_SENTENCES)


def _date(rng: Random) -> Question:
    """Add days to a date, into the next month now and then."""
    month, days = rng.choice(list(MONTHS)), rng.randint(2, 9)
    length = MONTHS[month]
    start = rng.randint(length - days + 1, length) if rng.random() < 0.4 else rng.randint(1, length - days)
    total = start + days
    steps = f"{start} + {days} = {total}"
    ends, day = month, total
    if total > length:
        ends, day = FOLLOWING[month], total - length
        steps += f", {total} - {length} = {day}"
    right = f"{day} {ends}"
    event, who = rng.choice(EVENTS), rng.choice(NAMES)
    task = rng.choice(
        (
            "Today is {d}. The {e} of {w} is in {s} days. Which date is that?",
            "The {e} of {w} begins on {d} and ends {s} days later. On which date?",
            "{w} pays for the {e} on {d} and gets a ticket {s} days later. Name the date.",
        )
    ).format(d=f"{start} {month}", e=event, w=who, s=days)
    other = FOLLOWING[month] if ends == month else month

    def wrong(rng: Random) -> str:
        days = [n for n in (day - 10, day - 2, day - 1, day + 1, day + 2, day + 10) if 1 <= n <= 30]
        return f"{day} {other}" if rng.random() < 0.25 and day <= 28 else f"{rng.choice(days)} {ends}"

    return Question(f"units date {start} {month} {days} {event} {who}", task, right, f"{steps}, so {right}", wrong, DAY_SENTENCES)


def _conversion(rng: Random, kind: str) -> Question:
    """Change a small number of one unit into another: into the smaller one, back, or from both of them."""
    large, small, factor = rng.choice([u for u in UNITS if kind != "mixed" or u[2] in (60, 100)])
    number, who = rng.randint(2, 9), rng.choice(NAMES)
    product = number * factor
    given, unit, right, steps = f"{number} {large}", small, product, f"{number} * {factor} = {product}"
    if kind == "up":
        given, unit, right, steps = f"{product} {small}", large, number, f"{product} / {factor} = {number}"
    elif kind == "mixed":
        rest = 10 * rng.randint(1, 5)
        given, right = f"{number} {large} and {rest} {small}", product + rest
        steps += f", {product} + {rest} = {right}"
    task = rng.choice(
        (
            "{w} needs {g}. How many {u} is that?",
            "Change {g} into {u} for {w}.",
            "How many {u} are {g}? {w} wants to know.",
            "{w} has {g}. Write it in {u}.",
        )
    ).format(w=who, g=given, u=unit)

    def wrong(rng: Random) -> str:
        others = [right + factor, right - factor, right * 10] if kind != "up" else [number + 1, number - 1, number + 2, number * 10]
        return str(rng.choice([n for n in others if n > 0]))

    facts = f"units {kind} {given} {unit} {who}"
    return Question(facts, task, str(right), steps, wrong, NUMBER_SENTENCES, unit=unit, units=ALL_UNITS)
