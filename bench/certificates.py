"""Share of rows that the Triton output head draws without a certificate (and redoes), on a model's own judging text.

    python bench/certificates.py MODEL [--samples 3] [--max-tokens 32] [--kernel-rows 32] [--out bench/results/certificates.json]

MODEL writes judgements of the requests below with top-p 0.95 at temperatures 1 and 0.7. Every position that it wrote is drawn again, with
fresh noise: by a numpy model of the certificate, and `--kernel-rows` positions of each temperature also by the kernels themselves, under
Triton's interpreter, from the real hidden states and head. The numpy model's flags must be the kernels'. Prints a table, and as its
last line one JSON document. Bar: at most 1% at either temperature.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import numpy as np
import torch
import triton
from certificate_model import Verdict, verdict
from torch import Tensor

from spct import Engine, SamplingParams, ScoreRequest, checkpoint
from spct.benchmark.machine import machine_card, versions
from spct.models.decoder import Decoder, ForwardBatch
from spct.models.kv import KVCache
from spct_kernels import AttentionPlan, fused_sample, triton_sample
from spct_kernels.philox import gumbel, random_bits
from spct_kernels.triton_sample_draw import UNCERTIFIED

TOP_P = 0.95
TEMPERATURES = (1.0, 0.7)
REQUESTS = (
    ("Explain to a child why the sky is blue.", ["Air scatters blue light more than red.", "Because the sea mirrors in it."]),
    (
        "Write a polite email that moves Thursday's meeting to Friday.",
        ["Hi all, Friday then?", "Dear all, could we meet on Friday?"],
    ),
    ("Which is larger, 3/7 or 0.43? Show the steps.", ["3/7 is 0.4286, so 0.43 is larger.", "3/7, since 3 is more than 0.43."]),
    ("Write a Python function that reverses a list in place.", ["def f(x): x.reverse()", "def f(x): return x[::-1]", "x = x.reverse()"]),
    ("Summarise: The bridge was closed after the flood; repairs take two months.", ["A bridge shut for two months.", "Floods."]),
    ("Is it safe to mix bleach and vinegar for cleaning?", ["No: chlorine gas forms.", "Yes, both clean well."]),
    ("Translate into French: Where is the library?", ["Où est la bibliothèque ?", "Où est le librairie ?"]),
    ("Give three ideas for a rainy Sunday with children.", ["Bake, build a den, paint.", "Watch films all day."]),
    ("What caused the French Revolution?", ["Debt, hunger and inequality.", "Napoleon wanted power.", "A war with Spain."]),
    ("Suggest a title for a story about a lighthouse keeper.", ["The Last Lamp", "Story of a man in a lighthouse who keeps it"]),
)


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    z, share = 1.959964, hits / count
    middle, width = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = ((middle + sign * width) / (1 + z * z / count) for sign in (-1, 1))
    return max(0.0, low), high


def hidden_states(decoder: Decoder, prompt: tuple[int, ...], written: list[tuple[int, ...]]) -> Tensor:
    """Hidden states [sum of lengths, E] at the positions of all samples, which share the prompt: one forward."""
    lengths = [len(prompt), *map(len, written)]
    count = sum(lengths)
    position = np.concatenate([np.arange(lengths[0]), *(np.arange(length) + lengths[0] for length in lengths[1:])])
    plan = AttentionPlan.build(
        node_parent=[-1] + [0] * len(written),
        node_offset=np.cumsum([0, *lengths]),
        node_slots=np.arange(count),
        row_node=np.repeat(np.arange(len(lengths)), lengths),
        row_position=position,
        num_heads=decoder.spec.num_heads,
        num_kv_heads=decoder.spec.layers[0].kv.num_kv_heads,
        head_dim=decoder.spec.head_dim,
    )
    ids = torch.tensor([*prompt, *(token for one in written for token in one)])
    kv = KVCache.allocate(decoder.spec, count, torch.float32)
    batch = ForwardBatch(ids, torch.from_numpy(position), torch.arange(count, dtype=torch.int32), plan, kv)
    return decoder.forward(batch)[lengths[0] :]


@torch.inference_mode()
def written_rows(engine: Engine, decoder: Decoder, options: argparse.Namespace) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """For each request what the model wrote about it at each temperature: (hidden states [N, E], logits [N, V])."""
    for query, responses in REQUESTS:
        prompt = engine.prompt.encode(ScoreRequest(query=query, responses=responses))
        written = []
        for temperature in TEMPERATURES:
            sampling = SamplingParams(samples=options.samples, max_tokens=options.max_tokens, temperature=temperature, top_p=TOP_P)
            written.append([one.token_ids for one in engine.generate(prompt, sampling)])
        hidden = hidden_states(decoder, prompt, [one for some in written for one in some])
        parts = hidden.split([sum(map(len, some)) for some in written])
        yield [(part, decoder.head.logits(part)) for part in parts]


def model_verdicts(logits: Tensor, first: int, temperature: float) -> list[Verdict]:
    """The numpy model's verdicts on rows whose noise is keyed on seeds first, first + 1, …"""
    found = []
    for row, values in enumerate(logits.numpy()):
        seed = torch.tensor([first + row])
        noise = gumbel(random_bits(seed, seed, len(values)), torch.float32)[0].numpy()
        found.append(verdict(values, noise, temperature, TOP_P))
    return found


class _Watched:
    """A kernel that keeps a copy of the tokens that it is launched with."""

    def __init__(self, kernel: Any, argument: int) -> None:
        self.kernel, self.argument, self.tokens = kernel, argument, torch.empty(0)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> Any:
            self.tokens = arguments[self.argument].clone()
            return self.kernel[grid](*arguments, **constants)

        return launch


