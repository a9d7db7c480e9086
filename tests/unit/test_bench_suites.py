"""The benchmark suites run: every check that comes before a timing passes, on small shapes, and none is left out."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def suites(*words):
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in ("engine", "kernels"))}
    command = [sys.executable, "-m", "pytest", "bench", "--quick", "-q", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def test_every_check_passes():
    done = suites()
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 30 and "skipped" not in done.stdout


def test_every_cpu_op_is_measured():
    listed = suites("--collect-only").stdout
    from spct_kernels.registry import ops

    for op in ops():
        if "cpu" in op.backends:
            assert f"[{op.name}: " in listed, op.name


def test_a_wrong_kernel_is_never_timed(tmp_path):
    """An op whose result is off by a thousandth fails its row."""
    plugin = tmp_path / "off.py"
    plugin.write_text(
        "import dataclasses\n"
        "from spct_kernels import registry\n"
        "import spct_kernels\n"
        "op = registry._ops['gated_activation']\n"
        "registry._ops['gated_activation'] = dataclasses.replace(op, run=lambda **inputs: op.run(**inputs) * 1.001)\n"
    )
    variables = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *(str(ROOT / root) for root in ("engine", "kernels"))])}
    command = [sys.executable, "-m", "pytest", "-p", "off", "bench/test_kernels.py", "--quick", "-q", "-k", "gated or add_rms"]
    done = subprocess.run(command, env={**os.environ, **variables}, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1 and re.search(r"1 failed, 1 passed", done.stdout), done.stdout[-2000:]
    assert "against fp64" in done.stdout
