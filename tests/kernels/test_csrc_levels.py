"""The C++ library: every CPU level that this machine can run, the choice of the level, torch's own checks of the ops."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

import spct_kernels
from spct_kernels import dispatch, registry
from spct_kernels.attention_cases import decode_tree, make_inputs
from spct_kernels.errors import BackendError

LEVELS = dispatch.cpu_levels()
KERNELS = Path(spct_kernels.__file__).parent.parent


@pytest.fixture
def level():
    before = dispatch.cpu_level()
    yield dispatch.set_cpu_level
    dispatch.set_cpu_level(before)


def run_python(code, **environment):
    variables = {**os.environ, "PYTHONPATH": str(KERNELS), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)


def test_the_scalar_level_is_always_there_and_the_best_is_chosen():
    assert LEVELS[0] == "scalar"
    assert dispatch.cpu_level() == os.environ.get("SPCT_CPU", LEVELS[-1])


CALLS = [
    pytest.param(name, op, case, dtype, id=f"{name}-{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for name in LEVELS[:-1]
    for op in registry.ops()
    if "cpu" in op.backends
    for case in op.cases
    for dtype in (case.dtypes[0], case.dtypes[-1])
]


@pytest.mark.parametrize(("name", "op", "case", "dtype"), CALLS)
def test_every_level_agrees_with_the_fp64_oracle(name, op, case, dtype, level):
    results = []
    for kind in ("exact", "same dtype", "level"):
        inputs = case.build(dtype, torch.Generator().manual_seed(zlib.crc32(case.name.encode())))
        if kind == "exact":
            inputs = registry.widened(op, inputs)
        if kind == "level":
            level(name)
            results.append(op.outputs(inputs, op.run(**inputs, backend="cpu")))
        else:
            results.append(op.outputs(inputs, op.reference(**inputs)))
    for exact, same, actual in zip(*results, strict=True):
        if not actual.is_floating_point():
            assert torch.equal(actual, exact)
            continue
        assert torch.equal(actual.isfinite(), exact.isfinite())
        finite = exact.isfinite()
        if finite.any():
            error, allowed = ((values[finite].double() - exact[finite]).abs().max().item() for values in (actual, same))
            assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * exact[finite].abs().max().item()


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_conversions_are_exact_at_every_level(name, dtype, level):
    # All 65,536 bit patterns as weights; and fp32 values beside every rounding boundary as activations' results.
    level(name)
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = patterns[patterns.isfinite()]
    weight = spct_kernels.pack(finite[:, None], "bf16" if dtype == torch.bfloat16 else "fp16")
    assert torch.equal(spct_kernels.linear(torch.ones(1, 1), weight, backend="cpu")[0], finite.float())
    values = finite.float()
    beside = torch.cat([values, (values + values.roll(1)) / 2, torch.nextafter(values, values.roll(1)), values * 1.5])
    beside = torch.cat([beside, torch.tensor([torch.inf, -torch.inf, torch.nan, 65519.0, 65520.0, 1e-8, 2.0**-25, 3.4e38])])
    zero, one = torch.zeros_like(beside), torch.ones(1, 1)
    caches = [torch.zeros((len(beside), 1, 16), dtype=dtype) for _ in range(2)]
    qkv = torch.zeros((len(beside), 48))
    qkv[:, 32] = beside
    spct_kernels.rope_append(
        qkv,
        zero[:, None],
        one.expand(len(beside), 1),
        torch.arange(len(beside)).int(),
        *caches,
        num_heads=1,
        num_kv_heads=1,
        head_dim=16,
        backend="cpu",
    )
    stored, expected = caches[1][:, 0, 0], beside.to(dtype)
    assert torch.equal(stored.isnan(), expected.isnan())
    assert torch.equal(stored[~stored.isnan()], expected[~expected.isnan()])


@pytest.mark.parametrize("name", LEVELS)
def test_a_row_keeps_its_bits_at_every_level(name, level):
    level(name)
    plain = torch.randn(40, 131)
    weight = spct_kernels.pack(plain, "bf16")
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(51, 131).to(dtype)
        together = spct_kernels.linear(x, weight)
        for row in range(51):
            assert torch.equal(spct_kernels.linear(x[row : row + 1], weight)[0], together[row])
        # What is wrong with a row or an output stays there, beside padding too.
        x[7, 130], x[20] = torch.nan, torch.inf
        wrong = plain.clone()
        wrong[5, 0], wrong[39, 130] = torch.inf, torch.nan
        changed = spct_kernels.linear(x, spct_kernels.pack(wrong, "bf16"))
        assert not changed[[7, 20]].isfinite().any() and not changed[:, [5, 39]].isfinite().any()
        rows, outputs = torch.ones(51, dtype=torch.bool), torch.ones(40, dtype=torch.bool)
        rows[[7, 20]], outputs[[5, 39]] = False, False
        assert torch.equal(changed[rows][:, outputs], together[rows][:, outputs])
    inputs = make_inputs(decode_tree(70, tuple(range(1, 20))), (6, 2, 32, 32), torch.float32, torch.Generator().manual_seed(0))
    together = spct_kernels.shared_prefix_attention(**inputs)
    plan, offset = inputs["plan"], inputs["plan"].nodes[0].tolist()
    for row in range(19):
        path = plan.node_slots[:70].tolist() + plan.node_slots[offset[row + 1] : offset[row + 2]].tolist()
        alone = spct_kernels.AttentionPlan.build(
            node_parent=[-1],
            node_offset=[0, len(path)],
            node_slots=path,
            row_node=[0],
            row_position=[len(path) - 1],
            num_heads=6,
            num_kv_heads=2,
            head_dim=32,
        )
        out = spct_kernels.shared_prefix_attention(**{**inputs, "q": inputs["q"][row : row + 1], "plan": alone})
        assert torch.equal(out[0], together[row])


def test_the_environment_forces_a_level():
    result = run_python("import spct_kernels.dispatch as d; print(d.cpu_level())", SPCT_CPU="scalar")
    assert result.stdout.strip() == "scalar", result.stderr


def test_an_unknown_level_is_refused_on_use_and_not_on_import():
    code = (
        "import torch, spct_kernels\n"
        "try: spct_kernels.rms_norm(torch.ones(1, 4), torch.ones(4), 0.0, backend='cpu')\n"
        "except spct_kernels.BackendError as error: print(error)"
    )
    result = run_python(code, SPCT_CPU="sse9")
    assert "SPCT_CPU=sse9" in result.stdout and "scalar" in result.stdout, result.stderr


@pytest.mark.parametrize("name", LEVELS)
def test_what_torch_does_on_the_same_thread_changes_nothing(name, level):
    """Torch's own bf16 products may use AMX tiles, whose shapes belong to the thread: neither side finds what it left."""
    level(name)
    weight = spct_kernels.pack(torch.randn(96, 200), "w8a8")
    x, a, b = torch.randn(21, 200), torch.randn(100, 70).bfloat16(), torch.randn(70, 90).bfloat16()
    attention = make_inputs(decode_tree(70, (3, 5, 9)), (6, 2, 48, 32), torch.bfloat16, torch.Generator().manual_seed(0))

    def ours():
        return spct_kernels.linear(x, weight, backend="cpu"), spct_kernels.shared_prefix_attention(**attention, backend="cpu")

    theirs, before = a @ b, ours()
    for _ in range(3):
        assert torch.equal(a @ b, theirs)
        assert all(torch.equal(one, other) for one, other in zip(ours(), before, strict=True))


