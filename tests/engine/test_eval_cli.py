"""`spct eval` from the outside: what it writes, that a kill loses nothing, and what it refuses."""

import json
import signal
import time

import pytest
import torch
from command_line import read_rows, spct, start
from tiny_model import write_tiny_model

from spct.evaluation import embedded_test

FLAGS = ("--samples", "1,2", "--max-tokens", "12", "--limit", "6", "--kv-memory", "16MiB")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random judge with a meta head and room for whole items in bytes. It writes no scores: every sample is invalid."""
    return write_tiny_model(tmp_path_factory.mktemp("eval") / "judge", meta_head=True, context=8192)


def evaluate(model, out, *flags):
    return spct("eval", "embedded-test", "--model", model, "-o", out, *FLAGS, *flags)


def report_of(out):
    """What must be equal in two runs: all but the time."""
    report = json.loads((out / "accuracy.json").read_text())
    for section in (report, *report["subsets"].values()):
        assert section.pop("seconds")["1"] > 0
    return report


def samples_of(out):
    rows = [{k: v for k, v in row.items() if k not in ("usage", "timings", "seconds")} for row in read_rows(out / "samples.jsonl")]
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


@pytest.fixture(scope="module", autouse=True)
def threads_of_the_program():
    """As many here as in a program that is started: they are part of a run's numerics."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert evaluate(model, out) == 0
    return out


def test_what_is_written(whole):
    report = report_of(whole)
    rows = read_rows(whole / "samples.jsonl")
    items = embedded_test.load(6)
    assert len(rows) == 12 and {row["pass"] for row in rows} == {"sampled", "greedy"}
    assert all(len(row["samples"]) == 2 for row in rows if row["pass"] == "sampled")
    assert sorted(len(row["samples"]) for row in rows if row["pass"] == "greedy") == sorted(len(item.responses) for item in items)
    assert report["items"] == 6 and report["valid_rate"] == 0.0 and report["voting"] == {"1": 0.0, "2": 0.0}
    assert report["greedy"] == 0.0 and report["meta"]["2"] == 0.0
    tokens = [s["num_tokens"] for row in rows if row["pass"] == "sampled" for s in row["samples"]]
    assert report["tokens"]["2"] == pytest.approx(2 * sum(tokens) / len(tokens), abs=0.01)
    assert report["settings"]["model"] == "judge" and str(whole.parent) not in json.dumps(report)


def test_each_greedy_sample_of_an_item_shows_another_order(whole):
    for row in read_rows(whole / "samples.jsonl"):
        orders = [tuple(sample["order"]) for sample in row["samples"]]
        if row["pass"] == "greedy":
            assert len(set(orders)) == len(orders)


def test_a_torn_file_is_resumed_to_the_same_report(model, whole, tmp_path):
    lines = (whole / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])
    assert evaluate(model, tmp_path) == 2, "what is there is not overwritten unasked"
    assert evaluate(model, tmp_path, "--resume") == 0
    assert samples_of(tmp_path) == samples_of(whole)
    assert report_of(tmp_path) == report_of(whole)


def test_a_killed_run_is_resumed_to_the_same_report(model, whole, tmp_path):
    words = ("eval", "embedded-test", "--model", model, "-o", tmp_path, *FLAGS)
    process = start(*words, variables={"SPCT_MAX_BATCH": "1"})
    file = tmp_path / "samples.jsonl"
    deadline = time.monotonic() + 120
    while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert file.read_bytes() and not (tmp_path / "accuracy.json").exists(), "the kill came too early or too late"
    assert evaluate(model, tmp_path, "--resume") == 0
    assert samples_of(tmp_path) == samples_of(whole) and report_of(tmp_path) == report_of(whole)


