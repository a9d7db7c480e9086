"""Warm-up for a fresh model: wishes and responses of a few words, checked in the form of real demonstrations.

In a prompt of hundreds of tokens an untrained attention head sees each word as one of hundreds, and learns to look up very slowly. Here a
prompt has some twenty words; what is learned on them carries over to the real items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from spct.training.tasks import arithmetic, passage, sorting, strings, table, units
from spct.training.tasks.answers import RESULT, RESULT_SENTENCES, WORKING_SENTENCES
from spct.training.tasks.constraints import DOWN, SENTENCES, SEPARATORS, UP, WORDS, compared, numbered_entries
from spct.training.tasks.core import LEADS, split_points
from spct.training.tasks.manner import (
    FILLERS,
    GREETINGS,
    NAMES,
    SOURCE_SENTENCES,
    SOURCES,
    THANKS,
    brief_aspect,
    greeting_aspect,
    name_aspect,
    polite_aspect,
    source_aspect,
    unit_aspect,
    up_to_difference,
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
    return _valued(rng, "name", name_aspect(name).asks, name, NAMES, tuple(f"{word} {{}}," for word in GREETINGS))


def _greeting(rng: Random) -> Wish:
    word = rng.choice(GREETINGS)
    return _valued(rng, "greeting", greeting_aspect(word).asks, word, GREETINGS, (f"{{}} {rng.choice(NAMES)},", "{},"))


def _unit(rng: Random) -> Wish:
    pool = (*arithmetic.UNITS, *arithmetic.THINGS, *table.UNITS, *units.ALL_UNITS)
    unit = rng.choice(pool)
    number = rng.randint(2, 99)
    return _valued(rng, "unit", unit_aspect(unit).asks, unit, pool, tuple(s.format(f"{number} {{}}") for s in RESULT_SENTENCES))


def _source(rng: Random) -> Wish:
    source = rng.choice(SOURCES)
    return _valued(rng, "source", source_aspect(source).asks, source, SOURCES, SOURCE_SENTENCES)


def _working(rng: Random) -> Wish:
    a, b = rng.randint(2, 9), rng.randint(2, 9)

    def respond(rng: Random) -> Snippet:
        if rng.random() < 0.5:
            return "", "none", False
        sentence = rng.choice(WORKING_SENTENCES)
        return sentence.format(f"{a} + {b}"), sentence.split()[0].rstrip(":"), True

    return Wish("working", "show the working", "shown", respond)


def _result(rng: Random) -> Wish:
    """A result of any domain's kind, which the wish itself gives."""
    kind = rng.randrange(5)
    if kind < 2:
        number = rng.randint(2, 99) if rng.random() < 0.75 else rng.randint(2, 9) * rng.choice((60, 100, 1000))
        right = str(number)
        wrong: tuple[str, ...] = (arithmetic.near_miss(rng, number), str(rng.randint(2, 99)))
        sentences: tuple[str, ...] = (*RESULT_SENTENCES, *units.CLOCK_SENTENCES)
    elif kind == 2:
        wrong = tuple(f"{rng.randint(1, 30)} {month}" for month in rng.sample(list(units.MONTHS), 3))
        right, sentences = rng.choice(wrong), units.DAY_SENTENCES
    else:
        wrong = rng.choice((table.COLORS, NAMES, strings.POOL, passage.DAYS))
        right, sentences = rng.choice(wrong), (*sorting.ONE, *table.SENTENCES)
    return _valued(rng, RESULT, (f"give the exact result {right}", f"be exact: {right}"), right, wrong, sentences)


