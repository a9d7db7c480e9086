"""Training of the meta RM: both forms learn, compute what the engine computes, and go on after a kill as if nothing had been."""

import dataclasses
import json
import random

import pytest
import torch
from safetensors.torch import load_file
from tiny_meta import END, FAMILIES, write_judge, write_scalar

from spct import CheckpointError, ConfigError, Engine, SamplingParams
from spct.prompting import JudgePrompt
from spct.training import meta
from spct.training.labelled import LabelledRequest
from spct.training.meta import STATE_FILE, train_form
from spct.training.meta_config import MetaConfig
from spct.training.meta_data import DataConfig, MetaItem, MetaSample, draw_meta_items
from spct.training.meta_heads import PENALTIES, fit_head, pooled_states
from spct.training.meta_metrics import auc, within_item_auc
from spct.training.meta_scorers import FusedScorer, ScalarScorer, ordered_samples, write_meta_head
from spct.training.policy import Policy
from spct.types import ScoreRequest

SAMPLING = SamplingParams(samples=4, max_tokens=12, seed=3)
DRAW = {"items": 5, "validation": 2, "domains": ("arithmetic",)}


def planted(count, seed=0, split="train", hits=2, length=8):
    """Items whose samples are random bytes, correct where one of them is "!" (byte token 0)."""
    rng = random.Random(f"{split}/{seed}")
    items = []
    for index in range(count):
        request = ScoreRequest("".join(rng.choices("abcdef ", k=10)), ["xy" * (1 + index % 2), "z"])
        samples = []
        for place in range(4):
            ids = [rng.randrange(1, 90) for _ in range(length)]
            correct = rng.random() < 0.5
            if correct:
                for where in rng.sample(range(length), hits):
                    ids[where] = 0
            samples.append(MetaSample(((0, 1), (1, 0))[place % 2], (*ids, END), "".join(chr(33 + i) for i in ids), (1, 2), correct))
        items.append(MetaItem(split, index, LabelledRequest(request, 0, "planted"), tuple(samples)))
    return items


def labels_of(items):
    return torch.tensor([float(s.correct) for item in items for s in ordered_samples(item)]).double().numpy()


def owners_of(items):
    return torch.tensor([place for place, item in enumerate(items) for _ in item.samples]).numpy()


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_scores_what_the_engine_scores(family, pooling, tmp_path):
    """Training pools the hidden states at the very places from which the engine drew the tokens."""
    folder = write_judge(tmp_path, family)
    weight = torch.randn(48, generator=torch.Generator().manual_seed(4))
    write_meta_head(folder, weight, 0.5, pooling)
    request = ScoreRequest("which?", ["the first", "b", "c"])
    with Engine.from_pretrained(folder) as engine:
        judgement = engine.score(request, sampling=SAMPLING)
    samples = tuple(MetaSample(s.order, s.token_ids, s.text, s.scores, False) for s in judgement.samples)
    item = MetaItem("train", 0, LabelledRequest(request, 0, "x"), samples)
    scorer = FusedScorer(Policy(folder, device=torch.device("cpu")), JudgePrompt(folder), pooling)
    states = scorer.pooled([item])
    found = dict(zip(map(id, ordered_samples(item)), (states @ weight + 0.5).tolist(), strict=True))
    expected = [s.meta_score for s in judgement.samples]
    assert len({s.num_tokens for s in judgement.samples} | {1}) > 1 and max(expected) - min(expected) > 0.1
    torch.testing.assert_close(torch.tensor([found[id(s)] for s in samples]), torch.tensor(expected), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scalar_form_scores_what_the_engine_scores(family, judge, tmp_path):
    source = write_scalar(tmp_path / "source", family)
    scorer = ScalarScorer(source, torch.device("cpu"))
    target = tmp_path / "saved"
    target.mkdir()
    scorer.save(target)
    request = ScoreRequest("which?", ["the first", "b"], principles=["short"])
    with Engine.from_pretrained(judge, meta_model=target) as engine:
        judgement = engine.score(request, sampling=SAMPLING)
    samples = tuple(MetaSample(s.order, s.token_ids, s.text, s.scores, False) for s in judgement.samples)
    item = MetaItem("train", 0, LabelledRequest(request, 0, "x"), samples)
    with torch.no_grad():
        scored = scorer.score([item])
    found = dict(zip(map(id, ordered_samples(item)), scored.scores.tolist(), strict=True))
    expected = [s.meta_score for s in judgement.samples]
    torch.testing.assert_close(torch.tensor([found[id(s)] for s in samples]), torch.tensor(expected), atol=5e-4, rtol=1e-4)


def test_a_frozen_head_finds_a_planted_label(judge, tmp_path):
    items, fresh = planted(60, hits=4), planted(30, seed=1, split="validation", hits=4)
    scorer = FusedScorer(Policy(judge, device=torch.device("cpu")), JudgePrompt(judge), "mean")
    config = MetaConfig(output=tmp_path, model=str(judge), pooling="mean")
    assert train_form(config, "fused", items).finished
    head = load_file(tmp_path / "fused" / "meta_head.safetensors")
    scores = (scorer.pooled(fresh) @ head["weight"] + head["bias"]).double().numpy()
    assert auc(scores, labels_of(fresh)) > 0.95 and within_item_auc(scores, labels_of(fresh), owners_of(fresh))[0] > 0.95
    # The states are kept: a run after a kill reads them instead of computing them.
    kept = sorted((tmp_path / "fused" / "states").iterdir())
    assert len(kept) == 2
    (tmp_path / "fused" / "meta_head.safetensors").unlink()
    before = [path.stat().st_mtime_ns for path in kept]
    train_form(config, "fused", items)
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert torch.equal(load_file(tmp_path / "fused" / "meta_head.safetensors")["weight"], head["weight"])
    with Engine.from_pretrained(tmp_path / "fused") as engine:
        j = engine.score("q", ["a", "b"], sampling=SAMPLING)
        assert all(isinstance(s.meta_score, float) for s in j.samples)


def test_the_fit_is_the_minimum_of_its_loss():
    """At the minimum of a convex loss no small step helps; within=0 is plain logistic regression."""
    items = planted(20)
    states = torch.randn(80, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0]) + 3.0
    weight, bias = fit_head(states, items, 0.0)
    labels = torch.tensor(labels_of(items))
    x = (states.double() - states.double().mean(0)) / states.double().std(0)

    def loss(w, b, penalty):
        return torch.nn.functional.binary_cross_entropy_with_logits(x @ w + b, labels) + penalty * w.square().sum()

    w = weight.double() * states.double().std(0)
    b = bias + float(weight.double() @ states.double().mean(0))
    assert any(
        all(loss(w, b, p) <= loss(w + 0.02 * d, b, p) and loss(w, b, p) <= loss(w - 0.02 * d, b, p) for d in torch.eye(5).double())
        for p in PENALTIES
    )