@torch.inference_mode()
def kernel_verdicts(decoder: Decoder, hidden: Tensor, numbers: list[int], temperature: float) -> tuple[list[bool], list[int]]:
    """(certified, token drawn in the end) of some rows, noise keyed on their numbers, by the kernels under the interpreter."""
    head, count = decoder.head, len(hidden)
    own = triton_sample._redo_logits_kernel
    watched = _Watched(own, own.arg_names.index("token_ptr"))
    triton_sample._redo_logits_kernel = watched  # type: ignore[assignment] # stands for the kernel
    seeds = torch.tensor(numbers)
    try:
        drawn = fused_sample(
            hidden,
            head.norm_weight,
            head.lm_head,
            temperature=torch.full((count,), temperature),
            top_k=torch.zeros(count, dtype=torch.int32),
            top_p=torch.full((count,), TOP_P),
            min_p=torch.zeros(count),
            seed=seeds,
            position=seeds,
            norm_eps=head.norm_eps,
            softcap=head.softcap,
            backend="triton",
        )
    finally:
        triton_sample._redo_logits_kernel = own
    return (watched.tokens != UNCERTIFIED.value).tolist(), drawn.token.tolist()


def measure(engine: Engine, decoder: Decoder, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each temperature: every position by the model, the first of each request by the kernels, too."""
    found: list[list[Verdict]] = [[] for _ in TEMPERATURES]
    watched: list[list[tuple[Tensor, int]]] = [[] for _ in TEMPERATURES]  # hidden states of some rows, and which ones they are
    each = -(-options.kernel_rows // len(REQUESTS))
    for number, parts in enumerate(written_rows(engine, decoder, options), 1):
        for place, (hidden, logits) in enumerate(parts):
            rows = min(each, options.kernel_rows - len(watched[place]), len(hidden))
            watched[place] += [(hidden[row], len(found[place]) + row) for row in range(rows)]
            found[place] += model_verdicts(logits, len(found[place]), TEMPERATURES[place])
        counts = [f"{sum(not one.certified for one in some)} of {len(some)} without" for some in found]
        print(f"{number} of {len(REQUESTS)} requests: {', '.join(counts)}", file=sys.stderr, flush=True)
    return [
        summary(temperature, verdicts, kernel_counts(decoder, rows, verdicts, temperature))
        for temperature, verdicts, rows in zip(TEMPERATURES, found, watched, strict=True)
    ]


def kernel_counts(decoder: Decoder, rows: list[tuple[Tensor, int]], verdicts: list[Verdict], temperature: float) -> dict[str, int]:
    """How often the kernels judged or drew otherwise than the numpy model did."""
    numbers = [number for _, number in rows]
    certified, tokens = kernel_verdicts(decoder, torch.stack([hidden for hidden, _ in rows]), numbers, temperature) if rows else ([], [])
    pairs = [(flag, token, verdicts[number]) for flag, token, number in zip(certified, tokens, numbers, strict=True)]
    return {
        "rows": len(pairs),
        "uncertified": certified.count(False),
        "flags_that_differ": sum(flag != one.certified for flag, _, one in pairs),
        "tokens_that_differ": sum(token != one.exact for _, token, one in pairs),
    }


def summary(temperature: float, found: list[Verdict], kernel: dict[str, int]) -> dict[str, Any]:
    """One temperature's figures."""
    missed = sum(not one.certified for one in found)
    sizes = np.quantile([one.nucleus for one in found], (0.5, 0.9, 0.99))
    return {
        "temperature": temperature, "top_p": TOP_P, "rows": len(found), "uncertified": missed, "share": missed / len(found),
        "interval": interval(missed, len(found)), "wrong_where_certified": sum(one.certified and one.token != one.exact for one in found),
        "nucleus_50_90_99": [int(size) for size in sizes], "kernel": kernel,
    }  # fmt: skip


def main() -> int:
    """Measures, prints and writes; exit 1 if a share is above the bar, a certified token is wrong or the two verdicts differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help='a Hugging Face folder, a hub id, or "embedded"')
    parser.add_argument("--samples", type=int, default=3, help="judgements of each request and temperature")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--kernel-rows", type=int, default=32, help="of each temperature, drawn by the kernels, too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    decoder = checkpoint.load(options.model, dtype="fp32").decoder
    with Engine.from_pretrained(options.model, dtype="fp32", kv_memory="256MiB") as engine:
        rows = measure(engine, decoder, options)
    for row in rows:
        low, high = row["interval"]
        print(
            f"T={row['temperature']:<4} top-p {row['top_p']}  {row['rows']:5} rows  {row['uncertified']:3} without: {row['share']:.2%} "
            f"({100 * low:.2f} to {100 * high:.2f})  nucleus 50/90/99%: {row['nucleus_50_90_99']}  kernels: {row['kernel']}"
        )
    document = {
        "bench": "certificates",
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "bench/certificates.py", *sys.argv[1:]]),
        "machine": machine_card(),
        "versions": versions() | {"triton": triton.__version__},
        "model": Path(options.model).name,
        "requests": len(REQUESTS),
        "samples": options.samples,
        "max_tokens": options.max_tokens,
        "rows": rows,
    }
    text = json.dumps(document)
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(text)
    good = all(
        row["share"] <= 0.01 and not row["wrong_where_certified"] and not row["kernel"]["flags_that_differ"] for row in rows
    )  # fmt: skip
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