def _sequence(rng: Random) -> Wish:
    """A result of several entries, read up to the first difference."""
    spelled = rng.random() < 0.5
    pool = strings.LETTERS if spelled else rng.choice((NAMES, strings.POOL))
    joined = ", " if pool is NAMES else " "
    right = rng.sample(pool, rng.randint(2, 3))
    if spelled and rng.random() < 0.3:
        right = [entry.upper() for entry in right]

    def respond(rng: Random) -> Snippet:
        shown = list(right)
        draw = rng.random()
        if draw < 0.25:
            shown.reverse()
        elif draw < 0.5:
            shown[rng.randrange(len(shown))] = rng.choice(pool)
        return rng.choice(strings.SENTENCES).format(joined.join(shown)), up_to_difference(shown, right, joined), shown == right

    return Wish(RESULT, f"{rng.choice(('give the exact result', 'be exact:'))} {joined.join(right)}", joined.join(right), respond)


def _lead(rng: Random) -> Wish:
    """The steps of a comparison: numbers of the query, and who leads."""
    trait = rng.choice(sorting.TRAITS)
    things = rng.sample(trait.pool, rng.randint(2, 3))
    rows = dict(zip(things, rng.sample(range(1, 10), len(things)), strict=True))
    most = rng.random() < 0.5
    right = (max if most else min)(things, key=rows.__getitem__)
    table = ", ".join(f"{thing} {rows[thing]}" for thing in things)
    ask = f"find the {trait.high if most else trait.low}: {table}"
    steps = sorting.leading(things, rows, "more" if most else "less")
    wish = _valued(rng, RESULT, (ask,), right, tuple(things), sorting.ONE)
    return Wish(wish.label, wish.ask, steps, wish.respond)


TOLD_ASKS = {
    "day": "say it is on {}",
    "time": "say it starts at {}",
    "place": "say it is in the {}",
    "end time": "say it ends at {}",
    "bring": "say to bring a {}",
}


def _told(rng: Random) -> Wish:
    label = rng.choice(list(TOLD_ASKS))
    pool = passage.POOLS[label]
    right = rng.choice(pool)
    snippets = tuple(s.replace("{e}", rng.choice(passage.EVENTS)) for s in passage.TOLD[label])
    return _valued(rng, label, (TOLD_ASKS[label].format(right),), right, pool, snippets)


def _manner(rng: Random) -> Wish:
    wants = rng.random() < 0.5
    aspect = polite_aspect() if wants else brief_aspect()
    texts: tuple[str, ...] = THANKS if wants else FILLERS

    def respond(rng: Random) -> Snippet:
        text = rng.choice(texts) if rng.random() < 0.5 else ""
        return text, text.split()[0].rstrip(",") if text else "none", bool(text) == wants

    return Wish(aspect.label, rng.choice(aspect.asks), aspect.expected, respond)


def _listed(rng: Random) -> Wish:
    """A wish about the words of a list."""
    pool = WORDS[rng.choice(sorted(WORDS))]
    word = rng.choice(pool)
    label, ask, expected = rng.choice(
        (
            ("must include", f"include {word}", word),
            ("must avoid", f"avoid {word}", f"no {word}"),
            ("start", f"start with {word}", word),
            ("end", f"end with {word}", word),
        )
    )

    def respond(rng: Random) -> Snippet:
        entries = rng.sample(pool, rng.randint(2, 4))
        if word not in entries and rng.random() < 0.4:
            entries[rng.choice((0, -1, rng.randrange(len(entries))))] = word
        snippet = rng.choice(SENTENCES).format(", ".join(entries))
        if label in ("start", "end"):
            shown = entries[0 if label == "start" else -1]
            return snippet, shown, shown == word
        inside = word in entries
        return snippet, word if inside else "none", inside == (label == "must include")

    return Wish(label, ask, expected, respond)


def _counted(rng: Random) -> Wish:
    """A wish for a number of entries."""
    pool = WORDS[rng.choice(sorted(WORDS))]
    count = rng.randint(2, 4)

    def respond(rng: Random) -> Snippet:
        entries = rng.sample(pool, rng.choice((count, count, rng.randint(2, 4))))
        return rng.choice(SENTENCES).format(", ".join(entries)), numbered_entries(entries), len(entries) == count

    return Wish("count", f"list {count} entries", str(count), respond)


