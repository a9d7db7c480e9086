"""The kernels under AddressSanitizer and UBSan: the standalone program of csrc/test, a few random configurations of everything.

`make sanitize` (part of `make check`) runs every CPU level and many more configurations, and ThreadSanitizer too. Objects are kept in
build/sanitize: the first run compiles for about half a minute.
"""

import re
import subprocess
import sys
from pathlib import Path

from spct_kernels.dispatch import cpu_levels

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


def test_unknown_levels_are_refused():
    done = run("--levels", "avx1024")
    assert done.returncode == 2 and "expected some of scalar" in done.stderr
