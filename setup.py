"""Packages under two source roots, and the C++ CPU kernels as one extension on LibTorch's stable ABI.

The kernels (`*.kernel.cpp`) are compiled once per CPU level, each in its own namespace, and chosen at run time. Without a C++
compiler the package installs all the same: `spct_kernels` then computes with plain torch.
"""

import concurrent.futures
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = Path("csrc")
EXTENSION = "spct_kernels._C"

# TORCH_TARGET_VERSION 2.10: one binary serves every torch from 2.10 on. No -ffast-math: NaN and Inf mean something here.
# No contraction: the kernels say fma() where they mean it, so that every level's arithmetic is the one written down.
COMMON_FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
    "-Wno-maybe-uninitialized",  # GCC 12's own intrinsics headers set it off
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]


def levels_of(machine: str) -> dict[str, list[str]]:
    """The CPU levels of an architecture, as `platform.machine` names it, and the compiler's flags for each."""
    levels: dict[str, list[str]] = {"scalar": []}
    if machine.lower() in ("x86_64", "amd64"):
        levels["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
        levels["avx512"] = [*levels["avx2"], "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
        levels["avx512vnni"] = [*levels["avx512"], "-mavx512vnni"]
        levels["avx512bf16"] = [*levels["avx512vnni"], "-mavx512bf16"]
        levels["amx"] = [*levels["avx512bf16"], "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
    elif machine.lower() in ("aarch64", "arm64"):
        levels["neon"] = ["-DSPCT_NEON"]
        levels["neondot"] = [*levels["neon"], "-march=armv8.2-a+dotprod"]  # GCC 12 has the intrinsics from 8.2 on
    return levels


LEVELS = levels_of(platform.machine())


def compiler() -> list[str] | None:
    """The C++ compiler's command, from CXX or what the system calls one; None where there is none."""
    command = shlex.split(os.environ.get("CXX", "")) or [name for name in ("c++", "g++", "clang++") if shutil.which(name)][:1]
    return command if command and shutil.which(command[0]) else None


def run(command: list[str]) -> None:
    """Runs a compiler command; its own message is what a person needs to see when it fails."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"building {EXTENSION} failed:\n  {shlex.join(command)}\n{result.stderr}")
    if result.stderr:
        print(result.stderr, file=sys.stderr)


def up_to_date(target: Path, depfile: Path) -> bool:
    """True if the object is newer than the source, every header in its dependency file, and this file."""
    if not target.exists() or not depfile.exists():
        return False
    names = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    paths = [ROOT / "setup.py", *(ROOT / name for name in names)]
    return all(path.exists() and path.stat().st_mtime <= target.stat().st_mtime for path in paths)


def check_namespaces(objects: dict[Path, str]) -> None:
    """Fails if a level's object holds a weak function outside its namespace: the linker would share it among the levels."""
    if not shutil.which("nm"):
        return
    for target, level in objects.items():
        listing = subprocess.run(["nm", "-C", "--defined-only", str(target)], capture_output=True, text=True, check=True).stdout
        shared = [line for line in listing.splitlines() if line[17:19] in ("W ", "V ") and f"spct::{level}::" not in line]
        if shared:
            raise SystemExit(f"{target}: weak symbols outside of spct::{level} would be shared by all levels:\n" + "\n".join(shared))


class BuildKernels(build_ext):
    """Compiles every source, the kernels once per level, and links them into one shared library."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles what changed, on as many jobs as MAX_JOBS (or the CPU) allows, then links."""
        import torch
        from torch.utils.cpp_extension import include_paths, library_paths

        cxx = compiler()
        if cxx is None:
            print(
                "spct: no C++ compiler found (set CXX, or install g++ or clang++): installing without the CPU kernels. "
                "spct_kernels will use plain torch (backend 'reference'), which is correct but many times slower.",
                file=sys.stderr,
            )
            return
        version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
        if version < (2, 10):
            raise SystemExit(f"spct: building needs torch >= 2.10, got {torch.__version__}: pip install 'torch>=2.10'")
        includes = ["-Icsrc", *(f"-isystem{path}" for path in include_paths())]
        jobs: list[tuple[Path, list[str]]] = []
        kernel_objects: dict[Path, str] = {}
        build = Path(self.build_temp).resolve()
        for source in sorted(CSRC.rglob("*.cpp"), key=lambda path: (not path.name.endswith(".kernel.cpp"), path)):
            if "test" in source.parts:
                continue
            if source.name.endswith(".kernel.cpp"):
                for level, flags in LEVELS.items():
                    target = build / level / source.with_suffix(".o")
                    kernel_objects[target] = level
                    jobs.append((target, [*flags, f"-DSPCT_LEVEL={level}", "-Icsrc", str(source)]))
            else:
                jobs.append((build / source.with_suffix(".o"), [*includes, str(source)]))
        with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            for _ in pool.map(lambda job: self.compile_one(cxx, *job), jobs):
                pass
        check_namespaces(kernel_objects)
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        linked = library.with_name(library.name + ".new")
        search = [f"-L{path}" for path in library_paths()]
        # Linked under another name, then renamed: a process that has the old file mapped keeps its own copy.
        run([*cxx, "-shared", *(str(target) for target, _ in jobs), *search, "-ltorch", "-ltorch_cpu", "-lc10", "-o", str(linked)])
        linked.replace(library)

    def compile_one(self, cxx: list[str], target: Path, arguments: list[str]) -> None:
        """Compiles one object unless it is up to date."""
        depfile = target.with_suffix(".d")
        if up_to_date(target, depfile) and not self.force:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        print(f"spct: compiling {arguments[-1]} -> {target.relative_to(Path(self.build_temp).resolve())}", flush=True)
        run([*cxx, *COMMON_FLAGS, "-MMD", "-MF", str(depfile), *arguments, "-c", "-o", str(target)])

    def get_outputs(self) -> list[str]:
        """The library, if it was built: a machine without a compiler installs none."""
        return [path for path in super().get_outputs() if Path(path).exists()]

    def copy_extensions_to_source(self) -> None:
        """Copies the library beside the package's sources (editable installs), if it was built."""
        if all(Path(self.build_lib, self.get_ext_filename(self.get_ext_fullname(ext.name))).exists() for ext in self.extensions):
            super().copy_extensions_to_source()


setup(
    packages=find_packages("engine") + find_packages("kernels"),
    package_dir={"spct": "engine/spct", "spct_kernels": "kernels/spct_kernels"},
    package_data={
        "spct": ["py.typed", "embedded/*", "prompting/templates/*"],
        "spct_kernels": ["py.typed"],
    },
    include_package_data=False,
    ext_modules=[Extension(EXTENSION, sources=[], py_limited_api=True)],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
