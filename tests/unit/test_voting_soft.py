"""Expected scores: spellings of every kind of tokenizer against a slow restatement, and numbers worked out by hand."""

import functools
import hashlib
import math
import re

import pytest
from tiny_tokenizers import KINDS, write_folder

from spct.errors import ConfigError
from spct.prompting.folder import read_text_folder
from spct.prompting.tokenizer import SafeTokenizer
from spct.types import VotingParams
from spct.voting import ParsedSample, SoftReader, expected_scores, judge, read_sample

PIECES = ["\\boxed", "{", "}", ",", " ", "1", "0", "10", "7", " 7", "7}", "75", " 1", "x", "{7"]
IDS = {piece: i for i, piece in enumerate(PIECES)}


def decode(ids):
    return "".join(PIECES[i] for i in ids)


def lookup(reads, tokens, logprob):
    """What the engine finds: logprob(context, token) for all that is asked."""
    return [
        tuple(
            tuple(logprob((*tokens[: read.position], *read.path[:i]), token) for token in ids)
            for i, ids in enumerate(read.asked)
        )
        for read in reads
    ]  # fmt: skip


def ids_of(*pieces):
    return tuple(IDS[piece] for piece in pieces)


def test_ten_is_one_token_or_two_worked_out_by_hand():
    tokens = ids_of("\\boxed", "{", "7", "}")
    after_brace = {"1": 0.2, "10": 0.1, "7": 0.25, " 7": 0.05, "7}": 0.05, "75": 0.1, " 1": 0.02, "0": 0.03}
    after_one = {"0": 0.3, "10": 0.05, "7": 0.01, "7}": 0.0, "75": 0.04, "1": 0.1, "{7": 0.2}

    def logprob(context, token):
        table = after_brace if context == tokens[:2] else after_one
        p = table.get(PIECES[token], 0.0)
        return math.log(p) if p else -math.inf

    reads = SoftReader(decode, len(PIECES)).reads(tokens, 100, 1, (1, 10))
    # "1" and " 1" may both go on, so both are looked behind; "{7" after a "1" is no digit, and ends the number.
    ten = 0.1 + 0.2 * 0.3 + 0.02 * 0.3
    one = (0.2 + 0.02) * (1 - (0.3 + 0.05 + 0.01 + 0.04 + 0.1))
    seven = 0.25 + 0.05 + 0.05
    mean = (10 * ten + 1 * one + 7 * seven) / (ten + one + seven)
    (found,) = expected_scores(reads, lookup(reads, tokens, logprob))
    assert found == pytest.approx(mean, abs=1e-12)
    assert [read.path for read in reads] == [ids_of("1"), ids_of(" 1")]


def test_a_read_asks_nothing_twice_and_goes_from_the_last_place_to_the_first():
    tokens = ids_of("\\boxed", "{", "7", ",", " 7", "}")
    reads = SoftReader(decode, len(PIECES)).reads(tokens, 100, 2, (1, 10))
    assert [(read.place, read.position) for read in reads] == [(1, 4), (1, 4), (0, 2), (0, 2)]
    assert [bool(read.asked[0]) for read in reads] == [True, False, True, False]
    assert all(len(read.asked) == len(read.path) + 1 for read in reads)


def test_a_score_begins_inside_a_token():
    tokens = ids_of("\\boxed", "{7", "}")
    (read,) = SoftReader(decode, len(PIECES)).reads(tokens, 100, 1, (1, 10))
    assert (read.position, read.path, read.asked) == (1, (), (ids_of("{7"),))
    assert expected_scores([read], [((-3.0,),)]) == (7.0,)


@pytest.mark.parametrize(
    ("pieces", "max_len"),
    [
        (("{", "7", "}"), 100),  # no box
        (("\\boxed", "{", "x", "}"), 100),  # no score
        (("\\boxed", "{", "75", "}"), 100),  # out of range
        (("\\boxed", "{", "7", ",", "7", "}"), 100),  # two scores for one response
        (("\\boxed", "{", "7", "}"), 3),  # the path would need a slot that was never set aside
    ],
)
def test_nothing_is_read_where_there_is_no_score(pieces, max_len):
    assert SoftReader(decode, len(PIECES)).reads(ids_of(*pieces), max_len, 1, (1, 10)) is None


def test_two_values_need_no_look_behind():
    tokens = ids_of("\\boxed", "{", "1", "}")
    (read,) = SoftReader(decode, len(PIECES)).reads(tokens, 100, 1, (0, 1))
    assert read.path == () and set(read.asked[0]) == set(ids_of("1", "0", " 1"))


def test_too_many_scores_are_refused():
    with pytest.raises(ConfigError, match="expected scores up to 100, got a range from 0 to 1000"):
        SoftReader(decode, len(PIECES)).check((0, 1000))


