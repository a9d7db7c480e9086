"""Checkable judging items: a query with criteria of different importance, and responses whose quality is known by rule.

An item is drawn from (split, seed, index) alone. The facts of its problem (operands, tables, lists asked for) are hashed into
one of 100 buckets, and every split owns its own buckets: no problem of one split can appear in another, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from spct.errors import ConfigError
from spct.types import ScoreRequest

ESSENTIAL, WANTED, NICE = 4, 2, 1
BUCKETS: Mapping[str, range] = {"train": range(0, 90), "validation": range(90, 95), "embedded-test": range(95, 100)}
LEADS: Mapping[int, tuple[str, ...]] = {
    ESSENTIAL: ("Above all, {}.", "Most important: {}.", "It is essential to {}.", "You must {}."),
    WANTED: ("Please {}.", "Also {}.", "Make sure to {}.", "Remember to {}."),
    NICE: ("If possible, {}.", "Ideally, {}.", "It would be nice to {}.", "Perhaps {}."),
}
# How many responses an item has, with the odds of each: pairs mostly, since every response lengthens the prompt.
RESPONSE_COUNTS, RESPONSE_ODDS = (1, 2, 3, 4, 5, 6), (12, 60, 16, 7, 3, 2)
MAX_RESPONSES = max(RESPONSE_COUNTS)
# Pieces of query and responses together; what the template and one demonstration add keeps an item below 640 tokens.
MAX_PIECES = 270
PIECE = re.compile(r"[^\W\d_]+|\S")

State = dict[str, str | list[str] | None]


@dataclass(frozen=True, slots=True)
class Aspect:
    """One thing that a query can ask for and that can be checked in a response.

    label     the name by which a critique calls it
    asks      phrasings of the wish, in the imperative, as they stand in the query
    expected  what the critique writes down before it looks at the responses, steps of reasoning included
    value     the right outcome alone, for items that come with a reference; "" where none makes sense
    check     what a critique reads off a response, and whether that meets the criterion
    implied   importance when the query does not mention it; 0: then it does not count
    """

    label: str
    asks: tuple[str, ...]
    expected: str
    value: str
    check: Callable[[State], tuple[str, bool]]
    implied: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """What a domain draws: facts, the task in words, what can be checked (the main thing first) and how to respond.

    facts    decides the split
    respond  (rng, labels to violate) → text of the response and what stands in it
    """

    facts: str
    task: str
    aspects: tuple[Aspect, ...]
    respond: Callable[[Random, frozenset[str]], tuple[str, State]]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A criterion of one item: how much it counts, what is expected, and what each response shows."""

    label: str
    importance: int
    expected: str
    found: tuple[str, ...]
    met: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """A judging question with its truth.

    weights   per criterion, where the request gives the principles with their weights; empty otherwise
    quality   per response: importance (or given weight) of the criteria that it meets
    best      index of the strictly best response; with one response 0 if it is good, None if it is bad
    """

    domain: str
    query: str
    responses: tuple[str, ...]
    reference: str | None
    criteria: tuple[Criterion, ...]
    weights: tuple[int, ...]
    quality: tuple[int, ...]
    best: int | None

    @property
    def principles(self) -> tuple[str, ...] | None:
        """The given principles in the words of the request, or None where the judge draws its own."""
        if not self.weights:
            return None
        return tuple(f"{c.label} ({w})" for c, w in zip(self.criteria, self.weights, strict=True))

    def request(self, id: str | int | None = None) -> ScoreRequest:
        """Return the item as a request, without its truth."""
        return ScoreRequest(self.query, self.responses, reference=self.reference, principles=self.principles, id=id)


def bucket(facts: str) -> int:
    """Return the bucket, 0 to 99, of a problem's facts."""
    return int.from_bytes(hashlib.sha256(facts.encode()).digest()[:8], "big") % 100


def draw_problem(domain: Callable[[Random], Problem], split: str, rng: Random) -> Problem:
    """Draw problems until one belongs to the split.

    Raises: ConfigError if the split is unknown.
    """
    if split not in BUCKETS:
        raise ConfigError(f"split: expected one of {', '.join(BUCKETS)}, got {split!r}")
    while True:
        problem = domain(rng)
        if bucket(problem.facts) in BUCKETS[split]:
            return problem


def build_item(name: str, problem: Problem, rng: Random, *, max_responses: int = MAX_RESPONSES) -> Item:
    """Turn a problem into an item: importances, phrasing, responses of graded quality, reference or principles."""
    while True:
        levels, mentioned = _importances(problem.aspects, rng)
        num_responses = min(rng.choices(RESPONSE_COUNTS, RESPONSE_ODDS)[0], max_responses)
        given = rng.random() < 0.07
        weights: dict[str, int] = {}
        if given:
            chosen = sorted(rng.sample(sorted(levels), min(len(levels), rng.choice((2, 3)))), key=lambda x: -levels[x])
            weights = dict(zip(chosen, split_points([levels[c] for c in chosen]), strict=True))
        graded = _responses(problem, weights or levels, num_responses, rng)
        if graded is None:
            continue
        texts, states = graded
        main = problem.aspects[0]
        referenced = not given and rng.random() < 0.15 and bool(main.value)
        criteria = []
        for aspect in problem.aspects:
            if aspect.label not in (weights or levels):
                continue
            checks = [aspect.check(state) for state in states]
            expected = aspect.value if referenced and aspect is main else aspect.expected
            criteria.append(
                Criterion(aspect.label, levels[aspect.label], expected, tuple(f for f, _ in checks), tuple(m for _, m in checks))
            )
        criteria.sort(key=lambda c: -(weights or levels)[c.label])
        points = [weights[c.label] if given else c.importance for c in criteria]
        quality = tuple(sum(p for p, c in zip(points, criteria, strict=True) if c.met[i]) for i in range(num_responses))
        best = _best(quality, sum(points))
        if best == -1:
            continue
        reference = rng.choice(("{}", "The right result is {}.", "Expected: {}.")).format(main.value) if referenced else None
        query = f"{problem.task} {_wishes(problem.aspects, mentioned, levels, rng)}".strip()
        if count_pieces(query) + sum(map(count_pieces, texts)) > MAX_PIECES:
            continue
        ordered_weights = tuple(weights[c.label] for c in criteria) if given else ()
        return Item(name, query, texts, reference, tuple(criteria), ordered_weights, quality, best)