@pytest.mark.parametrize(("form", "options"), [("scalar", {}), ("fused", {"joint": True, "anchored": "kl"})])
def test_gradient_forms_learn_and_resume_bitwise(form, options, judge, tmp_path, monkeypatch):
    items, fresh = planted(32), planted(24, seed=1, split="validation")
    settings = {"model": str(judge), "epochs": 3.0, "batch": 8, "lr": 2e-3, "head_lr": 1e-2, "anchor": 0.01, "micro_tokens": 200, **options}
    whole = MetaConfig(output=tmp_path / "whole", **settings)
    result = train_form(whole, form, items)
    assert result.finished and result.steps == 12
    rows = [json.loads(line) for line in (whole.output / form / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13)) and not any(row["skipped"] for row in rows)
    assert sum(row["correctness"] for row in rows[-3:]) < sum(row["correctness"] for row in rows[:3])

    broken = MetaConfig(output=tmp_path / "broken", save_every=0.0, **settings)
    real_step, seen = meta._step, []

    def dies_in_the_sixth_step(*args):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(None)
        return real_step(*args)

    monkeypatch.setattr(meta, "_step", dies_in_the_sixth_step)
    with pytest.raises(KeyboardInterrupt):
        train_form(broken, form, items)
    monkeypatch.undo()
    assert not (broken.output / form / "model.safetensors").exists()
    with pytest.raises(ConfigError, match=r"lr: expected 0.002, with which .* began, got 0.5"):
        train_form(dataclasses.replace(broken, lr=0.5), form, items)
    assert train_form(broken, form, items).finished
    again = [json.loads(line) for line in (broken.output / form / "metrics.jsonl").read_text().splitlines()]
    assert again == rows
    for name in ("model.safetensors", *(("meta_head.safetensors",) if form == "fused" else ())):
        one, other = (load_file(config.output / form / name) for config in (whole, broken))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert auc_of(form, broken.output / form, fresh) > 0.9


def auc_of(form, folder, items):
    device = torch.device("cpu")
    with torch.no_grad():
        if form == "scalar":
            scores = ScalarScorer(folder, device).score(items).scores
        else:
            head = load_file(folder / "meta_head.safetensors")
            scores = FusedScorer(Policy(folder, device=device), JudgePrompt(folder), "mean").pooled(items) @ head["weight"] + head["bias"]
    return auc(scores.double().numpy(), labels_of(items))


@pytest.mark.parametrize("anchored", ["kl", "ce"])
def test_the_anchor_measures_the_distance_from_the_starting_judge(anchored, judge):
    items = planted(3)
    scorer = FusedScorer(Policy(judge, device=torch.device("cpu")), JudgePrompt(judge), "mean", anchored=anchored)
    scorer.keep_reference()
    with torch.no_grad():
        at_start = float(scorer.score(items, anchor=True).anchor)
        for parameter in scorer.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
        moved = float(scorer.score(items, anchor=True).anchor)
        batch = scorer._batch(items)[0]
        logits = scorer.policy.scores(batch).logprob
    if anchored == "kl":
        assert at_start == pytest.approx(0.0, abs=1e-6) and moved > 1e-3
    else:
        assert moved == pytest.approx(-float(logits.mean()), rel=1e-5) and moved != pytest.approx(at_start, rel=1e-4)


