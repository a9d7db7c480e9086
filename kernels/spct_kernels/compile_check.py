"""Compiles every Triton kernel for every target, without a GPU: `python -m spct_kernels.compile_check [--json]`.

Rows come from `model_rows` of the modules `spct_kernels.triton_*`: what an engine launches for the models of `specialisation.MODELS`; a
test holds them against what an engine run records (`spct_kernels.recorded`). By default a covering part is compiled, a rule that is
said at `covering`; --all compiles every row. A row misses if
it spills registers, takes more shared memory than the device has, lacks the tensor-core instruction that is meant, or does not
compile. Exit status: 0, 1 on a miss, 2 on bad usage.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import itertools
import json
import math
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import spct_kernels
from spct_kernels.errors import BackendError
from spct_kernels.specialisation import LENGTHS, MODELS, SHARED_BYTES, TARGETS, ModelShape, Specialisation

NUM_WORKERS = 2

_CUDA_MMA = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)")
_HIP_MMA = re.compile(r"\bv_mfma_")


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one kernel, target and specialisation.

    registers     per thread (on gfx942 vector registers)
    spills        bytes stored to local memory per thread (on gfx942 spilled vector registers)
    shared_bytes  per program
    mma           the tensor-core instruction found: "mma.sync", "wgmma.mma_async", "tcgen05.mma", "v_mfma"; "" without one
    ok            nothing misses; else `error` says what
    """

    kernel: str
    target: str
    specialisation: str
    registers: int
    spills: int
    shared_bytes: int
    mma: str
    seconds: float
    ok: bool
    error: str = ""


def modules() -> Iterator[str]:
    """Names of the modules that may hold Triton kernels."""
    for module in pkgutil.iter_modules(spct_kernels.__path__):
        if module.name.startswith("triton_"):
            yield f"spct_kernels.{module.name}"


def rows_of(model: ModelShape) -> list[Specialisation]:
    """Every kernel that an engine launches for a model."""
    return [row for module in _with_rows() for row in module.model_rows(model)]


def all_specialisations() -> list[Specialisation]:
    """What an engine launches for `specialisation.MODELS`, and the modules' other rows; of each kind the longest, once."""
    found: dict[tuple[Any, ...], Specialisation] = {}
    for one in [*(row for model in MODELS for row in rows_of(model)), *(row for module in _with_rows() for row in module.other_rows())]:
        kind = one.kind
        if kind not in found or _length(one) > _length(found[kind]):
            found[kind] = one
    return list(found.values())


def _with_rows() -> list[Any]:
    """The modules that know rows."""
    return [module for module in map(importlib.import_module, modules()) if hasattr(module, "model_rows")]


def _length(specialisation: Specialisation) -> int:
    """The product of its lengths."""
    values = [value for name, value in specialisation.constexprs.items() if name in LENGTHS]
    return math.prod(value for value in values if isinstance(value, int) and value)


def covering(rows: Sequence[tuple[int, str]], specialisations: Sequence[Specialisation]) -> list[tuple[int, str]]:
    """The rows that a routine check compiles: of every kernel each target at least once, and each type, constant and launch option.

    For kernels that multiply, where registers are short, each constant that is on or off is taken on each target; for those of PAIRED
    each two of them together, as a spill may come from two branches that each alone do not spill. Greedy: the row that adds the most
    comes first, the earlier one of equals. What is left out combines the same parts otherwise.
    """
    chosen: list[tuple[int, str]] = []
    groups: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        groups.setdefault(specialisations[row[0]].kernel_name, []).append(row)
    for group in groups.values():
        features = {row: covered(specialisations[row[0]], row[1]) for row in group}
        missing = frozenset[tuple[str, ...]]().union(*features.values())
        while missing:
            best = max(group, key=lambda row: len(features[row] & missing))
            missing -= features[best]
            chosen.append(best)
    return sorted(chosen, key=rows.index)


PAIRED = frozenset({"attention", "linear", "head"})
"""Kernels that branch on several constants and hold much in registers. The head's others do a part of what it does."""


def covered(specialisation: Specialisation, target: str) -> frozenset[tuple[str, ...]]:
    """What a row covers of its kernel."""
    features: set[tuple[str, ...]] = {(target,), *specialisation.features(target)}
    if specialisation.mma:
        switches = sorted((name, value) for name, value in specialisation.features(target) if value in ("True", "False"))
        features |= {(target, *switch) for switch in switches}
        if specialisation.kernel_name in PAIRED:
            features |= {(target, *one, *other) for one, other in itertools.combinations(switches, 2)}
    return frozenset(features)


def gpu_target(name: str) -> GPUTarget:
    """Triton's target of a name among TARGETS."""
    return GPUTarget("hip", name, 64) if name.startswith("gfx") else GPUTarget("cuda", int(name.removeprefix("sm_")), 32)


def compile_one(specialisation: Specialisation, target: str) -> Row:
    """Compiles one row and looks at what came out.

    Raises: whatever Triton raises where it can't compile the kernel.
    """
    constexprs, options = specialisation.on(target)
    names = list(specialisation.kernel.arg_names)
    signature = {name: "constexpr" if name in constexprs else specialisation.signature[name] for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in specialisation.divisible}
    source = ASTSource(specialisation.kernel, signature, constexprs, attributes)
    start = time.perf_counter()
    compiled = triton.compile(source, target=gpu_target(target), options=options)
    seconds = time.perf_counter() - start
    shared = int(compiled.metadata.shared)
    if target.startswith("gfx"):
        registers, spills, mma = _look_at_hip(compiled.asm["amdgcn"])
    else:
        registers, spills = _resources(compiled.asm["cubin"], compiled.asm["ptx"])
        found = _CUDA_MMA.search(compiled.asm["ptx"])
        mma = found.group(1) if found else ""
    misses = []
    if spills:
        misses.append(f"spills {spills}")
    if shared > SHARED_BYTES[target]:
        misses.append(f"{shared} B of shared memory of {SHARED_BYTES[target]}")
    if specialisation.mma and not mma:
        misses.append("no tensor-core instruction")
    if specialisation.wgmma and target == "sm_90" and not mma.startswith("wgmma"):
        misses.append(f"expected wgmma, found {mma or 'none'}")
    name = specialisation.kernel_name
    return Row(name, target, specialisation.name, registers, spills, shared, mma, round(seconds, 2), not misses, ", ".join(misses))


