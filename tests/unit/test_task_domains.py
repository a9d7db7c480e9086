"""Truth of the judging tasks, recomputed from their texts alone by rules written here: what is right, and what each response shows."""

import datetime
import re
from random import Random

import pytest

from spct.training.tasks import DOMAINS, constraints, passage, sorting, strings, table, units
from spct.training.tasks.answers import RESULT, RESULT_SENTENCES, WORKING_SENTENCES
from spct.training.tasks.manner import FILLERS, GREETINGS, NAMES, SOURCE_SENTENCES, THANKS

LETTER = r"[^\W\d_]"
SENTENCES = {
    "arithmetic": RESULT_SENTENCES,
    "table": table.SENTENCES,
    "sorting": (*sorting.ONE, *sorting.ALL),
    "strings": (*strings.SENTENCES, *strings.ENDS),
    "units": (*units.DAY_SENTENCES, *units.CLOCK_SENTENCES, *units.NUMBER_SENTENCES),
    "constraints": constraints.SENTENCES,
}
HIGH = ["oldest", "tallest", "heaviest", "fastest", "dearest", "longest"]
LOW = ["youngest", "smallest", "lightest", "slowest", "cheapest", "shortest"]
MORE = ["older", "taller", "heavier", "faster", "dearer", "longer"]
LESS = ["younger", "smaller", "lighter", "slower", "cheaper", "shorter"]
NUMBERS = {"two": 2, "three": 3, "four": 4}
MARKS = {"dash": "-", "plus": "+", "slash": "/", "star": "*"}
SMALLER = {
    **{("hours", "minutes"): 60, ("minutes", "seconds"): 60, ("days", "hours"): 24, ("weeks", "days"): 7, ("years", "months"): 12},
    **{("m", "cm"): 100, ("kg", "g"): 1000, ("km", "m"): 1000, ("euros", "cents"): 100},
}
MONDAY = datetime.datetime(2024, 1, 1)


def problems(domain, count):
    """Yield problems with a generator for their responses."""
    rng = Random(f"test {domain}")
    for _ in range(count):
        yield DOMAINS[domain](rng), rng


def capture(template):
    """Return a pattern that finds what fills the only gap of a sentence."""
    return re.escape(template).replace(r"\{\}", "(.+?)")


def stated(text, sentences):
    """Return what a response states in one of these sentences, read by the most specific one, or None."""
    hits = [hit for sentence in sentences for hit in re.findall(rf"(?:^|(?<=[.,] )){capture(sentence)}(?= |$)", text)]
    shortest = min(hits, key=len, default=None)
    assert all(hit.endswith(shortest) for hit in hits), (text, hits)
    return shortest


def arithmetic_truth(task):
    first, *rest = (int(n) for n in re.findall(r"\d+", task))
    if re.search(r"gives away|loses|takes", task):
        return str(first - sum(rest))
    if re.search(r"bags with|packs of|rows of|boxes with", task):
        return str(first * rest[0] + sum(rest[1:]))
    return str(first + sum(rest))


def table_truth(task):
    heading, question = task.split(". ")
    rows = dict(row.rsplit(" ", 1) for row in heading.split(": ")[1].split(", "))
    people = [name for name in re.findall(rf"{LETTER}+", question) if name in rows]
    if "together" in question or "sum" in question or question.startswith("Add"):
        return str(sum(int(rows[name]) for name in people))
    if "most" in question or "fewest" in question:
        return (max if "most" in question else min)(rows, key=lambda name: int(rows[name]))
    if people:
        return rows[people[0]]
    (color,) = set(re.findall(rf"{LETTER}+", question)) & set(rows.values())
    return str(list(rows.values()).count(color))


def sorting_truth(task):
    heading, question = task.split(". ")
    rows = {thing: int(n) for thing, n in re.findall(rf"({LETTER}+) (\d+)", heading)}
    words = re.findall(rf"{LETTER}+", question)
    asked = [word for word in words if word in rows]
    if asked:
        (falling,) = {word in MORE for word in words if word in MORE + LESS}
        return sorted(asked, key=rows.get, reverse=falling)[0]
    first = next(word for word in words if word in HIGH + LOW)
    order = sorted(rows, key=rows.get, reverse=first in HIGH)
    if "second" in words:
        return order[1]
    return ", ".join(order) if re.match("Put|Sort|List", question) else order[0]


