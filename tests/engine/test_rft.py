"""Rejective fine-tuning: what is kept is right and adds up, hints stay out of training, a killed run ends as an unbroken one."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from argparse import ArgumentParser
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from spct import Engine
from spct.cli.main import main as spct_main
from spct.errors import CheckpointError, ConfigError, SpctError
from spct.evaluation.accuracy import Truth, credit
from spct.prompting import JudgePrompt
from spct.training import flags
from spct.training.checkpoints import load_state
from spct.training.correctness import is_correct
from spct.training.labelled import GeneratedRequests, GivenRequests, LabelledRequest
from spct.training.rft import RftConfig, _Run, run, with_hint
from spct.training.rl import RlConfig
from spct.training.session import STATE_FILE
from spct.training.trajectories import Drawn, Trajectory, TrajectoryFile, outcome_of, statistics
from spct.types import Judgement, Sample, ScoreRequest

# Requests of a round: enough that a few get right and wrong samples from the shipped judge.
NUM = 12
SETTINGS = dict(
    rounds=2, requests=NUM, samples=3, hinted=True, epochs=1, prompts=2, workers=1, domains=("constraints", "table"), save_every=1e9,
    lr=3e-4, max_tokens=200,
)  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(RftConfig(output=folder, **SETTINGS))


def rows_of(folder):
    file = TrajectoryFile(folder / "trajectories.jsonl")
    file.close()
    return file.rows


def test_what_is_kept_is_right(unbroken):
    folder, _ = unbroken
    rows = rows_of(folder)
    assert sorted((row.round, row.index) for row in rows) == [(r, NUM * r + i) for r in range(2) for i in range(NUM)]
    stream = GeneratedRequests(1, SETTINGS["domains"])
    prompt = JudgePrompt(folder)
    kept = 0
    for row in rows:
        item = stream.draw(row.index)
        assert row.domain == item.domain and row.samples == 3 and row.correct + row.invalid <= 3
        assert row.outcome == outcome_of([True] * row.correct + [False] * (3 - row.correct))
        assert not row.kept or row.outcome != "all_correct"
        assert sum(not t.hinted for t in row.kept) == (row.correct if row.outcome == "mixed" else 0)
        for trajectory in row.kept:
            kept += 1
            assert credit(Truth("", len(trajectory.scores), item.best), trajectory.scores, 5.5, strict=True) == 1.0
            # The scores are those of its own text, mapped back from the order that it saw.
            shown = [int(s) for s in re.findall(r"\\boxed\{([^}]*)\}", prompt.decode(trajectory.token_ids))[-1].split(",")]
            assert shown == [trajectory.scores[i] for i in trajectory.order]
            assert trajectory.token_ids[-1] == prompt.eos_token_ids[0]
    assert kept >= 2


def test_statistics_add_up(unbroken):
    folder, result = unbroken
    report = json.loads((folder / "statistics.json").read_text())
    assert report == result.statistics == statistics(rows_of(folder)) and [row["round"] for row in report] == [0, 1]
    for row in report:
        for part in (row, *row["domains"].values()):
            assert part["requests"] == part["mixed"] + part["all_correct"] + part["none_correct"]
            assert part["samples"] == 3 * part["requests"] == part["correct"] + part["incorrect"] + part["invalid"]
            assert part["trained"] == part["kept"] + part["hinted_kept"] and part["hinted_kept"] <= part["hinted"] <= part["none_correct"]
        for name, value in row.items():
            if name not in ("round", "domains"):
                assert value == sum(domain[name] for domain in row["domains"].values())
        assert row["requests"] == NUM and set(row["domains"]) == {"constraints", "table"}


def test_a_round_trains_once_on_every_kept_trajectory(unbroken):
    folder, result = unbroken
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert result.finished and result.skipped == 0 and [row["step"] for row in metrics] == list(range(1, result.step + 1))
    for number in (0, 1):
        prompts = sum(len({t.order for t in row.kept}) for row in rows_of(folder) if row.round == number)
        assert sum(row["round"] == number for row in metrics) == -(-prompts // 2)
    assert all(row["loss"] > 0 and row["norm"] > 0 for row in metrics)
    before, after = load_file_of_the_embedded_model(), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys() and not all(torch.equal(before[n], after[n]) for n in before)
    with Engine.from_pretrained(folder) as engine:
        assert engine.score("q", ["a"]).samples


def load_file_of_the_embedded_model():
    import spct

    return load_file(os.path.join(os.path.dirname(spct.__file__), "embedded", "model.safetensors"))


KILLED = """
import os, signal
from pathlib import Path
from spct.training.rft import RftConfig, TrajectoryFile, run
append, count = TrajectoryFile.append, 0
def dying(self, row):
    global count
    count += 1
    if count == {killed_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, row)
