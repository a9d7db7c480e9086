"""The metadata of a GGUF file -> `config.json` and `generation_config.json`, in the spelling that every version of transformers reads.

The keys are those of llama.cpp's converter (convert_hf_to_gguf.py). A key of the model that nothing here reads is an error: it may
change the arithmetic, and a model that is converted without it judges wrongly without a word.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
import torch

from spct.conversion.gguf_file import EMBEDDING, GGUFFile
from spct.errors import CheckpointError
from spct.models.families import Family, family_named

# Names of llama.cpp -> ours. Mistral's models are "llama" there; one with a window becomes "mistral".
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2"}

# No part in the arithmetic of the families above.
_HARMLESS = frozenset(("tensor_data_layout", "rope.scaling.finetuned", "vocab_size", "attention.value_length", "rope.dimension_count"))

# The texts by which llama.cpp knows an end of turn where the metadata names another end (llama-vocab.cpp).
_END_OF_TURN = frozenset(("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>"))
_CONTROL = 3

# Llama 3's rope scaling is stored as the factors alone. Its published checkpoints share these, and differ in the largest factor.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPE_FACTORS = "rope_freqs.weight"

# Gemma 2 scales queries by the width of a head, but for its largest model, which llama.cpp tells by the number of layers too.
_GEMMA2_27B_LAYERS = 46


def family_of(file: GGUFFile) -> Family:
    """The family of a file's architecture.

    Raises: CheckpointError if the engine has none.
    """
    name = ARCHITECTURES.get(file.architecture)
    if name is None:
        raise CheckpointError(f"{file.path}: architecture {file.architecture!r}: expected one of {', '.join(ARCHITECTURES)}")
    if name == "llama" and file.metadata.optional_integer("llama.attention.sliding_window", 0, 1 << 31):
        name = "mistral"
    return family_named(name)


def read_config(file: GGUFFile, family: Family, dtype: str) -> dict[str, Any]:
    """The `config.json` of a file.

    dtype   of the weights that will stand beside it, such as "bfloat16"

    Raises: CheckpointError, naming file and key, for a value that is missing, malformed or beyond what the family computes.
    """
    keys = _Keys(file)
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    for other in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(other, head_dim) != head_dim:
            keys.fail(other, f"the width of a head, {head_dim}, as in every model of this family")
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "vocab_size": file.shape(EMBEDDING)[0],
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.real("rope.freq_base", 10000.0),
        "rope_scaling": None,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        family.activation_key: family.defaults.get(family.activation_key),
        "torch_dtype": dtype,
        **_token_ids(file),
    }
    config["rope_scaling"] = _rope_scaling(keys, config)
    config |= _family_options(keys, family, config)
    keys.refuse_unread()
    return config


def read_generation_config(file: GGUFFile) -> dict[str, Any]:
    """The `generation_config.json` of a file: every token at which a turn ends."""
    ids = _token_ids(file)
    ends = [ids["eos_token_id"], *(_token_id(file, key) for key in ("eot_token_id", "eom_token_id"))]
    kinds = file.array("tokenizer.ggml.token_type")
    for index, token in enumerate(file.array("tokenizer.ggml.tokens")):
        if token in _END_OF_TURN and index < len(kinds) and kinds[index] == _CONTROL:
            ends.append(index)
    return {**ids, "eos_token_id": list(dict.fromkeys(i for i in ends if i is not None))}


def _token_ids(file: GGUFFile) -> dict[str, int | None]:
    return {f"{name}_token_id": _token_id(file, f"{key}_token_id") for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}


def _token_id(file: GGUFFile, key: str) -> int | None:
    return file.metadata.optional_integer(f"tokenizer.ggml.{key}", 0, (1 << 32) - 1)


def _family_options(keys: _Keys, family: Family, config: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    has = keys.file.tensors.__contains__
    if family.attention_bias == "config":
        options["attention_bias"] = has("blk.0.attn_q.bias")
    if family.mlp_bias:
        options["mlp_bias"] = has("blk.0.ffn_gate.bias")
    if family.windows in ("all", "alternate"):
        options["sliding_window"] = keys.integer("attention.sliding_window")
    elif family.windows == "from_layer":
        options["use_sliding_window"] = False
    if family.softcaps:
        options["attn_logit_softcapping"] = keys.optional_real("attn_logit_softcapping")
        options["final_logit_softcapping"] = keys.optional_real("final_logit_softcapping")
    if family.query_scalar:
        is_largest = config["num_hidden_layers"] == _GEMMA2_27B_LAYERS
        options["query_pre_attn_scalar"] = config["hidden_size"] // config["num_attention_heads"] if is_largest else config["head_dim"]
    return options


def _rope_scaling(keys: _Keys, config: dict[str, Any]) -> dict[str, Any] | None:
    if ROPE_FACTORS in keys.file.tensors:
        return _llama3_scaling(keys.file, config["head_dim"], config["rope_theta"])
    kind = keys.string("rope.scaling.type") or "none"
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        keys.fail("rope.scaling.type", "one of none, linear, yarn")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": keys.real("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = keys.integer("rope.scaling.original_context_length")
        for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if (value := keys.optional_real(f"rope.scaling.{key}")) is not None:
                scaling[name] = value
        if keys.optional_real("rope.scaling.attn_factor", 1.0) != 1.0:
            # llama.cpp multiplies YaRN's own factor by it, a checkpoint of transformers replaces it.
            keys.fail("rope.scaling.attn_factor", "1")
    return scaling


def _llama3_scaling(file: GGUFFile, head_dim: int, theta: float) -> dict[str, Any]:
    factors = file.values(ROPE_FACTORS).double()
    factor = float(factors.max())
    expected = llama3_factors(head_dim, theta, factor)
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-4, atol=0):
        raise CheckpointError(
            f"{file.path}: tensor {ROPE_FACTORS!r}: expected the factors of Llama 3's rule ({_LLAMA3}), got others; "
            "the file doesn't say by which rule they were made"
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def llama3_factors(head_dim: int, theta: float, factor: float) -> torch.Tensor:
    """By what Llama 3's rule divides each frequency of the rotation, as llama.cpp stores it.

    returns   [head_dim / 2]  fp64
    """
    low, high, original = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"], _LLAMA3["original_max_position_embeddings"]
    wavelength = 2 * math.pi * theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    smooth = (original / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return torch.where(wavelength < original / high, 1.0, torch.where(wavelength > original / low, factor, between))


class _Keys:
    """The keys of the file's architecture, without their prefix."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self._fields = file.metadata

    def _key(self, name: str) -> str:
        key = f"{self.file.architecture}.{name}"
        if key in self.file.arrays:
            raise CheckpointError(f"{self.file.path}: key {key!r}: expected one value, got one per layer; layers must be alike")
        return key

    def integer(self, name: str, default: int | None = None) -> int:
        key = self._key(name)
        value = self._fields.optional_integer(key, 1, 1 << 31, default)
        if value is None:
            self._fields.fail(key, "an integer")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        value = self.optional_real(name, default)
        if value is None:
            self._fields.fail(self._key(name), "a number")
        return value

    def optional_real(self, name: str, default: float | None = None) -> float | None:
        value = self._fields.optional_real(self._key(name), 0.0, 1e12, default)
        # Stored in 32 bits; the shortest decimal that means them is what the checkpoint had.
        return None if value is None else float(str(np.float32(value)))

    def string(self, name: str) -> str | None:
        return self._fields.optional_string(self._key(name))

    def fail(self, name: str, expected: str) -> NoReturn:
        self._fields.fail(self._key(name), expected)

    def refuse_unread(self) -> None:
        prefix = f"{self.file.architecture}."
        unread = [key for key in [*self._fields.unread(), *self.file.arrays] if key.startswith(prefix)]
        unknown = sorted(key for key in unread if key.removeprefix(prefix) not in _HARMLESS)
        if unknown:
            raise CheckpointError(
                f"{self.file.path}: keys that no supported architecture has, and that may change it: {', '.join(unknown)}"
            )
