"""Figures of `bench/peers.py`: medians, ratios, fractions of the floor, and the lines that people read."""

from __future__ import annotations

import statistics
from typing import Any

from peer_process import SYSTEMS

MIB = 2**20
TITLES = {"smollm2": "SmolLM2-135M-Instruct", "llama-25m": "Llama of 25M, random", "qwen2-0.5b": "Qwen2.5-0.5B's shape, random"}


def summary(runs: dict[str, list[dict[str, Any]]], ready: dict[str, dict[str, Any]], floors_s: dict[str, float]) -> dict[str, Any]:
    """Per system: seconds, memory, fractions of both floors, and how many times as long it takes as each of ours in the same round."""
    systems = {}
    ours = [name for name in runs if SYSTEMS[name].is_ours]
    for name, own in runs.items():
        totals = [run["total_s"] for run in own]
        systems[name] = {
            "numbers": SYSTEMS[name].numbers,
            "first_token_s": spread([run["first_s"] for run in own]),
            "total_s": spread(totals),
            "cpu_s": spread([run["cpu_s"] for run in own]),
            "fraction_of_floor": {floor: seconds / statistics.median(totals) for floor, seconds in floors_s.items()},
            "times_ours": {
                other: spread([mine["total_s"] / theirs["total_s"] for mine, theirs in zip(own, runs[other], strict=False)])
                for other in ours
                if other != name
            },
            "cpu_times_ours": {
                other: spread([mine["cpu_s"] / theirs["cpu_s"] for mine, theirs in zip(own, runs[other], strict=False)])
                for other in ours
                if other != name
            },
            "greedy_tokens_equal": ready[name]["agreement"],
            "rss": {key: ready[name][key] for key in ("rss_imported", "rss_loaded", "peak_rss")},
            "versions": ready[name]["versions"],
        }
    return systems


def spread(values: list[float]) -> dict[str, Any]:
    """Median, smallest, largest and all."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def case_title(case: dict[str, Any]) -> str:
    """What a case is."""
    return (
        f"{case['model']}, {case['prompt_tokens']} tokens, k={case['samples']}, {case['new']} new tokens each, "
        f"temperature {case['temperature']:g}, top-p {case['top_p']:g}"
    )


def case_lines(case: dict[str, Any]) -> list[str]:
    """A case as an aligned table."""
    peaks = case["peaks"]
    lines = [
        "",
        case_title(case),
        f"reads {peaks['read'] / 1e9:.1f} GB/s; fp32 {peaks['fp32'] / 1e9:.0f}, bf16 {peaks['bf16'] / 1e9:.0f} GFLOP/s; "
        f"int8 {peaks['int8'] / 1e9:.0f} GOP/s; floors: {', '.join(f'{name} {s:.2f} s' for name, s in case['floors_s'].items())}; "
        f"load before {case['load_before']:.1f}",
        f"{'system':20} {'first token s':>14} {'total s (min to max)':>24} {'of its floor':>12} {'x ours':>16} {'CPU s':>7} "
        f"{'peak MiB':>9} {'greedy':>7}",
    ]
    for name, system in sorted(case["systems"].items(), key=lambda item: item[1]["total_s"]["median"]):
        total = system["total_s"]
        shown = f"{total['median']:.2f} ({total['min']:.2f} to {total['max']:.2f})"
        ratios = " ".join(f"{ratio['median']:.2f}" for ratio in system["times_ours"].values())
        fraction, busy = system["fraction_of_floor"][SYSTEMS[name].floor], system["cpu_s"]["median"]
        lines.append(
            f"{name:20} {system['first_token_s']['median']:14.2f} {shown:>24} {fraction:12.0%} {ratios:>16} {busy:7.2f} "
            f"{system['rss']['peak_rss'] / MIB:9.0f} {system['greedy_tokens_equal']:>7}"
        )
    return lines + [f"{name}: {why}" for name, why in (case["missing"] | case["failures"]).items()]


def peers_table(document: dict[str, Any]) -> str:
    """A table for each case: our systems first, then the others, the fastest first."""
    lines: list[str] = []
    imported = document["rss_import_torch"] / MIB
    for case in document["cases"]:
        ours = [name for name in case["systems"] if SYSTEMS[name].is_ours]
        title = f"{TITLES.get(case['model'], case['model'])}, {case['prompt_tokens']:,} tokens of prompt, k={case['samples']}"
        floors = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in case["floors_s"].items())
        lines += [f"**{title}, {case['new']} new tokens each, temperature {case['temperature']:g}** (floor: {floors})", ""]
        head = [
            "system",
            "numbers",
            "first token",
            "total (min to max)",
            "of its floor",
            *(f"times {name}" for name in ours),
            "peak memory",
        ]
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        by_time = sorted(case["systems"].items(), key=lambda item: (not SYSTEMS[item[0]].is_ours, item[1]["total_s"]["median"]))
        lines += ["| " + " | ".join(_cells(name, figures, ours)) + " |" for name, figures in by_time]
        lines += [""]
    machine, peaks = document["machine"], document["cases"][-1]["peaks"]
    lines.append(
        f"Medians of {document['cases'][-1]['repeats']} rounds in which the systems took turns; seconds; ratios are taken within a round. "
        f"{document['date']}, {machine['threads']} threads on {machine['cores']} cores of an {machine['cpu']} ({machine['level']}): "
        f"reads {peaks['read'] / 1e9:.0f} GB/s, fp32 {peaks['fp32'] / 1e9:.0f} and bf16 {peaks['bf16'] / 1e9:.0f} GFLOP/s, "
        f"int8 {peaks['int8'] / 1e9:.0f} GOP/s, measured around each case. Peak memory is that of the whole process "
        f"(`import torch` alone takes {imported:.0f} MiB)."
    )
    lines += [note for note in dict.fromkeys(case["note"] for case in document["cases"]) if note]
    lines += [f"`{command}`" for command in dict.fromkeys(case["command"] for case in document["cases"])]
    return "\n".join(lines) + "\n"


def _cells(name: str, figures: dict[str, Any], ours: list[str]) -> list[str]:
    total, ratios = figures["total_s"], figures["times_ours"]
    return [
        f"**{name}**" if SYSTEMS[name].is_ours else name,
        figures["numbers"],
        f"{figures['first_token_s']['median']:.2f}",
        f"{total['median']:.2f} " + ("(one run)" if len(total["values"]) == 1 else f"({total['min']:.2f} to {total['max']:.2f})"),
        f"{figures['fraction_of_floor'][SYSTEMS[name].floor]:.0%}",
        *(f"{ratios[other]['median']:.2f}" if other in ratios else "" for other in ours),
        f"{figures['rss']['peak_rss'] / MIB:.0f} MiB",
    ]


def startup_table(document: dict[str, Any]) -> str:
    """`spct bench startup`: a process a row."""
    lines = ["| process | seconds (min to max) | times `import torch` |", "|---|---|---|"]
    for name, seconds in document["seconds"].items():
        shown = f"{seconds['median']:.2f} ({seconds['min']:.2f} to {seconds['max']:.2f})"
        lines.append(f"| `{name}` | {shown} | {document['ratio_to_import_torch'][name]:.2f} |")
    machine = f"{document['machine']['cores']} cores of an {document['machine']['cpu']}"
    lines += ["", f"Medians of {document['repeats']} cold processes, taking turns; {document['date']}, {machine}: `{document['command']}`."]
    return "\n".join(lines) + "\n"
