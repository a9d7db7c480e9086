"""What else users could run on this CPU, on the same checkpoint, prompt, k and length, interleaved with this engine.

    python bench/peers.py --model smollm2 --samples 32,8                 the case that users feel
    python bench/peers.py --model llama-25m --samples 32,8 --temperature 1,0.05
    python bench/peers.py --prepare --model smollm2                      only makes the files that the systems need

Systems that are installed below $PEERS_HOME (default .peers) run, the others are named; each file in bench/systems says how its
system is installed. Every system has a process of its own for a case. Before a case is timed each system draws greedily, and its
tokens are compared with those of this engine in fp32: a system of fp32 that differs in the first token is left out. Then the systems
take turns; one round is one run of each, with a prompt that none has seen. Prints a table; writes (with --out) and prints as its last
line one JSON document. Temperature 1 of random weights is the sampler's worst case, a flat distribution; 0.05 stands for a trained
model's peaked one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from judging_text import FIRST, QUERY, SECOND
from peer_process import SYSTEMS, Peer, SystemFailure, command, environment
from peer_report import case_lines, summary

from spct.benchmark.floor import Peaks, Shape, floor_of
from spct.benchmark.machine import machine_card, measure_peaks, versions
from spct.benchmark.texts import fresh_prompt
from spct.cli.plan import plan_model
from spct.config import EngineConfig
from spct.prompting import JudgePrompt
from spct.types import ScoreRequest

ROOT = Path(__file__).parents[1]
GREEDY = 8
FLOORS = {"fp32": ("fp32", "float32"), "int8": ("int8", "bfloat16")}


def main() -> None:
    """Runs the cases."""
    options = arguments()
    torch.set_num_threads(options.threads)
    home = Path(os.environ.get("PEERS_HOME", ROOT / ".peers"))
    folder, prompt = model_and_prompt(options.model, home, options.prompt_tokens)
    made = home / "made" / options.model
    names = options.systems.split(",") if options.systems else list(SYSTEMS)
    missing = prepare(names, folder, made, options.threads)
    if options.prepare:
        return
    base = {"bench": "peers", "date": time.strftime("%Y-%m-%d"), "machine": machine_card(), "rss_import_torch": rss_after("import torch")}
    document: dict[str, Any] = {**base, "cases": []}
    if options.out is not None and options.out.exists():
        document["cases"] = json.loads(options.out.read_text())["cases"]
    for temperature in map(float, options.temperature.split(",")):
        for samples in map(int, options.samples.split(",")):
            case = {"model": options.model, "prompt_tokens": len(prompt), "samples": samples, "new": options.new}
            case |= {
                "date": base["date"],
                "temperature": temperature,
                "top_p": options.top_p,
                "command": shlex.join(["python", "bench/peers.py", *sys.argv[1:]]),
            }
            installed = [name for name in names if name not in missing]
            case |= measure(installed, folder, made, prompt, case, options) | {"missing": missing, "note": options.note}
            same = ("model", "prompt_tokens", "samples", "new", "temperature")
            document["cases"] = [c for c in document["cases"] if any(c[key] != case[key] for key in same)] + [case]
            print("\n".join(case_lines(case)), flush=True)
            if options.out is not None:
                options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", choices=["smollm2", "llama-25m", "qwen2-0.5b", "llama-small"])
    parser.add_argument("--samples", default="32,8", help="k, or several")
    parser.add_argument("--new", type=int, default=64, help="tokens of each sample")
    parser.add_argument("--temperature", default="1", help="or several")
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--prompt-tokens", type=int, default=1024, help="of a random model's prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--systems", help=f"some of {','.join(SYSTEMS)}")
    parser.add_argument("--once", default="", help="systems that are slow: they take part in the first round that counts, and no other")
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds of a case after which no further round begins")
    parser.add_argument("--note", default="", help="about the machine's state, kept in the document")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--out", type=Path, help="the document; cases that it holds already are kept, the same ones replaced")
    return parser.parse_args()


def model_and_prompt(name: str, home: Path, length: int) -> tuple[Path, list[int]]:
    """The folder and the token ids. Raises: SystemExit if SmolLM2 is not there."""
    if name == "smollm2":
        folder = ROOT / ".real" / "smollm2"
        if not (folder / "complete.json").exists():
            raise SystemExit(f"{folder}: missing; `make real` writes it")
        return folder, list(JudgePrompt(folder).encode(ScoreRequest(QUERY, (FIRST, SECOND))))
    sys.path.append(str(ROOT / "bench" / "systems"))
    from random_models import SHAPES, write_model

    folder = home / "models" / name
    write_model(name, folder)
    draw = random.Random(0)
    return folder, [draw.randrange(SHAPES[name][2]["vocab_size"] - 2) for _ in range(length)]


def prepare(names: list[str], folder: Path, made: Path, threads: int) -> dict[str, str]:
    """Makes what each system needs; gives why some can't run."""
    missing = {}
    for name in names:
        system = SYSTEMS[name]
        try:
            words = command(system, folder, made, "--prepare", "--threads", str(threads))
            if name == "llama.cpp-q4_1" and not (folder / "model.gguf").exists():
                raise SystemFailure("this model was not published as a Q4_1 file")
            if not system.makes_files:
                continue
            done = subprocess.run(words, env=environment(system, threads), capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemFailure(f"can't be prepared: {done.stderr.strip()[-400:]}")
        except SystemFailure as failure:
            missing[name] = str(failure)
            print(f"{name}: {failure}", file=sys.stderr)
    return missing


def measure(
    names: list[str], folder: Path, made: Path, prompt: list[int], case: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """One case: checks, rounds, peaks of the machine before and after; gives the systems' figures."""
    config = json.loads((folder / "config.json").read_text())
    load_before, peaks = os.getloadavg()[0], [measure_peaks()]
    words = (
        "--threads",
        str(options.threads),
        "--prompt-tokens",
        str(len(prompt)),
        "--samples",
        str(case["samples"]),
        "--new",
        str(case["new"]),
    )
    failures: dict[str, str] = {}
    runs: dict[str, list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        peers: dict[str, Peer] = {}
        for name in names:
            try:
                words_of = command(SYSTEMS[name], folder, made, *words)
                peers[name] = stack.enter_context(Peer(SYSTEMS[name], words_of, options.threads))
            except SystemFailure as failure:
                failures[name] = str(failure)
        agreement = check(peers, prompt, failures)
        drawing = {"samples": case["samples"], "new": case["new"], "temperature": case["temperature"], "top_p": case["top_p"]}
        begin = time.monotonic()
        for turn in range(options.warmup + options.repeats):
            # Whoever is first in a round is second in the next: no system always follows the same other one.
            order = [name for name in peers if name not in failures]
            order = order[turn % len(order) :] + order[: turn % len(order)]
            if time.monotonic() - begin > options.time_limit:
                break
            for name in order:
                if name in options.once.split(",") and turn != options.warmup:
                    continue
                try:
                    answer = peers[name].run(prompt=list(fresh_prompt(prompt, config["vocab_size"], turn + 1)), seed=turn, **drawing)
                except SystemFailure as failure:
                    failures[name] = str(failure)
                    continue
                if turn >= options.warmup:
                    runs.setdefault(name, []).append({key: answer[key] for key in ("first_s", "total_s", "cpu_s")})
                print(f"{name} {turn}: {answer['first_s']:.2f} {answer['total_s']:.2f} s", file=sys.stderr, flush=True)
        ready = {name: peers[name].ready | {"peak_rss": peers[name].peak_rss, "agreement": agreement.get(name)} for name in peers}
    peaks.append(measure_peaks())
    best = Peaks(*(max(values) for values in zip(*map(dataclasses.astuple, peaks), strict=True)))
    spec = plan_model(str(folder), EngineConfig()).spec
    shape = Shape(len(prompt), case["samples"], case["new"])
    floors = {name: floor_of(spec, shape, best, scheme=scheme, kv_dtype=kv) for name, (scheme, kv) in FLOORS.items()}
    measured = {"repeats": options.repeats, "warmup": options.warmup, "threads": options.threads, "load_before": load_before}
    measured |= {"peaks": dataclasses.asdict(best), "floors_s": {name: floor.total_s for name, floor in floors.items()}}
    return measured | {
        "failures": failures,
        "systems": summary(runs, ready, {name: f.total_s for name, f in floors.items()}),
        "versions": versions(),
    }


def check(peers: dict[str, Peer], prompt: list[int], failures: dict[str, str]) -> dict[str, int]:
    """How many of the first greedy tokens of each system are those of this engine in fp32."""
    tokens: dict[str, list[int]] = {}
    for name, peer in peers.items():
        try:
            tokens[name] = peer.run(prompt=prompt, samples=1, new=GREEDY, temperature=0.0, top_p=1.0, seed=0)["tokens"][0]
        except SystemFailure as failure:
            failures[name] = str(failure)
    reference = tokens.get("spct-fp32") or tokens.get("transformers")
    if reference is None:
        raise SystemExit("nothing to compare with: spct-fp32 or transformers must be among the systems")
    agreement = {}
    for name, own in tokens.items():
        agreement[name] = next((i for i in range(GREEDY) if own[i] != reference[i]), GREEDY)
        if agreement[name] == 0 and SYSTEMS[name].floor == "fp32":
            failures[name] = f"wrong greedy tokens: {own}, expected {reference}"
    return agreement


def rss_after(program: str) -> int:
    """Bytes that a fresh Python holds after a statement."""
    code = f"{program}\nfor line in open('/proc/self/status'):\n    if line.startswith('VmHWM'): print(int(line.split()[1]) * 1024)"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
