"""`bench/peers.py`: figures, a system that dies or lies, and a whole small comparison."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
ROOTS = [str(BENCH), str(BENCH / "systems"), *(str(BENCH.parent / root) for root in ("engine", "kernels"))]


@pytest.fixture(autouse=True)
def _bench_modules(monkeypatch):
    monkeypatch.setattr(sys, "path", [*ROOTS[:2], *sys.path])


def ready(agreement=8):
    return {"agreement": agreement, "rss_imported": 1, "rss_loaded": 2, "peak_rss": 3, "versions": {}}


def test_ratios_are_taken_within_a_round():
    from peer_report import summary

    runs = {
        "spct-fp32": [{"first_s": 0.1, "total_s": seconds, "cpu_s": 2 * seconds} for seconds in (1.0, 2.0, 4.0)],
        "llama.cpp-q8_0": [{"first_s": 0.3, "total_s": seconds, "cpu_s": seconds} for seconds in (3.0, 4.0, 20.0)],
    }
    figures = summary(runs, dict.fromkeys(runs, ready()), {"fp32": 0.5, "int8": 0.25})
    assert figures["llama.cpp-q8_0"]["times_ours"]["spct-fp32"]["values"] == [3.0, 2.0, 5.0]
    assert figures["llama.cpp-q8_0"]["times_ours"]["spct-fp32"]["median"] == 3.0
    assert figures["llama.cpp-q8_0"]["fraction_of_floor"] == {"fp32": 0.125, "int8": 0.0625}
    assert figures["llama.cpp-q8_0"]["cpu_times_ours"]["spct-fp32"]["values"] == [1.5, 1.0, 2.5]
    assert figures["spct-fp32"]["times_ours"] == {} and figures["spct-fp32"]["total_s"]["median"] == 2.0


def test_the_table_says_what_the_document_says():
    from peer_report import case_lines, peers_table, startup_table, summary

    runs = {
        "openvino-f32": [{"first_s": 0.4, "total_s": seconds, "cpu_s": 1.0} for seconds in (6.0, 6.2, 5.8)],
        "spct-fp32": [{"first_s": 0.2, "total_s": seconds, "cpu_s": 1.0} for seconds in (2.0, 2.0, 2.0)],
    }
    case = {
        "model": "smollm2", "prompt_tokens": 1055, "samples": 32, "new": 64, "temperature": 1.0, "top_p": 0.95, "repeats": 3,
        "peaks": {"read": 30e9, "fp32": 150e9, "bf16": 400e9, "int8": 800e9}, "floors_s": {"fp32": 1.5, "int8": 0.5}, "load_before": 0.1,
        "missing": {"llama.cpp-q8_0": "not installed"}, "failures": {}, "note": "A note.", "command": "python bench/peers.py --samples 32",
        "systems": summary(runs, dict.fromkeys(runs, ready()), {"fp32": 1.5, "int8": 0.5}),
    }  # fmt: skip
    machine = {"threads": 2, "cores": 2, "cpu": "AMD EPYC", "level": "avx512bf16"}
    text = peers_table({"cases": [case], "machine": machine, "date": "2026-11-24", "rss_import_torch": 2**27})
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    # Ours stands first although the other is named first; 6 / 2 seconds, and 1.5 of 2 seconds of the floor.
    assert rows[0].startswith("| **spct-fp32** | fp32 | 0.20 | 2.00 (2.00 to 2.00) | 75% |  | 0 MiB")
    assert rows[1].startswith("| openvino-f32 | fp32 | 0.40 | 6.00 (5.80 to 6.20) | 25% | 3.00 | 0 MiB")
    assert "k=32" in text and "A note." in text and "128 MiB" in text and "`python bench/peers.py --samples 32`" in text
    printed = "\n".join(case_lines(case))
    assert "llama.cpp-q8_0: not installed" in printed and "3.00" in printed
    seconds = {"import torch": {"median": 1.0, "min": 0.9, "max": 1.2}, "spct judge": {"median": 1.4, "min": 1.3, "max": 1.5}}
    started = {"seconds": seconds, "ratio_to_import_torch": {"import torch": 1.0, "spct judge": 1.4}, "repeats": 5, "date": "2026-11-24"}
    text = startup_table(started | {"machine": machine, "command": "spct bench startup"})
    assert "| `spct judge` | 1.40 (1.30 to 1.50) | 1.40 |" in text and "`spct bench startup`" in text


SYSTEM = """
import os, sys
from protocol import Outcome, arguments, serve
options = arguments()
print("a library's chatter")
def run(asked):
    if asked.seed == 13:
        raise SystemExit("out of luck")
    return Outcome(0.5, 1.5, [[7] * (asked.new - (asked.seed == 14))] * asked.samples)
