"""The baselines: what each form reads and learns from, that training learns, survives a kill, and is judged by `spct eval`."""

import json
import math
from random import Random
from types import SimpleNamespace

import pytest
import torch
from command_line import spct, write_rows
from tiny_judge import ASKS, small, write_base

from spct import CapacityError, CheckpointError, ConfigError, Engine, InputError, Sample, ScoreRequest
from spct.baselines import text_forms, training
from spct.baselines.config import BaselineConfig
from spct.baselines.critiques import CritiqueStore, without_scores
from spct.baselines.evaluation import baseline_report, verdicts
from spct.baselines.sidecar import read_form, write_form
from spct.baselines.training import train
from spct.baselines.value_forms import PairwiseForm, ScalarForm, SemiScalarForm
from spct.baselines.value_model import shared_example
from spct.evaluation.accuracy import DrawnSample, Truth
from spct.training.labelled import LabelledRequest
from spct.training.optimisers import learning_rate
from spct.training.tasks import draw_items
from spct.voting.parse import parse_scores

LONG = {"query": "x" * 9000, "responses": ["good", "bad"], "best": 0}


class Bytes:
    """A model whose prompts are the bytes of what they show, and whose values a test makes up."""

    def __init__(self):
        self.prompt = SimpleNamespace(
            encode=lambda request: tuple(f"{request.query}|{'|'.join(request.responses)}".encode()),
            tokenizer=SimpleNamespace(encode_user=lambda text: tuple(text.encode())),
        )


def item(best, *responses):
    return LabelledRequest(ScoreRequest("q", responses), best, "d")


def read(lesson):
    return [bytes((*example.prompt, *sample[:-1])).decode() for example in lesson.examples for sample in example.samples]


def test_what_texts_share_is_computed_once():
    example = shared_example([(1, 2, 3, 4), (1, 2, 5), (1, 2)])
    assert example.prompt == (1, 2) and [sample[:-1] for sample in example.samples] == [(3, 4), (5,), ()]
    assert shared_example([(1, 2)]).prompt == (1, 2)


def test_a_scalar_reads_every_response_alone_and_learns_that_the_best_is_better():
    form = ScalarForm(Bytes())
    lesson = form.lesson(item(1, "a", "b", "c"))
    assert read(lesson) == ["q|a", "q|b", "q|c"]
    wrong, right = (float(form.loss(lesson, torch.tensor(values))) for values in ([2.0, 0.0, 0.0], [0.0, 2.0, 0.0]))
    assert right == pytest.approx(math.log1p(math.exp(-2))) and wrong > 1
    alone = form.lesson(item(None, "a"))
    assert form.loss(alone, torch.tensor([3.0])) > 3 > 0.1 > form.loss(form.lesson(item(0, "a")), torch.tensor([3.0]))
    assert form.scores(ScoreRequest("q", ["a", "b"]), torch.tensor([0.5, -2.0])) == [0.5, -2.0]


def test_a_pair_is_read_both_ways_and_a_place_alone_wins_nothing():
    form = PairwiseForm(Bytes())
    lesson = form.lesson(item(1, "a", "b", "c"))
    assert read(lesson) == ["q|b|a", "q|b|c", "q|a|b", "q|c|b"]
    right, wrong = torch.tensor([2.0, 2.0, -2.0, -2.0]), torch.tensor([-2.0, -2.0, 2.0, 2.0])
    assert form.loss(lesson, right) < 0.2 < 2 < form.loss(lesson, wrong)
    assert not form.lesson(item(0, "a")).examples and not form.texts(ScoreRequest("q", ["a"]))
    request = ScoreRequest("q", ["a", "b", "c"])
    assert form.scores(request, torch.full((6,), 4.0)) == [0.0, 0.0, 0.0]
    # (0,1) (0,2) (1,0) (1,2) (2,0) (2,1): the second beats all, the first beats the third.
    scores = form.scores(request, torch.tensor([-2.0, 1.0, 2.0, 3.0, -1.0, -3.0]))
    assert scores[1] > scores[0] > scores[2] and sum(scores) == pytest.approx(0)


def test_a_semi_scalar_reads_the_critique_behind_each_response():
    form = SemiScalarForm(Bytes(), lambda request: [f"<{response}>" for response in request.responses])
    assert read(form.lesson(item(0, "a", "b"))) == ["q|a<a>", "q|b<b>"]


@pytest.mark.parametrize(
    ("text", "critique"),
    [
        ("Analysis: ok\nScores: \\boxed{7}", "Analysis: ok"),
        ("no box", "no box"),
        ("\\boxed{7}", ""),
        ("a \\boxed{1}\nb\nS \\boxed{2}", "a \\boxed{1}\nb"),
    ],
)
def test_a_critique_ends_before_its_scores(text, critique):
    assert without_scores(text) == critique


