"""llama.cpp through the C functions that llama-cpp-python exposes: one prefill, the cache shared by k sequences, two threads that sample.

    python3 -m venv $PEERS_HOME/llamacpp
    CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF" $PEERS_HOME/llamacpp/bin/pip install gguf safetensors llama-cpp-python==0.3.36

It is built from source for the very CPU (a quarter of an hour on two cores). `--quant` names a file: q4_1 is the published one
(model.gguf in the model's folder), f16 and q8_0 are made from the folder's own weights by `--prepare`.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from protocol import Outcome, Run, arguments, serve

CONTEXT_STEP = 256


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quant", choices=["f16", "q8_0", "q4_1"], default="q8_0")


def _file(options: argparse.Namespace) -> Path:
    return Path(options.model) / "model.gguf" if options.quant == "q4_1" else Path(options.made) / f"{options.quant}.gguf"


def main() -> None:
    """Serves runs, or makes the file."""
    options = arguments(_flags)
    import llama_cpp as lib

    if options.prepare:
        prepare(options, lib)
        return

    @lib.llama_log_callback
    def quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        """The library reports every tensor that it loads."""

    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    serve(options, lambda: load(options, lib))


def prepare(options: argparse.Namespace, lib: object) -> None:
    """Writes f16.gguf or q8_0.gguf from the folder's weights."""
    from gguf_file import write_gguf

    target = _file(options)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    full = target.with_name("f32.gguf")
    if not full.exists():
        write_gguf(Path(options.model), full)
    params = lib.llama_model_quantize_default_params()  # type: ignore[attr-defined] # a module
    params.ftype = {"f16": lib.LLAMA_FTYPE_MOSTLY_F16, "q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0}[options.quant]  # type: ignore[attr-defined] # a module
    params.nthread = options.threads
    partial = target.with_suffix(".part")
    if lib.llama_model_quantize(str(full).encode(), str(partial).encode(), ctypes.byref(params)):  # type: ignore[attr-defined] # a module
        raise SystemExit(f"{target}: llama_model_quantize failed")
    partial.rename(target)


def load(options: argparse.Namespace, lib: object) -> tuple[Callable[[Run], Outcome], dict[str, str]]:
    """The context for the largest case, and the function that does a run."""
    c = vars(lib)
    c["llama_backend_init"]()
    model = c["llama_model_load_from_file"](str(_file(options)).encode(), c["llama_model_default_params"]())
    if not model:
        raise SystemExit(f"{_file(options)}: llama.cpp can't load it")
    params = c["llama_context_default_params"]()
    needed = options.prompt_tokens + options.samples * options.new
    params.n_ctx = -(-needed // CONTEXT_STEP) * CONTEXT_STEP
    params.n_batch = max(options.prompt_tokens, 2048)
    params.n_seq_max = params.n_outputs_max = options.samples
    params.n_threads = params.n_threads_batch = options.threads
    params.flash_attn_type = c["LLAMA_FLASH_ATTN_TYPE_ENABLED"]
    # One buffer for all sequences: what they share is stored once.
    params.kv_unified = True
    context = c["llama_init_from_model"](model, params)
    if not context:
        raise SystemExit("llama.cpp can't make a context")
    batch = c["llama_batch_init"](max(options.prompt_tokens, options.samples), 0, 1)
    memory = c["llama_get_memory"](context)
    pool = ThreadPoolExecutor(options.threads)

    def feed(rows: list[tuple[int, int, int, bool]]) -> None:
        """Computes rows of (token, position, sequence, logits wanted)."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, position, 1, sequence, wanted
        if code := c["llama_decode"](context, batch):
            raise SystemExit(f"llama_decode: code {code}")
        c["llama_synchronize"](context)

    def sampler(run: Run, index: int) -> object:
        chain = c["llama_sampler_chain_init"](c["llama_sampler_chain_default_params"]())
        if run.temperature == 0:
            parts = [c["llama_sampler_init_greedy"]()]
        else:
            parts = [c["llama_sampler_init_temp"](run.temperature), c["llama_sampler_init_top_p"](run.top_p, 1)]
            parts.append(c["llama_sampler_init_dist"]((run.seed * 7919 + index) % 2**32))
        for part in parts:
            c["llama_sampler_chain_add"](chain, part)
        return chain

    def draw(chains: list[object], first: bool) -> list[int]:
        rows = [-1 if first else i for i in range(len(chains))]
        for row in rows:
            # The first access orders the outputs, and is not made for several threads.
            c["llama_get_logits_ith"](context, row)
        return list(pool.map(lambda chain, row: c["llama_sampler_sample"](chain, context, row), chains, rows))

    def generate(run: Run) -> Outcome:
        c["llama_memory_clear"](memory, False)
        chains = [sampler(run, i) for i in range(run.samples)]
        begin, length = time.perf_counter(), len(run.prompt)
        feed([(token, i, 0, i == length - 1) for i, token in enumerate(run.prompt)])
        for i in range(1, run.samples):
            c["llama_memory_seq_cp"](memory, 0, i, -1, -1)
        tokens = [[token] for token in draw(chains, first=True)]
        first = time.perf_counter() - begin
        for step in range(run.new - 1):
            feed([(own[-1], length + step, i, True) for i, own in enumerate(tokens)])
            for own, token in zip(tokens, draw(chains, first=False), strict=True):
                own.append(token)
        total = time.perf_counter() - begin
        for chain in chains:
            c["llama_sampler_free"](chain)
        return Outcome(first, total, tokens)

    return generate, {"llama.cpp": c["llama_version"]().decode(), "llama-cpp-python": c["__version__"]}


if __name__ == "__main__":
    main()
