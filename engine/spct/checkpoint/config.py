"""`config.json` -> `ModelSpec`, through a whitelist: a key is read because a line here reads it, and never as code.

The spellings of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`, `use_sliding_window`) and of transformers 5
(`rope_parameters`, flat or per layer type, `dtype`, `layer_types`) are both read.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Literal

from spct.checkpoint.fields import Fields
from spct.checkpoint.jsonfile import read_object
from spct.checkpoint.rope import read_ropes
from spct.errors import CheckpointError
from spct.layers.spec import Activation, KVLayout, LayerSpec, MLPSpec
from spct.models.families import FAMILIES, Family
from spct.models.spec import ModelSpec, default_attention_scale

logger = logging.getLogger(__name__)

HeadKind = Literal["lm", "score"]

# What transformers calls the same decoder with another head.
_SUFFIXES: dict[HeadKind, str] = {"lm": "ForCausalLM", "score": "ForSequenceClassification"}

_MAX_DIM = 1 << 24
_MAX_LAYERS = 1024

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}

# Set, these would change the arithmetic or ask for code that is not ours; each with what to do.
_REFUSED: dict[str, str] = {
    "auto_map": "it asks for code from the checkpoint's folder, which is never run; use a checkpoint of a supported architecture",
    "custom_pipelines": "it asks for code from the checkpoint's folder, which is never run",
    "trust_remote_code": "code from a checkpoint's folder is never run",
    "quantization_config": "quantised checkpoints aren't supported; save the model dequantised, as float32 or bfloat16",
    "compression_config": "compressed checkpoints aren't supported; save the model decompressed, as float32 or bfloat16",
    "per_layer_config": "layers of differing shapes aren't supported",
    "is_encoder_decoder": "only decoders are supported",
    "add_cross_attention": "only decoders are supported",
    "use_bidirectional_attention": "only causal attention is supported",
    "partial_rotary_factor": "partial rotation isn't supported in these families",
    "num_local_experts": "experts aren't supported in these families",
    "num_experts": "experts aren't supported in these families",
    "no_rope_layers": "layers without rotation aren't supported",
    "attention_chunk_size": "chunked attention isn't supported",
}

# Known to have no part in inference: training, bookkeeping, and options of `generate` that older files kept here.
# fmt: off
_HARMLESS = frozenset((
    "architectures", "model_type", "transformers_version", "use_cache", "initializer_range", "attention_dropout", "hidden_dropout",
    "pretraining_tp", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "name_or_path", "return_dict", "output_attentions",
    "output_hidden_states", "chunk_size_feed_forward", "is_decoder", "id2label", "label2id", "problem_type", "num_labels",
    "task_specific_params", "use_mrope", "cache_implementation", "sep_token_id", "decoder_start_token_id", "prefix", "torchscript",
    "use_bfloat16", "pruned_heads", "tie_encoder_decoder", "finetuning_task", "tokenizer_class", "attn_implementation", "hidden_act",
    "hidden_activation", "sliding_window", "max_window_layers", "use_sliding_window", "mlp_bias", "attention_bias", "unsloth_version",
    "unsloth_fixed", "tie_last_hidden_states", "temperature", "top_k", "top_p", "do_sample", "max_length", "min_length",
    "repetition_penalty", "length_penalty", "num_beams", "num_beam_groups", "num_return_sequences", "diversity_penalty",
    "early_stopping", "encoder_no_repeat_ngram_size", "no_repeat_ngram_size", "bad_words_ids", "begin_suppress_tokens",
    "suppress_tokens", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "return_dict_in_generate", "output_scores", "typical_p", "tf_legacy_loss", "cross_attention_hidden_size",
    "original_max_position_embeddings", "sliding_window_size", "is_llama_config", "rope_interleaved",
    "transformers.js_config",
))
# fmt: on


def read_spec(path: Path, head: HeadKind = "lm") -> ModelSpec:
    """Describe the decoder that a `config.json` asks for.

    head   "lm": a generative model (…ForCausalLM). "score": a sequence-classification model (…ForSequenceClassification), which has
           no LM head, so that its embedding table is the only matrix over the vocabulary (`tied_embeddings`)

    Raises: CheckpointError naming the file and the key for an unknown architecture, remote code, an unsupported or
    malformed option.
    """
    values = read_object(path)
    for key, remedy in _REFUSED.items():
        value = values.get(key)
        if value not in (None, False, [], {}, "") and not (key == "partial_rotary_factor" and value in (1, 1.0)):
            raise CheckpointError(f"{path}: key {key!r} is set: {remedy}")
    family = _family(Fields(values, str(path)), head)
    fields = Fields(values, str(path), family.defaults)
    spec = _spec(fields, family)
    if head == "score":
        spec = dataclasses.replace(spec, tied_embeddings=True)
    unknown = sorted(key for key in fields.unread() if key not in _HARMLESS and key not in _REFUSED and not key.startswith("_"))
    if unknown:
        logger.warning("%s: ignored keys that no supported architecture reads: %s", path, ", ".join(map(ascii, unknown)))
    return spec


def _family(fields: Fields, head: HeadKind) -> Family:
    by_architecture = {family.architecture.removesuffix(_SUFFIXES["lm"]) + _SUFFIXES[head]: family for family in FAMILIES}
    architectures = fields.raw("architectures", None)
    model_type = fields.raw("model_type", None)
    known = ", ".join(sorted(by_architecture))
    if architectures is None and head == "lm":
        found = [family for family in FAMILIES if family.name == model_type]
        if not found:
            fields.fail("model_type", f"one of {', '.join(family.name for family in FAMILIES)} where 'architectures' is missing")
        return found[0]
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        fields.fail("architectures", f"a list with one of {known}")
    family = by_architecture.get(architectures[0])
    if family is None:
        fields.fail("architectures", f"one of {known}", _other_architecture(architectures[0], head))
    if model_type is not None and model_type != family.name:
        fields.fail("model_type", f"{family.name!r}, as 'architectures' says {architectures[0]}")
    return family


def _other_architecture(name: str, head: HeadKind) -> str:
    if head == "lm" and name.endswith(_SUFFIXES["score"]):
        return "a scalar reward model judges no text; give it as meta_model beside a generative one"
    if head == "score" and name.endswith(_SUFFIXES["lm"]):
        return "a meta model has a scalar head; train one with 'spct train meta --form scalar'"
    return "other architectures aren't supported"


def _spec(fields: Fields, family: Family) -> ModelSpec:
    hidden_dim = fields.integer("hidden_size", 1, _MAX_DIM)
    num_heads = fields.integer("num_attention_heads", 1, 1 << 16)
    num_layers = fields.integer("num_hidden_layers", 1, _MAX_LAYERS)
    num_kv_heads = fields.optional_integer("num_key_value_heads", 1, 1 << 16) or num_heads
    if num_heads % num_kv_heads:
        fields.fail("num_key_value_heads", f"a divisor of num_attention_heads={num_heads}")
    head_dim = _head_dim(fields, family, hidden_dim, num_heads)
    biased = family.attention_bias == "config" and fields.boolean("attention_bias", False)
    mlp_bias = family.mlp_bias and fields.boolean("mlp_bias", False)
    mlp = MLPSpec(fields.integer("intermediate_size", 1, _MAX_DIM), _activation(fields, family.activation_key), mlp_bias)
    max_context = fields.integer("max_position_embeddings", 1, 1 << 31)
    types = _layer_types(fields, family, num_layers)
    window = _window(fields, family, types)
    ropes = read_ropes(fields, head_dim, max_context, sorted(set(types)))
    layers = tuple(
        LayerSpec(KVLayout(num_kv_heads, head_dim, head_dim, window if kind == "sliding_attention" else None), mlp, ropes.index_of[kind])
        for kind in types
    )
    scale = default_attention_scale(head_dim)
    if family.query_scalar:
        scale = 1.0 / math.sqrt(fields.real("query_pre_attn_scalar", 1e-6, 1e6))
    return ModelSpec(
        family=family.name,
        vocab_size=fields.integer("vocab_size", 1, _MAX_DIM),
        hidden_dim=hidden_dim,
        num_heads=num_heads,
        head_dim=head_dim,
        layers=layers,
        ropes=ropes.specs,
        max_context=ropes.context,
        norm_eps=fields.real("rms_norm_eps", 0.0, 1.0),
        attention_scale=scale,
        attention_softcap=fields.optional_real("attn_logit_softcapping", 1e-3, 1e6) if family.softcaps else None,
        final_softcap=fields.optional_real("final_logit_softcapping", 1e-3, 1e6) if family.softcaps else None,
        embedding_scale=math.sqrt(hidden_dim) if family.scaled_embeddings else 1.0,
        qk_norm=family.qk_norm,
        qkv_bias=biased or family.attention_bias == "qkv",
        output_bias=biased,
        post_norms=family.post_norms,
        norm_offset=family.norm_offset,
        tied_embeddings=fields.boolean("tie_word_embeddings", family.defaults["tie_word_embeddings"] is True),
        stored_dtype=fields.optional_string("dtype") or fields.optional_string("torch_dtype"),
    )


def _head_dim(fields: Fields, family: Family, hidden_dim: int, num_heads: int) -> int:
    head_dim = fields.optional_integer("head_dim", 1, 1 << 16, family.head_dim)
    if head_dim is None:
        if hidden_dim % num_heads:
            fields.fail("num_attention_heads", f"a divisor of hidden_size={hidden_dim} where 'head_dim' is missing")
        head_dim = hidden_dim // num_heads
    if head_dim % 16 or not 16 <= head_dim <= 256:
        raise CheckpointError(f"{fields.where}: key 'head_dim': expected a multiple of 16 from 16 to 256, got {head_dim}")
    return head_dim


def _activation(fields: Fields, key: str) -> Activation:
    value = fields.raw(key)
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        fields.fail(key, f"one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def _layer_types(fields: Fields, family: Family, num_layers: int) -> list[str]:
    """Per layer "full_attention" or "sliding_attention": as `layer_types` says, or by the family's older rule."""
    value = fields.raw("layer_types", None)
    if value is not None:
        if not isinstance(value, list) or len(value) != num_layers:
            fields.fail("layer_types", f"a list of num_hidden_layers={num_layers} names")
        for name in value:
            if name not in ("full_attention", "sliding_attention"):
                fields.fail("layer_types", "'full_attention' and 'sliding_attention' only")
        return value
    sliding = "sliding_attention"
    if family.windows == "all" and fields.raw("sliding_window") is not None:
        return [sliding] * num_layers
    if family.windows == "alternate":
        return [sliding if i % 2 == 0 else "full_attention" for i in range(num_layers)]
    if family.windows == "from_layer" and fields.boolean("use_sliding_window", False) and fields.raw("sliding_window") is not None:
        first = fields.integer("max_window_layers", 0, 1 << 16)
        return [sliding if i >= first else "full_attention" for i in range(num_layers)]
    return ["full_attention"] * num_layers


def _window(fields: Fields, family: Family, types: list[str]) -> int | None:
    """The window of the sliding layers.

    Raises: CheckpointError where layers slide and the file gives no window, or switches it off.
    """
    if "sliding_attention" not in types:
        return None
    if family.windows == "none":
        fields.fail("layer_types", f"'full_attention' only, as {family.architecture} has no sliding window")
    if family.windows == "all" and "full_attention" in types:
        fields.fail("layer_types", f"'sliding_attention' only, as {family.architecture} slides in every layer")
    if family.windows == "from_layer" and not fields.boolean("use_sliding_window", False):
        fields.fail("use_sliding_window", "true, as 'layer_types' has sliding layers")
    return fields.integer("sliding_window", 1, 1 << 31)
