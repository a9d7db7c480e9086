"""The report of a meta RM counts what a user would get, and the command line goes all the way from samples to it."""

import json
import math
import random

import pytest
import torch
from tiny_meta import write_judge

from spct import Engine, SamplingParams
from spct.cli.main import main as spct_main
from spct.training.labelled import LabelledRequest
from spct.training.meta_report import Judged, compare_forms, measure_cost, report_form
from spct.training.policy import Policy
from spct.types import Sample, ScoreRequest

FEW = [
    "--items",
    "4",
    "--validation",
    "3",
    "--samples",
    "3",
    "--max-tokens",
    "8",
    "--epochs",
    "1",
    "--batch",
    "2",
    "--domains",
    "arithmetic",
]


def sample(scores, meta_score, logprob=-1.0):
    return Sample(scores, "ok" if scores is not None else "parse_error", scores is not None, meta_score, (0, 1), "", 9, logprob)


def judged(rows, best=0, responses=2):
    item = LabelledRequest(ScoreRequest("q", [f"r{i}" for i in range(responses)]), best, "x")
    return Judged(item, tuple(sample(*row) for row in rows), 5.5)


def test_a_head_that_knows_lifts_the_vote_and_one_that_lies_lowers_it():
    """Six of eight samples are wrong by 1, two are right by 2: plain sums are wrong, the trusted quarter is right."""
    wrong, right = ((4, 5), -1.0, -0.1), ((7, 5), 2.0, -2.0)
    items = [judged([wrong, wrong, right, wrong] * 2) for _ in range(3)]
    told = report_form(items, [4, 8])
    accuracy = {name: {k: value[0] for k, value in by_k.items()} for name, by_k in told["accuracy"].items()}
    assert accuracy["voting"] == {"4": 0.0, "8": 0.0} == accuracy["logprob"]
    # Of four samples the trusted half is one right and one wrong: +2 − 1.
    assert accuracy["meta"] == {"4": 1.0, "8": 1.0} == accuracy["meta@0.25"] and accuracy["meta@0.75"] == {"4": 0.5, "8": 0.5}
    assert told["paired"]["meta-voting"] == {"4": [1.0] * 3, "8": [1.0] * 3} == told["paired"]["meta-logprob"]
    assert told["auc"] == told["auc_within"] == 1.0 and told["logprob_auc_within"] == 0.0 and told["mixed_items"] == 3
    liar = report_form([judged([(s.scores, -s.meta_score) for s in item.samples]) for item in items], [8])
    assert liar["auc"] == 0.0 and liar["accuracy"]["meta"]["8"][0] == 0.0


def plain_credit(scores, best):
    if not scores:
        return 0.0
    means = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
    if len(means) == 1:
        return float(means[0] > 5.5) if best == 0 else float(means[0] < 5.5)
    winners = [i for i, value in enumerate(means) if value == max(means)]
    return (best in winners) / len(winners)


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_are_those_of_a_plain_count(seed):
    rng = random.Random(seed)
    items = []
    for _ in range(12):
        n = rng.choice((1, 2, 3))
        rows = [
            (tuple(rng.randrange(1, 11) for _ in range(n)) if rng.random() < 0.8 else None, rng.gauss(0, 1), rng.gauss(0, 1))
            for _ in range(8)
        ]
        items.append(judged(rows, best=rng.choice((0, None)) if n == 1 else rng.randrange(n), responses=n))
    told = report_form(items, [2, 8])
    assert told["valid_rate"] == sum(s.scores is not None for j in items for s in j.samples) / 96
    for name, by, fraction in (
        ("voting", lambda s: 0, 1.0),
        ("meta", lambda s: -s.meta_score, 0.5),
        ("meta@0.25", lambda s: -s.meta_score, 0.25),
        ("logprob", lambda s: -s.logprob, 0.5),
    ):
        for k in (2, 8):
            total = 0.0
            for j in items:
                for at in range(0, 8, k):
                    parsed = sorted((s for s in j.samples[at : at + k] if s.scores is not None), key=by)
                    kept = parsed[: max(1, math.ceil(fraction * len(parsed) - 1e-9))]
                    total += plain_credit([s.scores for s in kept], j.item.best) * k / 8
            assert told["accuracy"][name][str(k)][0] == pytest.approx(total / 12), (name, k)


def test_samples_without_any_vote_are_reported_as_such():
    told = report_form([judged([(None, 1.0), (None, 2.0)])], [2])
    assert told["auc"] is None and told["auc_within"] is None and told["correct_rate"] is None and told["valid_rate"] == 0.0
    assert told["accuracy"]["meta"]["2"] == [0.0, 0.0, 0.0] and told["bins"] == []


def test_forms_are_compared():
    one = report_form([judged([((4, 5), 1.0), ((7, 5), 2.0)])], [2])
    other = report_form([judged([((4, 5), 2.0), ((7, 5), 1.0)])], [2])
    assert compare_forms({"fused": one, "scalar": other}) == {"auc": 1.0, "auc_within": 1.0, "meta_accuracy": {"2": 1.0}}