def test_critiques_that_were_not_drawn_are_no_guess(tmp_path):
    store = CritiqueStore(tmp_path / "critiques.jsonl")
    with pytest.raises(InputError, match="draw"):
        store(ScoreRequest("q", ["a"]))


def test_demonstrations_differ_in_one_place():
    for index, task in enumerate(draw_items("train", 11, 28)):
        order = tuple(reversed(range(len(task.responses))))
        whole = text_forms.demonstrate(task, order, Random(index))
        bare = text_forms.write("no-principles", task, order, Random(index))
        assert whole.endswith(bare) and whole.startswith("Specific Criteria") and bare.startswith("Analysis")
        if len(order) > 1:
            picks = text_forms.write("judge", task, order, Random(index))
            scores = parse_scores(whole, len(order), (1, 10))
            (place,) = parse_scores(picks, 1, (1, len(order)))
            assert scores[place - 1] == max(scores) and picks.partition("\nBest: ")[0] == whole.partition("\nScores: ")[0]
            if scores[order.index(task.best)] == max(scores):
                assert order[place - 1] == task.best


@pytest.mark.parametrize(
    ("text", "status", "votes"),
    [
        ("Best: \\boxed{2}", "parse_error", (1, 0, 0)),
        ("Best: \\boxed{1}", "parse_error", (0, 0, 1)),
        ("Best: \\boxed{4}", "parse_error", None),
        ("Best: \\boxed{1, 2}", "parse_error", None),
        ("Best: \\boxed{2}", "truncated", None),
    ],
)
def test_a_place_becomes_a_vote_for_the_response_that_stood_there(text, status, votes):
    assert text_forms.picked(Sample(None, status, False, None, (2, 0, 1), text, 5, None), 3) == votes


def test_the_template_asks_for_what_the_form_writes(tmp_path):
    (tmp_path / "judge_template.jinja").write_text(f"{{{{ query }}}} {ASKS}")
    assert text_forms.template_of("judge", tmp_path).endswith("Analysis, Best \\boxed{}")
    assert text_forms.template_of("no-principles", tmp_path) == "{{ query }} Analysis, Scores \\boxed{}"
    (tmp_path / "judge_template.jinja").write_text("{{ query }}")
    with pytest.raises(ConfigError, match="template"):
        text_forms.template_of("judge", tmp_path)


def test_a_folder_tells_its_form(tmp_path):
    assert read_form(tmp_path) is None
    write_form(tmp_path, "no-principles")
    assert read_form(tmp_path) is None
    write_form(tmp_path, "scalar")
    assert read_form(tmp_path) == "scalar"
    for text in ('{"form": "oracle"}', "{", '["scalar"]'):
        (tmp_path / "baseline.json").write_text(text)
        with pytest.raises(CheckpointError, match="form"):
            read_form(tmp_path)


def test_the_report_keeps_single_responses_apart():
    truths = [Truth("a", 2, 0), Truth("a", 3, 1), Truth("b", 1, 0), Truth("b", 2, 1)]
    rows = [[DrawnSample((5, 1))], [DrawnSample((0, 1, 0)), DrawnSample((1, 0, 0))], [DrawnSample((-4,))], [DrawnSample((1, 2))]]
    report = baseline_report(truths, rows)
    assert report["greedy"] == pytest.approx(2.5 / 4) and report["several"]["greedy"] == pytest.approx(2.5 / 3)
    assert report["several"]["items"] == 3 and report["several"]["subsets"]["b"]["items"] == 1


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random judge that takes the project's demonstrations, with room for whole items in bytes."""
    return write_base(tmp_path_factory.mktemp("base") / "judge")


@pytest.fixture
def easy(tmp_path):
    """Rows in which the best response says so."""
    rows = [{"query": f"q{i}", "responses": ["good", "bad"] if i % 2 else ["bad", "good"], "best": 0 if i % 2 else 1} for i in range(8)]
    return write_rows(tmp_path / "rows.jsonl", [*rows, {"query": "s", "responses": ["good"], "best": 0}])


class Asked:
    """What an evaluation asks: a request by itself."""

    def __init__(self, *responses):
        self.responses = responses

    def request(self):
        return ScoreRequest("new", self.responses)


@pytest.mark.parametrize("form", ["scalar", "pairwise"])
def test_a_value_learns_which_response_is_better(tmp_path, base, easy, form):
    result = train(small(tmp_path / "out", form, base, data=easy, steps=40, prompts=4, lr=3e-3))
    assert result.finished and result.loss < 0.4
    rows = verdicts(form, tmp_path / "out", [Asked("bad", "good"), Asked("good", "bad")], device="cpu", max_tokens=4, done=lambda _: None)
    assert [scores.index(max(scores)) for ((scores),) in ([row[0].scores] for row in rows)] == [1, 0]


