"""The kernels under AddressSanitizer and UBSan: the standalone program of csrc/test, a few random configurations of everything.

`make sanitize` (part of `make check`) runs every CPU level and many more configurations, and ThreadSanitizer too. Objects are kept in
build/sanitize: the first run compiles for about half a minute.
"""

import platform
import re
import runpy
import subprocess
import sys
from pathlib import Path

import setuptools

from spct_kernels.dispatch import CPU_LEVELS, cpu_levels

ROOT = Path(__file__).parents[2]
RUN = ROOT / "csrc" / "test" / "run.py"
KERNELS = 9


def run(*words):
    return subprocess.run([sys.executable, RUN, *words], capture_output=True, text=True, cwd=ROOT, timeout=1800)


def test_kernels_pass_under_address_and_undefined_behaviour_sanitizers():
    best = cpu_levels()[-1]
    done = run("--sanitizer", "address", "--levels", best, "--count", "10")
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert f"{best}: passed" in done.stdout and f"{10 * KERNELS} configurations passed" in done.stdout


def test_the_configurations_cover_every_kernel():
    """A kernel that is declared in a header is run by the program."""
    declared = {name for path in (ROOT / "csrc").rglob("*.hpp") for name in re.findall(r"^SPCT_KERNEL\((\w+),", path.read_text(), re.M)}
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "test").glob("*_test.cpp"))
    # The passes over a row's logits run inside of head_sample.
    inner = {"scan_logits", "fill_mass", "fill_histogram", "list_between", "draw_token"}
    assert inner < declared
    missing = {name for name in declared - inner if not re.search(rf"^  {name}\(|[^\w]{name}\(", sources, re.M)}
    assert not missing
    assert len(re.findall(r"\{\"\w+\", test_\w+\}", (ROOT / "csrc" / "test" / "main.cpp").read_text())) == KERNELS


def test_levels_have_one_order_everywhere(monkeypatch):
    """A level is a number between C++ and Python; each architecture builds its own ones, and a kernel is declared at all of them."""
    header = (ROOT / "csrc" / "common" / "level.hpp").read_text()
    enumerators = {int(value): name.lower() for name, value in re.findall(r"^  k(\w+) = (\d+),", header, re.M)}
    assert [enumerators[i] for i in range(len(enumerators))] == list(CPU_LEVELS)
    named = re.search(r"kLevels\[kNumLevels\] = \{(.*?)\}", (ROOT / "csrc" / "test" / "main.cpp").read_text(), re.S)
    assert re.findall(r'"(\w+)"', named[1]) == list(CPU_LEVELS)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    setup = runpy.run_path(str(ROOT / "setup.py"))
    for machine, own in (("x86_64", CPU_LEVELS[1:6]), ("aarch64", CPU_LEVELS[6:]), ("riscv64", ())):
        assert tuple(setup["levels_of"](machine)) == ("scalar", *own)
    declared = re.findall(r"SPCT_DECLARE\((\w+), name, Args\)", header)
    assert declared == ["level", "scalar", *CPU_LEVELS[1:6], "scalar", *CPU_LEVELS[6:], "scalar"]


def test_a_sanitizer_is_refused_for_another_machine():
    other = "aarch64" if platform.machine() != "aarch64" else "x86_64"
    done = run("--machine", other, "--sanitizer", "address")
    assert done.returncode == 2 and "expected none" in done.stderr


def test_unknown_levels_are_refused():
    done = run("--levels", "avx1024")
    assert done.returncode == 2 and "expected some of scalar" in done.stderr
