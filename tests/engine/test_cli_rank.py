"""`spct rank`: a table for a person, rows for a program, and the same care for files as `spct score`."""

import json

import pytest
from command_line import essence, numbered, read_rows, spct, write_rows

from spct import Engine, Judgement, Ranking, Sample, SamplingParams, Usage

ASK = ("--query", "2+2?", "--response", "4", "--response", "five", "--response", "four")


@pytest.fixture
def model(tiny_folder):
    return ("--model", tiny_folder, "--samples", 3, "--max-tokens", 6)


def run(tmp_path, rows, *words, name="out.jsonl"):
    source = write_rows(tmp_path / "in.jsonl", rows)
    return spct("rank", source, "-o", tmp_path / name, *words)


def test_a_row_is_a_score_row_with_a_ranking(tmp_path, model):
    rows = numbered(4)
    assert run(tmp_path, rows, *model, "--include", "text") == 0
    assert spct("score", tmp_path / "in.jsonl", "-o", tmp_path / "scores.jsonl", *model, "--include", "text") == 0
    scores = {row["id"]: row for row in read_rows(tmp_path / "scores.jsonl")}
    ranked = read_rows(tmp_path / "out.jsonl")
    assert sorted(row["id"] for row in ranked) == list(range(4))
    for row in ranked:
        score = scores[row["id"]]
        assert row["samples"] == score["samples"] and row["key"] == score["key"] and row["usage"].keys() == score["usage"].keys()
        assert set(row) - set(score) == {"ranking"} and set(score) <= set(row)
        assert row["num_votes"] == [score["num_votes"]] * 2 and row["status"] == "ok"


def test_groups_are_told_in_the_order_of_the_request(tmp_path, model, monkeypatch):
    seen = {}
    shown = Sample((9, 4), "ok", True, None, (1, 0), "text", 5, -0.1, expected=(8.5, 4.5))
    alone = Sample((7,), "ok", True, None, (0,), "text", 4, -0.1)

    def rank_batch(self, requests, **params):
        seen.update(params)
        for index, request in enumerate(requests):
            seen["request"] = request
            judgements = (Judgement((9.0, 4.0), 0, 1, (0.0, 0.0), (shown,)), Judgement((7.0,), 0, 1, (0.0,), (alone,)))
            yield Ranking(((2,), (1,), (0,)), (4.0, 7.0, 9.0), 2, (1, 1, 1), (0.0,) * 3, ((2, 0), (1,)), judgements, index=index)

    monkeypatch.setattr(Engine, "rank_batch", rank_batch)
    assert run(tmp_path, [{"query": "q", "responses": ["a", "b", "c"]}], *model, "--group-size", 2, "--vote", "soft") == 0
    (row,) = read_rows(tmp_path / "out.jsonl")
    assert row["ranking"] == [[2], [1], [0]] and row["best"] == 2 and row["num_votes"] == [1, 1, 1]
    first, second = row["samples"]
    assert (first["scores"], first["order"], first["expected"]) == ([4, None, 9], [0, 2], [4.5, None, 8.5])
    assert (second["scores"], second["order"]) == ([None, 7, None], [1])
    assert (seen["group_size"], seen["sampling"].samples, seen["voting"].method) == (2, 3, "soft")


def test_bad_rows_become_error_rows(tmp_path, model, capsys):
    rows = [*numbered(2), b"oops", {"id": "long", "query": "x" * 600, "responses": ["a", "b"]}]
    assert run(tmp_path, rows, *model) == 3
    errors = {row["id"]: row["error"] for row in read_rows(tmp_path / "out.jsonl") if row["status"] == "error"}
    assert errors[None]["line"] == 3 and errors["long"]["type"] == "CapacityError" and len(errors) == 2
    assert "2 ranked" in capsys.readouterr().err


def test_a_file_is_continued_with_the_same_settings_only(tmp_path, model, capsys):
    assert run(tmp_path, numbered(5), *model, "--group-size", 1, name="whole.jsonl") == 0
    assert run(tmp_path, numbered(2), *model, "--group-size", 1) == 0
    assert run(tmp_path, numbered(5), *model, "--group-size", 1) == 2
    assert run(tmp_path, numbered(5), *model, "--group-size", 2, "--resume") == 2
    assert "grouping" in capsys.readouterr().err
    assert run(tmp_path, numbered(5), *model, "--group-size", 1, "--resume") == 0
    assert essence(tmp_path / "out.jsonl") == essence(tmp_path / "whole.jsonl")
    assert spct("score", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", *model, "--resume") == 2


def test_a_dry_run_counts_what_a_ranking_uses_and_ranks_nothing(tmp_path, model, tiny_folder, capsys):
    rows = [
        *numbered(2),
        b"oops",
        {"query": "x" * 600, "responses": ["a"]},
        {"query": "q", "responses": ["a", "b", "c", "d", "e"], "samples": 4},
        # Too long together: the group is halved, as a ranking does.
        {"query": "q", "responses": ["a" * 260, "b" * 260]},
    ]
    source = write_rows(tmp_path / "in.jsonl", rows)
    assert spct("rank", source, "-o", tmp_path / "out.jsonl", *model, "--group-size", 2, "--dry-run") == 3
    assert not (tmp_path / "out.jsonl").exists()
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["line"] for row in lines if row["error"]] == [3, 4]
    with Engine.from_pretrained(tiny_folder) as engine:
        for row, request in zip(lines, rows, strict=True):
            if row["error"] is None:
                sampling = SamplingParams(samples=request.get("samples", 3), max_tokens=6)
                found = engine.rank(request["query"], request["responses"], group_size=2, sampling=sampling)
                assert row["samples"] == len(found.samples) and row["groups"] == len(found.parts)
                assert row["prompt_tokens"] == found.usage.prompt_tokens
                assert row["generated_tokens"] >= found.usage.generated_tokens
    assert [row["groups"] for row in lines if row["error"] is None] == [1, 1, 6, 2]
    totals = last["totals"]
    assert (totals["requests"], totals["error_rows"]) == (4, 2)
    assert totals["samples"] == sum(row["samples"] for row in lines if row["error"] is None)
    # What all groups begin with is counted once.
    five = lines[4]
    assert five["prefilled_tokens"] < five["orders"] * five["prompt_tokens"]


