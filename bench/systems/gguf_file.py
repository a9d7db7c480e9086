"""A GGUF file in fp32 from a Llama or Qwen2 folder in fp32, without its tokenizer: the benchmark feeds token ids."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, target: Path) -> None:
    """Writes `target`. Raises: KeyError for a tensor that neither family has."""
    config = json.loads((folder / "config.json").read_text())
    architecture = {"llama": "llama", "qwen2": "qwen2"}[config["model_type"]]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_name(folder.name)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    turned = {"attn_q": heads, "attn_k": config["num_key_value_heads"]} if architecture == "llama" else {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            stem, _, kind = name.rpartition(".")
            if stem in _TOP:
                writer.add_tensor(f"{_TOP[stem]}.{kind}", tensor.astype(np.float32))
                continue
            _, _, layer, part = stem.split(".", 3)
            short = _LAYER[part]
            writer.add_tensor(f"blk.{layer}.{short}.{kind}", _turned(tensor.astype(np.float32), turned.get(short)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _turned(tensor: npt.NDArray[np.float32], heads: int | None) -> npt.NDArray[np.float32]:
    """Rows of a head from the two halves of a rotation to its pairs side by side, as llama.cpp's "llama" turns them."""
    if heads is None:
        return tensor
    half = tensor.shape[0] // heads // 2
    return np.ascontiguousarray(tensor.reshape(heads, 2, half, -1).transpose(0, 2, 1, 3).reshape(tensor.shape))
