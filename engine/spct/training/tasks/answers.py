"""Tasks with one result: the question that a domain asks becomes a problem whose responses state the result in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from spct.training.tasks.core import ESSENTIAL, Aspect, Problem, State
from spct.training.tasks.manner import assemble, draw_manner, equals, found_or_none, off_value, unit_aspect, up_to_difference

RESULT = "exact result"
RESULT_ASKS = ("give the exact result", "get the result right", "be exact")
RESULT_SENTENCES = ("The result is {}.", "That makes {}.", "It comes to {}.", "The outcome is {}.", "I get {}.")
WORKING_SENTENCES = ("Working: {}.", "Steps: {}.", "Reason: {}.")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with one right result.

    facts      what the question depends on; decides the split
    task       the question in words
    right      the right result
    steps      how a critique gets there, the result at its end
    wrong      draws a wrong result
    sentences  how a response states a result
    joined     what stands between the entries of a result that is a sequence (checked up to the first difference); "" for a single value
    unit       the unit behind the result, and `units`, what a response may confuse it with; "" for none
    working    the expression that a response shows when it is asked for its working; "" for none
    extras     further aspects, each with what a wrong response writes: (aspect, sentence, wrong values)
    """

    facts: str
    task: str
    right: str
    steps: str
    wrong: Callable[[Random], str]
    sentences: tuple[str, ...] = RESULT_SENTENCES
    joined: str = ""
    unit: str = ""
    units: tuple[str, ...] = ()
    working: str = ""
    extras: tuple[tuple[Aspect, str, tuple[str, ...]], ...] = ()


def answered(question: Question, rng: Random, *, sourced: float = 0.3) -> Problem:
    """Make a problem of a question: result, unit, working and extras, and the manner, can be asked for."""
    manner, aspects = draw_manner(rng, sourced=sourced)
    aspects = [_result(question), *(aspect for aspect, _, _ in question.extras), *aspects]
    if question.unit:
        aspects.append(unit_aspect(question.unit))
    if question.working:
        aspects.append(_working())

    def respond(rng: Random, flaws: frozenset[str]) -> tuple[str, State]:
        state: State = {}
        shown = question.wrong(rng) if RESULT in flaws else question.right
        state[RESULT] = quantity = shown
        if question.unit:
            written = off_value(rng, question.unit, question.units) if "unit" in flaws else question.unit
            state["unit"] = written
            quantity = f"{shown} {written}".strip()
        sentences = [rng.choice(question.sentences).format(quantity)]
        if question.working and "working" not in flaws:
            sentence = rng.choice(WORKING_SENTENCES)
            state["working"] = sentence.split()[0].rstrip(":")
            sentences.insert(0, sentence.format(question.working))
        for aspect, sentence, pool in question.extras:
            value = off_value(rng, aspect.value, pool) if aspect.label in flaws else aspect.value
            state[aspect.label] = value
            if value:
                sentences.append(sentence.format(value))
        return assemble(rng, " ".join(sentences), state, flaws, manner), state

    return Problem(question.facts, question.task, tuple(aspects), respond)


def _result(question: Question) -> Aspect:
    """The wish for the right result; of a sequence only as much is read as the verdict needs."""
    right, joined = question.right, question.joined
    base = equals(RESULT, right)

    def check(state: State) -> tuple[str, bool]:
        if not joined:
            return base.check(state)
        shown = found_or_none(state[RESULT])
        return up_to_difference(shown.split(joined), right.split(joined), joined), shown == right

    return Aspect(RESULT, RESULT_ASKS, question.steps, right, check, implied=ESSENTIAL)


def _working() -> Aspect:
    """The wish that a response shows how it got there."""
    return Aspect(
        "working",
        ("show the working", "show how it is worked out"),
        "shown",
        "",
        lambda state: (found_or_none(state.get("working")), bool(state.get("working"))),
    )
