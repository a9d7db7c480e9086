"""What tells one family of checkpoints from another, as data: tensor names, defaults of `config.json`, switches.

Everything else is shared. The defaults are those of the configuration classes of Hugging Face transformers: a key that a
file leaves out means what it means there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

WindowRule = Literal["none", "all", "from_layer", "alternate"]
BiasRule = Literal["none", "qkv", "config"]

_LLAMA_TENSORS: Mapping[str, str] = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
    "attention_norm": "model.layers.{i}.input_layernorm.weight",
    "query": "model.layers.{i}.self_attn.q_proj.weight",
    "key": "model.layers.{i}.self_attn.k_proj.weight",
    "value": "model.layers.{i}.self_attn.v_proj.weight",
    "output": "model.layers.{i}.self_attn.o_proj.weight",
    "query_bias": "model.layers.{i}.self_attn.q_proj.bias",
    "key_bias": "model.layers.{i}.self_attn.k_proj.bias",
    "value_bias": "model.layers.{i}.self_attn.v_proj.bias",
    "output_bias": "model.layers.{i}.self_attn.o_proj.bias",
    "query_norm": "model.layers.{i}.self_attn.q_norm.weight",
    "key_norm": "model.layers.{i}.self_attn.k_norm.weight",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm.weight",
    "gate": "model.layers.{i}.mlp.gate_proj.weight",
    "up": "model.layers.{i}.mlp.up_proj.weight",
    "down": "model.layers.{i}.mlp.down_proj.weight",
    "gate_bias": "model.layers.{i}.mlp.gate_proj.bias",
    "up_bias": "model.layers.{i}.mlp.up_proj.bias",
    "down_bias": "model.layers.{i}.mlp.down_proj.bias",
}

# With norms before and after, the name of Llama's norm before the MLP is given to the one after the attention.
_GEMMA2_TENSORS: Mapping[str, str] = {
    **_LLAMA_TENSORS,
    "post_attention_norm": "model.layers.{i}.post_attention_layernorm.weight",
    "mlp_norm": "model.layers.{i}.pre_feedforward_layernorm.weight",
    "post_mlp_norm": "model.layers.{i}.post_feedforward_layernorm.weight",
}


@dataclass(frozen=True)
class Family:
    """One `architectures` entry of `config.json`.

    tensors          role -> tensor name, with {i} for the layer; the one place where names are written
    defaults         what a missing key of `config.json` means
    head_dim         a missing `head_dim`; None: hidden_size / num_attention_heads
    windows          "all" layers, layers "from_layer" max_window_layers on, "alternate" ones from the first, or "none"
    attention_bias   "none", on the "qkv" projections, or as the "config" says (output projection included)
    """

    name: str
    architecture: str
    tensors: Mapping[str, str]
    defaults: Mapping[str, object] = field(default_factory=dict)
    head_dim: int | None = None
    windows: WindowRule = "none"
    attention_bias: BiasRule = "none"
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    scaled_embeddings: bool = False
    query_scalar: bool = False
    softcaps: bool = False
    activation_key: str = "hidden_act"


_COMMON: Mapping[str, object] = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu"}
_QWEN: Mapping[str, object] = {
    **_COMMON,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

FAMILIES: tuple[Family, ...] = (
    Family(
        name="llama",
        architecture="LlamaForCausalLM",
        tensors=_LLAMA_TENSORS,
        defaults={**_COMMON, "max_position_embeddings": 2048},
        attention_bias="config",
        mlp_bias=True,
    ),
    Family(
        name="mistral",
        architecture="MistralForCausalLM",
        tensors=_LLAMA_TENSORS,
        defaults={**_COMMON, "max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8},
        windows="all",
    ),
    Family(
        name="qwen2",
        architecture="Qwen2ForCausalLM",
        tensors=_LLAMA_TENSORS,
        defaults=_QWEN,
        windows="from_layer",
        attention_bias="qkv",
    ),
    Family(
        name="qwen3",
        architecture="Qwen3ForCausalLM",
        tensors=_LLAMA_TENSORS,
        defaults=_QWEN,
        head_dim=128,
        windows="from_layer",
        attention_bias="config",
        qk_norm=True,
    ),
    Family(
        name="gemma2",
        architecture="Gemma2ForCausalLM",
        tensors=_GEMMA2_TENSORS,
        defaults={
            **_COMMON,
            "tie_word_embeddings": True,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        head_dim=256,
        windows="alternate",
        attention_bias="config",
        post_norms=True,
        norm_offset=1.0,
        scaled_embeddings=True,
        query_scalar=True,
        softcaps=True,
        activation_key="hidden_activation",
    ),
)


def family_named(name: str) -> Family:
    """The family of a `ModelSpec.family`.

    Raises: KeyError for an unknown name.
    """
    return {family.name: family for family in FAMILIES}[name]