def test_a_benchmark_has_its_own_metrics_and_what_is_too_long_no_verdict(tmp_path, base, easy, capsys):
    train(small(tmp_path / "scalar", "scalar", base, data=easy, steps=40, prompts=4, lr=3e-3))
    train(small(tmp_path / "judge", "judge", base, steps=1))
    rows = [
        {"input": "new", "output_1": "good", "output_2": "bad", "label": 1},
        {"input": "new", "output_1": "bad", "output_2": "good", "label": 2},
        {"input": "x" * 9000, "output_1": "good", "output_2": "bad", "label": 1},
    ]
    data = write_rows(tmp_path / "natural.jsonl", rows)
    told = {}
    for form in ("scalar", "judge"):
        report = tmp_path / f"{form}-report"
        assert spct("eval", data, "--model", tmp_path / form, "--max-tokens", 4, "-o", report) == 0
        told[form] = json.loads((report / "accuracy.json").read_text())["benchmarks"]["llmbar"]
        printed = capsys.readouterr()
        assert "llmbar, its own metrics in %" in printed.out and "of 3 items have no verdict" in printed.err
    assert told["scalar"]["metrics"]["natural"]["1"] == pytest.approx(2 / 3)
    assert told["scalar"]["abstained"]["1"] == pytest.approx(1 / 3) and told["scalar"]["tied"]["1"] == 0
    # A judge that picks reads each pair in both orders; this one writes nothing that can be read.
    assert told["judge"]["metrics"]["both_orders"] == {"2": 0.0} and told["judge"]["abstained"] == {"1": 1.0, "2": 1.0}
    with pytest.raises(CapacityError, match="context"):
        train(small(tmp_path / "long", "scalar", base, data=write_rows(tmp_path / "long.jsonl", [LONG])))


def test_a_critique_of_what_the_judge_can_not_read_is_a_refusal(tmp_path, base):
    store, long = CritiqueStore(None), ScoreRequest("x" * 9000, ["a", "b"])
    with Engine.from_pretrained(base) as engine:
        store.draw(engine, [long, ScoreRequest("q", ["a"])], 4)
    assert len(store(ScoreRequest("q", ["a"]))) == 1
    assert 1 <= store.num_tokens(ScoreRequest("q", ["a"])) <= 4 and store.num_tokens(long) == 0
    with pytest.raises(CapacityError):
        store(long)


@pytest.mark.parametrize("form", ["scalar", "semi-scalar", "judge"])
def test_a_run_that_was_cut_ends_with_the_same_bits(tmp_path, base, form, monkeypatch):
    assert train(small(tmp_path / "whole", form, base)).finished

    def cut(step, **schedule):
        if step == 1:
            raise KeyboardInterrupt
        return learning_rate(step, **schedule)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "learning_rate", cut)
        train(small(tmp_path / "cut", form, base, save_every=0.0))
    assert read_form(tmp_path / "cut") is None
    with pytest.raises(ConfigError, match="lr"):
        train(small(tmp_path / "cut", form, base, lr=1e-3))
    assert train(small(tmp_path / "cut", form, base)).finished
    for name in ("model.safetensors", "baseline.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_time_limit_stops_before_the_next_step(tmp_path, base):
    result = train(small(tmp_path / "out", "scalar", base, time_limit=0.0))
    assert not result.finished and not (tmp_path / "out" / "model.safetensors").exists()


def test_what_writes_is_trained_and_judged_from_the_command_line(tmp_path, base, capsys):
    for form in ("semi-scalar", "judge", "no-principles"):
        out, report = tmp_path / form, tmp_path / f"{form}-report"
        few = ("--steps", 1, "--prompts", 2, "--workers", 1, "--max-tokens", 4, "--group", 1, "--critiqued", 2)
        assert spct("train", "baseline", "--form", form, "-o", out, "--model", base, *few) == 0
        assert "finished at step 1 of 1" in capsys.readouterr().err
        samples = ("--samples", 1) if form == "no-principles" else ()
        assert spct("eval", "embedded-test", "--limit", 2, "--max-tokens", 4, "--model", out, "-o", report, *samples) == 0
        told = json.loads((report / "accuracy.json").read_text())
        assert told["items"] == 2 and 0 <= told["greedy"] <= 1 and told["settings"]["model"] == form
        assert told.get("several", {}).get("items", 0) <= 2
    assert spct("eval", "embedded-test", "--model", tmp_path / "judge", "--limit", 3, "--template", "verify") == 2
    assert "judge baseline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "oracle"}, "form"),
        ({"form": "judge", "data": "rows.jsonl"}, "demonstrations"),
        ({"form": "scalar", "data": "rows.jsonl", "domains": ("units",)}, "domains"),
        ({"form": "scalar", "steps": 0}, "steps"),
        ({"form": "scalar", "lr": 0.0}, "lr"),
        ({"form": "scalar", "weight_decay": float("nan")}, "weight_decay"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        BaselineConfig(tmp_path, **settings)