def test_states_that_are_no_number_leave_the_weights_alone(judge, tmp_path):
    scorer = ScalarScorer(judge, torch.device("cpu"))
    with torch.no_grad():
        scorer.model.score.weight.fill_(float("nan"))
    before = {name: tensor.clone() for name, tensor in scorer.state().items()}
    body, head = scorer.trained()
    optimiser = torch.optim.AdamW([{"params": body, "name": "body"}, {"params": head, "name": "head"}])
    config = MetaConfig(output=tmp_path)
    with meta.ThreadPoolExecutor(1) as pool:
        assert meta._step(config, scorer, optimiser, planted(2), 1.0, pool)["skipped"]
    after = scorer.state()
    assert all(torch.equal(before[name], after[name]) for name in before if name != "score.weight")


def drawn(judge, path, config=None, sampling=SAMPLING):
    with Engine.from_pretrained(judge) as engine:
        return draw_meta_items(engine, config or DataConfig(**DRAW), sampling, path)


def test_samples_are_kept_and_drawn_once(judge, tmp_path):
    path = tmp_path / "samples.jsonl"
    items = drawn(judge, path)
    assert [(i.split, i.index) for i in items] == [("train", n) for n in range(5)] + [("validation", n) for n in range(2)]
    assert {len(i.samples) for i in items} == {4} and all(not s.correct for i in items for s in i.samples if s.scores is None)
    queries = {split: {i.item.request.query for i in items if i.split == split} for split in ("train", "validation")}
    assert not queries["train"] & queries["validation"]
    text = path.read_bytes()
    lines = text.splitlines(keepends=True)
    assert len(lines) == 8
    # Killed in the middle of the fourth row; the rest is drawn again, as it was.
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    assert drawn(judge, path) == items
    assert sorted(path.read_bytes().splitlines()) == sorted(text.splitlines())
    before = path.stat().st_mtime_ns
    assert drawn(judge, path) == items and path.read_bytes().count(b"\n") == 8
    assert before <= path.stat().st_mtime_ns


def test_samples_of_other_settings_are_refused(judge, tmp_path):
    path = tmp_path / "samples.jsonl"
    drawn(judge, path)
    with pytest.raises(ConfigError, match=r"samples\.jsonl: was drawn with another data"):
        drawn(judge, path, DataConfig(**{**DRAW, "items": 6}))
    with pytest.raises(ConfigError, match="another sampling"):
        drawn(judge, path, sampling=dataclasses.replace(SAMPLING, samples=3))
    with pytest.raises(ConfigError, match="another weights"):
        drawn(write_judge(tmp_path / "other", seed=2), path)
    path.write_text(path.read_text() + '{"split": "train", "index": 99, "samples": []}\n')
    with pytest.raises(CheckpointError, match=r"samples\.jsonl: expected rows of samples"):
        drawn(judge, path)


def test_rows_of_a_file_are_split_by_item(judge, tmp_path):
    rows = [{"query": f"q{i}", "responses": ["a", "b"], "best": i % 2} for i in range(9)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(items=100, validation=3, data=file)
    held_out, learnt = ([x.request.query for x in config.split(s)] for s in ("validation", "train"))
    assert len(held_out) == 3 and sorted(held_out + learnt) == [f"q{i}" for i in range(9)]
    assert held_out != [x.request.query for x in dataclasses.replace(config, seed=1).split("validation")]
    with pytest.raises(ConfigError, match="validation: expected fewer than the 9 rows"):
        DataConfig(items=1, validation=9, data=file).split("train")


def test_bad_settings_are_refused(judge, tmp_path):
    for settings, message in (
        ({"form": "linear"}, "form: expected one of fused, scalar, both"),
        ({"pooling": "max"}, "pooling"),
        ({"anchored": "l2"}, "anchored"),
        ({"samples": 0}, "samples: expected at least 1"),
        ({"lr": 0.0}, "lr: expected a positive number"),
        ({"within": float("nan")}, "within: expected at least 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            MetaConfig(output=tmp_path, **settings)
    with pytest.raises(ConfigError, match="items: expected items with samples"):
        train_form(MetaConfig(output=tmp_path, model=str(judge)), "scalar", [])
    with pytest.raises(ConfigError, match="output: expected another folder than the judge's"):
        train_form(MetaConfig(output=judge.parent, model=str(write_judge(judge.parent / "fused"))), "fused", planted(2))
    folder = tmp_path / "scalar"
    (folder / STATE_FILE).write_bytes(b"no state")
    with pytest.raises(CheckpointError, match="expected a training state"):
        train_form(MetaConfig(output=tmp_path, model=str(judge)), "scalar", planted(2))


def test_pooled_states_skip_items_without_samples(judge, tmp_path):
    items = planted(3)
    scorer = FusedScorer(Policy(judge, device=torch.device("cpu")), JudgePrompt(judge), "last")
    empty = dataclasses.replace(items[1], samples=())
    assert pooled_states(scorer, [items[0], empty, items[2]], tmp_path).shape == (8, 48)
