"""Soft votes through the engine: what is looked up equals teacher-forced logits, whatever runs beside it, and costs nothing unasked."""

import math
import re

import pytest
import torch
from command_line import read_rows, spct, write_rows

from spct import ConfigError, Engine, SamplingParams, ScoreRequest, VotingParams
from spct.assembly import assemble
from spct.config import EngineConfig
from spct.evaluation import embedded_test
from spct.runner.loop import StepLoop
from spct.scheduling.sequence import Group, Sequence
from spct.voting.soft import ScoreRead, SpellingNode

SOFT = VotingParams(method="soft", filter="none")
NOTHING = SpellingNode((), "", None, {})
STOPS = tuple(range(16))


def read(position, *path, first=True):
    asked = tuple((7, 3, 200 + i) for i in range(len(path) + 1))
    return ScoreRead(0, NOTHING, position, path, asked if first else ((), *asked[1:]))


def reads_of(sequence):
    """From the last place to the first; two paths for one place, of which the second does not ask again what stands before it."""
    last = len(sequence.token_ids) - 2
    return [read(last, 65), read(last, 66, first=False), read(2, 90, 91), read(1)]


def run(folder, num_samples, reader=reads_of, **options):
    """Samples that end by a stop token, and what was looked up in them."""
    parts = assemble(str(folder), EngineConfig.create(options))
    loop = StepLoop(parts.scheduler, parts.runner)
    sampling = SamplingParams(samples=num_samples, max_tokens=60, min_tokens=4, stop_token_ids=STOPS)
    prompts = [tuple(range(70, 100)), (*range(70, 90), 1, 2, 3)]
    group = Group(sampling, frozenset([256]), reader=reader)
    for i in range(num_samples):
        group.add(Sequence(group, i, prompts[i % 2], 1000 + i, 60, (0, i)))
    loop.submit(group)
    loop.drive_until(group)
    parts.scheduler.tree.ledger()
    assert not parts.scheduler.has_work
    return group.sequences, parts.scheduler.stats


@pytest.mark.parametrize("reads_of", [reads_of, lambda sequence: reads_of(sequence)[::-1]], ids=["last first", "first first"])
def test_what_is_looked_up_equals_teacher_forced_logits(tiny_folder, reads_of):
    sequences, _ = run(tiny_folder, 6, reads_of)
    with Engine.from_pretrained(tiny_folder) as engine:
        checked = 0
        for sequence in sequences:
            if sequence.finish_reason != "eos":
                assert sequence.reads is None
                continue
            for wanted, rows in zip(reads_of(sequence), sequence.read_logprobs, strict=True):
                for i, (ids, row) in enumerate(zip(wanted.asked, rows, strict=True)):
                    before = (*sequence.prompt, *sequence.token_ids[: wanted.position], *wanted.path[:i])
                    expected = engine.logits(before)[-1].double().log_softmax(-1)
                    assert row == pytest.approx([float(expected[t]) for t in ids], abs=2e-5)
                    checked += len(ids)
    assert checked > 50


def test_reading_changes_no_token_and_no_neighbour_changes_a_reading(tiny_folder):
    plain, quiet = run(tiny_folder, 24, reader=None)
    alone, roomy = run(tiny_folder, 24, max_batch=1)
    # 512 bytes a token: 8 pages of 16 tokens, for prompts of 2 pages and samples of up to 4.
    crowded, tight = run(tiny_folder, 24, max_batch=24, kv_memory=8 * 16 * 512, max_prefill_tokens=7)
    assert (quiet.num_preemptions, roomy.num_preemptions) == (0, 0) and tight.num_preemptions > 0
    for a, b, c in zip(plain, alone, crowded, strict=True):
        assert a.token_ids == b.token_ids == c.token_ids
        assert b.read_logprobs == c.read_logprobs
        assert a.reads is None and not a.read_logprobs
        assert a.finish_reason == b.finish_reason == c.finish_reason
    assert sum(bool(s.read_logprobs) for s in alone) > 12


def test_without_a_reader_no_row_is_computed_twice(tiny_folder):
    sequences, stats = run(tiny_folder, 8, reader=lambda sequence: None)
    fed = sum(len(s.token_ids) - 1 for s in sequences)
    assert stats.num_rows == stats.num_prefilled + fed
    sequences, stats = run(tiny_folder, 8)
    ended = sum(s.finish_reason == "eos" for s in sequences)
    # Rows of one sample: 2 and 1 at the last place, 3 at place 2, 1 at place 1.
    assert stats.num_rows == stats.num_prefilled + fed + ended * (2 + 1 + 3 + 1)


def test_a_reading_that_meets_nan_is_a_numeric_error_and_spares_the_others(tiny_folder, monkeypatch):
    from spct.runner import runner

    real = runner._logprobs
    poisoned = []

    def logprobs_of_a_reading(head, states, *others):
        if not poisoned:
            poisoned.append(True)
            states = states.clone()
            states[0] = math.nan
        return real(head, states, *others)

    monkeypatch.setattr(runner, "_logprobs", logprobs_of_a_reading)
    sequences, _ = run(tiny_folder, 8, max_batch=1)
    reasons = [s.finish_reason for s in sequences]
    assert poisoned and reasons.count("numeric_error") == 1 and reasons.count("eos") >= 2


@pytest.fixture(scope="module")
def engine():
    with Engine.from_pretrained("embedded") as engine:
        yield engine


@pytest.fixture(scope="module")
def judged(engine):
    """(request, judgement) of a few short items with two responses."""
    items = [item for item in embedded_test.load(120) if len(item.responses) == 2 and item.domain == "arithmetic"][:3]
    sampling = SamplingParams(samples=4, max_tokens=250)
    return [(item.request(), engine.score(item.request(), sampling=sampling, voting=SOFT)) for item in items]