def strings_truth(task):
    if found := re.search(r"the words (\w+) and (\w+)", task):
        (mark,) = [MARKS[name] for name in MARKS if name in task]
        return f"{found[1]} {mark} {found[2]}"
    entries = re.search(r"the (?:letters|words?) ((?:\w+ ?)+)", task)[1]
    entries = re.split(r" (?:backwards|around|in|into|to|replace|with|\w+ times)\b", entries)[0].split()
    if (times := re.search(r"(\w+) times", task)) and times[1] in NUMBERS:
        return " ".join(entries * NUMBERS[times[1]])
    if re.search(r"backwards|Reverse|around", task):
        return " ".join(reversed(entries))
    if re.search(r"capitals|upper", task):
        return " ".join(entries).upper()
    if re.search(r"small letters|lower", task):
        return " ".join(entries).lower()
    if "replace " in task or "Change " in task:
        old, new = re.search(r"replace (\w+) by (\w+)|Change (\w+) to (\w+)", task).group(*((1, 2) if "replace " in task else (3, 4)))
        return " ".join(new if entry == old else entry for entry in entries)
    if swap := re.search(r"with (\w+) in place of (\w+)", task):
        return " ".join(swap[1] if entry == swap[2] else entry for entry in entries)
    if counted := re.search(r"does (\w+) occur|Count (\w+) in|often is (\w+) in", task):
        return str(entries.count(next(filter(None, counted.groups()))))
    return entries[0 if "first" in task else -1]