def test_a_distribution_without_scores_gives_none():
    tokens = ids_of("\\boxed", "{", "7", "}")
    reads = SoftReader(decode, len(PIECES)).reads(tokens, 100, 1, (1, 10))
    assert expected_scores(reads, lookup(reads, tokens, lambda *_: -math.inf)) is None


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    @functools.cache
    def build(kind):
        return SafeTokenizer(read_text_folder(write_folder(tmp_path_factory.mktemp(kind), kind)))

    return build


@functools.cache
def hashed_row(context, size):
    """A model that is a hash: far from uniform, and every context has its own distribution."""
    draws = [int.from_bytes(hashlib.blake2b(repr((context, t)).encode(), digest_size=4).digest(), "little") for t in range(size)]
    raw = [6.0 * draw / 2**32 for draw in draws]
    total = math.log(sum(map(math.exp, raw)))
    return [x - total for x in raw]


def restated(decode, size, logprob, context, score_range):
    """The definition, token by token over the whole vocabulary and text by text."""
    low, high = score_range
    scores = [str(v) for v in range(low, high + 1)]
    start = len(decode(context))
    masses = dict.fromkeys(scores, 0.0)

    def explore(context, spelled, weight):
        ended = weight
        for token in range(size):
            text = decode((*context, token))[start:]
            match = re.fullmatch(r"[ \t\r\n]*([0-9]+)([^0-9].*)?", text, re.DOTALL)
            if match is None or match[1] == spelled:
                continue
            mass = weight * math.exp(logprob(context, token))
            ended -= mass
            if match[2]:
                if match[1] in masses and match[2][0] in " \t\r\n,}":
                    masses[match[1]] += mass
            elif any(score != match[1] and score.startswith(match[1]) for score in scores):
                explore((*context, token), match[1], mass)
            elif match[1] in masses:
                masses[match[1]] += mass
        if spelled in masses:
            masses[spelled] += ended

    explore(tuple(context), "", 1.0)
    return sum(int(score) * mass for score, mass in masses.items()) / sum(masses.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("text", "score_range"), [("so: \\boxed{7, 10}", (1, 10)), ("\\boxed{ 1,3 }", (0, 12))])
def test_against_a_slow_restatement(tokenizer_of, kind, text, score_range):
    tokenizer = tokenizer_of(kind)
    tokens = tokenizer.encode_user(text)
    size = 700

    def logprob(context, token):
        return hashed_row(context, size)[token]

    reads = SoftReader(tokenizer.decode, size).reads(tokens, 100, 2, score_range)
    found = expected_scores(reads, lookup(reads, tokens, logprob))
    begins = {read.place: read.position for read in reads}
    for place in (0, 1):
        assert found[place] == pytest.approx(restated(tokenizer.decode, size, logprob, tokens[: begins[place]], score_range), abs=1e-9)


def soft(scores, expected, meta=None, status="ok"):
    return ParsedSample(scores, status, (0, 1), "text", 9, meta, expected=expected)


def test_soft_votes_are_sums_of_expected_scores():
    samples = [soft((7, 6), (6.5, 6.75)), soft((3, 3), (3.25, 3.0)), soft(None, None, status="truncated")]
    outcome = judge(samples, 2, VotingParams(method="soft"), has_meta_head=False)
    assert (outcome.rewards, outcome.best, outcome.num_votes) == ((9.75, 9.75), None, 2)
    assert outcome.stdev == (1.625, 1.875)
    assert [s.expected for s in outcome.samples] == [(6.5, 6.75), (3.25, 3.0), None]
    filtered = judge([soft((7, 6), (6.5, 6.75), 0.0), soft((3, 3), (3.25, 3.0), 1.0)], 2, VotingParams(method="soft"), has_meta_head=True)
    assert (filtered.rewards, filtered.best) == ((3.25, 3.0), 0)
    assert [(s.status, s.expected) for s in filtered.samples] == [("filtered", (6.5, 6.75)), ("ok", (3.25, 3.0))]


def test_a_sample_whose_expected_scores_were_not_found_does_not_vote_softly():
    outcome = judge([soft((7, 6), None), soft((3, 4), (3.0, 4.0))], 2, VotingParams(method="soft"), has_meta_head=False)
    assert [(s.status, s.scores) for s in outcome.samples] == [("parse_error", None), ("ok", (3, 4))]
    assert outcome.rewards == (3.0, 4.0)
    plain = judge([soft((7, 6), None), soft((3, 4), (3.0, 4.0))], 2, VotingParams(), has_meta_head=False)
    assert plain.rewards == (10.0, 10.0)


def test_expected_scores_are_mapped_back_through_the_order():
    made = read_sample("\\boxed{7, 6, 5}", "eos", (2, 0, 1), (1, 10), num_tokens=3, expected=(7.5, 6.5, 5.5))
    assert (made.scores, made.expected) == ((6, 5, 7), (6.5, 5.5, 7.5))
    assert read_sample("\\boxed{7}", "length", (0,), (1, 10), num_tokens=3, expected=(7.5,)).expected is None