def brute_force(engine, prompt, tokens, position, score_range=(1, 10)):
    """Expected score where a sample's token at `position` begins a score, from whole distributions and texts."""
    decode = engine.prompt.decode
    before = decode(tokens[:position])

    def distribution(more):
        return engine.logits((*prompt, *tokens[:position], *more))[-1].double().softmax(-1)

    def digits(more):
        match = re.fullmatch(r"\s*([0-9]+)", decode((*tokens[:position], *more))[len(before) :])
        return match and match[1]

    masses = dict.fromkeys(range(score_range[0], score_range[1] + 1), 0.0)
    first = distribution(())
    for token in range(len(first)):
        spelled = digits((token,))
        if spelled is None or int(spelled) not in masses:
            continue
        if spelled != "1":
            masses[int(spelled)] += float(first[token])
            continue
        second = distribution((token,))
        follows = {t: x for t in range(len(second)) if (x := digits((token, t))) is not None and x != spelled}
        masses[10] += float(first[token]) * sum(float(second[t]) for t, x in follows.items() if x == "10")
        masses[1] += float(first[token]) * (1 - sum(float(second[t]) for t in follows))
    return sum(v * m for v, m in masses.items()) / sum(masses.values())


def test_expected_scores_equal_brute_force_over_the_whole_vocabulary(engine, judged):
    checked = 0
    for request, judgement in judged[:2]:
        for sample in [s for s in judgement.samples if s.status == "ok"][:1]:
            prompt, tokens = engine.prompt.encode(request, sample.order), sample.token_ids
            text = engine.prompt.decode(tokens[:-1])
            box = text.rindex("\\boxed")
            offsets = [box + m.start() for m in re.finditer(r"[0-9]+", text[box:])]
            for place, offset in enumerate(offsets):
                position = max(i for i in range(len(tokens)) if len(engine.prompt.decode(tokens[:i])) <= offset)
                found = sample.expected[sample.order[place]]
                assert found == pytest.approx(brute_force(engine, prompt, tokens, position), abs=1e-4)
                checked += 1
    assert checked >= 2


def test_soft_votes_sum_what_was_expected(judged):
    votes = 0
    for _, judgement in judged:
        kept = [s for s in judgement.samples if s.kept]
        votes += len(kept)
        for r, reward in enumerate(judgement.rewards):
            if kept:
                assert reward == pytest.approx(sum(s.expected[r] for s in kept), abs=1e-9)
        for sample in judgement.samples:
            assert (sample.expected is None) == (sample.scores is None)
            assert sample.expected is None or all(1 <= x <= 10 for x in sample.expected)
    assert votes >= 4


def test_asking_for_soft_votes_changes_no_sample(engine, judged):
    sampling = SamplingParams(samples=4, max_tokens=250)
    for request, judgement in judged[:1]:
        plain = engine.score(request, sampling=sampling, voting=VotingParams(filter="none"))
        assert [s.token_ids for s in plain.samples] == [s.token_ids for s in judgement.samples]
        assert [s.scores for s in plain.samples] == [s.scores for s in judgement.samples]
        assert all(s.expected is None for s in plain.samples)


def test_soft_votes_in_a_crowd_equal_those_alone(engine, judged):
    requests = [request for request, _ in judged]
    found = {j.index: j for j in engine.score_batch(requests, sampling=SamplingParams(samples=4, max_tokens=250), voting=SOFT)}
    for i, (_, judgement) in enumerate(judged):
        assert [s.expected for s in found[i].samples] == [s.expected for s in judgement.samples]
        assert found[i].rewards == judgement.rewards


def test_rows_hold_expected_scores_only_where_they_were_asked_for(judged, tmp_path):
    request, judgement = judged[0]
    rows = write_rows(
        tmp_path / "in.jsonl", [{"query": request.query, "responses": list(request.responses), "reference": request.reference}]
    )
    flags = ("--samples", 4, "--max-tokens", 250, "--filter", "none")
    assert spct("score", rows, "-o", tmp_path / "soft.jsonl", "--vote", "soft", *flags) == 0
    assert spct("score", rows, "-o", tmp_path / "sum.jsonl", *flags) == 0
    (softly,), (plainly,) = read_rows(tmp_path / "soft.jsonl"), read_rows(tmp_path / "sum.jsonl")
    expected = [None if s.expected is None else list(s.expected) for s in judgement.samples]
    assert [s["expected"] for s in softly["samples"]] == expected and softly["rewards"] == list(judgement.rewards)
    assert not any("expected" in s for s in plainly["samples"])


def test_a_template_with_too_many_scores_is_refused(tiny_folder, tmp_path):
    template = tmp_path / "wide.jinja"
    template.write_text("{% set score_range = [0, 1000] %}\nQ: {{ query }} {% for r in responses %}R: {{ r }} {% endfor %}S:")
    with Engine.from_pretrained(tiny_folder, template=str(template)) as engine, pytest.raises(ConfigError, match="up to 100"):
        engine.score(ScoreRequest("q", ["a"]), sampling=SamplingParams(samples=1, max_tokens=2), voting=SOFT)


def test_readings_are_the_same_at_one_and_two_threads(tiny_folder):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two, _ = run(tiny_folder, 4)
    finally:
        torch.set_num_threads(before)
    one, _ = run(tiny_folder, 4)
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a.read_logprobs, b.read_logprobs, strict=True):
            assert [v for row in x for v in row] == pytest.approx([v for row in y for v in row], abs=1e-5)
