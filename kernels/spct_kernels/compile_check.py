"""Compiles every Triton kernel for every target, without a GPU: `python -m spct_kernels.compile_check [--json]`.

Rows come from `compile_rows`: by default a covering part of them, with --all every one. A row misses if it spills registers, takes
more shared memory than the device has, lacks the tensor-core instruction that is meant, or does not compile. Exit status: 0, 1 on a
miss, 2 on bad usage.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
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

from spct_kernels.compile_rows import all_specialisations, covering
from spct_kernels.errors import BackendError
from spct_kernels.specialisation import SHARED_BYTES, TARGETS, Specialisation

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
