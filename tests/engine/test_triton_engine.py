"""The whole engine on the Triton backend, under Triton's interpreter: the C++ engine's tokens, from launches that are compiled for GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoints import TINY, write_tiny
from tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]

# In a process of its own: the interpreter is chosen when Triton is imported.
JUDGE = """
import json, sys
from spct import Engine, SamplingParams
from spct_kernels import compile_rows, recorded, specialisation
folder, model = sys.argv[1], json.loads(sys.argv[2])
shape = specialisation.ModelShape(**{**model, "windows": tuple(model.get("windows", (False,)))})
rows = {recorded.launch_of(row) for row in compile_rows.rows_of(shape)}
SAMPLING = (
    SamplingParams(samples=3, max_tokens=2, seed=7, min_tokens=1),
    SamplingParams(samples=2, max_tokens=2, top_p=0.8, top_k=40),
)
ids = list(range(40, 59))
found = {}
with recorded.recording() as launches:
    for backend in ("cpu", "triton"):
        with Engine.from_pretrained(folder, backend=backend, device="cpu", kv_memory="2MiB", num_threads=1) as engine:
            found[backend] = []
            for sampling in SAMPLING:
                found[backend] += [[list(g.token_ids), g.logprobs, g.meta_score] for g in engine.generate(ids, sampling)]
json.dump({**found, "kernels": sorted({one.kernel for one in launches}), "missing": [repr(one) for one in launches - rows]}, sys.stdout)
"""

LLAMA = {
    "name": "tiny", "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "width": 64, "inner_width": 96, "vocabulary": 257,
    "dtype": "fp32", "panel": 16,
}  # fmt: skip
GEMMA = LLAMA | {
    "width": 48, "inner_width": 88, "vocabulary": 261, "activation": "gelu_tanh", "windows": [True, False], "attention_softcap": True,
    "final_softcap": True, "has_meta": False,
}  # fmt: skip
QWEN = LLAMA | {"head_dim": 32, "width": 48, "inner_width": 88, "vocabulary": 261, "qk_norm": True, "has_meta": False}


def run(program, *arguments, **environment):
    path = os.pathsep.join(str(ROOT / root) for root in ("engine", "kernels"))
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET" and not name.startswith("SPCT_")}
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    return subprocess.run(command, env={**kept, "PYTHONPATH": path, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["llama with a meta head", "gemma2-tight-caps", "qwen3"])
def test_the_tokens_of_the_cpu_engine_from_compiled_launches(tmp_path, name):
    if name == "llama with a meta head":
        folder, shape = write_tiny_model(tmp_path / "model", meta_head=True), LLAMA
    else:
        folder, shape = write_tiny(tmp_path, next(tiny for tiny in TINY if tiny.name == name)), GEMMA if "gemma" in name else QWEN
    done = run(JUDGE, folder, json.dumps(shape), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for (tokens, logprobs, meta), (expected, exact, score) in zip(found["triton"], found["cpu"], strict=True):
        assert tokens == expected
        assert logprobs == pytest.approx(exact, abs=2e-4)
        assert (meta is None) == (score is None) == (not shape.get("has_meta", True))
        if score is not None:
            assert meta == pytest.approx(score, abs=2e-4)
    assert {"attention", "linear", "head", "decide", "redo_logits", "redo_draw", "final_norm", "rms_norm", "rope_append"} <= set(
        found["kernels"]
    )
    # The rule that `compile_rows` derives a model's rows by knows every launch of the engine.
    assert not found["missing"], "\n".join(found["missing"])


def test_without_the_interpreter_a_cpu_engine_on_triton_is_refused_at_once(tmp_path):
    folder = write_tiny_model(tmp_path / "model")
    program = (
        "import sys; from spct import Engine, SpctError\n"
        "try: Engine.from_pretrained(sys.argv[1], backend='triton', device='cpu')\n"
        "except SpctError as error: print(type(error).__name__, error)"
    )
    done = run(program, folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("BackendError backend 'triton': CPU tensors need Triton's interpreter; set TRITON_INTERPRET=1")