def test_a_whole_run_is_resumed_without_a_new_sample(model, whole, tmp_path):
    (tmp_path / "samples.jsonl").write_bytes((whole / "samples.jsonl").read_bytes())
    assert evaluate(model, tmp_path, "--resume") == 0
    assert (tmp_path / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert report_of(tmp_path) == report_of(whole)


def test_another_run_is_not_continued(model, whole, tmp_path, capsys):
    content = (whole / "samples.jsonl").read_bytes()
    (tmp_path / "samples.jsonl").write_bytes(content)
    assert evaluate(model, tmp_path, "--resume", "--seed", "5") == 2
    assert "other settings: greedy, sampling" in capsys.readouterr().err
    assert (tmp_path / "samples.jsonl").read_bytes() == content
    assert evaluate(model, tmp_path, "--overwrite", "--seed", "5", "--no-greedy") == 0
    rows = read_rows(tmp_path / "samples.jsonl")
    assert len(rows) == 6 and "greedy" not in json.loads((tmp_path / "accuracy.json").read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("other.jsonl",), "other.jsonl: can't be read: No such file"),
        (("embedded-test", "--samples", "0"), "--samples: expected numbers from 1"),
        (("embedded-test", "--resume"), "name it with -o"),
        (("embedded-test", "--resume", "--overwrite", "-o", "x"), "can't be used with --resume"),
        (("embedded-test", "--samples", "5000"), "--samples: expected at most max_samples=4096"),
        (("embedded-test", "--limit", "0", "--dry-run"), "limit: expected at least 1"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert spct("eval", *flags) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_dry_run_counts_without_a_model(tmp_path, capsys):
    assert spct("eval", "embedded-test", "--model", "nowhere", "--dry-run", "--limit", "10", "-o", tmp_path) == 0
    report = json.loads((tmp_path / "accuracy.json").read_text())
    assert report["items"] == 10 == sum(section["items"] for section in report["subsets"].values())
    assert all(list(section) == ["items"] for section in report["subsets"].values())
    assert "arithmetic" in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == ["accuracy.json"]


def test_against_an_earlier_run(model, whole, tmp_path, capsys):
    assert evaluate(model, tmp_path / "same", "--against", whole) == 0
    same = json.loads((tmp_path / "same" / "accuracy.json").read_text())["against"]
    assert (
        same["run"] == whole.name and same["voting"] == {"1": [0.0, 0.0, 0.0], "2": [0.0, 0.0, 0.0]} and same["greedy"] == [0.0, 0.0, 0.0]
    )
    assert f"greedy - {whole.name}" in capsys.readouterr().out
    assert evaluate(model, tmp_path / "other", "--against", whole, "--data-seed", "3") == 2
    assert f"expected samples of the same 6 items, {whole} lacks 6 of them" in capsys.readouterr().err
    assert evaluate(model, tmp_path / "more", "--against", whole, "--samples", "4") == 2
    assert "has 2 samples of every item" in capsys.readouterr().err
    assert evaluate(model, tmp_path / "none", "--against", tmp_path) == 2
    assert "holds no samples.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "other" / "samples.jsonl").exists()


def test_another_data_seed_draws_other_items_of_the_same_domains(tmp_path):
    first, second = embedded_test.load(20), embedded_test.load(20, 5)
    assert not {item.query for item in first} & {item.query for item in second}
    assert [item.domain for item in first] == [item.domain for item in second]


def test_domains_alone_and_only_of_the_own_split(model, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    assert spct("eval", "embedded-test", *FLAGS, "--domains", "table", "passage", "--dry-run", "-o", tmp_path) == 0
    assert {name: row["items"] for name, row in json.loads((tmp_path / "accuracy.json").read_text())["subsets"].items()} == {
        "table": 3,
        "passage": 3,
    }
    assert [item.domain for item in embedded_test.load(3, domains=("table", "passage"))] == ["table", "passage", "table"]
    assert spct("eval", rows, "--domains", "table") == 2
    assert "--domains: of the items of embedded-test" in capsys.readouterr().err
    assert spct("eval", "embedded-test", "--domains", "chess") == 2
    assert "expected one of arithmetic, table" in capsys.readouterr().err