WEIGHT_BEFORE_A_FORBIDDEN_PAGE = """
import ctypes, dataclasses, mmap
import torch, spct_kernels
from spct_kernels import dispatch
for name in dispatch.cpu_levels():
    dispatch.set_cpu_level(name)
    for inputs in (3, 40, 64, 67, 131, 192):
        weight = spct_kernels.pack(torch.randn(33, inputs), "w8a8")
        size = weight.panels.numel()
        pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
        memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        view = torch.frombuffer(memory, dtype=torch.int8)
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(view.data_ptr() + pages * mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
        panels = view[pages * mmap.PAGESIZE - size : pages * mmap.PAGESIZE].view(weight.panels.shape).copy_(weight.panels)
        for rows in (1, 7, 16, 31):
            x = torch.randn(rows, inputs)
            placed = spct_kernels.linear(x, dataclasses.replace(weight, panels=panels), backend="cpu")
            assert torch.equal(placed, spct_kernels.linear(x, weight, backend="cpu"))
print("done")
"""


def test_nothing_is_read_past_a_weight_of_int8():
    """Sanitizers don't see what tile instructions read: the next page does."""
    result = run_python(WEIGHT_BEFORE_A_FORBIDDEN_PAGE)
    assert result.stdout.strip() == "done", (result.returncode, result.stderr)