def check(rows: Sequence[tuple[int, str]], num_workers: int = NUM_WORKERS) -> Iterator[Row]:
    """Compiles rows of (index in `all_specialisations()`, target) in `num_workers` processes, in order."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        yield from pool.map(_work, rows)


def _work(row: tuple[int, str]) -> Row:
    """One row in a worker: an exception of Triton's, of whatever type, is that row's miss."""
    index, target = row
    specialisation = all_specialisations()[index]
    try:
        return compile_one(specialisation, target)
    except Exception as error:  # the compiler raises its own, Python's and its backends' errors: all of them mean a miss
        lines = str(error).strip().splitlines() or [""]
        message = f"{type(error).__name__}: {lines[-1]}"[:300]
        return Row(specialisation.kernel_name, target, specialisation.name, 0, 0, 0, "", 0.0, False, message)


def _look_at_hip(assembly: str) -> tuple[int, int, str]:
    """(vector registers, those spilled to memory, instruction) of AMD assembly; scalar registers spill to vector ones."""

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found.group(1)) if found else 0

    return number("vgpr_count"), number("vgpr_spill_count"), "v_mfma" if _HIP_MMA.search(assembly) else ""


def _resources(binary: bytes, assembly: str) -> tuple[int, int]:
    """(registers, spilled bytes) of a cubin, by the tools that Triton brings along.

    Without a stack there is no spill; a stack may also belong to a called function, such as a division in fp64, so ptxas is asked.
    """
    tools = Path(nvidia.__file__).parent / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder) / "kernel.cubin", Path(folder) / "kernel.ptx"
        cubin.write_bytes(binary)
        ptx.write_text(assembly)
        found = _tool_says(r"REG:(\d+) STACK:(\d+)", tools / "cuobjdump", "--dump-resource-usage", cubin)
        if int(found.group(2)) == 0:
            return int(found.group(1)), 0
        architecture = re.findall(r"^\.target (\w+)", assembly, re.MULTILINE)[0]
        ptxas = tools / ("ptxas-blackwell" if architecture.startswith("sm_1") else "ptxas")
        spilled = _tool_says(r"(\d+) bytes spill stores", ptxas, "-v", f"--gpu-name={architecture}", ptx, "-o", Path(folder) / "again")
        return int(found.group(1)), int(spilled.group(1))


def _tool_says(pattern: str, *command: str | Path) -> re.Match[str]:
    """What a pattern finds in a tool's output.

    Raises: BackendError if it finds nothing.
    """
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    found = re.search(pattern, done.stdout + done.stderr)
    if found is None:
        raise BackendError(
            f"{command[0]}: expected {pattern!r}, got {(done.stdout + done.stderr)[-200:]!r}; use the tools of Triton's wheel"
        )
    return found


def _print_table(row: Row, header: bool) -> None:
    if header:
        print(f"{'kernel':22} {'target':7} {'specialisation':36} {'regs':>5} {'spills':>6} {'shared':>7} {'mma':16} {'s':>6}  ok")
    print(
        f"{row.kernel:22} {row.target:7} {row.specialisation:36} {row.registers:5} {row.spills:6} {row.shared_bytes:7} {row.mma:16} "
        f"{row.seconds:6.2f}  {'ok' if row.ok else 'MISS ' + row.error}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m spct_kernels.compile_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout: a list of rows")
    parser.add_argument("--kernel", default="", help="only kernels whose name holds this")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this target; may be repeated")
    parser.add_argument("--only", default="", help="only specialisations whose name holds this")
    parser.add_argument("--all", action="store_true", help="every row; without it, and without --kernel or --only, a covering part")
    parser.add_argument("--list", action="store_true", help="print the rows, compile nothing")
    parser.add_argument("--workers", type=int, default=NUM_WORKERS, help=f"processes that compile (default {NUM_WORKERS})")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("compile_check: TRITON_INTERPRET is set, so that nothing can be compiled; unset it", file=sys.stderr)
        return 2
    found = all_specialisations()
    rows = [
        (index, target)
        for index, one in enumerate(found)
        for target in options.target or TARGETS
        if target in one.targets and options.kernel in one.kernel_name and options.only in one.name
    ]
    if not (options.all or options.kernel or options.only):
        rows = covering(rows, found)
    if options.list:
        for index, target in rows:
            print(found[index].kernel_name, target, found[index].name)
        return 0
    if not rows:
        print("compile_check: no kernel and specialisation fits the options; drop --kernel or --only", file=sys.stderr)
        return 2
    done: list[Row] = []
    for row in check(rows, options.workers):
        done.append(row)
        if not options.json:
            _print_table(row, len(done) == 1)
    if options.json:
        documents: list[dict[str, Any]] = [asdict(row) for row in done]
        json.dump(documents, sys.stdout, indent=1)
        print()
    return 0 if all(row.ok for row in done) else 1


if __name__ == "__main__":
    sys.exit(main())
