"""`spct eval` on files of benchmarks: from rows to the report, with items that are too long, and what is refused."""

import json

import pytest
from command_line import read_rows, spct
from tiny_model import write_tiny_model

FLAGS = ("--samples", "1,2", "--max-tokens", "4", "--kv-memory", "16MiB")
QUESTION = {"input": "Name a colour.", "output_1": "red", "output_2": "seven", "label": 1}
TOO_LONG = {**QUESTION, "output_2": "no " * 4000}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random judge: it writes no scores, so that every sample is invalid."""
    return write_tiny_model(tmp_path_factory.mktemp("benchmarks") / "judge", meta_head=True, context=4096)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(model, out, *words):
    return spct("eval", *words, "--model", model, "-o", out, *FLAGS)


def test_files_of_two_benchmarks_with_an_item_that_is_too_long(model, tmp_path, capsys):
    natural = write(tmp_path / "natural.json", [QUESTION, TOO_LONG])
    mistakes = [{"input": "Q", "llm_response": text, "label": label} for text, label in (("a", "error"), ("b", "no_error"))]
    out = tmp_path / "out"
    assert evaluate(model, out, natural, write(tmp_path / "mistakes.jsonl", mistakes)) == 0
    printed = capsys.readouterr()
    assert "1 of 4 items were not judged and count as without a vote; the first: " in printed.err
    assert "llmbar, its own metrics in %" in printed.out and "spread of accuracy between subsets" in printed.out
    report = json.loads((out / "accuracy.json").read_text())
    assert report["items"] == 4 and report["refused"] == 1 and report["voting"] == {"1": 0.0, "2": 0.0}
    assert set(report["subsets"]) == {"llmbar/natural", "realmistake/mistakes"}
    assert report["settings"]["data"] == "natural.json mistakes.jsonl" and str(tmp_path) not in json.dumps(report)
    llmbar = report["benchmarks"]["llmbar"]
    assert llmbar["abstained"] == {"1": 1.0, "2": 1.0} and llmbar["tied"] == {"1": 0.0, "2": 0.0}
    # The item that was not judged counts in both orders.
    assert llmbar["metrics"]["both_orders"] == {"2": 0.0} and llmbar["metrics"]["natural"]["2"] == 0.0
    assert report["benchmarks"]["realmistake"]["metrics"] == {"roc_auc_strict": {"1": 0.0, "2": 0.0}}, "no score, no curve"
    assert sorted(row["status"] for row in read_rows(out / "samples.jsonl")) == ["error"] * 2 + ["ok"] * 6


def test_a_run_is_resumed_and_what_did_not_fit_is_asked_again(model, tmp_path):
    data = write(tmp_path / "natural.json", [QUESTION, TOO_LONG])
    assert evaluate(model, tmp_path / "out", data, "--no-greedy") == 0
    first = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert evaluate(model, tmp_path / "out", data, "--no-greedy", "--resume") == 0
    assert sorted(row["status"] for row in read_rows(tmp_path / "out" / "samples.jsonl")) == ["error", "ok"]
    second = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert second["benchmarks"] == first["benchmarks"] and second["refused"] == 1


def test_another_file_is_not_continued(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(model, out, write(tmp_path / "natural.json", [QUESTION]), "--no-greedy") == 0
    content = (out / "samples.jsonl").read_bytes()
    other = write(tmp_path / "other.json", [{**QUESTION, "input": "Name another."}])
    assert evaluate(model, out, other, "--no-greedy", "--resume") == 2
    assert "holds 1 rows, none of them of an item that is asked for; resume with the same data" in capsys.readouterr().err
    assert (out / "samples.jsonl").read_bytes() == content
    both = write(tmp_path / "both.json", [QUESTION, {**QUESTION, "input": "Name another."}])
    assert evaluate(model, out, both, "--no-greedy", "--resume") == 0
    assert (out / "samples.jsonl").read_bytes().startswith(content) and len(read_rows(out / "samples.jsonl")) == 2


def test_nothing_that_fits_is_a_failure(model, tmp_path, capsys):
    assert evaluate(model, tmp_path / "out", write(tmp_path / "long.json", [TOO_LONG])) == 1
    assert "none of the 1 items could be judged" in capsys.readouterr().err


def test_a_dry_run_checks_every_row(tmp_path, capsys):
    data = write(tmp_path / "natural.json", [QUESTION] * 5)
    assert spct("eval", data, "--dry-run", "--limit", "3", "-o", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "accuracy.json").read_text()) == {"items": 3, "subsets": {"natural": {"items": 3}}}
    write(data, [QUESTION, {**QUESTION, "label": 3}])
    assert spct("eval", data, "--dry-run", "--limit", "1") == 2
    assert "natural.json, line 2, label: expected 1 or 2, got 3" in capsys.readouterr().err


def test_responses_of_a_benchmark_can_be_permuted(model, tmp_path):
    rows = [{**QUESTION, "input": f"Question {i}", "output_2": f"wrong {i}"} for i in range(3)]
    data = write(tmp_path / "natural.json", rows)
    keys = []
    for flags in ((), ("--permute",)):
        out = tmp_path / f"out{len(flags)}"
        assert evaluate(model, out, data, "--no-greedy", *flags) == 0
        keys.append({row["key"] for row in read_rows(out / "samples.jsonl")})
    assert len(keys[0]) == len(keys[1]) == 3 and not keys[0] & keys[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("embedded-test", "--format", "llmbar"), "--format: embedded-test is no file"),
        (("embedded-test", "natural.json"), "embedded-test stands alone"),
        (("natural.json", "--data-seed", "3"), "--data-seed: draws a split of embedded-test"),
        (("natural.json", "--format", "csv"), "--format: expected auto or one of"),
        (("natural.json", "--limit", "0"), "limit: expected at least 1"),
        (("natural.json", "--format", "judgebench"), "natural.json, line 1, question: the field is missing"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message, tmp_path, monkeypatch, capsys):
    write(tmp_path / "natural.json", [QUESTION])
    monkeypatch.chdir(tmp_path)
    assert spct("eval", *words) == 2
    assert message in capsys.readouterr().err
