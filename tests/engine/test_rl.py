"""Reinforcement learning: a planted reward is learned, no signal changes nothing, NaN is skipped, a killed run ends as an unbroken one."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny_judge import write_judge, write_labelled

from spct.cli.main import main as spct_main
from spct.errors import BackendError, CapacityError, CheckpointError, ConfigError, InputError
from spct.training.checkpoints import load_state
from spct.training.rl import RlConfig, run
from spct.training.session import STATE_FILE, Session

# A random model writes bytes that never score; what is learned here is a planted reward.
SETTINGS = dict(prompts=3, group=4, max_tokens=10, workers=1, beta=0.0, warmup=0, kv_memory="8MiB", save_every=1e9)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_labelled(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


def low_bytes(item, sample):
    """The planted reward: at least half of the tokens below 128."""
    return 1.0 if 2 * sum(t < 128 for t in sample.token_ids) >= len(sample.token_ids) else -1.0


def config(judge, data, output, **changes):
    return RlConfig(**{**SETTINGS, "output": output, "model": str(judge), "data": data, **changes})


def rows_of(folder):
    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_planted_reward_is_learned(judge, data, tmp_path):
    result = run(config(judge, data, tmp_path, steps=16, prompts=4, group=8, lr=5e-3), rule=low_bytes)
    rewards = [row["reward"] for row in rows_of(tmp_path)]
    assert result.finished and result.step == len(rewards) == 16 and result.skipped == 0
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.5
    assert all(row["drift"] is None or row["drift"] < 1e-3 for row in rows_of(tmp_path))


def test_a_step_is_the_mean_over_tokens_of_the_advantage_and_tells_what_it_did(judge, data, tmp_path):
    seen = []

    def rule(item, sample):
        seen.append((low_bytes(item, sample), sample, item))
        return seen[-1][0]

    run(config(judge, data, tmp_path, steps=1, beta=0.05), rule=rule)
    (row,) = rows_of(tmp_path)
    total, tokens = 0.0, 0
    for start in range(0, len(seen), 4):
        group = seen[start : start + 4]
        rewards = torch.tensor([r for r, _, _ in group], dtype=torch.float64)
        std = float(rewards.std(correction=0))
        for reward, sample, _ in group:
            total += sample.num_tokens * (reward - float(rewards.mean())) / (std + 1e-4)
            tokens += sample.num_tokens
    # On fresh samples the ratio is 1 and the KL 0, up to what engine and transformers differ by.
    assert row["loss"] == pytest.approx(-total / tokens, abs=1e-4) and abs(row["loss"]) > 1e-3
    assert row["tokens"] == tokens and row["length"] == pytest.approx(tokens / 12) and row["reward"] == sum(r for r, _, _ in seen) / 12
    assert row["accuracy"] == row["valid_rate"] == 0.0 and row["clip_share"] == 0.0 and 0 <= row["kl"] < 1e-6
    # Every group saw one order of its responses, and the truth went along: "b" is right for odd queries.
    assert all((item.request.responses[item.best] == "b") == (int(item.request.query[1:]) % 2 == 1) for _, _, item in seen)
    assert 0 < row["entropy"] < math.log(261) and row["norm"] > 0 and row["tokens_per_s"] > 0


def test_the_rule_of_the_paper_is_the_default(judge, data, tmp_path):
    run(config(judge, data, tmp_path, steps=1))
    (row,) = rows_of(tmp_path)
    # Random bytes never score: every sample is unparsable, so every reward is -1 and nothing is learned.
    assert row["reward"] == -1.0 and row["zero_variance"] == 1.0
    assert same(weights(tmp_path), {**weights(judge)})


def test_groups_without_variance_leave_the_weights_alone(judge, data, tmp_path):
    run(config(judge, data, tmp_path, steps=2, weight_decay=0.1, lr=0.1), rule=lambda item, sample: 0.1)
    assert same(weights(tmp_path), weights(judge))
    assert [row["loss"] for row in rows_of(tmp_path)] == [None, None] and rows_of(tmp_path)[0]["zero_variance"] == 1.0


def test_the_kl_holds_the_model_at_its_start(judge, data, tmp_path):
    distance = []
    for beta in (1e-6, 2.0):
        run(config(judge, data, tmp_path / str(beta), steps=8, group=8, beta=beta, lr=1e-3), rule=low_bytes)
        distance.append(rows_of(tmp_path / str(beta))[-1]["kl"])
    assert 1e-4 < distance[1] < 0.5 * distance[0]


def test_several_passes_clip(judge, data, tmp_path):
    run(config(judge, data, tmp_path, steps=2, passes=4, lr=2e-2, clip=0.05), rule=low_bytes)
    assert max(row["clip_share"] or 0 for row in rows_of(tmp_path)) > 0


def test_stale_engine_weights_are_an_error(judge, data, tmp_path, monkeypatch):
    first = iter([True])
    refresh = Session.refresh_engine
    monkeypatch.setattr(Session, "refresh_engine", lambda self: refresh(self) if next(first, False) else None)
    with pytest.raises(BackendError, match=r"step 1: sampler and trainer disagree by .* weights are stale"):
        run(config(judge, data, tmp_path, steps=4, prompts=6, lr=5e-3), rule=low_bytes)


def test_no_step_draws_the_noise_or_the_orders_of_another(judge, data, tmp_path, monkeypatch):
    seeds, orders = [], set()
    draw = Session.judge

    def noted(self, requests, sampling, voting):
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0) and voting.filter == "none"
        seeds.append(sampling.seed)
        requests = list(requests)
        orders.update(item.request.responses[0] == "b" for _, item in requests)
        return draw(self, requests, sampling, voting)

    monkeypatch.setattr(Session, "judge", noted)
    run(config(judge, data, tmp_path / "a", steps=4), rule=low_bytes)
    run(config(judge, data, tmp_path / "b", steps=1, seed=1), rule=low_bytes)
    assert len(set(seeds)) == 5 and orders == {True, False}


def test_engine_weights_follow_every_step_in_the_same_engine(judge, data, tmp_path, monkeypatch):
    made, versions = [], []
    refresh = Session.refresh_engine

    def counted(self):
        refresh(self)
        made.append(self.engine)
        versions.append(self.engine.weights_version)

    monkeypatch.setattr(Session, "refresh_engine", counted)
    run(config(judge, data, tmp_path, steps=3, prompts=6), rule=low_bytes)
    assert versions == [1, 2, 3, 4] and len({id(engine) for engine in made}) == 1


def test_steps_that_are_not_finite_are_skipped_and_counted(judge, data, tmp_path):
    calls = []

    def rule(item, sample):
        calls.append(sample)
        return math.nan if len(calls) == 14 else low_bytes(item, sample)

    result = run(config(judge, data, tmp_path / "a", steps=2), rule=rule)
    rows = rows_of(tmp_path / "a")
    assert result.skipped == 1 and [row["skipped"] for row in rows] == [False, True] and rows[1]["loss"] is None
    assert rows[1]["reward"] is None and rows[1]["skipped_steps"] == 1
    run(config(judge, data, tmp_path / "b", steps=1), rule=low_bytes)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b")) and not same(weights(tmp_path / "a"), weights(judge))


KILLED = """
import os, signal, sys
from pathlib import Path
from spct.training.rl import RlConfig, run
calls = 0
def rule(item, sample):
    global calls
    calls += 1
    if calls == 12 * 3 + 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0 if 2 * sum(t < 128 for t in sample.token_ids) >= len(sample.token_ids) else -1.0