def test_command_line_trains_both_forms_and_reports_them(tmp_path, capsys):
    judge = write_judge(tmp_path / "judge")
    command = ["train", "meta", "-o", str(tmp_path / "out"), "--model", str(judge), "--form", "both", "--votes", "2", "--plot", *FEW]
    assert spct_main(command) == 0
    pictures = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert pictures == ["report.png", "scalar/metrics.png"]  # a head fitted on a frozen judge takes no steps
    assert all((tmp_path / "out" / picture).stat().st_size > 5000 for picture in pictures)
    shown = capsys.readouterr()
    assert "fused finished" in shown.err and "scalar finished at step 2 of 2" in shown.err and "fused meta" in shown.out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["data"]["items"] == 4 and report["settings"]["samples"] == 3
    assert report["fused"]["items"] == report["scalar"]["items"] == 3 and report["fused"]["samples"] == 6
    assert set(report["fused-scalar"]) == {"auc", "auc_within", "meta_accuracy"}
    cost = report["cost"]
    assert cost["fused"]["generated_tokens"] == cost["judge"]["generated_tokens"] == cost["scalar"]["generated_tokens"] > 0
    assert cost["judge"]["meta_tokens"] == cost["fused"]["meta_tokens"] == 0 < cost["scalar"]["meta_tokens"]
    assert 0 < cost["fused"]["flops"] < cost["scalar"]["flops"] / 100 and all(row["seconds"] > 0 for row in cost.values())
    # Every part stands: the same command draws, trains and judges to the same end.
    before = (tmp_path / "out" / "scalar" / "model.safetensors").read_bytes()
    assert spct_main([*command, "--no-report"]) == 0
    assert (tmp_path / "out" / "scalar" / "model.safetensors").read_bytes() == before
    question = ["judge", "--query", "q", "--response", "a", "--response", "b", "--samples", "2", "--max-tokens", "4", "--json"]
    for words in (["--model", str(tmp_path / "out" / "fused")], ["--model", str(judge), "--meta-model", str(tmp_path / "out" / "scalar")]):
        capsys.readouterr()
        assert spct_main([*question, *words, "--filter", "meta"]) == 0
        assert all(isinstance(s["meta_score"], float) for s in json.loads(capsys.readouterr().out)["samples"])


def test_a_judge_with_an_adapter_gets_its_head(tmp_path):
    judge, adapter, out = write_judge(tmp_path / "judge"), tmp_path / "adapter", tmp_path / "out"
    policy = Policy(judge, device=torch.device("cpu"), rank=2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    adapter.mkdir()
    policy.save(adapter)
    (adapter / "judge_template.jinja").write_text((judge / "judge_template.jinja").read_text() + "Now.")
    command = ["train", "meta", "-o", str(out), "--model", str(judge), "--adapter", str(adapter), "--votes", "2", *FEW]
    assert spct_main(command) == 0
    drawn = (out / "samples.jsonl").read_bytes()
    assert spct_main([*command, "--no-report"]) == 0 and (out / "samples.jsonl").read_bytes() == drawn
    with Engine.from_pretrained(judge, adapter=str(adapter)) as adapted, Engine.from_pretrained(out / "fused") as merged:
        request = ScoreRequest("q", ["a", "b"])
        ids = adapted.prompt.encode(request)
        assert ids == merged.prompt.encode(request)
        assert float((adapted.logits(ids) - merged.logits(ids)).abs().max()) < 1e-5
        assert all(
            s.meta_score is not None for s in merged.score("q", ["a", "b"], sampling=SamplingParams(samples=2, max_tokens=4)).samples
        )
    assert json.loads((out / "report.json").read_text())["settings"]["adapter"] == str(adapter)


def test_a_stopped_training_is_told_and_not_reported(tmp_path, capsys):
    judge = write_judge(tmp_path / "judge")
    command = ["train", "meta", "-o", str(tmp_path / "out"), "--model", str(judge), "--form", "scalar", *FEW]
    assert spct_main([*command, "--time-limit", "0"]) == 0
    assert "scalar stopped, resumable with the same command at step 0 of 2" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()


def test_bad_flags_are_refused(tmp_path, capsys):
    assert spct_main(["train", "meta", "-o", str(tmp_path), "--votes", "0"]) == 2
    assert "--votes: expected at least 1" in capsys.readouterr().err


def test_cost_is_measured_on_prompts_that_nobody_knows(tmp_path):
    items = [LabelledRequest(ScoreRequest(f"query {i}", ["a", "b"]), 0, "x") for i in range(6)]
    judge = write_judge(tmp_path)
    sampling = SamplingParams(samples=2, max_tokens=5)
    with Engine.from_pretrained(judge) as engine:
        cost = measure_cost({"judge": engine}, items, sampling, {})
        assert cost["judge"]["generated_tokens"] <= 60 and cost["judge"]["flops"] == 0
        rows = [engine.prompt.encode(item.request, order) for item in items for order in ((0, 1), (1, 0))]
        distinct = len({row[:end] for row in rows for end in range(1, len(row) + 1)})
        assert cost["judge"]["prefilled_tokens"] == engine.stats.num_prefilled == distinct