def count_pieces(text: str) -> int:
    """Count words, digits and marks: the tokens of a text whose words are all known to the tokenizer."""
    return len(PIECE.findall(text))


def split_points(importances: Sequence[int]) -> tuple[int, ...]:
    """Split 9 points in proportion to the importances, at least one each (largest remainders, ties to the first)."""
    total = sum(importances)
    shares = [9 * i / total for i in importances]
    points = [max(1, int(s)) for s in shares]
    rest = sorted(range(len(points)), key=lambda i: (-(shares[i] - points[i]), i))
    for i in rest[: 9 - sum(points)]:
        points[i] += 1
    return tuple(points)


def _best(quality: tuple[int, ...], total: int) -> int | None:
    """Index of the strict maximum; for one response 0 (good) or None (bad); -1 where the truth is not clear."""
    if len(quality) == 1:
        share = quality[0] / total
        return 0 if share >= 0.7 else None if share <= 0.35 else -1
    top = max(quality)
    return quality.index(top) if quality.count(top) == 1 else -1


def _importances(aspects: Sequence[Aspect], rng: Random) -> tuple[dict[str, int], set[str]]:
    """Choose which aspects the query mentions and how important each is; what is implied keeps its own level."""
    main, others = aspects[0], list(aspects[1:])
    rng.shuffle(others)
    mentioned = {a.label for a in others[: rng.choice((2, 3, 3, 4))]}
    levels = {a.label: rng.choices((ESSENTIAL, WANTED, NICE), (20, 50, 30))[0] for a in others if a.label in mentioned}
    if rng.random() < 0.6:
        levels[main.label] = ESSENTIAL
        if rng.random() < 0.6 or main.implied != ESSENTIAL:
            mentioned.add(main.label)
    else:
        mentioned.add(main.label)
        levels[main.label] = WANTED
        levels[rng.choice(sorted(mentioned - {main.label}))] = ESSENTIAL
    for a in others:
        if a.label not in mentioned and a.implied and len(levels) < 6:
            levels[a.label] = a.implied
    return levels, mentioned


def _wishes(aspects: Sequence[Aspect], mentioned: set[str], levels: Mapping[str, int], rng: Random) -> str:
    """Write the wishes of the query: one sentence each, now and then two of the same importance in one."""
    wishes: list[tuple[int, str]] = [(levels[a.label], rng.choice(a.asks)) for a in aspects if a.label in mentioned]
    rng.shuffle(wishes)
    if rng.random() < 0.6:
        wishes.sort(key=lambda w: -w[0])
    sentences = []
    while wishes:
        level, text = wishes.pop(0)
        if wishes and wishes[0][0] == level and rng.random() < 0.4:
            text = f"{text} and {wishes.pop(0)[1]}"
        sentences.append(rng.choice(LEADS[level]).format(text))
    return " ".join(sentences)


def _responses(problem: Problem, levels: Mapping[str, int], count: int, rng: Random) -> tuple[tuple[str, ...], list[State]] | None:
    """Write responses of graded quality in random order; None where two turned out the same."""
    labels = sorted(levels)
    by_weight = sorted(labels, key=lambda x: -levels[x])
    kinds = ["good", *rng.choices(("subtle", "wrong", "minor", "mixed", "poor"), (18, 22, 12, 28, 20), k=count - 1)]
    if count == 1:
        kinds = [rng.choice(("good", "wrong", "poor", "poor"))]
    made = []
    for kind in kinds:
        if kind == "good":
            flaws = {x for x in labels if levels[x] < max(levels.values()) and rng.random() < 0.12}
        elif kind == "subtle":
            flaws = {by_weight[0]}
        elif kind == "wrong":
            flaws = {*by_weight[:2], *(x for x in labels if rng.random() < 0.2)}
        elif kind == "minor":
            flaws = set(rng.sample(by_weight[1:] or labels, min(len(by_weight[1:]) or 1, rng.choice((1, 2)))))
        elif kind == "mixed":
            flaws = {x for x in labels if rng.random() < 0.4}
        else:
            flaws = {x for x in labels if rng.random() < 0.75}
        made.append(problem.respond(rng, frozenset(flaws)))
    rng.shuffle(made)
    texts = tuple(text for text, _ in made)
    return (texts, [state for _, state in made]) if len(set(texts)) == count else None
