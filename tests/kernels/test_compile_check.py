"""Every launched kernel has rows for all targets, and a sample of the rows compiles as the tool promises."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels" / "spct_kernels"


def run_tool(*arguments):
    """The tool in a process of its own: here Triton is imported for its interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(KERNELS.parent)
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def launched_kernels():
    """Names that the source launches, as `name[grid](...)`, and the jitted functions that it defines."""
    launched = set()
    for path in sorted(KERNELS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and isinstance(node.func.value, ast.Name):
                launched.add(node.func.value.id)
    return {name.strip("_").removesuffix("_kernel") for name in launched if name.endswith("_kernel")}


def test_every_launched_kernel_has_rows_for_all_targets_and_the_routine_check_covers_them():
    script = (
        "import json; from spct_kernels import compile_rows as c\n"
        "from spct_kernels.specialisation import TARGETS\n"
        "found = c.all_specialisations()\n"
        "for one in found:\n"
        "    assert set(one.on('sm_80')[0]) | set(one.signature) == set(one.kernel.arg_names), one.name\n"
        "    assert set(one.per_target) <= set(TARGETS) and set(one.divisible) <= set(one.signature), one.name\n"
        "    for target in TARGETS: assert set(one.on(target)[1]) >= {'num_warps', 'enable_fp_fusion'}, one.name\n"
        "names = [(one.kernel_name, one.name) for one in found]\n"
        "assert len(set(names)) == len(names), names\n"
        "rows = [(index, target) for index, one in enumerate(found) for target in one.targets]\n"
        "chosen = c.covering(rows, found)\n"
        "named = {(found[i].kernel_name, t, found[i].name) for i, t in chosen}\n"
        "assert c.ONCE_SPILLED <= named and len(chosen) == len(set(chosen)), c.ONCE_SPILLED - named\n"
        "types = lambda some: sorted({(found[i].kernel_name, *f) for i, t in some for f in found[i].features(t)})\n"
        "assert types(chosen) == types(rows)\n"
        "for kernel in c.PAIRED:\n"
        "    some = lambda which: {f for i, t in which if found[i].kernel_name == kernel for f in c.covered(found[i], t)}\n"
        "    assert some(chosen) == some(rows) and any(len(f) == 5 for f in some(rows)), kernel\n"
        "print(json.dumps([names, len(rows), [(found[i].kernel_name, t) for i, t in chosen]]))"
    )
    done = run_tool("-c", script)
    assert done.returncode == 0, done.stderr[-2000:]
    names, num_rows, chosen = json.loads(done.stdout)
    launched = launched_kernels()
    assert len(launched) >= 14
    assert launched <= {kernel for kernel, _ in names}, f"no specialisation for {sorted(launched - {kernel for kernel, _ in names})}"
    # The limit of a check that runs with every change.
    assert len(chosen) <= 150 < num_rows
    for kernel in launched:
        assert len({target for name, target in chosen if name == kernel}) == 5, kernel


def test_constants_that_are_on_or_off_are_covered_in_pairs():
    script = (
        "import dataclasses\n"
        "from spct_kernels import compile_rows as c\n"
        "base = next(one for one in c.all_specialisations() if one.kernel_name == 'attention' and one.mma)\n"
        "def row(fold, guard):\n"
        "    constants = {**base.constexprs, 'FOLD': fold, 'GUARD': guard}\n"
        "    return dataclasses.replace(base, name=f'{fold} {guard}', constexprs=constants, per_target={})\n"
        "rows = [row(fold, guard) for fold in (False, True) for guard in (False, True)]\n"
        "print(len(c.covering([(i, 'sm_90') for i in range(4)], rows)), end=' ')\n"
        "c.PAIRED = frozenset()\n"
        "print(len(c.covering([(i, 'sm_90') for i in range(4)], rows)))"
    )
    done = run_tool("-c", script)
    assert done.stdout.split() == ["4", "2"], done.stderr[-2000:]


@pytest.mark.parametrize("arguments", [("--kernel", "mark"), ("--kernel", "final_norm", "--only", "embedded", "--target", "sm_90")])
def test_rows_compile(arguments):
    done = run_tool("-m", "spct_kernels.compile_check", "--json", *arguments)
    rows = json.loads(done.stdout)
    assert done.returncode == 0, rows
    for row in rows:
        assert row["ok"] and row["spills"] == 0 and row["registers"] > 0
        assert set(row) >= {"kernel", "target", "specialisation", "registers", "spills", "shared_bytes", "mma", "seconds", "ok"}
    assert len({row["target"] for row in rows}) == (1 if "--target" in arguments else 5)


def test_a_miss_exits_1_and_bad_usage_2():
    script = (
        "import sys; from spct_kernels import compile_check, compile_rows\n"
        "row = next(one for one in compile_rows.all_specialisations() if one.kernel_name == 'mark')\n"
        "import dataclasses\n"
        "print(compile_check.compile_one(dataclasses.replace(row, mma=True), 'sm_90'))\n"
        "sys.exit(compile_check.main(['--kernel', 'nothing of this name']))"
    )
    done = run_tool("-c", script)
    assert "no tensor-core instruction" in done.stdout and "ok=False" in done.stdout, done.stderr[-2000:]
    assert done.returncode == 2
    environment = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=str(KERNELS.parent))
    refused = subprocess.run(
        [sys.executable, "-m", "spct_kernels.compile_check"], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert refused.returncode == 2
    assert "TRITON_INTERPRET" in refused.stderr
