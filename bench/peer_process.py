"""The processes of `bench/peers.py`: which systems there are, how one is started and asked."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parent
START_TIMEOUT_S = 600
RUN_TIMEOUT_S = 900


class SystemFailure(Exception):
    """A system can't be started, or its process ended, or it did not answer in time."""


@dataclass(frozen=True)
class System:
    """One way to run a model.

    script   in bench/systems
    home     its virtual environment below $PEERS_HOME; None: this interpreter
    flags    for the script
    numbers  formats of weights and arithmetic, for the table
    floor    which floor it is held to: "fp32" or "int8"
    environment  variables that it gets
    """

    script: str
    home: str | None
    flags: tuple[str, ...]
    numbers: str
    floor: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def makes_files(self) -> bool:
        """It runs a form of the model that has to be made first."""
        return self.home in ("openvino", "llamacpp")

    @property
    def is_ours(self) -> bool:
        """This project's engine."""
        return self.script == "spct_engine.py"


_INT8 = ("--weights", "int8", "--kv-dtype", "bfloat16")
SYSTEMS = {
    "spct-int8": System("spct_engine.py", None, _INT8, "int8 weights, bf16 KV", "int8"),
    "spct-int8-no-amx": System("spct_engine.py", None, _INT8, "int8 weights, bf16 KV, without AMX", "int8", {"SPCT_CPU": "avx512bf16"}),
    "spct-int8-avx2": System("spct_engine.py", None, _INT8, "int8 weights, bf16 KV, AVX2 alone", "int8", {"SPCT_CPU": "avx2"}),
    "spct-fp32": System("spct_engine.py", None, ("--weights", "fp32", "--kv-dtype", "float32"), "fp32", "fp32"),
    "openvino-fp32": System("openvino_genai_peer.py", "openvino", ("--weights", "fp32"), "fp32 weights, arithmetic its own choice", "int8"),
    "openvino-int8": System("openvino_genai_peer.py", "openvino", ("--weights", "int8"), "int8 weights, arithmetic its own choice", "int8"),
    "openvino-f32": System("openvino_genai_peer.py", "openvino", ("--weights", "fp32", "--precision", "f32"), "fp32", "fp32"),
    "llama.cpp-q8_0": System("llama_cpp_peer.py", "llamacpp", ("--quant", "q8_0"), "Q8_0", "int8"),
    "llama.cpp-f16": System("llama_cpp_peer.py", "llamacpp", ("--quant", "f16"), "F16", "int8"),
    "llama.cpp-q4_1": System("llama_cpp_peer.py", "llamacpp", ("--quant", "q4_1"), "Q4_1, as published", "int8"),
    "transformers": System("hf_transformers.py", "transformers", ("--prefill", "shared"), "fp32, prefill shared by hand", "fp32"),
    "transformers-plain": System("hf_transformers.py", "transformers", ("--prefill", "plain"), "fp32", "fp32"),
}


def interpreter(system: System) -> Path | None:
    """The Python that runs a system; None if it is not installed."""
    if system.home is None:
        return Path(sys.executable)
    found = Path(os.environ.get("PEERS_HOME", BENCH.parent / ".peers")) / system.home / "bin" / "python"
    if found.exists():
        return found
    # The development environment holds transformers already.
    return Path(sys.executable) if system.home == "transformers" else None


def command(system: System, model: Path, made: Path, *words: str) -> list[str]:
    """What starts a system. Raises: SystemFailure if it is not installed."""
    python = interpreter(system)
    if python is None:
        raise SystemFailure(f"not installed: no $PEERS_HOME/{system.home} (bench/systems/{system.script} says how)")
    return [str(python), str(BENCH / "systems" / system.script), "--model", str(model), "--made", str(made), *system.flags, *words]


def environment(system: System, threads: int) -> dict[str, str]:
    """The variables of a system's process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPCT_", "OMP_", "MKL_"))}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **offline, "OMP_NUM_THREADS": str(threads), **system.environment}


class Peer:
    """A started system; answers runs one after another. A context manager, which ends the process."""

    def __init__(self, system: System, words: list[str], threads: int) -> None:
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment(system, threads)
        )
        self._buffer = b""
        self.ready: dict[str, Any] = self._answer(START_TIMEOUT_S)["ready"]
        self.peak_rss = 0

    def run(self, **fields: Any) -> dict[str, Any]:
        """One run of `protocol.Run`'s fields; gives the answer. Raises: SystemFailure."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(fields).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SystemFailure(self._why()) from None
        answer = self._answer(RUN_TIMEOUT_S)
        self.peak_rss = max(self.peak_rss, answer["peak_rss"])
        return answer

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _answer(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise SystemFailure(f"no answer after {timeout:.0f} s")
                chunk = os.read(self._process.stdout.fileno(), 2**20)
                if not chunk:
                    raise SystemFailure(self._why())
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _why(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        return f"the process ended with code {self._process.returncode}: {self._errors.read().strip()[-600:]}"
