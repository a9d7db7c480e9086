"""Reading a short notice: a message must pass on the right day, time, place and what to bring."""

from __future__ import annotations

from random import Random

from spct.training.tasks.core import Aspect, Problem, State
from spct.training.tasks.manner import NAMES, assemble, brief_aspect, equals, name_aspect, off_value, polite_aspect

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PLACES = ("library", "garden", "kitchen", "hall", "office", "gym", "museum", "park", "school", "station")
BRING = ("lamp", "rope", "pen", "cup", "map", "book", "ball", "coat", "ticket", "camera")
EVENTS = ("chess club", "choir", "cooking class", "team meeting", "book club", "training", "dance class", "workshop")
HOURS = tuple(str(n) for n in range(1, 13))


def draw(rng: Random) -> Problem:
    """Draw a notice and the wish to pass it on to somebody."""
    event, day, place, item, name = (rng.choice(p) for p in (EVENTS, DAYS, PLACES, BRING, NAMES))
    start, length = rng.randint(1, 9), rng.randint(1, 3)
    old = rng.choice([d for d in DAYS if d != day])
    sentences = [
        rng.choice(("It starts at {}.", "We begin at {}.", "The start is at {}.")).format(start),
        rng.choice(("It takes place in the {}.", "We meet in the {}.", "The place is the {}.")).format(place),
        rng.choice(("Bring a {}.", "Everyone needs a {}.", "Do not forget a {}.")).format(item),
        rng.choice(("It lasts {} hours.", "It takes {} hours.")).format(length),
    ]
    if rng.random() < 0.3:
        sentences.append(f"Last time it was on {old}.")
    rng.shuffle(sentences)
    opening = rng.choice(("The {} is on {}.", "On {1} there is the {0}.", "Notice: the {} is on {}.")).format(event, day)
    wish = rng.choice(("Write a message to {} about it.", "Tell {} about it.", "Pass this on to {}.")).format(name)
    task = f"{opening} {' '.join(sentences)} {wish}"
    end = str(start + length)
    own = [
        _told("day", day, ("give the right day", "say on which day it is"), day),
        _told("time", str(start), ("give the right time", "say when it starts"), str(start)),
        _told("place", place, ("give the right place", "say where it is"), place),
        _told("bring", item, ("say what to bring", "name the thing to bring"), item),
        _told("end time", end, ("say when it ends", "give the end time"), f"{start} + {length} = {end}"),
    ]
    rng.shuffle(own)
    if rng.random() < 0.6:
        own.sort(key=lambda aspect: aspect.label == "end time")
    aspects = (*own[:4], name_aspect(name), polite_aspect(), brief_aspect())
    facts = f"passage {event} {day} {place} {item} {start} {length} {name}"
    right = {"day": day, "time": str(start), "place": place, "bring": item, "end time": end}
    pools = {"day": DAYS, "time": HOURS, "place": PLACES, "bring": BRING, "end time": HOURS}
    shown_labels = [a.label for a in own[:4]]

    def respond(rng: Random, flaws: frozenset[str]) -> tuple[str, State]:
        state: State = {}
        for label in shown_labels:
            state[label] = off_value(rng, right[label], pools[label]) if label in flaws else right[label]
        if "day" in flaws and state.get("day") and rng.random() < 0.3:
            state["day"] = old
        return assemble(rng, _message(rng, event, state), state, flaws, name=name), state

    return Problem(facts, task, aspects, respond)


def _told(label: str, right: str, asks: tuple[str, str], expected: str) -> Aspect:
    return Aspect(label, asks, expected, right, equals(label, right).check)


def _message(rng: Random, event: str, state: State) -> str:
    """Write what the state holds in one or more sentences."""
    day, time, place, end = (state.get(key) for key in ("day", "time", "place", "end time"))
    opening = f"The {event} is coming up."
    if day:
        opening = rng.choice((f"The {event} is on {day}.", f"On {day} we have the {event}."))
    parts = []
    if time:
        parts.append(rng.choice((f"It starts at {time}.", f"The start is at {time}.")))
    if place:
        parts.append(rng.choice((f"It is in the {place}.", f"We meet in the {place}.")))
    if end:
        parts.append(rng.choice((f"It ends at {end}.", f"It is over at {end}.")))
    if state.get("bring"):
        parts.append(rng.choice((f"Bring a {state['bring']}.", f"You need a {state['bring']}.")))
    rng.shuffle(parts)
    return " ".join([opening, *parts])