def test_a_dry_run_refuses_a_row_that_a_ranking_refuses(tmp_path, model, capsys):
    source = write_rows(tmp_path / "in.jsonl", [{"query": "q", "responses": ["a", "b", "c"]}])
    words = ("rank", source, *model, "--group-size", 2, "--vote", "majority")
    assert spct(*words, "--dry-run") == 3
    dry = json.loads(capsys.readouterr().out.splitlines()[0])["error"]
    assert spct(*words, "-o", tmp_path / "out.jsonl") == 3
    (row,) = read_rows(tmp_path / "out.jsonl")
    assert row["error"]["type"] == dry["type"] == "ConfigError" and row["error"]["message"] == dry["message"]
    assert spct("rank", source, *model, "--group-size", 0, "--dry-run") == 2
    assert "group_size" in capsys.readouterr().err


def ranking(groups, rewards):
    votes = tuple(int(reward is not None) for reward in rewards)
    best = groups[0][0] if groups and len(groups[0]) == 1 else None
    return Ranking(groups, rewards, best, votes, tuple(None if r is None else 0.0 for r in rewards), usage=Usage(40, 44, 33))


@pytest.mark.parametrize(
    ("outcome", "parts"),
    [
        (ranking(((1,), (0,), (2,)), (4.0, 9.0, 1.0)), ("best: 1\n", "44 prefilled, 33 written")),
        (ranking(((0, 2), (1,)), (9.0, 2.0, 9.0)), ("no single best: responses 0, 2 tie\n", "=1", "3")),
        (ranking(((1,),), (None, 6.5, None)), ("best: 1; without a valid vote: 0, 2",)),
        (ranking((), (None, None, None)), ("no best: no sample gave a valid vote",)),
    ],
)
def test_a_person_reads_places_ties_and_what_has_no_vote(model, capsys, monkeypatch, outcome, parts):
    asked = {}

    def rank(self, request, **params):
        asked.update(params, request=request)
        return outcome

    monkeypatch.setattr(Engine, "rank", rank)
    assert spct("rank", *ASK, "--reference", "4", "--principles", "be right", *model) == 0
    assert (asked["request"].reference, asked["request"].principles, asked["sampling"].samples) == ("4", "be right", 3)
    printed = capsys.readouterr().out
    for part in parts:
        assert part in printed
    lines = [line.split() for line in printed.splitlines()[1:4]]
    expected = [i for group in outcome.ranking for i in group]
    assert [int(line[1]) for line in lines][: len(expected)] == expected


def test_the_json_of_one_question_is_the_row_of_a_file(tmp_path, model, capsysbinary):
    assert spct("rank", *ASK, *model, "--json") == 0
    row = json.loads(capsysbinary.readouterr().out)
    assert run(tmp_path, [{"query": "2+2?", "responses": ["4", "five", "four"]}], *model, "--include", "text") == 0
    (filed,) = read_rows(tmp_path / "out.jsonl")
    del row["timings"], filed["timings"]
    assert row == filed and len(row["samples"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "neither"),
        (("in.jsonl", *ASK), "both"),
        (("--query", "q"), "--response"),
        ((*ASK, "--group-size", "0"), "group_size"),
        ((*ASK, "--samples", "0"), "samples"),
        (("missing.jsonl",), "missing.jsonl"),
        (("-", "--resume", "--overwrite"), "--overwrite"),
        ((*ASK, "-o", "out.jsonl"), "--output: goes with INPUT.jsonl"),
        ((*ASK, "--retry-errors"), "--retry-errors: goes with INPUT.jsonl"),
        ((*ASK, "--dry-run"), "--dry-run: goes with INPUT.jsonl"),
        (("in.jsonl", "--json"), "--json: goes with --query"),
        (("in.jsonl", "--reference", "r"), "--reference: goes with --query"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(words, message, tiny_folder, capsys):
    assert spct("rank", *words, "--model", tiny_folder) == 2
    assert message in capsys.readouterr().err
