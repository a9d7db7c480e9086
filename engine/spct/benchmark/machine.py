"""What this machine is and what it can do: its card, its peaks, the memory that a process has taken."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from spct.benchmark.floor import Peaks
from spct_kernels import AttentionPlan, linear, pack, shared_prefix_attention
from spct_kernels.dispatch import cpu_level, has_cpu_kernels

_READ_BYTES = 256 * 2**20
_GEMM = 1536
_ROUNDS = 6


def measure_peaks() -> Peaks:
    """The best of a few rounds, with torch's present number of threads.

    Reads: reductions over 256 MiB. Arithmetic: square products of 1536 by torch's own libraries in fp32, bf16 and int8, or by the C++
    kernels at their present CPU level where these are faster: int8 products of quantised rows; for bf16 an attention of 1536 queries
    over 1536 keys of 256 dimensions, its softmax included. A library without the machine's fastest instructions so lowers no floor.
    Cost: about a second on two cores, and 256 MiB.
    """
    read = _read_rate()
    a, b = (torch.randn(_GEMM, _GEMM) for _ in range(2))
    a16, b16 = a.bfloat16(), b.bfloat16()
    a8 = torch.randint(-127, 128, (_GEMM, _GEMM), dtype=torch.int8)
    b8 = torch.randint(-127, 128, (_GEMM, _GEMM), dtype=torch.int8).t()
    operations = 2.0 * _GEMM**3
    bf16, int8 = operations / _best(lambda: a16 @ b16), operations / _best(lambda: torch._int_mm(a8, b8))
    if has_cpu_kernels():
        weight = pack(b, "w8a8")
        bf16, int8 = max(bf16, _attention_rate()), max(int8, operations / _best(lambda: linear(a, weight)))
    return Peaks(read=read, fp32=operations / _best(lambda: a @ b), bf16=bf16, int8=int8)


def _attention_rate() -> float:
    """Operations per second of bf16 attention by the C++ kernels: every query sees every key, and all share them."""
    heads, dim = 16, 256
    rows = -(-_GEMM // heads)
    plan = AttentionPlan.build(
        node_parent=[-1],
        node_offset=[0, _GEMM],
        node_slots=range(_GEMM),
        row_node=[0] * rows,
        row_position=[_GEMM - 1] * rows,
        num_heads=heads,
        num_kv_heads=1,
        head_dim=dim,
    )
    q = torch.randn(rows, heads, dim).bfloat16()
    k, v = (torch.randn(_GEMM, 1, dim).bfloat16() for _ in range(2))
    seconds = _best(lambda: shared_prefix_attention(q, k, v, plan, scale=dim**-0.5, backend="cpu"))
    return 4.0 * rows * heads * _GEMM * dim / seconds


def _read_rate() -> float:
    """Bytes per second, over more memory than any cache holds."""
    memory = torch.zeros(_READ_BYTES // 4)
    return _READ_BYTES / min(_best(memory.sum), _best(memory.amax), _best(lambda: torch.dot(memory, memory)))


def machine_card() -> dict[str, str | int]:
    """Processor, cores that this process may use, level of the CPU kernels, threads, memory."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "level": cpu_level() if has_cpu_kernels() else "none",
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a timing."""
    found = {"python": platform.python_version()}
    for package in ("spct", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "source"
    return found


def peak_rss_bytes() -> int:
    """The most memory that this process has held since it started."""
    try:
        # ru_maxrss would count what the parent held before it started this program.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _best(function: Callable[[], object]) -> float:
    """Seconds of the fastest call: the machine's other work only ever adds."""
    function()
    best = float("inf")
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begin)
    return best


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
