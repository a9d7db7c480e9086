"""`spct eval` of a baseline: a run that was cut goes on to the same figures, another run is refused, and the figures are drawn."""

import json
import signal
import time

import pytest
import torch
from command_line import read_rows, spct, start, write_rows
from tiny_judge import small, write_base

from spct.baselines.critiques import CritiqueStore
from spct.baselines.training import train
from spct.baselines.value_model import ValueModel
from spct.cli.exit_codes import EXIT_INTERRUPTED
from spct.cli.store import OutputStore

FORMS = ("scalar", "pairwise", "semi-scalar", "judge", "no-principles")
QUESTIONS = [{"query": f"q{i}", "responses": ["a" * (1 + i), "b", "c"][: 2 + i % 2], "best": i % 2} for i in range(7)]
# The same question again, one that no form can read, and one with nothing to compare.
ROWS = [*QUESTIONS[:3], {"query": "x" * 9000, "responses": ["a", "b"], "best": 0}, QUESTIONS[1],
        {"query": "s", "responses": ["a"], "best": 0}, *QUESTIONS[3:]]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def threads_of_the_program():
    """As many here as in a program that is started: they are part of a run's numerics."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_picture(wholes, monkeypatch):
    """Pictures take longer than all else here; `wholes` draws those that are looked at."""
    monkeypatch.setattr("spct.cli.evaluate.draw_plot", lambda report, target: True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "judge")


@pytest.fixture(scope="module")
def models(base, tmp_path_factory):
    """A folder of each form, trained when it is asked for."""
    folder, done = tmp_path_factory.mktemp("models"), set()

    def trained(form, lr=1e-2):
        out = folder / f"{form}-{lr}"
        if out not in done:
            train(small(out, form, base, steps=1, lr=lr))
            done.add(out)
        return out

    return trained


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", ROWS)


@pytest.fixture(scope="module")
def wholes(models, data, tmp_path_factory):
    """The run of each form that nothing cut."""
    found = {form: tmp_path_factory.mktemp("whole") for form in FORMS}
    assert [evaluate(models(form), data, out) for form, out in found.items()] == [0] * len(FORMS)
    return found


def evaluate(model, data, out, *flags):
    # A judge without principles is an ordinary judge, whose votes are counted.
    votes = ("--samples", 1) if model.name.startswith("no-principles") else ()
    return spct("eval", data, "--model", model, "-o", out, "--max-tokens", 6, *votes, *flags)


def report_of(out):
    """What must be equal in two runs: all but the time."""
    report = json.loads((out / "accuracy.json").read_text())
    for section in (report, *report["subsets"].values()):
        section.pop("seconds", None)
    return report


def samples_of(out):
    rows = [{k: v for k, v in row.items() if k not in ("usage", "timings", "seconds")} for row in read_rows(out / "samples.jsonl")]
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def assert_alike(out, whole):
    assert samples_of(out) == samples_of(whole) and report_of(out) == report_of(whole)


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_run_is_resumed_to_the_same_report(form, models, data, wholes, tmp_path):
    whole = wholes[form]
    lines = (whole / "samples.jsonl").read_bytes().splitlines(keepends=True)
    passes = {row["pass"] for row in read_rows(whole / "samples.jsonl")}
    written = {"semi-scalar": {"critiques", "values"}, "judge": {"greedy"}, "no-principles": {"sampled", "greedy"}}
    assert passes == written.get(form, {"values"})
    # In the middle of what was drawn, and of a line; of critiques the first time.
    for kept in (3, len(lines) - 2):
        out = tmp_path / str(kept)
        out.mkdir()
        (out / "samples.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:30])
        assert evaluate(models(form), data, out) == 2, "what is there is not overwritten unasked"
        assert evaluate(models(form), data, out, "--resume") == 0
        stand = [line for line in lines[:kept] if b'"status":"error"' not in line]
        assert (out / "samples.jsonl").read_bytes().startswith(b"".join(stand))
        assert_alike(out, whole)


@pytest.mark.parametrize("form", FORMS)
def test_figures_are_written_and_drawn(form, wholes):
    report = report_of(wholes[form])
    assert report["items"] == len(ROWS) and report["refused"] == 1 and 0 <= report["greedy"] <= 1
    assert report["valid_rate"] == {"scalar": 0.9, "semi-scalar": 0.9, "pairwise": 0.8}.get(form, 0.0)
    picture = (wholes[form] / "accuracy.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000


def test_a_killed_run_is_resumed_to_the_same_report(models, tmp_path):
    form = "semi-scalar"
    data = write_rows(tmp_path / "rows.jsonl", [{"query": f"q{i}", "responses": ["a", "b" * i], "best": i % 2} for i in range(30)])
    assert evaluate(models(form), data, tmp_path / "whole") == 0
    out = tmp_path / "out"
    words = ("eval", data, "--model", models(form), "-o", out, "--max-tokens", 6)
    process = start(*words, variables={"SPCT_MAX_BATCH": "1"})
    file, deadline = out / "samples.jsonl", time.monotonic() + 120
    while not (file.exists() and file.read_bytes().count(b"\n") > 2) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 < file.read_bytes().count(b"\n") < len(read_rows(tmp_path / "whole" / "samples.jsonl")), "the kill came too early or too late"
    assert not (out / "accuracy.json").exists()
    assert evaluate(models(form), data, out, "--resume") == 0
    assert_alike(out, tmp_path / "whole")


def test_ctrl_c_keeps_what_was_judged(models, data, wholes, tmp_path, monkeypatch, capsys):
    values, judged = ValueModel.values, []

    def cut(self, examples):
        judged.append(examples)
        if len(judged) == 3:
            raise KeyboardInterrupt
        return values(self, examples)

    with monkeypatch.context() as patch:
        patch.setattr(ValueModel, "values", cut)
        assert evaluate(models("scalar"), data, tmp_path) == EXIT_INTERRUPTED
    assert "interrupted; 2 items drawn, 0 were there" in capsys.readouterr().err
    assert len(read_rows(tmp_path / "samples.jsonl")) == 2 and not (tmp_path / "accuracy.json").exists()
    judged.clear()
    monkeypatch.setattr(ValueModel, "values", lambda self, examples: judged.append(examples) or values(self, examples))
    assert evaluate(models("scalar"), data, tmp_path, "--resume") == 0
    assert len(judged) == len(ROWS) - 3, "neither the two that were there nor the one that is too long"
    assert_alike(tmp_path, wholes["scalar"])


def test_critiques_that_were_written_are_not_written_again(models, data, wholes, tmp_path, monkeypatch):
    whole = wholes["semi-scalar"]
    lines = (whole / "samples.jsonl").read_bytes().splitlines(keepends=True)
    critiques = [line for line in lines if b'"pass":"critiques"' in line]
    (tmp_path / "samples.jsonl").write_bytes(b"".join(critiques[:-1]))
    kept = []

    def noted(self, one, critique, num_tokens):
        kept.append(one.responses)
        add(self, one, critique, num_tokens)

    class Counted(OutputStore):
        written = 0

        def append(self, row):
            type(self).written += b'"pass":"critiques"' in row
            super().append(row)

    add = CritiqueStore.add
    monkeypatch.setattr(CritiqueStore, "add", noted)
    monkeypatch.setattr("spct.cli.eval_baseline.OutputStore", Counted)
    assert evaluate(models("semi-scalar"), data, tmp_path, "--resume") == 0
    # Equal responses to equal questions have one critique; the question that is too long has none.
    assert len(critiques) == len(kept) == sum(len(row["responses"]) for row in (*QUESTIONS, {"responses": "s"})) and Counted.written == 1
    assert_alike(tmp_path, whole)


@pytest.mark.parametrize(
    ("form", "flags", "parts"),
    [
        ("semi-scalar", ("--max-tokens", 7), "sampling"),
        ("judge", ("--max-tokens", 7), "sampling"),
        ("no-principles", ("--max-tokens", 7), "greedy, sampling"),
        ("scalar", ("--model", 1e-3), "weights"),
        ("semi-scalar", ("--model", 1e-3), "weights"),
        ("judge", ("--model", 1e-3), "weights"),
        ("pairwise", ("--model", "scalar"), "form, weights"),
    ],
)
def test_another_run_is_not_continued(form, flags, parts, models, data, wholes, tmp_path, capsys):
    content = (wholes[form] / "samples.jsonl").read_bytes()
    (tmp_path / "samples.jsonl").write_bytes(content)
    name, value = flags
    model = models(form) if name != "--model" else models(value) if isinstance(value, str) else models(form, value)
    assert evaluate(model, data, tmp_path, "--resume", *(() if name == "--model" else flags)) == 2
    assert f"other settings: {parts}; resume with the same ones" in capsys.readouterr().err
    assert (tmp_path / "samples.jsonl").read_bytes() == content and not (tmp_path / "accuracy.json").exists()


@pytest.mark.parametrize("form", ["pairwise", "semi-scalar", "no-principles"])
def test_another_file_is_not_continued_and_a_longer_one_is(form, models, wholes, tmp_path, capsys):
    content = (wholes[form] / "samples.jsonl").read_bytes()
    (tmp_path / "samples.jsonl").write_bytes(content)
    other = write_rows(tmp_path / "other.jsonl", [{"query": "new", "responses": ["yes", "no"], "best": 0}])
    assert evaluate(models(form), other, tmp_path, "--resume") == 2
    assert "none of them of an item that is asked for; resume with the same data" in capsys.readouterr().err
    assert (tmp_path / "samples.jsonl").read_bytes() == content
    longer = write_rows(tmp_path / "longer.jsonl", [ROWS[0], {"query": "new", "responses": ["yes", "no"], "best": 0}])
    assert evaluate(models(form), longer, tmp_path, "--resume") == 0
    assert report_of(tmp_path)["items"] == 2
    assert evaluate(models(form), other, tmp_path, "--overwrite") == 0
    assert report_of(tmp_path)["items"] == 1


def test_a_judge_and_a_baseline_do_not_continue_each_other(models, data, wholes, tmp_path, capsys):
    for model, other in (("judge", "no-principles"), ("no-principles", "judge")):
        (tmp_path / "samples.jsonl").write_bytes((wholes[other] / "samples.jsonl").read_bytes())
        assert evaluate(models(model), data, tmp_path, "--resume") == 2
        assert "comes from a run with other settings: form, greedy" in capsys.readouterr().err


def test_a_longer_run_ends_with_the_figures_of_one(models, data, tmp_path):
    """Values don't depend on what else is judged: a run begun with fewer items ends as one that had them all."""
    assert evaluate(models("pairwise"), data, tmp_path / "whole") == 0
    assert evaluate(models("pairwise"), data, tmp_path / "parts", "--limit", 2) == 0
    assert evaluate(models("pairwise"), data, tmp_path / "parts", "--resume") == 0
    assert_alike(tmp_path / "parts", tmp_path / "whole")


def test_nothing_that_fits_is_a_failure(models, tmp_path, capsys):
    data = write_rows(tmp_path / "long.jsonl", [ROWS[3]])
    assert evaluate(models("scalar"), data, tmp_path / "out") == 1
    assert "none of the 1 items could be judged" in capsys.readouterr().err
