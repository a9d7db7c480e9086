"""Judging tasks of every domain: disjoint splits, a strict best, demonstrations that parse and score as they claim, determinism."""

import operator
import re
import subprocess
import sys
from random import Random

import pytest

from spct.errors import ConfigError
from spct.evaluation.embedded_test import permute_responses
from spct.training.tasks import BUCKETS, DOMAINS, demonstrate, draw_item, draw_items, draw_principles, exact_scores
from spct.training.tasks.arithmetic import near_miss, steps_of_sum
from spct.training.tasks.constraints import compared, numbered_entries
from spct.training.tasks.core import LEADS, bucket, draw_problem, split_points
from spct.training.tasks.manner import up_to_difference
from spct.training.tasks.sorting import leading
from spct.training.tasks.warmup import FAMILIES, warm_up
from spct.voting import parse_scores

ITEMS = {(split, domain): [draw_item(split, 5, i, domain=domain) for i in range(60)] for split in BUCKETS for domain in DOMAINS}
EACH = pytest.mark.parametrize(("split", "domain"), sorted(ITEMS))


@EACH
def test_the_best_response_is_the_strict_maximum(split, domain):
    for item in ITEMS[split, domain]:
        recomputed = [
            sum(w for w, c in zip(item.weights or [c.importance for c in item.criteria], item.criteria, strict=True) if c.met[i])
            for i in range(len(item.responses))
        ]
        assert tuple(recomputed) == item.quality
        if len(item.responses) == 1:
            total = sum(item.weights or [c.importance for c in item.criteria])
            assert (item.best == 0) == (item.quality[0] > total / 2)
        else:
            assert sorted(item.quality)[-1] > sorted(item.quality)[-2]
            assert item.quality[item.best] == max(item.quality)
        assert len(set(item.responses)) == len(item.responses)


@EACH
def test_demonstrations_parse_to_the_scores_that_their_checks_give(split, domain):
    for n, item in enumerate(ITEMS[split, domain]):
        order = list(range(len(item.responses)))
        Random(n).shuffle(order)
        text = demonstrate(item, tuple(order), Random(n))
        assert re.fullmatch(r"Specific Criteria: .+\nAnalysis: .+\nScores: \\boxed\{\d+(, \d+)*\}", text)
        shown = parse_scores(text, len(order), (1, 10))
        assert shown is not None
        in_request_order = tuple(shown[order.index(i)] for i in range(len(order)))
        assert in_request_order == exact_scores(item, tuple(order), Random(n))


def test_problems_of_different_splits_never_meet():
    facts = {split: set() for split in BUCKETS}
    for split in BUCKETS:
        for domain, draw in DOMAINS.items():
            rng = Random(f"{split} {domain}")
            facts[split] |= {draw_problem(draw, split, rng).facts for _ in range(200)}
    for split, owned in BUCKETS.items():
        assert all(bucket(f) in owned for f in facts[split])
    splits = list(BUCKETS)
    for i, one in enumerate(splits):
        for other in splits[i + 1 :]:
            assert not facts[one] & facts[other]
            assert not set(BUCKETS[one]) & set(BUCKETS[other])


def test_items_depend_on_split_seed_and_index_alone():
    program = "from spct.training.tasks import draw_item; print(draw_item('train', 3, 17))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "engine"},
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {f"{draw_item('train', 3, 17)}\n"}
    assert draw_item("train", 4, 17) != draw_item("train", 3, 17)
    assert list(draw_items("train", 3, 20))[17] == draw_item("train", 3, 17)


def test_every_shape_of_item_occurs():
    items = [item for row in ITEMS.values() for item in row]
    counts = [len(i.responses) for i in items]
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert counts.count(2) > len(items) / 2 and counts.count(5) + counts.count(6) < len(items) / 10
    assert any(i.reference for i in items) and any(i.principles for i in items)
    assert any(i.best is None for i in items) and any(i.best == 0 and len(i.responses) == 1 for i in items)
    decided_by_one = [i for i in items if len(i.responses) == 2 and sum(c.met[0] != c.met[1] for c in i.criteria) == 1]
    assert len(decided_by_one) > len(items) // 20


def test_important_criteria_are_drawn_more_often():
    item = next(i for i in ITEMS["train", "arithmetic"] if not i.weights and {c.importance for c in i.criteria} == {4, 2, 1})
    drawn = [c.importance for seed in range(400) for c, _ in draw_principles(item, Random(seed))]
    rate = {level: drawn.count(level) / sum(c.importance == level for c in item.criteria) for level in (4, 2, 1)}
    assert rate[4] > rate[2] > rate[1]


@pytest.mark.parametrize("importances", [(4,), (4, 2), (2, 1), (1, 1, 1), (4, 4, 1), (4, 1, 1), (2, 2, 2)])
def test_points_add_up_to_nine(importances):
    points = split_points(importances)
    assert sum(points) == 9 and min(points) >= 1
    assert list(points) == sorted(points, reverse=True)


@pytest.mark.parametrize(
    ("total", "addend", "sign", "end"), [(12, 35, "+", 47), (9, 8, "+", 17), (40, 20, "+", 60), (47, 35, "-", 12), (11, 9, "-", 2)]
)
def test_steps_are_true(total, addend, sign, end):
    text, outcome = steps_of_sum(total, addend, sign)
    assert outcome == end
    for left, op, right, result in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", text):
        assert int(left) + (int(right) if op == "+" else -int(right)) == int(result)


def test_a_near_miss_is_wrong():
    assert all(near_miss(Random(seed), right) != str(right) for seed in range(50) for right in (1, 10, 55, 99))


