"""The recipe on a published checkpoint: demonstrations, one round of rejective fine-tuning and a meta head, through LoRA.

    python bench/published_model.py --model FOLDER [-o DIR] [--out bench/results/published-model.json]

Every stage is a command of `spct`, printed as it starts; before and after each stage of training the same held-out items are judged. A run
that was stopped goes on with the same command: finished stages are not repeated, an unfinished one is resumed. `--until STAGE` stops
behind a stage; whatever has finished is written.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "engine" / "spct" / "embedded" / "judge_template.jinja"
COSTS, METRICS = "costs.json", "metrics.jsonl"
STAGES = ("before", "sft", "after-sft", "rft", "after-rft", "meta")
# Seconds of the user's own time that a stage has taken, over all its starts.
Cost = dict[str, float]


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """The command of every stage, in order; folders are named within `-o`."""
    sampling = ["--weights", "int8", "--max-tokens", str(args.max_tokens)]
    domains = ["--domains", *args.domains]
    held_out = ["--limit", str(args.items), "--samples", "1,2,4", "--no-greedy", "--resume"]
    evaluate = ["eval", "embedded-test", "--model", "MODEL", *domains, *held_out, *sampling]
    model, machine = ["--model", "MODEL"], ["--workers", "1", *domains]
    rank = ["--lora", "16", "--lora-alpha", "32", "--template", "TEMPLATE"]
    shape = ["--prompts", "2", "--group", "4", "--micro-batches", "1", "--easy-steps", "0", "--prompt-weight", "0", "--lr", "1e-3"]
    steps = ["--steps", str(args.steps), "--warmup", "20", "--decay", str(args.steps // 2)]
    draw = ["--samples", "4", "--keep", "4", "--dtype", "bf16", *sampling]
    learn = ["--requests", str(args.requests), "--epochs", "1", "--prompts", "4", "--lr", "1e-4"]
    items = ["--items", str(args.meta_items), "--validation", str(args.meta_validation), "--samples", "4", "--votes", "4"]
    return {
        "before": [*evaluate, "--template", "TEMPLATE", "-o", "before"],
        "sft": ["train", "sft", "-o", "sft", *model, *rank, *machine, *shape, *steps],
        "after-sft": [*evaluate, "--adapter", "sft", "-o", "after-sft", "--against", "before"],
        "rft": ["train", "rft", "-o", "rft", *model, "--adapter", "sft", *machine, *draw, *learn],
        "after-rft": [*evaluate, "--adapter", "rft", "-o", "after-rft", "--against", "after-sft"],
        "meta": ["train", "meta", "-o", "meta", *model, "--adapter", "rft", *machine, *items, *sampling],
    }


def run_stage(name: str, words: Sequence[str], args: argparse.Namespace, costs: dict[str, Cost]) -> None:
    """Run one stage to its end in the folder of the run and add what it cost.

    Raises: SystemExit if its command fails.
    """
    places = {"MODEL": str(args.model.resolve()), "TEMPLATE": str(TEMPLATE)}
    print("spct", shlex.join(words), file=sys.stderr, flush=True)
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "spct.cli.main", *(places.get(word, word) for word in words)], cwd=args.output)
    _, status, usage = os.wait4(process.pid, 0)
    cost = costs.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0})
    cost["seconds"] += time.monotonic() - began
    cost["cpu_seconds"] += usage.ru_utime + usage.ru_stime
    cost["finished"] = float(status == 0)
    (args.output / COSTS).write_text(json.dumps(costs, indent=1) + "\n")
    if status:
        raise SystemExit(f"{name}: its command failed; the same command of this script resumes it")


def judged(folder: Path) -> dict[str, Any]:
    """What an evaluation says that the document shows."""
    report = json.loads((folder / "accuracy.json").read_text())
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    drawn = [sample for row in rows for sample in row["samples"]]
    told = {name: report[name] for name in ("items", "chance", "valid_rate", "voting")}
    told |= {"intervals": report["intervals"]["voting"], "samples": len(drawn), "valid": sum(s["scores"] is not None for s in drawn)}
    told["subsets"] = {
        name: {"items": s["items"], "chance": s["chance"], "valid_rate": s["valid_rate"], "voting": s["voting"]}
        for name, s in report["subsets"].items()
    }
    told["tokens"] = sum(sample["num_tokens"] for sample in drawn)
    # By item, in an order that is the same in every run, for paired differences.
    valid = {row["key"]: [s["scores"] is not None for s in row["samples"]] for row in rows}
    told["valid_by_item"] = [sum(valid[key]) / len(valid[key]) for key in sorted(valid)]
    return told | ({"against": report["against"]["voting"], "against_run": report["against"]["run"]} if "against" in report else {})


def trained(folder: Path) -> dict[str, Any]:
    """What a training stage did: its steps and tokens, and its loss at both ends."""
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    # Supervised training counts tokens from the start of the run, rejective fine-tuning step by step.
    tokens = rows[-1]["tokens"] if "smooth" in rows[0] else sum(row["tokens"] for row in rows)
    few = max(1, len(rows) // 8)
    ends = {name: sum(row["loss"] for row in part) / few for name, part in (("first_loss", rows[:few]), ("last_loss", rows[-few:]))}
    return {"steps": len(rows), "tokens": tokens, **ends}


def stage_report(name: str, folder: Path) -> dict[str, Any]:
    """What is kept of a stage that has finished."""
    if name == "meta":
        report = json.loads((folder / "report.json").read_text())
        names = (
            "items",
            "samples",
            "valid_rate",
            "correct_rate",
            "auc",
            "auc_within",
            "logprob_auc_within",
            "mixed_items",
            "accuracy",
            "paired",
        )
        return {key: report["fused"][key] for key in names}
    if name in ("sft", "rft"):
        rejection = {"rejection": json.loads((folder / "statistics.json").read_text())[0]} if name == "rft" else {}
        return {**trained(folder), **rejection}
    return judged(folder)


def main() -> None:
    """Run what has not finished and write what has."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="a Hugging Face folder")
    parser.add_argument("-o", "--output", type=Path, default=Path("published"), metavar="DIR", help="folder of all stages")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the figures, as JSON")
    parser.add_argument("--machine", default="", help="what it ran on, for the document")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="last stage to run")
    parser.add_argument("--domains", nargs="+", default=["passage", "table"], help="of the project's own tasks")
    for name, default, told in (
        ("items", 208, "held-out items of every evaluation"),
        ("steps", 300, "of supervised training, 8 demonstrations each"),
        ("requests", 300, "of the round of rejective fine-tuning, 4 samples each"),
        ("meta-items", 200, "that the meta head learns from"),
        ("meta-validation", 100, "that it is judged on"),
        ("max-tokens", 160, "of a sample"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{told} ({default})")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    costs: dict[str, Cost] = json.loads((args.output / COSTS).read_text()) if (args.output / COSTS).exists() else {}
    told = commands(args)
    for name in STAGES[: STAGES.index(args.until) + 1]:
        if not costs.get(name, {}).get("finished"):
            run_stage(name, told[name], args, costs)
    done = [name for name in STAGES if costs.get(name, {}).get("finished")]
    sizes = [
        f"--{name.replace('_', '-')} {getattr(args, name)}" for name in ("items", "steps", "requests", "meta_items", "meta_validation")
    ]
    measured = {
        "date": datetime.date.today().isoformat(),
        "machine": args.machine,
        "command": f"python bench/published_model.py --model {args.model.name} --domains {' '.join(args.domains)} {' '.join(sizes)}",
    }
    stages = {name: {"command": f"spct {shlex.join(told[name])}", **costs[name], **stage_report(name, args.output / name)} for name in done}
    text = json.dumps({"bench": "published-model", "measured": measured, "model": args.model.name, "stages": stages}, indent=1) + "\n"
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
