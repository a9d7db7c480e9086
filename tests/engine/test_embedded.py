"""The model that ships with the package judges: well-formed, above chance, and by what stands in the responses."""

import pytest

from spct import Engine, SamplingParams
from spct.evaluation import embedded_test
from spct.evaluation.accuracy import item_accuracy
from spct.evaluation.judging import draw_samples

NUM_ITEMS, NUM_SAMPLES = 96, 4


@pytest.fixture(scope="module")
def engine():
    with Engine.from_pretrained("embedded") as engine:
        yield engine


def accuracy(engine, items):
    samples = draw_samples(engine, items, SamplingParams(samples=NUM_SAMPLES, max_tokens=400))
    truths = [embedded_test.truth_of(item) for item in items]
    right = [item_accuracy(truth, drawn, 1, 5.5) for truth, drawn in zip(truths, samples, strict=True)]
    valid = [s.scores is not None for drawn in samples for s in drawn]
    return sum(right) / len(right), sum(t.chance for t in truths) / len(truths), sum(valid) / len(valid)


def test_it_judges_above_chance_and_only_by_the_content(engine):
    items = embedded_test.load(NUM_ITEMS)
    found, chance, valid = accuracy(engine, items)
    assert valid > 0.95
    assert found > chance + 0.10, f"{found:.3f} against {chance:.3f}"
    permuted, chance, _ = accuracy(engine, embedded_test.permute_responses(items))
    assert permuted < chance + 0.10, f"{permuted:.3f} against {chance:.3f}: it does not look at the content"


def test_it_writes_principles_a_critique_and_scores(engine):
    item = embedded_test.load(4)[0]
    judgement = engine.score(item.request(), sampling=SamplingParams(samples=8, max_tokens=400))
    texts = [s.text for s in judgement.samples if s.scores is not None]
    assert texts and all("Specific Criteria:" in t and "Analysis:" in t and "\\boxed{" in t for t in texts)
    assert len(set(texts)) > 1, "principles are the source of diversity"
    assert len(judgement.rewards) == len(item.responses)
