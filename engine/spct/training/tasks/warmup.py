"""Warm-up for a fresh model: wishes and responses of a few words, checked in the form of real demonstrations.

In a prompt of hundreds of tokens an untrained attention head sees each word as one of hundreds, and learns to look up very slowly. Here a
prompt has some twenty words; what is learned on them carries over to the real items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from spct.training.tasks import arithmetic, passage, table
from spct.training.tasks.constraints import WORDS
from spct.training.tasks.core import LEADS, split_points
from spct.training.tasks.manner import (
    FILLERS,
    GREETINGS,
    NAMES,
    THANKS,
    brief_aspect,
    name_aspect,
    polite_aspect,
    source_aspect,
    unit_aspect,
)

Snippet = tuple[str, str, bool]


@dataclass(frozen=True, slots=True)
class Wish:
    """One small wish: label, words of the wish, what is expected, and a maker of (snippet of a response, found, met)."""

    label: str
    ask: str
    expected: str
    respond: Callable[[Random], Snippet]


def _valued(rng: Random, label: str, asks: tuple[str, ...], right: str, pool: tuple[str, ...], snippets: tuple[str, ...]) -> Wish:
    def respond(rng: Random) -> Snippet:
        draw = rng.random()
        if draw < 0.15:
            return "", "none", False
        value = right if draw < 0.55 else rng.choice([v for v in pool if v != right])
        return rng.choice(snippets).format(value), value, value == right

    return Wish(label, rng.choice(asks), right, respond)


def _name(rng: Random) -> Wish:
    name = rng.choice(NAMES)
    return _valued(rng, "name", name_aspect(name).asks, name, NAMES, GREETINGS)


def _unit(rng: Random) -> Wish:
    pool = (*arithmetic.UNITS, *arithmetic.THINGS, *table.UNITS)
    unit = rng.choice(pool)
    number = rng.randint(2, 99)
    return _valued(rng, "unit", unit_aspect(unit).asks, unit, pool, (f"The result is {number} {{}}.", f"That makes {number} {{}}."))


def _source(rng: Random) -> Wish:
    pool = tuple(f"{kind} {n}" for kind in ("page", "table") for n in range(1, 10))
    source = rng.choice(pool)
    return _valued(rng, "source", source_aspect(source).asks, source, pool, ("Source: {}.", "See {}.", "This is from {}."))


def _result(rng: Random) -> Wish:
    right = rng.randint(2, 99)
    wrong = (arithmetic.near_miss(rng, right), str(rng.randint(2, 99)))
    asks = (f"give the exact result {right}", f"be exact: {right}")
    return _valued(
        rng, "exact result", asks, str(right), wrong, ("The result is {}.", "That makes {}.", "It comes to {}.", "The outcome is {}.")
    )


TOLD: tuple[tuple[str, tuple[str, ...], str, tuple[str, str]], ...] = (
    ("day", passage.DAYS, "say it is on {}", ("It is on {}.", "On {} we have it.")),
    ("time", passage.HOURS, "say it starts at {}", ("It starts at {}.", "The start is at {}.")),
    ("place", passage.PLACES, "say it is in the {}", ("It is in the {}.", "We meet in the {}.")),
    ("end time", passage.HOURS, "say it ends at {}", ("It ends at {}.", "It is over at {}.")),
    ("bring", passage.BRING, "say to bring a {}", ("Bring a {}.", "You need a {}.")),
)


def _told(rng: Random) -> Wish:
    label, pool, ask, snippets = rng.choice(TOLD)
    right = rng.choice(pool)
    return _valued(rng, label, (ask.format(right),), right, pool, snippets)


def _manner(rng: Random) -> Wish:
    wants = rng.random() < 0.5
    aspect = polite_aspect() if wants else brief_aspect()
    texts: tuple[str, ...] = THANKS if wants else FILLERS

    def respond(rng: Random) -> Snippet:
        text = rng.choice(texts) if rng.random() < 0.5 else ""
        return text, text.split()[0].rstrip(",") if text else "none", bool(text) == wants

    return Wish(aspect.label, rng.choice(aspect.asks), aspect.expected, respond)


def _listed(rng: Random) -> Wish:
    pool = WORDS[rng.choice(sorted(WORDS))]
    word, count = rng.choice(pool), rng.randint(2, 4)
    label, ask, expected = rng.choice(
        (
            ("must include", f"include {word}", word),
            ("must avoid", f"avoid {word}", f"no {word}"),
            ("start", f"start with {word}", word),
            ("end", f"end with {word}", word),
            ("count", f"list {count} entries", str(count)),
        )
    )

    def respond(rng: Random) -> Snippet:
        entries = rng.sample(pool, rng.choice((count, count, rng.randint(2, 4))))
        if word not in entries and rng.random() < 0.4:
            entries[rng.choice((0, -1, rng.randrange(len(entries))))] = word
        snippet = f"The list: {', '.join(entries)}."
        if label == "count":
            return snippet, ", ".join(f"{e} {i}" for i, e in enumerate(entries, 1)), len(entries) == count
        if label in ("start", "end"):
            shown = entries[0 if label == "start" else -1]
            return snippet, shown, shown == word
        inside = word in entries
        return snippet, word if inside else "none", inside == (label == "must include")

    return Wish(label, ask, expected, respond)


MAKERS = (_name, _name, _unit, _source, _result, _told, _told, _manner, _listed, _listed)


def warm_up(rng: Random, num_wishes: int, num_responses: int, group: int) -> tuple[str, list[str]]:
    """Draw a small prompt and `group` demonstrations under it, each checking one or more of its wishes."""
    wishes: dict[str, Wish] = {}
    while len(wishes) < num_wishes:
        wish = rng.choice(MAKERS)(rng)
        if not (wish.label in wishes or (wish.expected.split()[-1] in " ".join(w.ask for w in wishes.values()).split())):
            wishes[wish.label] = wish
    made = [{label: wish.respond(rng) for label, wish in wishes.items()} for _ in range(num_responses)]
    query = " ".join(rng.choice(LEADS[rng.choice((4, 2, 1))]).format(wish.ask) for wish in wishes.values())
    lines = [query]
    for place, snippets in enumerate(made, 1):
        text = " ".join(s for s, _, _ in snippets.values() if s)
        lines += [f"[The Begin of Response {place}]", text, f"[The End of Response {place}]"]
    return "\n".join(lines) + "\n", [_demonstration(rng, list(wishes.values()), made) for _ in range(group)]


def _demonstration(rng: Random, wishes: list[Wish], made: list[dict[str, Snippet]]) -> str:
    chosen = rng.sample(wishes, min(len(wishes), rng.choice((1, 1, 2, 3))))
    points = split_points([1] * len(chosen))
    running = [1] * len(made)
    sections = []
    for wish, worth in zip(chosen, points, strict=True):
        verdicts = []
        for i, snippets in enumerate(made):
            _, found, met = snippets[wish.label]
            running[i] += worth * met
            verdicts.append(f"{i + 1}: {found} {'ok' if met else 'no'} {running[i]}")
        sections.append(f"{wish.label}: {wish.expected}. {'; '.join(verdicts)}.")
    criteria = ", ".join(f"{w.label} ({p})" for w, p in zip(chosen, points, strict=True))
    return f"Specific Criteria: {criteria}\nAnalysis: {' '.join(sections)}\nScores: \\boxed{{{', '.join(map(str, running))}}}"