def _ordered(rng: Random) -> Wish:
    """A wish for sorted numbers."""
    rising, top = rng.random() < 0.5, rng.choice((9, 9, 9, 40))

    def respond(rng: Random) -> Snippet:
        entries = sorted(rng.sample(range(1, top + 1), rng.randint(2, 4)), reverse=not rising)
        if rng.random() < 0.5:
            rng.shuffle(entries)
        shown = [str(n) for n in entries]
        return rng.choice(SENTENCES).format(", ".join(shown)), *compared(shown, "up" if rising else "down")

    return Wish("order", rng.choice(UP if rising else DOWN), "up" if rising else "down", respond)


def _marked(rng: Random) -> Wish:
    """A wish for the marks of a list, or for numbered entries."""
    if rng.random() < 0.25:
        return _numbered(rng)
    marks = rng.choice(sorted(SEPARATORS))

    def respond(rng: Random) -> Snippet:
        used = marks if rng.random() < 0.5 else rng.choice(sorted(SEPARATORS))
        entries = rng.sample(strings.POOL, rng.randint(2, 3))
        return rng.choice(SENTENCES).format(SEPARATORS[used].join(entries)), SEPARATORS[used].strip(), used == marks

    return Wish("marks", f"separate the entries with {marks}", SEPARATORS[marks].strip(), respond)


def _numbered(rng: Random) -> Wish:
    def respond(rng: Random) -> Snippet:
        entries = rng.sample(strings.POOL, rng.randint(2, 3))
        numbered = rng.random() < 0.5
        listed = ", ".join(f"{i} {entry}" for i, entry in enumerate(entries, 1)) if numbered else ", ".join(entries)
        return rng.choice(SENTENCES).format(listed), "1" if numbered else "none", numbered

    return Wish("numbered", "number the entries", "1", respond)


MAKERS = (
    *(_name, _greeting, _unit, _source, _working, _manner),
    *(_result, _result, _lead, _sequence, _sequence, _told, _told),
    *(_listed, _listed, _counted, _counted, _ordered, _marked),
)
# Wishes of one family speak of the same sentence of a response, so a prompt has one of each family at most.
FAMILIES = (
    {"must include", "must avoid", "start", "end", "count", "order", "marks", "numbered"},
    {RESULT, "unit", "day", "time", "end time"},
    {"name", "greeting"},
)


def warm_up(rng: Random, num_wishes: int, num_responses: int, group: int) -> tuple[str, list[str]]:
    """Draw a small prompt and `group` demonstrations under it, each checking one or more of its wishes."""
    wishes: dict[str, Wish] = {}
    while len(wishes) < num_wishes:
        wish = rng.choice(MAKERS)(rng)
        if not _collides(wish, wishes):
            wishes[wish.label] = wish
    made = [{label: wish.respond(rng) for label, wish in wishes.items()} for _ in range(num_responses)]
    query = " ".join(rng.choice(LEADS[rng.choice((4, 2, 1))]).format(wish.ask) for wish in wishes.values())
    lines = [query]
    for place, snippets in enumerate(made, 1):
        text = " ".join(s for s, _, _ in snippets.values() if s)
        lines += [f"[The Begin of Response {place}]", text, f"[The End of Response {place}]"]
    return "\n".join(lines) + "\n", [_demonstration(rng, list(wishes.values()), made) for _ in range(group)]


def _collides(wish: Wish, wishes: dict[str, Wish]) -> bool:
    """Tell whether a wish would be mistaken for one of the others: the same family, or its word in another's sentence."""
    related = {wish.label}.union(*(family for family in FAMILIES if wish.label in family))
    spoken = " ".join(other.ask for other in wishes.values()).split()
    return not related.isdisjoint(wishes) or wish.expected.split()[-1] in spoken


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
