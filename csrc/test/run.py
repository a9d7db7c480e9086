"""Builds the kernels' standalone test and runs it: `python csrc/test/run.py --sanitizer address --count 20`.

The compiler is that of the extension (CXX, or what the system calls one), its flags too, but for -O1 and the sanitizer. Objects that
are up to date are kept in build/sanitize, so that the second run is quick.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import runpy
import shlex
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


def build(made: dict[str, Any], folder: Path, sanitizer: str, levels: list[str], jobs: int) -> Path:
    """Compile what changed, and link. Levels that are left out are not linked, and not run."""
    cxx = made["compiler"]()
    if cxx is None:
        sys.exit("no C++ compiler found: set CXX, or install g++ or clang++")
    flags = [flag for flag in made["COMMON_FLAGS"] if flag not in ("-O3", "-g0") and "TORCH" not in flag]
    flags += ["-O1", "-g1", "-fno-omit-frame-pointer", "-Icsrc", *SANITIZERS[sanitizer]]
    commands: list[tuple[Path, list[str]]] = []
    sources = sorted((ROOT / "csrc").rglob("*.cpp"), key=lambda path: (not path.name.endswith(".kernel.cpp"), path))
    for source in [path.relative_to(ROOT) for path in sources if "binding" not in path.parts]:
        if source.name.endswith(".kernel.cpp"):
            for level in levels:
                target = folder / level / source.with_suffix(".o")
                commands.append((target, [*made["LEVELS"][level], f"-DSPCT_LEVEL={level}", str(source)]))
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
    partial = [] if set(levels) == set(made["LEVELS"]) else ["-no-pie", "-Wl,--unresolved-symbols=ignore-in-object-files"]
    program = folder / "kernels_test"
    made["run"]([*cxx, *SANITIZERS[sanitizer], *partial, *(str(target) for target, _ in commands), "-pthread", "-o", str(program)])
    return program


def main() -> int:
    """Build and run; the exit code is the test's."""
    made = recipe()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sanitizer", choices=SANITIZERS, default="address", help="address: with undefined behaviour")
    parser.add_argument("--levels", default=",".join(made["LEVELS"]), help="CPU levels to build and run (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20, help="random configurations of every kernel and level")
    parser.add_argument("--only", default="", help="one kernel's name")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("MAX_JOBS", os.cpu_count() or 1)))
    args = parser.parse_args()
    levels = args.levels.split(",")
    if unknown := set(levels) - set(made["LEVELS"]):
        parser.error(f"--levels: expected some of {', '.join(made['LEVELS'])}, got {', '.join(sorted(unknown))}")
    start = time.monotonic()
    program = build(made, ROOT / "build" / "sanitize" / args.sanitizer, args.sanitizer, levels, args.jobs)
    built = time.monotonic()
    command = [str(program), "--levels", args.levels, "--seed", str(args.seed), "--count", str(args.count)]
    command += ["--only", args.only] if args.only else []
    print(shlex.join(command), flush=True)
    code = subprocess.run(command, env={**ENVIRONMENT, **os.environ}).returncode
    print(f"{args.sanitizer}: built in {built - start:.0f} s, ran {time.monotonic() - built:.0f} s, exit {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
