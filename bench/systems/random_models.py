"""Random checkpoints in fp32, with a tokenizer that has an entry for every id: what is measured does not depend on weights.

llama-25m is a Llama of hidden 512, 8 layers and 32,000 tokens; qwen2-0.5b has the shape of Qwen2.5-0.5B; llama-small is for the suites.
"""

from __future__ import annotations

import itertools
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SHAPES = {
    "llama-small": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "vocab_size": 8192,
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "intermediate_size": 512,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "tie_word_embeddings": True,
        },
    ),
    "llama-25m": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "vocab_size": 32_000,
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 1408,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "tie_word_embeddings": False,
        },
    ),
    "qwen2-0.5b": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {
            "vocab_size": 151_936,
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "max_position_embeddings": 32_768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,
        },
    ),
}
ENDS = ("<|begin|>", "<|end|>")


def write_model(name: str, folder: Path) -> None:
    """Writes the checkpoint unless it is there."""
    if (folder / "model.safetensors").exists():
        return
    model_class, config_class, fields = SHAPES[name]
    last = fields["vocab_size"] - 1
    config = config_class(**fields, rms_norm_eps=1e-6, bos_token_id=last - 1, eos_token_id=last)
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(fields["vocab_size"]).save_pretrained(folder)
    model_class(config).float().save_pretrained(folder)


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level, every further token being a longer one and a letter more, so that each id can be reached."""
    vocab = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters = string.ascii_letters + string.digits
    merges, shorter = [], list(letters)
    while len(vocab) < vocab_size - len(ENDS):
        grown = []
        for stem, letter in itertools.product(shorter, letters):
            if len(vocab) == vocab_size - len(ENDS):
                break
            vocab[stem + letter] = len(vocab)
            merges.append((stem, letter))
            grown.append(stem + letter)
        shorter = grown
    made = Tokenizer(models.BPE(vocab=vocab | {end: len(vocab) + i for i, end in enumerate(ENDS)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=ENDS[0], eos_token=ENDS[1])
