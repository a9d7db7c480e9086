"""What people read: the sample that stands for all, its parts, and text that can't reach into the terminal."""

import io

import pytest
from rich.console import Console

from spct.cli import report
from spct.cli.console import note, printable, readable_bytes, readable_seconds
from spct.types import Judgement, Sample, ScoreRequest, Timings, Usage

TEXT = "Specific Criteria: exact result (3), unit (1)\nAnalysis: 1: 47 ok; 2: 57 no\nScores: \\boxed{9, 3}"


def sample(scores, status="ok", text=TEXT, meta=None):
    return Sample(scores, status, status == "ok", meta, (1, 0), text, 30, -0.5)


def judgement(*samples, rewards=(17, 5), best=0):
    votes = sum(s.kept for s in samples)
    return Judgement(rewards, best, votes, (0.5, 1.25), samples, Usage(100, 120, 60), Timings(1.0, 2.0, 1500.0), id="a", index=0)


def render(renderable, width=100):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable)
    return console.file.getvalue()


def test_the_sample_that_voted_most_like_all_stands_for_them():
    voters = [sample((9, 1)), sample((7, 4)), sample((5, 6)), sample((7, 4), "filtered")]
    assert report.representative(judgement(*voters)) == 1
    assert report.representative(judgement(sample(None, "parse_error"), *voters)) == 2


def test_a_sample_that_prefers_the_best_response_goes_first():
    voters = [sample((7, 7)), sample((7, 5)), sample((9, 9)), sample((10, 8))]
    assert report.representative(judgement(*voters, best=0)) == 3
    assert report.representative(judgement(*voters, best=None)) == 0
    assert report.representative(judgement(*voters, best=1)) == 0


def test_without_votes_the_first_sample_stands_for_all():
    assert report.representative(judgement(sample(None, "truncated"), sample((1, 2), "filtered"))) == 0
    assert report.representative(judgement()) is None


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.replace("Specific Criteria:", "**Specific Criteria:**").replace("Analysis:", "### Analysis:"),
        "Let me see.\n" + TEXT,
        TEXT.upper().replace("BOXED", "boxed"),
        TEXT.replace("Specific Criteria", "Principles").replace("Analysis", "Critique").replace("Scores", "Score"),
        TEXT.replace(": ", ":\n"),
    ],
)
def test_a_text_in_the_format_is_taken_apart(text):
    principles, critique, scores = report.sections(text)
    assert principles.lower().startswith("exact result (3)") and critique.lower().startswith("1:") and scores == "\\boxed{9, 3}"


@pytest.mark.parametrize(
    "text",
    ["", "\\boxed{9, 3}", "Analysis: a\nScores: b", "Scores: 1\nAnalysis: a\nSpecific Criteria: c", "the analysis: shows\nscores: 3"],
)
def test_a_text_out_of_the_format_is_shown_whole(text):
    assert report.sections(text) is None
    assert text.strip() in render(report.sample_report(0, sample(None, "parse_error", text)))


def test_a_sample_is_reported_in_full():
    printed = render(report.sample_report(3, sample((9, 3))))
    for part in ("sample 3: ok", "order 1 0", "30 tokens", "exact result (3)", "47 ok", "0: 9  1: 3"):
        assert part in printed
    assert printed.rstrip().endswith("meta score  -")
    assert "meta score  0.25" in render(report.sample_report(3, sample((9, 3), meta=0.25)))


def test_a_judgement_is_reported_with_votes_and_usage():
    console = Console(file=io.StringIO(), width=100, highlight=False)
    request = ScoreRequest("q", ["first [b]x", "second"], reference="ref")
    report.print_judgement(console, request, judgement(sample((9, 3)), sample(None, "truncated"), sample((8, 2))))
    printed = console.file.getvalue()
    assert "best: 0   votes: 2 of 3 samples (1 truncated)" in printed
    assert "tokens: 100 prompt, 120 prefilled, 60 written   time: 1.5 s" in printed
    assert "first [b]x" in printed and "17" in printed and "1.25" in printed


def test_an_overview_has_a_line_per_request():
    tie = judgement(sample((5, 5)), rewards=(5, 5), best=None)
    rows = [
        (ScoreRequest("q", ["a", "b"], id="x"), judgement(sample((9, 3))), ""),
        (ScoreRequest("q", ["a", "b"], id=7), tie, "outside: words"),
    ]
    lines = render(report.overview_table(rows)).splitlines()
    assert lines[0].split()[:6] == ["id", "rewards", "best", "votes", "tokens", "time"]
    assert lines[1].split() == ["x", "17", "5", "0", "1/1", "60", "1.5", "s"]
    assert lines[2].split() == ["7", "5", "5", "-", "1/1", "60", "1.5", "s", "outside:", "words"]


def test_long_texts_leave_the_numbers_alone():
    rows = [(ScoreRequest("q", ["a", "b"], id="an id of some length"), judgement(sample((9, 3))), "outside: " + "words " * 50)]
    (line,) = [line for line in render(report.overview_table(rows), 90).splitlines() if "17" in line]
    assert line.startswith("an id of some length  17  5") and "1.5 s  outside: words words" in line and line.endswith("…")
    table = render(report.rewards_table(["long " * 100, "short"], judgement(sample((9, 3)))), 60).splitlines()
    assert table[1].split()[:5] == ["*", "0", "17", "0.5", "long"] and table[2].split() == ["1", "5", "1.25", "short"]


def test_a_request_is_reported_with_all_its_parts():
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well?"}]
    printed = render(report.request_report(ScoreRequest(turns, ["a"], reference="ref")))
    assert [line.split()[0] for line in printed.splitlines()] == ["user", "assistant", "reference", "response"]


def test_nothing_in_a_text_reaches_the_terminal():
    hostile = "a\x1b[2Jb\x9bc\x07\r\nd\re\u202ef\u2066g[red]h[/red]\x00"
    assert printable(hostile).plain == "a\\x1b[2Jb\\x9bc\\x07\nd\\x0de\\x202ef\\x2066g[red]h[/red]\\x00"
    assert printable("tab\tand ümlaut 漢字 🙂").plain == "tab\tand ümlaut 漢字 🙂"


def test_messages_are_one_line(capsys):
    note("a\x1b[31m\rb")
    assert capsys.readouterr().err == "spct: a?[31m?b\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (16 * 2**20, "16 MiB"), (1.5 * 2**30, "1.5 GiB"), (2**50, "1024 TiB")],
)
def test_bytes_are_readable(value, text):
    assert readable_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0421, "0.042 s"), (5.5, "5.5 s"), (42.4, "42 s"), (59.9, "60 s"), (200, "3 min 20 s"), (18720, "5 h 12 min")]
)
def test_seconds_are_readable(value, text):
    assert readable_seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (3, "3"), (320, "320"), (2.0, "2"), (6.71875, "6.719"), (-15.7781, "-15.78"), (0.0, "0")]
)
def test_numbers_are_short(value, text):
    assert report.number(value) == text
