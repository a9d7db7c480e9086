"""`bench/gpu.py --dry`: its checks pass under the interpreter, a failed check fails the run, and no timing comes without a device."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bench(*arguments, program=(str(ROOT / "bench" / "gpu.py"),)):
    path = os.pathsep.join(str(ROOT / root) for root in ("engine", "kernels", "bench"))
    command = [sys.executable, "-W", "ignore", *program, *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)


def test_a_dry_run_checks_and_predicts(tmp_path):
    done = bench("--dry", "--out", tmp_path, "--part", "attention", "--part", "linear", "--part", "head")
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout.splitlines()[-1])
    assert document == json.loads((tmp_path / "gpu.json").read_text())
    assert document["error"] is None
    assert {row["part"] for row in document["rows"]} == {"attention", "linear", "head", "predicted"}
    assert not any("us" in row or row.get("floor_measured") for row in document["rows"])
    assert "prediction" in document["card"]["peaks"]
    predicted = {row["name"]: row["floor_us"] for row in document["rows"] if row["part"] == "predicted"}
    # 4,096 shared and 32 x 64 own tokens of 8 KV heads x 128 x 2 x 2 bytes, at 3.35 TB/s.
    assert abs(predicted["attention llama 8B k=32 prefix=4096 suffix=64"] - 6144 * 4096 / 3.35e6) < 1e-3


def test_a_wrong_kernel_fails_the_run(tmp_path):
    program = (
        "import sys, gpu\n"
        "own = gpu.linear\n"
        "gpu.linear = lambda *a, **k: own(*a, **k) * 1.001\n"
        "sys.exit(gpu.main())"
    )  # fmt: skip
    done = bench("--dry", "--out", tmp_path, "--part", "linear", program=("-c", program))
    assert done.returncode == 1
    assert "FAILED tiny qkv" in done.stderr
    assert "FAILED" not in done.stdout
    assert "tiny qkv" in json.loads((tmp_path / "gpu.json").read_text())["error"]


def test_without_a_device_only_a_dry_run_starts(tmp_path):
    environment_free = bench(
        "--out", tmp_path / "none", program=("-c", "import torch, sys, gpu\ntorch.cuda.is_available = lambda: False\nsys.exit(gpu.main())")
    )
    assert environment_free.returncode == 2
    assert "--dry" in environment_free.stderr
    assert not (tmp_path / "none").exists()