settings = dict({settings!r}, save_every=0.0)
run(RlConfig(output=Path({output!r}), model={model!r}, data=Path({data!r}), steps=5, lr=1e-3, **settings), rule=rule)
"""


def test_a_killed_run_ends_bitwise_like_the_unbroken_one(judge, data, tmp_path):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    changes = dict(steps=5, lr=1e-3, beta=0.01)
    run(config(judge, data, unbroken, **changes), rule=low_bytes)
    program = KILLED.format(settings={**SETTINGS, "beta": 0.01}, output=str(killed), model=str(judge), data=str(data))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert load_state(killed / STATE_FILE)["step"] == 3
    with pytest.raises(ConfigError, match=r"beta: expected 0\.01, with which the run in .* began, got 0\.5"):
        run(config(judge, data, killed, **{**changes, "beta": 0.5}), rule=low_bytes)
    result = run(config(judge, data, killed, **changes), rule=low_bytes)
    assert result.finished and same(weights(unbroken), weights(killed))
    kept = ("step", "reward", "loss", "norm", "kl", "entropy", "drift", "tokens")
    one, other = ([{k: row[k] for k in kept} for row in rows_of(folder)] for folder in (unbroken, killed))
    assert one == other


def test_a_time_limit_stops_resumably(judge, data, tmp_path):
    result = run(config(judge, data, tmp_path, steps=3, time_limit=0.0), rule=low_bytes)
    assert result.step == 0 and not result.finished
    result = run(config(judge, data, tmp_path, steps=1), rule=low_bytes)
    assert result.finished and [json.loads(line)["from_step"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == [0, 0]


@pytest.mark.parametrize("name", ["gemma2", "qwen2"])
def test_other_families_train_without_drift(name, data, tmp_path):
    judge = write_judge(tmp_path / "judge", name)
    run(config(judge, data, tmp_path / "out", steps=2, beta=0.01, lr=1e-3), rule=low_bytes)
    rows = rows_of(tmp_path / "out")
    assert all(row["drift"] < 1e-4 for row in rows) and rows[1]["kl"] > 0
    assert not same(weights(tmp_path / "out"), weights(judge))


def test_the_embedded_model_takes_a_step(tmp_path):
    run(RlConfig(output=tmp_path, steps=1, prompts=2, group=2, workers=1, domains=("table",)))
    (row,) = rows_of(tmp_path)
    assert row["drift"] < 1e-3 and row["valid_rate"] > 0 and row["entropy"] > 0
    assert (tmp_path / "judge_template.jinja").exists() and (tmp_path / "tokenizer.json").exists()


def test_adapters_are_trained_and_written_in_pefts_layout(judge, data, tmp_path):
    run(config(judge, data, tmp_path, steps=2, lora=4, lr=5e-3, beta=0.01), rule=low_bytes)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in tensors) and any(float(t.abs().max()) > 0 for t in tensors.values())
    assert not (tmp_path / "model.safetensors").exists()
    assert all(row["drift"] < 1e-4 for row in rows_of(tmp_path)) and rows_of(tmp_path)[1]["kl"] > 0
    run(config(judge, data, tmp_path / "on", steps=1, adapter=tmp_path, lr=5e-3), rule=low_bytes)
    assert not same(tensors, load_file(tmp_path / "on" / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(group=1), "group: expected at least 2, got 1"),
        (dict(clip=0.0), "clip: expected a number between 0 and 1"),
        (dict(beta=math.nan), "beta: expected at least 0, got nan"),
        (dict(lr=0.0), "lr: expected a positive number"),
        (dict(dtype="fp16"), "dtype: expected float32 or bfloat16"),
        (dict(lora=2, adapter="x"), "lora: expected no rank beside an adapter"),
        (dict(domains=("table",)), "domains: expected none beside data"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message, judge, data, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config(judge, data, tmp_path, **changes)


def test_starts_that_make_no_sense_are_refused(judge, data, tmp_path):
    with pytest.raises(ConfigError, match="output: expected another folder than the model's"):
        run(config(judge, data, judge))
    with pytest.raises(ConfigError, match="template: expected a template's name or a readable UTF-8 file, got 'none'"):
        run(config(judge, data, tmp_path / "a", template="none"))
    (tmp_path / STATE_FILE).write_bytes(b"no state")
    with pytest.raises(CheckpointError, match="expected a training state"):
        run(config(judge, data, tmp_path))


def test_a_request_that_does_not_fit_is_named(judge, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "long one", "query": "q" * 300, "responses": ["a", "b"], "best": 0}))
    with pytest.raises(CapacityError, match=r"request \d \(id 'long one'\): "):
        run(config(judge, path, tmp_path / "out"))


def test_an_unknown_domain_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match=r"domain: expected one of .* got 'cooking'"):
        run(RlConfig(output=tmp_path, domains=("table", "cooking")))
    assert not (tmp_path / STATE_FILE).exists()


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for method in ("rl", "rft"):
        assert spct_main(["train", method, "-o", str(tmp_path / "out"), "--plot"]) == 2
        assert "--plot: expected matplotlib, which is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "expected a JSON object, got list"),
        ("{", "Expecting"),
        ('{"query": "q", "responses": ["a", "b"]}', "best: the field is missing"),
        ('{"query": "q", "responses": ["a", "b"], "best": null}', "best: expected the index of the best response, 0 to 1, got None"),
        ('{"query": "q", "responses": ["a", "b"], "best": 2}', "0 to 1, got 2"),
        ('{"query": "q", "responses": ["a"], "best": true}', r"expected 0 \(good\) or null \(bad\), got True"),
        ('{"query": "q", "responses": [], "best": 0}', "responses: expected at least one"),
        ('{"query": "q", "responses": ["a"], "best": 0, "truth": 1}', "unknown field 'truth'"),
        ('{"query": "q", "responses": ["a"], "best": 0, "domain": 1}', "domain: expected a string"),
    ],
)
def test_rows_without_a_truth_are_refused_by_line(line, message, judge, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"query": "q", "responses": ["a"], "best": null, "domain": "d", "samples": 3}\n' + line + "\n")
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 3: .*{message}"):
        run(config(judge, path, tmp_path / "out"))


def test_the_command_line_trains(judge, data, tmp_path, capsys):
    flags = "--steps 1 --prompts 2 --group 2 --max-tokens 4 --workers 1 --beta 0 --kv-memory 8MiB"
    assert spct_main(["train", "rl", "-o", str(tmp_path), "--model", str(judge), "--data", str(data), *flags.split(), "--plot"]) == 0
    assert (tmp_path / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert "finished at step 1 of 1, accuracy 0.000 per sample" in capsys.readouterr().err
    assert spct_main(["train", "rl", "-o", str(tmp_path), "--group", "1"]) == 2