def test_permuting_responses_keeps_queries_and_moves_every_response():
    items = list(draw_items("embedded-test", 1, 400))
    permuted = permute_responses(items)
    assert [i.query for i in permuted] == [i.query for i in items]
    assert sorted(r for i in permuted for r in i.responses) == sorted(r for i in items for r in i.responses)
    assert sum(a.responses == b.responses for a, b in zip(items, permuted, strict=True)) < 10


@pytest.mark.parametrize(("num_wishes", "num_responses"), [(1, 1), (2, 3), (4, 2)])
def test_warm_ups_are_small_and_their_demonstrations_parse(num_wishes, num_responses):
    for seed in range(60):
        text, demos = warm_up(Random(seed), num_wishes, num_responses, 3)
        assert text.count("[The Begin of Response") == num_responses and len(text) < 200 * num_wishes * num_responses
        assert all(parse_scores(demo, num_responses, (1, 10)) is not None for demo in demos)


def test_warm_ups_check_what_stands_in_their_responses():
    verdicts = set()
    for seed in range(400):
        text, (demo,) = warm_up(Random(seed), 1, 2, 1)
        responses = re.findall(r"of Response \d\]\n(.*)\n\[The End", text)
        label, expected, first, second = re.search(r"Analysis: ([a-z ]+): (.+)\. 1: (.+); 2: (.+)\.\n", demo).groups()
        scores = parse_scores(demo, 2, (1, 10))
        for response, verdict, score in zip(responses, (first, second), scores, strict=True):
            found, mark, points = verdict.rsplit(" ", 2)
            assert int(points) == score == (10 if mark == "ok" else 1)
            if label == "count":
                listed = re.split(", ", re.search(r"(?:list:|list is|suggest|are) (.+)\.", response)[1])
                assert found == " ".join(f"{i} {entry}" for i, entry in enumerate(listed, 1))
                assert (len(listed) == int(expected)) == (mark == "ok")
            elif label == "order":
                numbers = [int(n) for n in re.findall(r"\d+", response)]
                assert (numbers == sorted(numbers, reverse=expected == "down")) == (mark == "ok")
            else:
                assert found == "none" or found in response
                if label in ("name", "unit", "source", "day", "start", "end", "must include", "marks"):
                    assert (found == expected) == (mark == "ok")
            verdicts.add((label, mark))
    labels = {label for label, _ in verdicts}
    assert len(verdicts) == 2 * len(labels) and len(labels) >= 18


def test_wishes_of_a_warm_up_speak_of_different_things():
    for seed in range(300):
        _, (demo,) = warm_up(Random(seed), 4, 1, 1)
        labels = re.findall(r"([a-z ]+) \(\d\)", demo)
        assert all(len(family.intersection(label.strip() for label in labels)) <= 1 for family in FAMILIES)


def test_a_limit_on_responses_holds():
    assert {len(draw_item("train", 1, i, max_responses=2).responses) for i in range(40)} == {1, 2}


def test_every_sum_that_a_demonstration_writes_is_true():
    operations = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    written = 0
    for items in ITEMS.values():
        for item in items:
            for c in item.criteria:
                for a, sign, b, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", c.expected):
                    assert operations[sign](int(a), int(b)) == int(result), c.expected
                    written += 1
    assert written > 300


def test_wishes_and_tasks_have_several_phrasings():
    for domain, draw in DOMAINS.items():
        rng = Random(domain)
        asks = {}
        tasks = set()
        for _ in range(250):
            problem = draw(rng)
            tasks.add(re.sub(r"[\d ]*\d", "#", problem.task))
            for aspect in problem.aspects:
                assert len(set(aspect.asks)) == len(aspect.asks) >= 2
                asks[aspect.label] = aspect.asks
        assert len(asks) >= 5 and len(tasks) >= 20
    assert all(len(leads) >= 4 for leads in LEADS.values())


def test_a_response_keeps_to_each_flaw_alone():
    for domain, draw in DOMAINS.items():
        rng = Random(f"flaws {domain}")
        for _ in range(60):
            problem = draw(rng)
            _, clean = problem.respond(rng, frozenset())
            assert all(aspect.check(clean)[1] for aspect in problem.aspects), problem.task
            flawed = problem.aspects[rng.randrange(len(problem.aspects))]
            _, state = problem.respond(rng, frozenset([flawed.label]))
            no_room = flawed.label == "must avoid" and len(state["entries"]) == 2
            assert no_room or not flawed.check(state)[1], (problem.task, flawed.label)


def test_sequences_are_read_up_to_the_first_difference():
    assert up_to_difference(["a", "c", "b"], ["a", "b", "c"]) == "a c"
    assert up_to_difference(["a", "b"], ["a", "b", "c"], ", ") == "a, b"
    assert up_to_difference(["a", "b", "c"], ["a", "b"]) == "a b c"
    assert up_to_difference([], ["a"]) == "none"


def test_written_checks():
    assert numbered_entries(["fig", "pear"]) == "1 fig 2 pear"
    assert compared(["3", "12", "4", "9"], "up") == ("3, 12 up 4 down", False)
    assert compared(["9", "4", "2"], "down") == ("9, 4 down 2 down", True)
    rows = {"Anna": 4, "Ben": 9, "Cara": 6, "Dan": 2}
    assert leading(list(rows), rows, "more") == "Anna 4, Ben 9 more, Cara 6, Dan 2, so Ben"
    assert leading(list(rows), rows, "less") == "Anna 4, Ben 9, Cara 6, Dan 2 less, so Dan"


def test_unknown_splits_and_domains_are_refused():
    with pytest.raises(ConfigError, match="split: expected one of"):
        draw_item("test", 0, 0)
    with pytest.raises(ConfigError, match="domain: expected one of"):
        draw_item("train", 0, 0, domain="law")