TrajectoryFile.append = dying
run(RftConfig(output=Path({output!r}), **dict({settings!r}, save_every=0.0)))
"""


def assert_ends_alike(unbroken, output):
    """Resume the run in `output`; it must have drawn, logged and learned the same."""
    folder, result = unbroken
    resumed = run(RftConfig(output=output, **SETTINGS))
    assert resumed.finished and resumed.step == result.step and resumed.statistics == result.statistics
    drawn, metrics = [], []
    for place in (folder, output):
        drawn.append(sorted(rows_of(place), key=lambda row: row.index))
        metrics.append([json.loads(line)["loss"] for line in (place / "metrics.jsonl").read_text().splitlines()])
    assert drawn[0] == drawn[1] and metrics[0] == metrics[1]
    one, other = load_file(folder / "model.safetensors"), load_file(output / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_a_run_killed_while_it_samples_ends_bitwise_like_the_unbroken_one(unbroken, tmp_path):
    """In the second round, whose samples need the weights that the first has made."""
    program = KILLED.format(output=str(tmp_path), settings=SETTINGS, killed_at=NUM + 3)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert load_state(tmp_path / STATE_FILE)["round"] == 1 and len(rows_of(tmp_path)) == NUM + 2
    with (tmp_path / "trajectories.jsonl").open("a") as file:
        file.write('{"round": 1, "index"')  # what a kill in the middle of a write leaves
    assert_ends_alike(unbroken, tmp_path)


def test_a_run_ended_anywhere_else_ends_bitwise_like_the_unbroken_one(unbroken, tmp_path, monkeypatch):
    class PowerCutError(Exception):
        pass

    step, count = _Run.train_step, []

    def dying(self, *args):
        count.append(1)
        if len(count) == 2:
            raise PowerCutError
        return step(self, *args)

    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(_Run, "train_step", dying)
        run(RftConfig(output=tmp_path, **{**SETTINGS, "save_every": 0.0}))
    state = load_state(tmp_path / STATE_FILE)
    assert (state["round"], state["round_step"]) == (0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "is_over_time", lambda self: len(self.file.rows) >= NUM + 3)
        stopped = run(RftConfig(output=tmp_path, **SETTINGS))
    assert not stopped.finished and len(rows_of(tmp_path)) == NUM + 3
    assert_ends_alike(unbroken, tmp_path)


def sample(scores, order=(0, 1, 2), tokens=(5, 6, 0)):
    return Sample(
        scores, "ok" if scores else "parse_error", bool(scores), None, order, "", len(tokens), -0.1, tokens, (-0.1,) * len(tokens)
    )


class FakeSession:
    """Judges as planned: scores per request and sample; a hinted request always gets its best response right."""

    def __init__(self, plans, items):
        self.plans, self.requests, self.state = plans, GivenRequests(tuple(items), 0), None
        self.requests = SimpleNamespace(draw=lambda i: items[i])
        self.asked = []
        self.policy = self.learner = None
        self.engine = SimpleNamespace(prompt=SimpleNamespace(encode=lambda request, order: (request.query, *order)))

    def is_correct(self, item, scores):
        return is_correct(scores, item.best, 5.5)

    def judge(self, requests, sampling, voting):
        for i, item in requests:
            self.asked.append((i, item, sampling, voting))
            if "The best response is" in item.request.query:
                place = int(re.search(r"The best response is: Response (\d)$", item.request.query)[1])
                n = len(item.request.responses)
                samples = (sample(tuple(9 if p == place - 1 else 2 for p in range(n)), tuple(range(n)), (7, 8, 0)),)
            else:
                samples = tuple(sample(s, tokens=(10 + j, 0)) for j, s in enumerate(self.plans[i]))
            yield i, Judgement((), None, 0, (), samples, id=i)


def planned(tmp_path, **changes):
    right, wrong, tie, none = (1, 9, 3), (9, 1, 3), (9, 9, 3), None
    plans = [[right] * 4, [right, wrong, none, right], [wrong, tie, none, wrong], [none] * 4, [(3,), (3,), (2,), (5,)]]
    items = [LabelledRequest(ScoreRequest(f"q{i}", ("a", "b", "c")), 1, "ab"[i % 2]) for i in range(4)]
    items.append(LabelledRequest(ScoreRequest("q4", ("a",)), 0, "a"))
    session = FakeSession(plans, items)
    settings = {"requests": 5, "samples": 4, "hinted": True, "keep": 1, **changes}
    return session, _Run(session, RftConfig(output=tmp_path, **settings))


def test_rejection_by_the_rules(tmp_path):
    session, job = planned(tmp_path)
    rows = sorted(job.drawn(list(range(5))), key=lambda row: row.index)
    assert [row.outcome for row in rows] == ["all_correct", "mixed", "none_correct", "none_correct", "none_correct"]
    assert [(row.samples, row.correct, row.invalid, row.hinted) for row in rows] == [
        (4, 4, 0, 0), (4, 2, 1, 0), (4, 0, 1, 1), (4, 0, 4, 1), (4, 0, 0, 0),
    ]  # fmt: skip
    # At most one is kept, the first; too easy ones and a single response without a right sample leave nothing.
    assert [[(t.token_ids, t.hinted) for t in row.kept] for row in rows] == [
        [],
        [((10, 0), False)],
        [((7, 8, 0), True)],
        [((7, 8, 0), True)],
        [],
    ]
    # Hinted scores come back to the request's order.
    assert all(t.scores == (2, 9, 2) and t.scores[t.order[t.order.index(1)]] == 9 for row in rows[2:4] for t in row.kept)
    (total,) = statistics(rows)
    assert (total["kept"], total["hinted"], total["hinted_kept"], total["trained"], total["incorrect"]) == (1, 2, 2, 3, 20 - 6 - 6 + 1 - 1)
    # Hinted and plain samples never share noise; plain ones see several orders, hinted ones the one of their hint.
    plain, hinted = session.asked[0], session.asked[-1]
    assert plain[2].seed != hinted[2].seed and plain[2].samples == 4 and hinted[2].samples == 1
    assert plain[3].orders == "balanced" and hinted[3].orders == "given"


def test_hints_never_reach_what_is_trained_on(tmp_path):
    session, job = planned(tmp_path, keep=4)
    for row in job.drawn(list(range(5))):
        job.file.append(row)
    examples = job.examples()
    assert [e.prompt[0] for e in examples] == ["q1", "q2", "q3"]
    assert [e.samples for e in examples] == [((10, 0), (13, 0)), ((7, 8, 0),), ((7, 8, 0),)]
    assert sorted(examples[1].prompt[1:]) == [0, 1, 2]
    hinted = [item for _, item, _, _ in session.asked if "best response" in item.request.query]
    assert len(hinted) == 2 and all(item.request.responses[item.best] == "b" for item in hinted)
    assert all(item.request.query.endswith(f"The best response is: Response {item.best + 1}") for item in hinted)


def test_hints_are_asked_for(tmp_path):
    session, job = planned(tmp_path, hinted=False)
    rows = list(job.drawn(list(range(5))))
    assert not any(row.hinted for row in rows) and len(session.asked) == 5


def test_a_hint_ends_a_conversation_too():
    turns = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    request = with_hint(LabelledRequest(ScoreRequest(turns, ("a", "b")), 1, "x"))
    assert [t.content for t in request.query] == ["one", "two\nThe best response is: Response 2"] and request.responses == ("a", "b")


def test_the_file_repairs_its_end_and_refuses_nonsense(tmp_path):
    path = tmp_path / "t.jsonl"
    row = Drawn(0, 3, "d", "mixed", 2, 1, 0, 0, (Trajectory((1, 0), (4, 5), (2, 7), False),))
    file = TrajectoryFile(path)
    file.append(row)
    file.append(dataclasses.replace(row, index=1))
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    file = TrajectoryFile(path)
    file.append(dataclasses.replace(row, index=2))
    file.close()
    again = TrajectoryFile(path)
    again.close()
    assert [r.index for r in again.rows] == [3, 1, 2] and [r.index for r in again.of_round(0)] == [1, 2, 3] and again.rows[0] == row
    path.write_bytes(whole + b"{}\n")
    with pytest.raises(CheckpointError, match=r"t\.jsonl, line 3: expected a row of drawn samples"):
        TrajectoryFile(path)


def test_a_round_that_keeps_nothing_says_so(tmp_path):
    with pytest.raises(SpctError, match=r"round 0: no trajectory of 2 requests was kept .*spct train sft"):
        run(RftConfig(output=tmp_path, requests=2, samples=1, max_tokens=2, workers=1))
    assert json.loads((tmp_path / "statistics.json").read_text())[0]["invalid"] == 2


def test_other_settings_are_refused_and_more_rounds_are_not(unbroken, tmp_path):
    folder, result = unbroken
    with pytest.raises(ConfigError, match=r"samples: expected 3, with which the run in .* began, got 4"):
        run(RftConfig(output=folder, **{**SETTINGS, "samples": 4}))
    with pytest.raises(ConfigError, match="keep: expected at least 1"):
        RftConfig(output=tmp_path, keep=0)
    with pytest.raises(ConfigError, match="temperature"):
        RftConfig(output=tmp_path, temperature=-1.0)
    again = run(RftConfig(output=folder, **{**SETTINGS, "workers": 2, "time_limit": 5.0}))
    assert again.finished and again.step == result.step


def test_an_engine_in_int8_draws_what_is_trained_on_in_fp32(tmp_path, monkeypatch):
    options, make = [], Engine.from_pretrained
    monkeypatch.setattr(Engine, "from_pretrained", lambda *model, **given: options.append(given) or make(*model, **given))
    result = run(RftConfig(output=tmp_path, **{**SETTINGS, "rounds": 1, "weights": "int8"}))
    assert result.finished and result.step > 0 and options[0]["weights"] == "int8"
    assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "model.safetensors").values())
    (counts,) = result.statistics
    assert counts["correct"] > counts["samples"] / 2
    with pytest.raises(ConfigError, match="weights: expected int8, with which the run"):
        run(RftConfig(output=tmp_path, **{**SETTINGS, "rounds": 1}))


def test_the_command_line_tells_what_was_kept(unbroken, tmp_path, capsys):
    folder, result = unbroken
    flags = f"--rounds 2 --requests {NUM} --samples 3 --hinted --epochs 1 --prompts 2 --workers 1 --lr 3e-4 --max-tokens 200"
    domains = ("--domains", *SETTINGS["domains"])
    assert spct_main(["train", "rft", "-o", str(folder), *flags.split(), *domains, "--plot"]) == 0
    assert (folder / "metrics.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().err
    assert f"finished after {result.step} steps; {folder}" in printed
    assert len(re.findall(rf"^(?:constraints|table) +{NUM // 2} ", printed, re.MULTILINE)) == 4
    assert spct_main(["train", "rft", "-o", str(tmp_path), "--time-limit", "0"]) == 0
    assert "stopped, resumable with the same command after 0 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("add", "config", "names"), [(flags.add_rft_arguments, RftConfig, flags.RFT), (flags.add_rl_arguments, RlConfig, flags.RL)]
)
def test_flags_say_the_defaults_of_the_settings(add, config, names):
    parser = ArgumentParser()
    add(parser)
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    assert set(defaults) == {*flags.SHARED, *names}
    assert flags.given(parser.parse_args(["-o", "x"]), names).keys() == {"output"}
    described = 0
    for action in parser._actions:
        said = re.search(r"\bdefault ([^:);]+)", action.help or "")
        if said and action.dest in defaults:
            described += 1
            assert said[1] == str(defaults[action.dest]), action.dest
    assert described >= 15
