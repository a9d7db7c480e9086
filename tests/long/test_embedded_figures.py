"""The figures that docs/embedded-model.md promises, on items that no choice has seen."""

import pytest

from spct import Engine, SamplingParams
from spct.evaluation import embedded_test
from spct.evaluation.judging import draw_samples
from spct.evaluation.report import accuracy_report

FRESH_SEED = 77


def report(items, samples, ks):
    return accuracy_report([embedded_test.truth_of(item) for item in items], samples, ks, (1, 10))


@pytest.fixture(scope="module")
def engine():
    with Engine.from_pretrained("embedded") as engine:
        yield engine


def test_votes_beat_one_sample_and_one_sample_beats_chance(engine):
    items = embedded_test.load(800, FRESH_SEED)
    found = report(items, draw_samples(engine, items, SamplingParams(samples=32, max_tokens=400)), (1, 8, 32))
    for name, section in found["subsets"].items():
        print(f"{name}: {section['voting']} chance {section['chance']:.3f}")
        assert section["voting"]["1"] > section["chance"] + 0.15, name
    # Lower ends of 95% intervals: one sample is good by itself, and 32 votes are five points better.
    assert found["intervals"]["voting"]["1"][0] > 0.80 and found["intervals"]["voting"]["8"][0] > 0.86
    assert found["paired"]["voting32-voting1"][1] > 0.05
    assert found["valid_rate"] > 0.98


def test_permuted_responses_are_judged_at_chance(engine):
    items = embedded_test.permute_responses(embedded_test.load(800, FRESH_SEED))
    found = report(items, draw_samples(engine, items, SamplingParams(samples=1, max_tokens=400)), (1,))
    low, high = found["intervals"]["voting"]["1"]
    assert low - 0.05 < found["chance"] < high + 0.05
