"""What is not imported before it is needed: by `import spct`, by help, and by a judgement. Each in a process of its own.

Start-up time is mostly the time of imports; a list of modules doesn't depend on how busy the machine is, as seconds do.
"""

import json
import subprocess
import sys

import pytest
from command_line import environment

# Prints what the code printed to stderr, then, as the last line of stdout, the top-level names and the modules named in the test.
PROBE = """
import json, sys
{code}
print()
print(json.dumps(sorted(sys.modules)))
"""
MAIN = "from spct.cli.main import main\ntry:\n    main({words!r})\nexcept SystemExit:\n    pass"

# Everything that is not Python's own: help and plain values need none of it.
HEAVY = {"torch", "numpy", "triton", "spct_kernels", "rich", "msgspec", "jinja2", "tokenizers", "safetensors", "transformers", "gguf",
         "matplotlib", "huggingface_hub", "asyncio", "multiprocessing", "concurrent", "unittest", "pickle"}  # fmt: skip

# What a judgement by a model on the disk, on a CPU, has no use for. torch itself imports multiprocessing, asyncio and unittest.
UNUSED = {
    "triton",  # kernels of GPUs
    "transformers", "peft", "trl", "accelerate", "datasets", "pandas", "pyarrow",  # training and tests
    "matplotlib", "PIL",  # plots
    "huggingface_hub", "requests", "httpx", "urllib3",  # a model that is here is not looked up
    "gguf", "sentencepiece", "yaml", "sympy", "scipy", "networkx", "IPython", "setuptools",
    "torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.tensor",  # compilers
    "concurrent.futures.process", "multiprocessing.pool",  # nothing is forked
    "spct.training", "spct.evaluation", "spct.conversion", "spct.baselines", "spct.benchmark", "spct.adapters",
}  # fmt: skip


def imported(code):
    """Names of the modules that a fresh process holds after `code`."""
    run = subprocess.run([sys.executable, "-c", PROBE.format(code=code)], env=environment(), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1])), run.stdout


@pytest.mark.parametrize(
    "code", ["import spct", "from spct import ScoreRequest, SamplingParams, VotingParams, ConfigError", "import spct.config"]
)
def test_plain_values_import_nothing_heavy(code):
    assert not imported(code)[0] & HEAVY


@pytest.mark.parametrize("words", ["--help", "--version", "judge --help", "score --help", "rank --help", "compare --help", "eval --help",
                                   "bench --help", "convert --help", "info --help", "train --help", "judge --query q"])  # fmt: skip
def test_help_and_usage_errors_import_nothing_heavy(words):
    assert not imported(MAIN.format(words=words.split()))[0] & HEAVY


def test_kernels_import_no_compiler():
    modules, _ = imported("import spct_kernels")
    assert "torch" in modules and not modules & UNUSED


def test_a_judgement_imports_what_it_uses_and_no_more():
    words = ["judge", "--query", "2+2?", "--response", "4", "--response", "5", "--samples", "2", "--max-tokens", "2"]
    modules, printed = imported(MAIN.format(words=words))
    assert "sample 0:" in printed, "it has judged"
    assert {"torch", "tokenizers", "jinja2"} <= modules
    assert not modules & UNUSED