serve(options, lambda: (run, {"some": os.environ["OMP_NUM_THREADS"]}))
"""


@pytest.fixture
def peer(tmp_path):
    from peer_process import Peer, System

    script = tmp_path / "system.py"
    script.write_text(f"import sys\nsys.path[:0] = {ROOTS[:2]!r}\n{SYSTEM}")
    words = [sys.executable, str(script), "--model", "m", "--made", "n", "--threads", "3"]
    with Peer(System("x.py", None, (), "", "fp32"), words, threads=3) as peer:
        yield peer


CASE = {"prompt": [1, 2], "samples": 2, "new": 4, "temperature": 1.0, "top_p": 0.95}


def test_a_system_answers_runs_whatever_its_libraries_print(peer):
    assert peer.ready["versions"] == {"some": "3"} and peer.ready["rss_loaded"] > 2**20
    answers = [peer.run(**CASE, seed=i) for i in range(2)]
    assert [(a["first_s"], a["total_s"]) for a in answers] == [(0.5, 1.5)] * 2 and all(a["cpu_s"] >= 0 for a in answers)
    assert peer.peak_rss >= peer.ready["rss_loaded"]


@pytest.mark.parametrize(("seed", "why"), [(13, "out of luck"), (14, r"expected 2 samples of 4 tokens, got 2 of \[3\]")])
def test_a_system_that_fails_or_writes_too_little_is_named(peer, seed, why):
    from peer_process import SystemFailure

    with pytest.raises(SystemFailure, match=why):
        peer.run(**CASE, seed=seed)


def test_wrong_greedy_tokens_of_an_fp32_system_are_no_timing():
    from peers import check

    class Fixed:
        def __init__(self, tokens):
            self.tokens = tokens

        def run(self, **_):
            return {"tokens": [self.tokens]}

    right = list(range(8))
    failures = {}
    peers = {"spct-fp32": Fixed(right), "transformers": Fixed([9, *right[1:]]), "llama.cpp-q8_0": Fixed([*right[:3], 0, 0, 0, 0, 0])}
    assert check(peers, [1], failures) == {"spct-fp32": 8, "transformers": 0, "llama.cpp-q8_0": 3}
    assert list(failures) == ["transformers"]


def test_a_small_comparison_end_to_end(tmp_path, monkeypatch, capsys):
    import peers

    from spct.benchmark import machine

    # The machine's peaks don't matter here, and would take longer than all else.
    monkeypatch.setattr(machine, "_GEMM", 64)
    monkeypatch.setattr(machine, "_READ_BYTES", 2**20)
    monkeypatch.setenv("PEERS_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(ROOTS[2:]))
    out = tmp_path / "peers.json"
    words = f"--model llama-small --prompt-tokens 40 --samples 2 --new 3 --repeats 2 --warmup 0 --threads {torch.get_num_threads()}"
    monkeypatch.setattr(sys, "argv", ["peers.py", *words.split(), "--systems", "spct-fp32,llama.cpp-q8_0", "--out", str(out)])
    peers.main()
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document == json.loads(out.read_text())
    (case,) = document["cases"]
    assert list(case["systems"]) == ["spct-fp32"] and "not installed" in case["missing"]["llama.cpp-q8_0"]
    assert case["systems"]["spct-fp32"]["greedy_tokens_equal"] == 8 and case["failures"] == {}
    total = case["systems"]["spct-fp32"]["total_s"]
    assert len(total["values"]) == 2 and total["min"] <= total["median"] <= total["max"]
    fractions = case["systems"]["spct-fp32"]["fraction_of_floor"]
    assert fractions == pytest.approx({name: seconds / total["median"] for name, seconds in case["floors_s"].items()})
    assert str(tmp_path) not in json.dumps(case["systems"])
