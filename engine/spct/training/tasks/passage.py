"""Reading a short notice: a message must pass on the right day, time, place and what to bring."""

from __future__ import annotations

from random import Random

from spct.training.tasks.core import Problem, State
from spct.training.tasks.manner import NAMES, assemble, draw_manner, equals, off_value

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PLACES = ("library", "garden", "kitchen", "hall", "office", "gym", "museum", "park", "school", "station")
BRING = ("lamp", "rope", "pen", "cup", "map", "book", "ball", "coat", "ticket", "camera")
EVENTS = ("chess club", "choir", "cooking class", "team meeting", "book club", "training", "dance class", "workshop")
HOURS = tuple(str(n) for n in range(1, 13))

OPENINGS = ("The {} is on {}.", "On {1} there is the {0}.", "Notice: the {} is on {}.", "We invite you to the {} on {}.")
NOTICES = {
    "time": ("It starts at {}.", "We begin at {}.", "The start is at {}.", "Come at {}."),
    "place": ("It takes place in the {}.", "We meet in the {}.", "The place is the {}.", "Come to the {}."),
    "bring": ("Bring a {}.", "Everyone needs a {}.", "Do not forget a {}.", "Take a {} with you."),
    "end time": ("It lasts {}.", "It takes {}.", "It goes on for {}."),
}
WISHES = ("Write a message to {} about it.", "Tell {} about it.", "Pass this on to {}.", "Let {} know.")
ASKS = {
    "day": ("give the right day", "say on which day it is", "name the day"),
    "time": ("give the right time", "say when it starts", "tell the start time"),
    "place": ("give the right place", "say where it is", "name the place"),
    "bring": ("say what to bring", "name the thing to bring", "mention what is needed"),
    "end time": ("say when it ends", "give the end time", "tell when it is over"),
}
POOLS = {"day": DAYS, "time": HOURS, "place": PLACES, "bring": BRING, "end time": HOURS}
TOLD = {
    "day": ("The {e} is on {}.", "On {} we have the {e}.", "There is the {e} on {}."),
    "time": ("It starts at {}.", "The start is at {}.", "We begin at {}."),
    "place": ("It is in the {}.", "We meet in the {}.", "Come to the {}."),
    "bring": ("Bring a {}.", "You need a {}.", "Take a {} with you."),
    "end time": ("It ends at {}.", "It is over at {}.", "The end is at {}."),
}


def draw(rng: Random) -> Problem:
    """Draw a notice and the wish to pass it on to somebody."""
    event, day, place, item, name = (rng.choice(p) for p in (EVENTS, DAYS, PLACES, BRING, NAMES))
    start, length = rng.randint(1, 9), rng.randint(1, 3)
    old = rng.choice([d for d in DAYS if d != day])
    end = str(start + length)
    right = {"day": day, "time": str(start), "place": place, "bring": item, "end time": end}
    told = rng.sample(sorted(right), 3)
    if rng.random() < 0.6:
        told.sort(key=lambda label: label == "end time")
    lasts = f"{length} {'hour' if length == 1 else 'hours'}"
    given = {"time": start, "place": place, "bring": item, "end time": lasts}
    needed = {*told, "time"} if "end time" in told else {*told}
    sentences = [rng.choice(NOTICES[label]).format(value) for label, value in given.items() if label in needed or rng.random() < 0.3]
    if rng.random() < 0.2:
        sentences.append(f"Last time it was on {old}.")
    rng.shuffle(sentences)
    task = " ".join([rng.choice(OPENINGS).format(event, day), *sentences, rng.choice(WISHES).format(name)])
    own = [
        equals(label, right[label], ASKS[label], expected=f"{start} + {length} = {end}" if label == "end time" else "") for label in told
    ]
    manner, shared = draw_manner(rng, name, sourced=0.0)

    def respond(rng: Random, flaws: frozenset[str]) -> tuple[str, State]:
        state: State = {label: off_value(rng, right[label], POOLS[label]) if label in flaws else right[label] for label in told}
        if "day" in flaws and state.get("day") and rng.random() < 0.3:
            state["day"] = old
        return assemble(rng, _message(rng, event, state), state, flaws, manner), state

    return Problem(f"passage {event} {day} {place} {item} {start} {length} {name}", task, (*own, *shared), respond)


def _message(rng: Random, event: str, state: State) -> str:
    """Write what the state holds, a sentence each, the day first."""
    parts = [rng.choice(TOLD[label]).format(value, e=event) for label, value in state.items() if value and label != "day"]
    rng.shuffle(parts)
    day = state.get("day")
    opening = rng.choice(TOLD["day"]).format(day, e=event) if day else f"The {event} is coming up."
    return " ".join([opening, *parts])
