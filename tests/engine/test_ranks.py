"""Several processes take the step that one would, whatever each draws; one that fails ends all, and a later run goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import several_ranks
import torch
from command_line import environment
from safetensors.torch import load_file
from tiny_judge import write_judge, write_labelled

from spct.cli.main import main as spct_main
from spct.errors import CheckpointError, ConfigError
from spct.training import launch
from spct.training.checkpoints import load_state
from spct.training.ranks import Ranks, current
from spct.training.session import STATE_FILE
from spct.training.trajectories import TrajectoryFile

RL = dict(
    steps=3, prompts=5, group=4, max_tokens=10, workers=1, micro_tokens=120, beta=0.05, warmup=0, lr=0.05, device="cpu",
    kv_memory="8MiB", save_every=1e9, sgd=True,
)  # fmt: skip
RFT = dict(
    requests=8, samples=3, epochs=1, prompts=4, workers=1, micro_tokens=2000, lr=0.05, max_tokens=200, hinted=True, save_every=1e9,
    domains=("constraints", "table"), device="cpu", sgd=True,
)  # fmt: skip
# Sums of fp32 numbers in another order; a step of descent moves a weight by its gradient times the rate.
ROUNDING = dict(rtol=1e-5, atol=1e-6)
# What tells of time.
SECONDS = ("sampling_s", "training_s", "tokens_per_s", "seconds")


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_labelled(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def settings(judge, data):
    return {**RL, "model": str(judge), "data": data}


@pytest.fixture(scope="module")
def one(settings, tmp_path_factory):
    """The run of a single process."""
    folder = tmp_path_factory.mktemp("one")
    several_ranks.run("reinforce", {**settings, "output": folder / "out"}, size=1, log=folder / "log")
    return folder / "out"


@pytest.fixture(scope="module")
def two(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    several_ranks.run("reinforce", {**settings, "output": folder / "out"}, log=folder / "log")
    return folder / "out"


def weights(folder):
    return load_file(folder / "model.safetensors")


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in SECONDS} for row in rows]


def assert_alike(one, other, **bounds):
    """The weights, bit for bit unless bounds are given."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], **({"rtol": 0.0, "atol": 0.0} | bounds))


def assert_rows_alike(one, other, loose=("loss", "norm", "kl", "entropy", "drift", "correctness", "within", "anchor", "smooth")):
    assert len(one) == len(other) > 0
    for row, row_of_other in zip(one, other, strict=True):
        assert row.keys() == row_of_other.keys()
        for name in row:
            # Differences of rounded numbers may be all rounding: a KL of 1e-9.
            wanted = pytest.approx(row[name], rel=1e-4, abs=2e-5) if name in loose and row[name] is not None else row[name]
            assert row_of_other[name] == wanted, name


def samples(out, rank):
    return [json.loads(line) for line in Path(f"{out}.samples{rank}").read_text().splitlines()]


def test_two_ranks_take_the_steps_of_one(one, two, judge):
    before = weights(judge)
    moved = max(float((tensor - before[name]).abs().max()) for name, tensor in weights(one).items())
    assert moved > 1e-3
    assert_alike(weights(one), weights(two), **ROUNDING)
    assert_rows_alike(metrics(one), metrics(two))
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert [json.loads(line)["ranks"] for line in (two / "runs.jsonl").read_text().splitlines()] == [2]


def test_ranks_draw_a_share_each_of_the_same_samples(one, two):
    drawn, (first, second) = samples(one, 0), (samples(two, rank) for rank in (0, 1))
    # Five prompts of four samples: three for rank 0, two for rank 1, in every step.
    assert (len(drawn), len(first), len(second)) == (60, 36, 24)
    key = json.dumps
    assert sorted(map(key, drawn)) == sorted(map(key, first + second))


def test_replicas_never_part(one, two):
    replicas = [load_file(f"{two}.weights{rank}") for rank in (0, 1)]
    assert_alike(*replicas)
    assert_alike(load_file(f"{one}.weights0"), replicas[0], **ROUNDING)


