"""Weights replaced in a live engine, and weights that are not numbers."""

import math

import pytest
import torch
from tiny_model import tiny_weights, write_tiny_model
from tokenizers import pre_tokenizers

from spct import BackendError, CheckpointError, Engine, SamplingParams

SAMPLING = SamplingParams(samples=4, max_tokens=10, ignore_eos=True)


def texts(engine):
    return [s.text for s in engine.score("query", ["one", "two"], sampling=SAMPLING).samples]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    found = {}
    for seed in (0, 1):
        folder = write_tiny_model(tmp_path_factory.mktemp("weights"), weights=tiny_weights(seed))
        with Engine.from_pretrained(folder) as engine:
            found[seed] = texts(engine)
    assert found[0] != found[1]
    return found


@pytest.mark.parametrize("as_stream", [False, True])
def test_new_weights_judge_as_if_loaded_from_disk(tiny_folder, expected, as_stream):
    with Engine.from_pretrained(tiny_folder) as engine:
        assert texts(engine) == expected[0] and engine.weights_version == 0
        weights = tiny_weights(1)
        engine.load_weights(iter(weights.items()) if as_stream else weights)
        assert engine.weights_version == 1
        assert texts(engine) == expected[1], "cached prefixes of the old weights are dropped"
        engine.load_weights(tiny_weights(0))
        assert texts(engine) == expected[0]


def broken(change):
    weights = tiny_weights(1)
    name = "model.layers.1.mlp.down_proj.weight"
    if change == "missing":
        del weights[name]
    elif change == "unknown":
        weights["model.layers.7.mlp.down_proj.weight"] = weights[name]
    elif change == "shape":
        weights[name] = weights[name][:, :5]
    else:
        weights[name][3, 3] = math.nan
    return weights


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "nan"])
def test_a_bad_mapping_changes_nothing(tiny_folder, expected, change):
    with Engine.from_pretrained(tiny_folder) as engine:
        with pytest.raises(CheckpointError, match="down_proj"):
            engine.load_weights(broken(change))
        assert engine.weights_version == 0
        assert texts(engine) == expected[0]


def test_a_stream_that_breaks_off_leaves_an_engine_that_refuses_work(tiny_folder, expected):
    def stream():
        for i, item in enumerate(tiny_weights(1).items()):
            if i == 9:
                raise OSError("the sender is gone")
            yield item

    with Engine.from_pretrained(tiny_folder) as engine:
        with pytest.raises(OSError, match="gone"):
            engine.load_weights(stream())
        for call in (lambda: texts(engine), lambda: engine.generate([1], SAMPLING), lambda: engine.logits([1])):
            with pytest.raises(BackendError, match="load_weights"):
                call()
        engine.load_weights(tiny_weights(1))
        assert texts(engine) == expected[1]


def test_running_requests_finish_with_the_weights_they_began_with(tiny_folder, expected):
    with Engine.from_pretrained(tiny_folder) as engine:
        request = {"query": "query", "responses": ["one", "two"]}
        stream = engine.score_batch([request, request, request], sampling=SAMPLING)
        found = [[s.text for s in next(stream).samples]]
        engine.load_weights(tiny_weights(1))
        found += [[s.text for s in j.samples] for j in stream]
        assert all(f in (expected[0], expected[1]) for f in found), "no judgement mixes two models"
        assert texts(engine) == expected[1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused_or_end_as_numeric_error(tmp_path, value):
    weights = tiny_weights()
    weights["model.layers.1.mlp.up_proj.weight"][2, 3] = value
    folder = write_tiny_model(tmp_path, weights=weights)
    with pytest.raises(CheckpointError, match="up_proj"):
        Engine.from_pretrained(folder)
    with Engine.from_pretrained(folder, check_weights=False) as engine:
        j = engine.score("query", ["one"], sampling=SAMPLING)
        assert {s.status for s in j.samples} == {"numeric_error"}
        assert j.rewards == (None,) and all(s.scores is None for s in j.samples)
        assert engine._parts.scheduler.tree.ledger().cached == 0, "poisoned keys and values are never matched again"


def test_one_poisoned_token_leaves_its_neighbours_alone(tmp_path, tiny_folder):
    weights, token_id = tiny_weights(), sorted(pre_tokenizers.ByteLevel.alphabet()).index("#")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    clean = write_tiny_model(tmp_path / "clean", weights=weights, tied=False)
    weights["model.embed_tokens.weight"][token_id] = math.nan
    poisoned = write_tiny_model(tmp_path / "poisoned", weights=weights, tied=False)
    rows = [{"query": q, "responses": ["r"]} for q in ("good one", "bad # one", "another good one")]
    with Engine.from_pretrained(clean) as engine:
        assert engine.prompt.encode_text("#") == (token_id,)
        expected = {j.index: [s.text for s in j.samples] for j in engine.score_batch(rows, sampling=SAMPLING)}
    with Engine.from_pretrained(poisoned, check_weights=False) as engine:
        found = {j.index: j for j in engine.score_batch(rows, sampling=SAMPLING)}
    assert {s.status for s in found[1].samples} == {"numeric_error"}
    for i in (0, 2):
        for sample, text in zip(found[i].samples, expected[i], strict=True):
            assert sample.status == "numeric_error" or sample.text == text
        assert any(s.status != "numeric_error" for s in found[i].samples)
    assert torch.isnan(weights["model.embed_tokens.weight"]).any()
