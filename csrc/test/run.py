"""Builds the kernels' standalone test and runs it: `python csrc/test/run.py --sanitizer address --count 20`.

The compiler is that of the extension (CXX, or what the system calls one), its flags too, but for -O1 and the sanitizer. Objects that
are up to date are kept in build/sanitize, so that the second run is quick.

`--machine aarch64` on another machine compiles with aarch64-linux-gnu-g++ (or CXX), at -O3 as the extension is, and runs under qemu
(Debian: g++-aarch64-linux-gnu, qemu-user-static). Sanitizers don't run there.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import setuptools

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
    "none": [],
}
ENVIRONMENT = {
    # Without detect_stack_use_after_return: its frames are not aligned to 64 bytes (GCC bug 110027), and AVX-512 stores fault there.
    "ASAN_OPTIONS": "abort_on_error=0:detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def recipe() -> dict[str, Any]:
    """What setup.py knows about compiling: levels, flags, the compiler."""
    setuptools.setup = lambda **_: None
    return runpy.run_path(str(ROOT / "setup.py"))


def emulator(machine: str) -> list[str]:
    """What runs a program of `machine` on another one: qemu."""
    found = next(filter(None, map(shutil.which, (f"qemu-{machine}-static", f"qemu-{machine}"))), None)
    if found is None:
        sys.exit(f"no emulator for {machine} found: install qemu-user-static, or run this on such a machine")
    return [found]


def build(made: dict[str, Any], folder: Path, sanitizer: str, all_levels: dict[str, list[str]], levels: list[str], jobs: int) -> Path:
    """Compile what changed, and link. Levels that are left out are not linked, and not run."""
    cxx = made["compiler"]()
    if cxx is None:
        sys.exit("no C++ compiler found: set CXX, or install g++ or clang++")
    flags = [flag for flag in made["COMMON_FLAGS"] if "TORCH" not in flag] + ["-Icsrc"]
    if sanitizer != "none":
        flags += ["-O1", "-g1", "-fno-omit-frame-pointer", *SANITIZERS[sanitizer]]
    commands: list[tuple[Path, list[str]]] = []
    kernels: dict[Path, str] = {}
    sources = sorted((ROOT / "csrc").rglob("*.cpp"), key=lambda path: (not path.name.endswith(".kernel.cpp"), path))
    for source in [path.relative_to(ROOT) for path in sources if "binding" not in path.parts]:
        if source.name.endswith(".kernel.cpp"):
            for level in levels:
                target = folder / level / source.with_suffix(".o")
                kernels[target] = level
                commands.append((target, [*all_levels[level], f"-DSPCT_LEVEL={level}", str(source)]))
        else:
            commands.append((folder / source.with_suffix(".o"), [f"-I{ROOT / 'csrc/test'}", str(source)]))

    def compile_one(job: tuple[Path, list[str]]) -> None:
        target, arguments = job
        depfile = target.with_suffix(".d")
        if made["up_to_date"](target, depfile):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        made["run"]([*cxx, *flags, "-MMD", "-MF", str(depfile), *arguments, "-c", "-o", str(target)])

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(compile_one, commands))
    # The dispatch names every level; those left out stay unresolved, and the test never switches to them.
    partial = [] if set(levels) == set(all_levels) else ["-no-pie", "-Wl,--unresolved-symbols=ignore-in-object-files"]
    program = folder / "kernels_test"
    if sanitizer == "none":  # what a sanitizer adds is shared by all levels
        made["check_namespaces"](kernels)
    # Static for an emulator, which then needs no libraries of the other machine.
    linking = ["-static"] if folder.name not in SANITIZERS else SANITIZERS[sanitizer]
    made["run"]([*cxx, *linking, *partial, *(str(target) for target, _ in commands), "-pthread", "-o", str(program)])
    return program


def main() -> int:
    """Build and run; the exit code is the test's."""
    made = recipe()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sanitizer", choices=SANITIZERS, help="address (default; with undefined behaviour), thread or none")
    here = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    parser.add_argument("--machine", default=here, help="architecture to build for (this one)")
    parser.add_argument("--cpu", help="of the emulator: a model that qemu knows (its own: all features)")
    parser.add_argument("--best", help="level that the CPU has to choose by itself")
    parser.add_argument("--levels", help="CPU levels to build and run (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20, help="random configurations of every kernel and level")
    parser.add_argument("--only", default="", help="one kernel's name")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("MAX_JOBS", os.cpu_count() or 1)))
    args = parser.parse_args()
    foreign = args.machine != here
    if args.cpu and not foreign:
        parser.error(f"--cpu: expected another machine than this one, {here}; it is the emulator's")
    sanitizer = args.sanitizer or ("none" if foreign else "address")
    if foreign and sanitizer != "none":
        parser.error(f"--sanitizer: expected none with --machine {args.machine}, which runs under an emulator, got {sanitizer}")
    all_levels = made["levels_of"](args.machine)
    levels = args.levels.split(",") if args.levels else list(all_levels)
    if unknown := set(levels) - set(all_levels):
        parser.error(f"--levels: expected some of {', '.join(all_levels)}, got {', '.join(sorted(unknown))}")
    runner = [*emulator(args.machine), *(["-cpu", args.cpu] if args.cpu else [])] if foreign else []
    if foreign:
        os.environ.setdefault("CXX", f"{args.machine}-linux-gnu-g++")
    start = time.monotonic()
    folder = ROOT / "build" / "sanitize" / (args.machine if foreign else sanitizer)
    program = build(made, folder, sanitizer, all_levels, levels, args.jobs)
    built = time.monotonic()
    command = [*runner, str(program), "--levels", ",".join(levels), "--seed", str(args.seed), "--count", str(args.count)]
    command += ["--only", args.only] if args.only else []
    command += ["--best", args.best] if args.best else []
    print(shlex.join(command), flush=True)
    code = subprocess.run(command, env={**ENVIRONMENT, **os.environ}).returncode
    print(f"{folder.name}: built in {built - start:.0f} s, ran {time.monotonic() - built:.0f} s, exit {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