SMALL_SIGNAL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 8192)), None) == 0
import spct_kernels.dispatch as d
print(*d.cpu_levels(), d.cpu_level())
"""


@pytest.mark.skipif("amx" not in LEVELS, reason="needs a CPU with AMX")
def test_where_the_system_refuses_tiles_there_is_no_such_level():
    """Linux grants no tiles to a process with a signal stack that is too small to save them on."""
    result = run_python(SMALL_SIGNAL_STACK)
    lower = LEVELS[: LEVELS.index("amx")]
    assert result.stdout.split() == [*lower, lower[-1]], result.stderr


def test_a_level_that_this_machine_lacks_is_refused():
    with pytest.raises(BackendError, match="CPU level: expected one of scalar"):
        dispatch.set_cpu_level("neon9")


def test_without_the_library_torch_computes_and_cpu_is_refused(tmp_path):
    package = tmp_path / "spct_kernels"
    package.mkdir()
    for source in (KERNELS / "spct_kernels").glob("*.py"):
        (package / source.name).write_text(source.read_text())
    code = (
        "import warnings, torch, spct_kernels\n"
        "x, w = torch.randn(3, 8), torch.randn(8)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    a = spct_kernels.rms_norm(x, w, 1e-6); b = spct_kernels.rms_norm(x, w, 1e-6)\n"
        "assert torch.equal(a, spct_kernels.rms_norm(x, w, 1e-6, backend='reference'))\n"
        "assert len(caught) == 1 and 'not built' in str(caught[0].message), caught\n"
        "try: spct_kernels.rms_norm(x, w, 1e-6, backend='cpu')\n"
        "except spct_kernels.BackendError as error: print(error)"
    )
    result = run_python(code, PYTHONPATH=str(tmp_path))
    assert "are not built" in result.stdout, result.stderr


OPCHECKS = {
    "rms_norm": lambda: (torch.randn(3, 17), torch.randn(17), 1e-6),
    "add_rms_norm": lambda: (torch.randn(3, 17), torch.randn(3, 17), torch.randn(17), 1e-6),
    "gated_activation": lambda: (torch.randn(3, 34), 1),
    "linear": lambda: (torch.randn(3, 17), torch.randn(2, 17, 16), torch.randn(20), 20),
    "rope_append": lambda: (
        torch.randn(3, 64),
        torch.randn(3, 8),
        torch.randn(3, 8),
        torch.tensor([4, 1, 0]).int(),
        torch.zeros(5, 1, 16),
        torch.zeros(5, 1, 16),
        2,
        1,
        16,
        None,
        None,
        1e-6,
    ),
    "shared_prefix_attention": lambda: attention_arguments(),
}


def attention_arguments():
    inputs = make_inputs(decode_tree(70, (3, 5)), (4, 2, 32, 48), torch.float32, torch.Generator().manual_seed(0))
    plan = inputs["plan"]
    tensors = (inputs["q"], inputs["k_cache"].nan_to_num(), inputs["v_cache"].nan_to_num(), plan.nodes, plan.node_slots, plan.rows)
    return (*tensors, plan.num_nodes, 0.2, 0.0, 0, None, None)


@pytest.mark.parametrize("name", OPCHECKS)
def test_torch_accepts_the_op(name):
    torch.library.opcheck(getattr(torch.ops.spct, name).default, OPCHECKS[name]())


def test_the_library_needs_no_python_symbols():
    """One binary for every Python: nothing of CPython's ABI is referenced."""
    (library,) = (KERNELS / "spct_kernels").glob("_C*.so")
    assert not hasattr(ctypes.CDLL(str(library)), "PyInit__C")
    assert b"PyObject_" not in library.read_bytes()


def test_wrong_tensors_for_the_raw_ops_are_refused():
    ops = torch.ops.spct
    with pytest.raises(RuntimeError, match="weight: expected 4 elements, got 5"):
        ops.rms_norm(torch.zeros(2, 4), torch.zeros(5), 1e-6)
    with pytest.raises(RuntimeError, match="x: expected float32"):
        ops.rms_norm(torch.zeros(2, 4).double(), torch.zeros(4), 1e-6)
    with pytest.raises(RuntimeError, match="expected a contiguous tensor"):
        ops.rms_norm(torch.zeros(4, 2).t(), torch.zeros(4), 1e-6)
    with pytest.raises(RuntimeError, match="x: expected 3 inputs, got 4"):
        ops.linear(torch.zeros(2, 4), torch.zeros(1, 3, 16), None, 16)
