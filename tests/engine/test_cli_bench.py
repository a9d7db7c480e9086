"""`spct bench` on a tiny random model: what it reports adds up, and what it can't use is refused by name."""

import json
import sys

import pytest
from command_line import spct

from spct import Engine, SamplingParams
from spct.benchmark import startup
from spct.benchmark.latency import timed_call
from spct.benchmark.spread import Spread
from spct.benchmark.startup import measure_startup
from spct.benchmark.texts import fresh_prompt, generated_prompt, generated_requests
from spct.errors import BackendError

SMALL = ("--samples", 3, "--max-tokens", 4, "--repeats", 2, "--warmup", 0)


@pytest.fixture(scope="module", autouse=True)
def _quick_peaks(module_monkeypatch):
    """Products of 64 instead of 1536, and 1 MiB instead of 256: the numbers don't matter here."""
    from spct.benchmark import machine

    module_monkeypatch.setattr(machine, "_GEMM", 64)
    module_monkeypatch.setattr(machine, "_READ_BYTES", 2**20)


@pytest.fixture(scope="module")
def module_monkeypatch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_latency_as_json_adds_up(tiny_folder, tmp_path, capsys):
    out = tmp_path / "latency.json"
    assert spct("bench", "latency", "--model", tiny_folder, *SMALL, "--prompt-tokens", 40, "--json", "-o", out) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(out.read_text())
    assert (report["prompt_tokens"], report["sampling"]["samples"], report["weights"]) == (40, 3, "fp32")
    prefill, decode, total = (report[name]["values"] for name in ("prefill_s", "decode_s", "total_s"))
    assert len(total) == 2 and total == pytest.approx([a + b for a, b in zip(prefill, decode, strict=True)])
    assert report["decode_tokens_per_s"]["values"] == pytest.approx([3 * 3 / s for s in decode])
    floor = report["floor"]
    assert floor["total_s"] == pytest.approx(floor["prefill_s"] + floor["decode_s"])
    assert floor["fraction_total"] == pytest.approx(floor["total_s"] / report["total_s"]["median"])
    assert report["peak_rss_bytes"] > 2**20 and set(report["machine"]) >= {"cpu", "cores", "level", "threads"}


def test_latency_as_a_table(tiny_folder, tmp_path, capsys):
    text = tmp_path / "prompt.txt"
    text.write_text("Which of these is a prime number: 51, 53?")
    assert spct("bench", "latency", "--model", tiny_folder, *SMALL, "--prompt-file", text) == 0
    printed = capsys.readouterr().out
    for words in ("prefill", "tokens/s", "of it reached", "peak memory", "GFLOP/s", "medians of 2"):
        assert words in printed


def test_throughput_counts_all_requests(tiny_folder, capsys):
    assert spct("bench", "throughput", "--model", tiny_folder, *SMALL, "--requests", 3, "--prompt-tokens", 120, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["requests"], report["generated_tokens"]) == (3, 3 * 3 * 4)
    assert report["judgements_per_s"]["values"] == pytest.approx([3 / s for s in report["seconds"]["values"]])
    assert report["tokens_per_s"]["values"] == pytest.approx([36 / s for s in report["seconds"]["values"]])
    assert spct("bench", "throughput", "--model", tiny_folder, *SMALL, "--requests", 2, "--prompt-tokens", 120) == 0
    assert "judgements per second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("latency --repeats 0", "--repeats: expected at least 1"),
        ("latency --warmup -1", "--warmup: expected at least 0"),
        ("latency --prompt-tokens -3", "--prompt-tokens: expected at least 1"),
        ("latency --prompt-file /nowhere/prompt.txt", "--prompt-file: /nowhere/prompt.txt can't be read"),
        ("latency --top-p 0", "top_p: expected 0 < top_p"),
        ("latency --kv-dtype fp7", "dtype: expected one of"),
        ("latency --num-threads 0", "num_threads: expected a positive integer"),
        ("latency --prompt a --prompt-tokens 3", "not allowed with argument"),
        ("throughput --requests 0", "--requests: expected at least 1"),
        ("startup --samples 0", "--samples: expected at least 1"),
        ("speed", "invalid choice"),
        ("", "the following arguments are required"),
    ],
)
def test_what_can_not_be_measured_is_a_usage_error(tiny_folder, capsys, words, message):
    model = [] if words.split()[:1] in ([], ["speed"]) else ["--model", tiny_folder]
    assert spct("bench", *words.split(), *model) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


