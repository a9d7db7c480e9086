"""Tiny GGUF files, written as llama.cpp's converter writes them: from a Hugging Face folder, with a vocabulary of bytes."""

import json

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType, get_tensor_name_map
from gguf.quants import quantize
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

SPECIAL = ("<s>", "</s>", "<pad>", "<|im_end|>")
BOS, EOS, PAD = 256, 257, 258
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
# llama.cpp has no architecture of its own for Mistral's models.
ARCHITECTURES = {"mistral": "llama"}


def vocabulary():
    """Texts, kinds and merges of 261 tokens: bytes in GPT-2's spelling, four control tokens, one word."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL, "th"]
    kinds = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens]
    return tokens, kinds, ["t h"]


def write_gguf(folder, path, *, kind=GGMLQuantizationType.F32, pre="qwen2", metadata=None, tensors=None, template=TEMPLATE):
    """Write the checkpoint in `folder` as one GGUF file.

    kind       of the matrices; vectors are fp32
    metadata   function that adds to the writer (after the rest)
    tensors    function that changes the dict of tensors, named as in the file
    """
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = GGUFWriter(path, architecture)
    _add_shape(writer, config)
    _add_rope(writer, config)
    _add_vocabulary(writer, pre, template)
    if metadata is not None:
        metadata(writer)
    stored = _stored_tensors(load_file(folder / "model.safetensors"), config, architecture)
    if tensors is not None:
        tensors(stored)
    for name, values in stored.items():
        if values.ndim == 2 and kind != GGMLQuantizationType.F32:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer, config):
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    if config["model_type"] in ("llama", "mistral"):
        writer.add_rope_dimension_count(config["head_dim"])
    if config["model_type"] in ("mistral", "gemma2"):
        writer.add_sliding_window(config["sliding_window"])
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _add_rope(writer, config):
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _add_vocabulary(writer, pre, template):
    tokens, kinds, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)


def _stored_tensors(published, config, architecture):
    """What llama.cpp's converter does to the weights: other names, rotation in pairs for "llama", norms of Gemma plus one."""
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, config["num_hidden_layers"])
    stored = {}
    for name, tensor in published.items():
        base, _, suffix = name.rpartition(".")
        values = tensor.float()
        if architecture == "llama" and base.endswith(("q_proj", "k_proj")):
            heads = config["num_attention_heads"] if base.endswith("q_proj") else config["num_key_value_heads"]
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if architecture == "gemma2" and name.endswith("norm.weight"):
            values = values + 1
        stored[f"{names.get_name(base)}.{suffix}"] = np.ascontiguousarray(values.numpy())
    rope = config["rope_parameters"]
    if rope["rope_type"] == "llama3":
        stored["rope_freqs.weight"] = _llama3_factors(config["head_dim"], rope)
    return stored


def _llama3_factors(head_dim, rope):
    """convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
    original, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for frequency in 1.0 / (rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)):
        wavelength = 2 * torch.pi / frequency
        if wavelength < original / high:
            factors.append(1)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)
