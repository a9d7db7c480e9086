"""`spct compare`: matching of two files, what is refused, what is written, and a run that goes on where it was cut."""

import json
from types import SimpleNamespace

import pytest
from command_line import essence, read_rows, spct, write_rows
from scripted_engine import ScriptedEngine

from spct.cli import compare as compare_module


class Judge(ScriptedEngine):
    """Reads scores out of the responses; every second sample shows the second response first."""

    def score_batch(self, requests, **params):
        for judgement in super().score_batch(requests, **params):
            for i, sample in enumerate(judgement.samples):
                object.__setattr__(sample, "order", (0, 1) if i % 2 == 0 else (1, 0))
            yield judgement

    def fingerprints(self, sampling, voting):
        return {"sampling": str(sampling), "voting": str(voting)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def judge(monkeypatch):
    engine = Judge(context=100)
    monkeypatch.setattr(compare_module, "Engine", SimpleNamespace(from_pretrained=lambda *_, **__: engine))
    return engine


def files(tmp_path, first, second):
    return write_rows(tmp_path / "a.jsonl", first), write_rows(tmp_path / "b.jsonl", second)


def rows(*responses, start=0):
    return [{"id": i, "query": f"question {i}", "response": response} for i, response in enumerate(responses, start)]


def compare(tmp_path, first, second, *words):
    return spct("compare", *files(tmp_path, first, second), "--samples", 4, *words)


def test_a_report_and_a_row_per_prompt(tmp_path, judge, capsys):
    first, second = rows("long_text 9", "b 2", "c 5", "same 4"), rows("a 3", "b 8", "cc 5", "same 4")
    assert compare(tmp_path, first, second, "-o", tmp_path / "out", "--seed", 3) == 0
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (report["wins"], report["losses"], report["ties"], report["identical"]) == (1, 1, 2, 1)
    assert report["win_rate"][0] == 0.5 and report["matched_by"] == "id" and report["unmatched"] == []
    assert report["first"] == "a.jsonl" and report["settings"] == {"model": "embedded", "samples": 4, "seed": 3}
    assert report["position"] == {"prompts": 3, "agreement": [1.0, 1.0, 1.0], "first_shown": [0.5, 0.5, 0.5]}
    assert report["length"]["longer_wins"][0] == 1.0 and report["length"]["prompts"] == 1
    judged = {row["id"]: row for row in read_rows(tmp_path / "out" / "judgements.jsonl")}
    assert sorted(judged) == [0, 1, 2] and judged[0]["rewards"] == [36.0, 12.0] and len(judged[0]["samples"]) == 4
    assert all(len(request.responses) == 2 for request in judge.asked)
    printed = capsys.readouterr().out
    assert "a.jsonl wins" in printed and "4 prompts" in printed


def test_without_a_folder_the_report_is_printed(tmp_path, judge, capsys):
    assert compare(tmp_path, rows("a 9"), rows("b 3"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["wins"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_rows_are_matched_whatever_their_order_and_by_query_without_ids(tmp_path, judge, capsys):
    first, second = rows("a 9", "b 9", "c 1"), rows("x 1", "y 1", "z 9")
    assert compare(tmp_path, first, second[::-1], "--json") == 0
    assert json.loads(capsys.readouterr().out)["wins"] == 2
    bare = [{name: value for name, value in row.items() if name != "id"} for row in second[::-1]]
    bare[0] = {"query": bare[0]["query"], "responses": [bare[0]["response"]]}
    assert compare(tmp_path, first, bare, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["wins"] == 2 and report["matched_by"] == "query"


def test_rows_without_a_partner_are_told_and_no_success(tmp_path, judge, capsys):
    assert compare(tmp_path, rows("a 9", "b 9"), rows("x 1", "y 1", start=1), "--json") == 3
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["prompts"] == 1
    assert report["unmatched"] == [{"file": "a.jsonl", "line": 1, "id": 0}, {"file": "b.jsonl", "line": 2, "id": 2}]
    assert "2 rows have no partner" in printed.err and "a.jsonl, line 1" in printed.err


def test_a_pair_that_can_not_be_judged_is_an_error_row_and_counted(tmp_path, judge):
    out = tmp_path / "out"
    assert compare(tmp_path, rows("a 9", "x" * 200), rows("b 1", "y 2"), "-o", out) == 3
    report = json.loads((out / "compare.json").read_text())
    assert (report["errors"], report["no_vote"], report["wins"], report["prompts"]) == (1, 1, 1, 2)
    assert [row["status"] for row in read_rows(out / "judgements.jsonl")].count("error") == 1


def test_all_texts_equal_needs_no_judge(tmp_path, judge, capsys):
    assert compare(tmp_path, rows("a 9", "b"), rows("a 9", "b"), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ties"], report["identical"], report["wins"]) == (2, 2, 0) and not judge.asked


@pytest.mark.parametrize(
    ("first", "second", "words", "message"),
    [
        (rows("a") + rows("b"), rows("c"), (), "a.jsonl, lines 1 and 2: expected every prompt once, got the same id 0"),
        (rows("a"), [{"query": "q", "response": "x"}, {"query": "q", "response": "y"}], (), "b.jsonl, lines 1 and 2"),
        (rows("a"), [{"id": 0, "query": "another", "response": "x"}], (), "query: expected the same in both rows"),
        (rows("a"), [{**rows("a")[0], "reference": "r"}], (), "reference: expected the same"),
        (rows("a"), rows("b", start=5), (), "none in common"),
        (rows("a"), [b"{oops"], (), "b.jsonl, line 1: malformed JSON"),
        (rows("a"), [b""], (), "empty"),
        (rows("a"), [{"query": "q", "responses": ["x", "y"]}], (), "one response per row, got 2"),
        (rows("a"), [{"query": "q", "response": "x", "responses": ["x"]}], (), "got both"),
        (rows("a"), [{"query": "q"}], (), "responses: the field is missing"),
        (rows("a"), [{"query": "q", "response": 3}], (), "expected a string"),
        (rows("a"), [{"query": "q", "response": "x", "model": "m"}], (), "unknown field"),
        (rows("a"), [{"query": "q", "response": "x", "samples": 3}], (), "samples: expected as a flag"),
        (rows("a"), rows("b"), ("--samples", 3), "even number"),
        (rows("a"), rows("b"), ("--orders", "given"), "both orders"),
        (rows("a"), rows("b"), ("--resume",), "-o"),
    ],
)
def test_what_makes_no_sense_is_refused_by_file_and_line(tmp_path, judge, capsys, first, second, words, message):
    assert compare(tmp_path, first, second, *words) == 2
    assert message in capsys.readouterr().err
    assert not judge.asked


def test_a_run_that_was_cut_goes_on(tmp_path, tiny_folder, capsys):
    """With a real engine: the rows of a run that is resumed are those of one that was not cut."""
    model = ("--model", tiny_folder, "--max-tokens", 6)
    first, second = rows(*(f"a{i}" for i in range(5))), rows(*(f"b{i}" for i in range(5)))
    assert compare(tmp_path, first, second, *model, "-o", tmp_path / "whole") == 0
    part = tmp_path / "part"
    part.mkdir()
    kept = (tmp_path / "whole" / "judgements.jsonl").read_bytes().splitlines(keepends=True)[:2]
    (part / "judgements.jsonl").write_bytes(b"".join(kept) + b'{"torn')
    assert compare(tmp_path, first, second, *model, "-o", part) == 2
    assert compare(tmp_path, first, second, *model, "-o", part, "--temperature", 0.5, "--resume") == 2
    assert "sampling" in capsys.readouterr().err
    assert compare(tmp_path, first, second, *model, "-o", part, "--resume") == 0
    assert "2 already there" in capsys.readouterr().err
    assert essence(part / "judgements.jsonl") == essence(tmp_path / "whole" / "judgements.jsonl")
    assert (part / "compare.json").read_text() == (tmp_path / "whole" / "compare.json").read_text()
    samples = [sample for row in read_rows(part / "judgements.jsonl") for sample in row["samples"]]
    assert [sample["order"] for sample in samples].count([0, 1]) == len(samples) / 2