def test_a_step_with_fewer_prompts_than_ranks(settings, tmp_path):
    for size in (1, 2):
        wanted = {**settings, "output": tmp_path / str(size), "prompts": 1, "steps": 2, "beta": 0.0, "adapter": None, "passes": 2}
        several_ranks.run("reinforce", wanted, size=size, log=tmp_path / f"log{size}")
    assert_alike(weights(tmp_path / "1"), weights(tmp_path / "2"), **ROUNDING)
    assert_rows_alike(metrics(tmp_path / "1"), metrics(tmp_path / "2"))


def test_nan_on_one_rank_skips_the_step_on_all(settings, tmp_path):
    wanted = {**settings, "output": tmp_path / "out", "steps": 2}
    several_ranks.run("reinforce", wanted, "nan", 1, 1, log=tmp_path / "log")
    rows = metrics(tmp_path / "out")
    assert [row["skipped"] for row in rows] == [False, True] and rows[1]["loss"] is None and rows[1]["skipped_steps"] == 1
    assert_alike(*(load_file(f"{tmp_path / 'out'}.weights{rank}") for rank in (0, 1)))
    several_ranks.run("reinforce", {**settings, "output": tmp_path / "short", "steps": 1}, log=tmp_path / "log")
    assert_alike(weights(tmp_path / "short"), weights(tmp_path / "out"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_other_and_any_number_of_ranks_goes_on(rank, settings, two, one, tmp_path):
    wanted = {**settings, "output": tmp_path / "out", "save_every": 0.0}
    codes, seconds = several_ranks.finish(several_ranks.start("reinforce", dict(wanted), "kill", rank, 2, log=tmp_path / "log"))
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 1 and seconds < 15
    assert "lost contact with" in Path(f"{tmp_path / 'log'}.{1 - rank}").read_text()
    assert load_state(tmp_path / "out" / STATE_FILE)["step"] == 2
    # Two ranks end with the bits of two that were never killed, one process up to rounding.
    size = 2 - rank
    several_ranks.run("reinforce", dict(wanted), size=size, log=tmp_path / "log")
    assert_alike(weights(two), weights(tmp_path / "out"), **({} if size == 2 else ROUNDING))
    assert_rows_alike(metrics(two), metrics(tmp_path / "out"))
    assert [json.loads(line)["ranks"] for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()] == [2, size]


@pytest.mark.parametrize(("event", "message"), [("fail", "the rule has failed"), ("crash", "a bug")])
def test_a_failing_rank_ends_all_and_is_named(event, message, settings, tmp_path):
    wanted = {**settings, "output": tmp_path / "out"}
    codes, seconds = several_ranks.finish(several_ranks.start("reinforce", wanted, event, 1, 1, log=tmp_path / "log"))
    assert codes == [1, 1] and seconds < 15
    printed = [Path(f"{tmp_path / 'log'}.{rank}").read_text() for rank in (0, 1)]
    assert f"spct: ended since another process did: rank 1 of 2: {message}" in printed[0]
    assert (f"spct: rank 1 of 2: {message}" if event == "fail" else f"ZeroDivisionError: {message}") in printed[1]


def test_what_all_refuse_is_said_once(settings, tmp_path):
    wanted = {**settings, "output": tmp_path / "out", "template": "none"}
    codes, _ = several_ranks.finish(several_ranks.start("reinforce", wanted, log=tmp_path / "log"))
    printed = [Path(f"{tmp_path / 'log'}.{rank}").read_text() for rank in (0, 1)]
    assert codes == [1, 1] and "".join(printed).count("template: expected a template's name") == 1, printed


@pytest.fixture(scope="module")
def rejected(tmp_path_factory):
    """Runs of `rft` by one process and by two."""
    folder = tmp_path_factory.mktemp("rft")
    for size in (1, 2):
        several_ranks.run("reject", {**RFT, "output": folder / str(size)}, size=size, log=folder / "log")
    return folder / "1", folder / "2"


def rows_of(folder):
    file = TrajectoryFile(folder / "trajectories.jsonl")
    file.close()
    return file.of_round(0)


def test_rejective_fine_tuning_by_two_ranks_is_that_of_one(rejected):
    one, two = rejected
    assert rows_of(one) == rows_of(two) and any(row.kept for row in rows_of(one))
    assert (one / "statistics.json").read_text() == (two / "statistics.json").read_text()
    assert_alike(weights(one), weights(two), **ROUNDING)
    assert_rows_alike(metrics(one), metrics(two))
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert_alike(*(load_file(f"{two}.weights{rank}") for rank in (0, 1)))


def test_what_a_killed_rank_had_drawn_is_kept(rejected, tmp_path):
    wanted = {**RFT, "output": tmp_path / "out"}
    codes, _ = several_ranks.finish(several_ranks.start("reject", dict(wanted), 1, 3, log=tmp_path / "log"))
    assert codes == [1, -signal.SIGKILL]
    part = tmp_path / "out" / "trajectories.jsonl.rank1"
    assert len(part.read_bytes().splitlines()) == 2
    with part.open("a") as file:
        file.write('{"round": 0, "ind')
    several_ranks.run("reject", dict(wanted), size=1, log=tmp_path / "log")
    assert not part.exists() and rows_of(tmp_path / "out") == rows_of(rejected[0])
    assert_alike(weights(rejected[0]), weights(tmp_path / "out"))


@pytest.mark.parametrize("model", ["judge", None])
def test_supervised_training_by_two_ranks_is_that_of_one(model, judge, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"query": f"q{i}", "responses": ["a", "b"], "demonstrations": [f"{i}/{d} \\boxed{{{i % 9 + 1}, 10}}" for d in range(1 + i % 3)]}
        for i in range(5)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = dict(
        steps=3, prompts=3, micro_batches=2, group=2, workers=1, bf16=False, lr=0.05, optimizer="adamw", device="cpu", demonstrations=path
    )
    # A fresh model takes the judge's tokenizer, which has no template of its own choice to write.
    settings |= {"model": judge} if model else {"tokenizer": judge}
    for size in (1, 2):
        several_ranks.run("demonstrate", {**settings, "output": tmp_path / str(size)}, size=size, log=tmp_path / f"log{size}")
    assert_alike(weights(tmp_path / "1"), weights(tmp_path / "2"), **ROUNDING)
    assert_rows_alike(metrics(tmp_path / "1"), metrics(tmp_path / "2"))


def test_the_meta_rm_by_two_ranks_is_that_of_one(tmp_path):
    settings = dict(form="both", samples=2, max_tokens=150, joint=True, epochs=1.0, batch=3, lr=0.01, head_lr=0.01, workers=1, device="cpu")
    settings["micro_tokens"] = 1500
    for size in (1, 2):
        wanted = {**settings, "output": tmp_path / str(size)}
        several_ranks.run("weigh_up", wanted, dict(items=6, validation=2, domains=("table",)), size=size, log=tmp_path / f"log{size}")
    one, two = tmp_path / "1", tmp_path / "2"
    drawn = [sorted((folder / "samples.jsonl").read_text().splitlines()) for folder in (one, two)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 9 and not list(two.glob("*.rank*"))
    for form in ("fused", "scalar"):
        assert_alike(weights(one / form), weights(two / form), **ROUNDING)
        assert_rows_alike(metrics(one / form), metrics(two / form))


def test_torchrun_starts_the_command(judge, data, tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "spct", "train", "rl"]
    flags = f"--model {judge} --data {data} --steps 1 --prompts 3 --group 2 --max-tokens 5 --workers 1 --kv-memory 8MiB --device cpu"
    command = [*words, "-o", str(tmp_path / "out"), *flags.split()]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("spct: finished at step 1 of 1") == 1 and len(metrics(tmp_path / "out")) == 1


def test_everything_that_is_sent_arrives(tmp_path):
    several_ranks.run("exchange", tmp_path / "told", log=tmp_path / "log")
    one, two = (json.loads((tmp_path / f"told.{rank}").read_text()) for rank in (0, 1))
    wanted = [[11.0 + 2 * i for i in range(n)] for n in (3, 4, 12, 2, 1, 25)]
    assert one["sums"] == two["sums"] == wanted and one["shapes"] == [[n, 1] for n in (3, 4, 12, 2, 1, 25)]
    assert one["gather"] == two["gather"] == [0, 2] and one["first"] == two["first"] == "from 0"
    assert one["collect"] == two["collect"] == {str(i): i * i for i in range(5)}
    assert one["mean"] == two["mean"] == 1.0 and one["fraction"] == two["fraction"] == pytest.approx(2 / 3)
    # One of five and five of one cost alike.
    assert (one["weigh"], two["weigh"]) == ([0], [1, 2, 3, 4, 5])


def test_shares_cover_everything_once():
    ranks = [Ranks(rank, 3) for rank in range(3)]
    costs = [7, 1, 3, 3, 9, 2, 2]
    shares = [r.weigh(costs) for r in ranks]
    assert sorted(i for share in shares for i in share) == list(range(7)) and [sum(costs[i] for i in share) for share in shares] == [
        9,
        9,
        9,
    ]
    assert sorted(i for r in ranks for i in r.deal(range(10))) == list(range(10))
    assert Ranks().weigh(costs) == list(range(7)) and list(Ranks().deal(range(3))) == [0, 1, 2]


def test_rows_of_killed_ranks_are_folded_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert Ranks().fold(path) == b"" and not path.exists()
    path.write_bytes(b"a\nb\ntor")
    (tmp_path / "rows.jsonl.rank1").write_bytes(b"b\nc\nto")
    (tmp_path / "rows.jsonl.rank12").write_bytes(b"d\n")
    assert Ranks().fold(path) == path.read_bytes() == b"a\nb\nc\nd\n"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
    assert Ranks().fold(path) == b"a\nb\nc\nd\n"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (dict(WORLD_SIZE="2"), "environment RANK: expected a number from 0, set by a launcher, got None"),
        (dict(WORLD_SIZE="two"), "environment WORLD_SIZE: expected a number from 1, set by a launcher, got 'two'"),
        (dict(WORLD_SIZE="0"), "environment WORLD_SIZE: expected a number"),
        (dict(WORLD_SIZE="2", RANK="2", MASTER_PORT="1"), "environment RANK: expected less than WORLD_SIZE=2, got 2"),
        (dict(WORLD_SIZE="2", RANK="0", MASTER_PORT="0"), "environment MASTER_PORT: expected a number from 1"),
        (dict(WORLD_SIZE="2", RANK="0"), "environment MASTER_PORT: expected a number from 1, set by a launcher, got None"),
    ],
)
def test_an_incomplete_environment_is_refused(variables, message, tmp_path, capsys, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert spct_main(["train", "rl", "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_launcher_of_one_process_changes_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with launch.join() as ranks:
        assert ranks is current() and ranks.size == 1 and not torch.distributed.is_initialized()


def test_gpus_are_shared_out(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    names = [str(Ranks(rank, 6, local_rank=rank % 3, devices=2).device(name)) for rank in range(6) for name in ("auto", "cuda")]
    assert names == [f"cuda:{rank % 3 % 2}" for rank in range(6) for _ in range(2)] and [str(d) for d in chosen] == names
    assert str(Ranks(1, 2, 1, 2).device("cpu")) == "cpu" and str(Ranks().device("cuda:1")) == "cuda:1"
    with pytest.raises(ConfigError, match="device: expected auto, cuda or cpu for 2 processes, which share the GPUs out, got 'cuda:0'"):
        Ranks(1, 2, 1, 2).device("cuda:0")


def test_baselines_train_in_one_process(tmp_path, monkeypatch, capsys):
    # The launcher's processes are told so before any of them begins; here one alone stands for them.
    class Two:
        def __enter__(self):
            return Ranks(0, 2)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(launch, "join", Two)
    assert spct_main(["train", "baseline", "--form", "scalar", "-o", str(tmp_path / "out")]) == 2
    assert "train baseline: expected one process, got 2 of a launcher" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_ranks_that_see_different_folders_are_refused(monkeypatch, tmp_path):
    ranks = Ranks(1, 2)
    monkeypatch.setattr(ranks, "gather", lambda value: [0, value])
    monkeypatch.setattr(ranks, "first", lambda value: 3)
    with pytest.raises(CheckpointError, match=r"the step: expected the same on every rank, got \[0, 5\]"):
        ranks.expect_alike(5, "the step")
    with pytest.raises(CheckpointError, match=r"rows\.jsonl: not what rank 0 has there"):
        ranks.fold(tmp_path / "rows.jsonl")