def test_a_prompt_past_the_context_is_a_failure(tiny_folder, capsys):
    assert spct("bench", "latency", "--model", tiny_folder, "--prompt-tokens", 600) == 1
    assert "context" in capsys.readouterr().err


def test_a_call_is_cold_and_its_samples_are_those_of_one_call(tiny_folder):
    sampling = SamplingParams(samples=4, max_tokens=5, ignore_eos=True)
    with Engine.from_pretrained(tiny_folder, device="cpu") as engine:
        prompt = generated_prompt(engine.prompt, 50, seed=0)
        assert len(prompt) == 50
        for turn in range(2):
            before = engine.stats.num_rows
            _, _, generations = timed_call(engine, fresh_prompt(prompt, 257, turn), sampling)
            # The prompt once, and four rows for each token but the last.
            assert engine.stats.num_rows - before == 50 + 4 * 4
        whole = engine.generate(fresh_prompt(prompt, 257, 1), sampling)
        assert [g.token_ids for g in whole] == [g.token_ids for g in generations]
        with pytest.raises(BackendError, match="expected 1 samples of 300 tokens"):
            timed_call(engine, tuple(range(1, 250)), SamplingParams(samples=1, max_tokens=300, ignore_eos=True))


def test_generated_requests_have_the_length_asked_for(tiny_folder):
    with Engine.from_pretrained(tiny_folder, device="cpu") as engine:
        requests = generated_requests(engine.prompt, 3, 200, seed=1)
        assert len(set(requests)) == 3 and all(170 <= len(engine.prompt.encode(r)) <= 230 for r in requests)
        assert requests == generated_requests(engine.prompt, 3, 200, seed=1) != generated_requests(engine.prompt, 3, 200, seed=2)


def test_startup_compares_processes_with_the_baseline(monkeypatch, capsys):
    fake = {"import torch": [sys.executable, "-c", "pass"], "spct judge": [sys.executable, "-c", "pass"]}
    monkeypatch.setattr("spct.cli.bench.startup_commands", lambda model, samples: fake)
    assert spct("bench", "startup", "--repeats", 2, "--warmup", 0, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    medians = {name: s["median"] for name, s in report["seconds"].items()}
    assert report["ratio_to_import_torch"]["spct judge"] == pytest.approx(medians["spct judge"] / medians["import torch"])
    assert spct("bench", "startup", "--repeats", 1, "--warmup", 0) == 0
    assert "x `import torch`" in capsys.readouterr().out


def test_a_process_that_fails_is_no_timing():
    program = "import sys; print('too bad', file=sys.stderr); sys.exit(3)"
    with pytest.raises(BackendError, match="judge: the process ended with code 3: too bad"):
        measure_startup({"judge": [sys.executable, "-c", program]}, repeats=1, warmup=0)


def test_the_processes_are_the_ones_that_users_start():
    commands = startup.startup_commands("embedded", 7)
    assert commands["import torch"][1:] == ("-c", "import torch") and commands["spct --help"][-1] == "--help"
    judge = commands["spct judge"]
    assert judge[judge.index("--samples") + 1] == "7" and judge[judge.index("--max-tokens") + 1] == "1"


def test_a_spread_needs_a_measurement():
    spread = Spread.of([3.0, 1.0, 2.0])
    assert (spread.median, spread.low, spread.high) == (2.0, 1.0, 3.0)
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])
