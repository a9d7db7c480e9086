"""Random tiny checkpoints of every family and option, written by transformers; the oracle that reads them back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 261


@dataclass(frozen=True)
class Tiny:
    """One configuration: a transformers config class and what differs from `SHAPE`."""

    name: str
    config_class: str
    options: dict[str, Any] = field(default_factory=dict)


SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
YARN_ALL = {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.0, "truncate": False}


def _rope(parameters: dict[str, Any], theta: float = 10000.0) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": theta, **parameters}}


TINY = [
    Tiny("llama", "LlamaConfig"),
    Tiny("llama-tied-mha", "LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    Tiny("llama-one-kv-head-biases", "LlamaConfig", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    Tiny("llama-theta", "LlamaConfig", _rope({"rope_type": "default"}, 500000.0)),
    Tiny("llama-llama3", "LlamaConfig", {"tie_word_embeddings": True, **_rope(LLAMA3, 500000.0)}),
    Tiny("llama-linear", "LlamaConfig", _rope({"rope_type": "linear", "factor": 2.5})),
    Tiny("llama-yarn", "LlamaConfig", _rope(YARN)),
    Tiny("llama-yarn-all", "LlamaConfig", _rope(YARN_ALL)),
    Tiny("llama-yarn-factor", "LlamaConfig", _rope({**YARN, "attention_factor": 1.3})),
    Tiny("llama-gelu", "LlamaConfig", {"hidden_act": "gelu"}),
    Tiny("mistral-window", "MistralConfig", {"sliding_window": 11}),
    Tiny("mistral-full", "MistralConfig", {"sliding_window": None}),
    Tiny("qwen2", "Qwen2Config", {"tie_word_embeddings": True}),
    Tiny("qwen2-window-layers", "Qwen2Config", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    Tiny("qwen2-layer-types", "Qwen2Config", {
        "use_sliding_window": True, "sliding_window": 13, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }),
    Tiny("qwen3", "Qwen3Config", {"tie_word_embeddings": True, "head_dim": 32}),
    Tiny("qwen3-window-bias", "Qwen3Config", {
        "attention_bias": True, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2,
    }),
    Tiny("gemma2", "Gemma2Config", {"sliding_window": 12, "query_pre_attn_scalar": 24, "head_dim": 32}),
    Tiny("gemma2-tight-caps", "Gemma2Config", {
        "sliding_window": 5, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "num_hidden_layers": 4,
    }),
    Tiny("gemma2-no-caps", "Gemma2Config", {
        "sliding_window": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False,
    }),
]  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer, so that the folder is complete; ids 256 and up are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {byte: i for i, byte in enumerate(alphabet)}
    specials = [f"<special{i}>" for i in range(VOCABULARY - len(vocab))]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_tiny(folder: Path, tiny: Tiny, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Write a random checkpoint and its tokenizer. Norms and biases are drawn too, as transformers starts them at 1 and 0."""
    config = getattr(transformers, tiny.config_class)(**{**SHAPE, **tiny.options})
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif "embed_tokens" in name and tiny.config_class == "Gemma2Config":
                parameter.mul_(0.5)
    model.to(dtype).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def oracle(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint in transformers, eager."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype)
    return model.eval()


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrite model.safetensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
