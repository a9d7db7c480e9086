"""Writes llama_cpp_greedy.json: what llama.cpp writes greedily behind the prompts of test_real.py, from the file that `make real` keeps.

    pip install xllamacpp gguf tokenizers
    PYTHONPATH=engine:kernels:tests/helpers:tests/real python tests/real/llama_cpp_greedy.py .real/smollm2

xllamacpp is llama.cpp as a wheel. Two forms: the published file (4-bit weights, activations rounded to 8 bits block by block) and the same
weights as fp32 numbers, with the same tokenizer and settings, in a file beside it.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NUM_TOKENS = 64


def write_f32(source: Path, target: Path) -> None:
    """Copies a GGUF file with every tensor as fp32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            value = 0 if field.name == "general.file_type" else field.contents()
            writer.add_key_value(field.name, value, kind, sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.ascontiguousarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def greedy(path: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Token ids that llama.cpp writes behind every prompt, up to and with the end token."""
    import xllamacpp

    params: Any = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(path), 4096, 1, False
    server: Any = xllamacpp.Server(params)
    told = {"n_predict": NUM_TOKENS, "temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "logprobs": 1, "cache_prompt": False}
    choices = [server.handle_completions({"prompt": ids, **told})["choices"][0] for ids in prompts]
    return [[token["id"] for token in choice["logprobs"]["content"]] for choice in choices]


def main() -> None:
    """Writes the file beside this one."""
    from test_real import greedy_prompts
    from tokenizers import Tokenizer

    folder = Path(sys.argv[1])
    prompts = greedy_prompts(Tokenizer.from_file(str(folder / "tokenizer.json")))
    wide = folder / "model.f32.gguf"
    write_f32(folder / "model.gguf", wide)
    made = {
        "from": f"llama.cpp, xllamacpp {version('xllamacpp')} on a CPU",
        "f32": greedy(wide, prompts),
        "q4_1": greedy(folder / "model.gguf", prompts),
    }
    wide.unlink()
    Path(__file__).with_suffix(".json").write_text(json.dumps(made, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