def units_truth(task):
    numbers = [int(n) for n in re.findall(r"\d+", task)]
    if found := re.search(r"(\d+) (January|March|April|May|June|July|August|September|October|November)", task):
        start = datetime.datetime.strptime(f"{found[0]} 2023", "%d %B %Y")
        end = start + datetime.timedelta(days=numbers[1])
        return f"{end.day} {end:%B}"
    if day := re.search(r"\b(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b", task):
        start = next(MONDAY + datetime.timedelta(days=i) for i in range(7) if f"{MONDAY + datetime.timedelta(days=i):%A}" == day[0])
        back = "ago" in task or "before" in task
        return f"{start + datetime.timedelta(days=-numbers[0] if back else numbers[0]):%A}"
    if re.search(r"clock|leaves|takes", task):
        return str((datetime.datetime(2024, 1, 1, numbers[0]) + datetime.timedelta(hours=numbers[1])).hour)
    amounts = re.findall(r"(\d+) ([a-z]+)", task)
    unit = re.search(r"How many (\w+)|into (\w+)|in (\w+)\.", task)
    unit = next(filter(None, unit.groups()))
    if len(amounts) == 1 and (unit, amounts[0][1]) in SMALLER:
        return str(numbers[0] // SMALLER[unit, amounts[0][1]])
    return str(sum(int(n) * (1 if given == unit else SMALLER[given, unit]) for n, given in amounts))


TRUTHS = {
    "arithmetic": arithmetic_truth,
    "table": table_truth,
    "sorting": sorting_truth,
    "strings": strings_truth,
    "units": units_truth,
}


@pytest.mark.parametrize("domain", TRUTHS)
def test_results_are_right_and_wrong_ones_wrong(domain):
    for problem, rng in problems(domain, 2000):
        truth = TRUTHS[domain](problem.task)
        aspect = next(a for a in problem.aspects if a.label == RESULT)
        assert aspect.value == truth, problem.task
        unit = next((a.value for a in problem.aspects if a.label == "unit"), "")
        for flaws in (frozenset(), frozenset([RESULT])):
            text, state = problem.respond(rng, flaws)
            shown = stated(text, SENTENCES[domain])
            found, met = aspect.check(state)
            assert met == (not flaws) == (shown.removesuffix(f" {unit}") == truth), (problem.task, text)
            assert shown.startswith(found)


@pytest.mark.parametrize("domain", TRUTHS)
def test_steps_lead_to_the_result(domain):
    for problem, _ in problems(domain, 200):
        aspect = next(a for a in problem.aspects if a.label == RESULT)
        if "," in aspect.value:
            assert [step.split()[0] for step in aspect.expected.split(", ")] == aspect.value.split(", ")
        else:
            assert aspect.expected.endswith(aspect.value), (problem.task, aspect.expected)


def wanted(aspect):
    """Return the variable part of a wish, from its first phrasing."""
    templates = {
        "name": "address (.+) by name",
        "greeting": "open with (.+)",
        "unit": "state the unit (.+)",
        "source": "cite (.+)",
        "count": r"give exactly (\d+) entries",
        "must include": "include (.+)",
        "must avoid": "avoid (.+)",
        "start": "start with (.+)",
        "end": "end with (.+)",
        "marks": "separate the entries with (.+)",
        "order": "sort from (small|large) to",
    }
    return re.fullmatch(templates[aspect.label] + ".*", aspect.asks[0])[1] if aspect.label in templates else ""


def manner_met(aspect, text):
    """Tell from the text alone whether a wish that every domain knows is met."""
    salutation = re.match(rf"({'|'.join(GREETINGS)})?(?: ?({'|'.join(NAMES)}))?,", text)
    greeting, name = salutation.groups() if salutation else (None, None)
    if aspect.label == "name":
        return name == wanted(aspect)
    if aspect.label == "greeting":
        return greeting == wanted(aspect)
    if aspect.label == "polite":
        return any(thanks in text for thanks in THANKS)
    if aspect.label == "brief":
        return not any(filler in text for filler in FILLERS)
    if aspect.label == "source":
        return stated(text, SOURCE_SENTENCES) == wanted(aspect)
    if aspect.label == "working":
        return any(sentence.split()[0] in text for sentence in WORKING_SENTENCES)
    return None


def list_met(aspect, listed):
    """Tell from a list as it stands in a response whether a wish about it is met."""
    mark = next((m for m in ("-", "/") if f" {m} " in listed), ",")
    raw = re.split(r", | - | / ", listed)
    entries = [re.sub(r"^\d+ (?=[a-z])", "", entry) for entry in raw]
    numbers = [int(entry) for entry in entries if entry.isdigit()]
    return {
        "count": lambda: len(entries) == int(wanted(aspect)),
        "must include": lambda: wanted(aspect) in entries,
        "must avoid": lambda: wanted(aspect) not in entries,
        "start": lambda: entries[0] == wanted(aspect),
        "end": lambda: entries[-1] == wanted(aspect),
        "marks": lambda: mark == {"commas": ",", "dashes": "-", "slashes": "/"}[wanted(aspect)],
        "numbered": lambda: raw[0].startswith("1 ") and not raw[0].isdigit(),
        "order": lambda: numbers == sorted(numbers, reverse=wanted(aspect) == "large"),
    }[aspect.label]()


def random_responses(domain, count):
    """Yield (problem, aspects by verdict, text): responses with flaws drawn at random."""
    for problem, rng in problems(domain, count):
        flaws = frozenset(a.label for a in problem.aspects if rng.random() < 0.4)
        text, state = problem.respond(rng, flaws)
        yield problem, [(aspect, aspect.check(state)) for aspect in problem.aspects], text


@pytest.mark.parametrize("domain", DOMAINS)
def test_wishes_that_every_domain_knows_are_judged_by_what_stands_there(domain):
    seen = {}
    for _, checked, text in random_responses(domain, 300):
        for aspect, (found, met) in checked:
            truth = manner_met(aspect, text)
            if truth is not None:
                assert met == truth, (aspect.label, text)
                assert found == "none" or found in text
                seen.setdefault(aspect.label, set()).add(met)
    assert {"name", "greeting", "polite", "brief"} <= set(seen)
    assert all(verdicts == {True, False} for verdicts in seen.values())


def test_lists_are_judged_by_their_entries():
    seen = {}
    for problem, checked, text in random_responses("constraints", 900):
        listed = stated(text, SENTENCES["constraints"])
        for aspect, (found, met) in checked:
            if manner_met(aspect, text) is None:
                assert met == list_met(aspect, listed), (problem.task, aspect.asks[0], text)
                seen.setdefault(aspect.label, set()).add(met)
                if aspect.label == "count":
                    assert (found.split()[-2] == wanted(aspect)) == met
                if aspect.label == "order":
                    assert (found.split()[-1] == aspect.expected) == met
    assert set(seen) == {"count", "order", "must include", "must avoid", "start", "end", "marks", "numbered"}
    assert all(verdicts == {True, False} for verdicts in seen.values())


def test_units_and_values_are_judged_by_what_stands_there():
    for domain in ("arithmetic", "table", "units"):
        for _, checked, text in random_responses(domain, 150):
            shown = stated(text, SENTENCES[domain])
            for aspect, (_, met) in checked:
                if aspect.label == "unit":
                    assert met == (shown.split()[1:] == [wanted(aspect)]), text
    values = 0
    for problem, checked, text in random_responses("sorting", 300):
        for aspect, (_, met) in checked:
            if aspect.label == "value":
                right = next(a.value for a in problem.aspects if a.label == RESULT)
                number = re.search(rf"{right} (\d+)", problem.task)[1]
                assert met == (stated(text, ("The number is {}.",)) == number), (problem.task, text)
                values += 1
    assert values > 50


def test_messages_are_judged_by_the_notice():
    notices = {label: passage.NOTICES[label] for label in ("time", "place", "bring")}
    seen = set()
    for problem, checked, text in random_responses("passage", 500):
        told = re.sub(r" Last time it was on \w+\.", "", problem.task)
        right = {label: stated(told, notices[label]) for label in notices}
        right["day"] = re.search(r"\w+day", told)[0]
        if right["time"] and (hours := re.search(r"(\d+) hours?\.", told)):
            right["end time"] = str(int(right["time"]) + int(hours[1]))
        body = re.sub(rf"^[^,]*({'|'.join((*NAMES, *GREETINGS))}),", "", text)
        for aspect, (found, met) in checked:
            if aspect.label not in passage.TOLD:
                continue
            patterns = [s.replace("{e}", "EVENT").replace("{}", "GAP") for s in passage.TOLD[aspect.label]]
            patterns = [re.escape(p).replace("EVENT", ".+?").replace("GAP", "([A-Za-z0-9]+)") for p in patterns]
            shown = [hit for p in patterns for hit in re.findall(p, body)]
            assert met == (shown == [right[aspect.label]]), (problem.task, text, aspect.label)
            assert shown == ([] if found == "none" else [found])
            seen.add((aspect.label, met))
    assert len(seen) == 10
