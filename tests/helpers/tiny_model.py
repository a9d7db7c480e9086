"""A tiny random Llama with a byte-level tokenizer: every text is possible, every token is one byte or the end."""

import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = """Q: {{ query }}
{% if reference %}
A: {{ reference }}
{% endif %}
{% for r in responses %}
R{{ loop.index }}: {{ r }}
{% endfor %}
S:"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "bos_token_id": None,
    "eos_token_id": 256,
}


def tiny_weights(seed=0, scale=0.3):
    """Tensors under the names of a Llama checkpoint; `scale` is large enough that the text depends on the context."""
    generator = torch.Generator().manual_seed(seed)
    e, i, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 32

    def random(*shape):
        return torch.randn(*shape, generator=generator) * scale

    tensors = {"model.embed_tokens.weight": random(CONFIG["vocab_size"], e), "model.norm.weight": torch.ones(e)}
    for layer in range(CONFIG["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        shapes = {"self_attn.q_proj": (e, e), "self_attn.k_proj": (kv, e), "self_attn.v_proj": (kv, e), "self_attn.o_proj": (e, e)}
        shapes |= {"mlp.gate_proj": (i, e), "mlp.up_proj": (i, e), "mlp.down_proj": (e, i)}
        tensors |= {f"{name}.{part}.weight": random(*shape) for part, shape in shapes.items()}
        tensors |= {f"{name}.{part}.weight": torch.ones(e) for part in ("input_layernorm", "post_attention_layernorm")}
    return tensors


def write_tiny_model(folder, *, weights=None, meta_head=False, tied=True, context=CONFIG["max_position_embeddings"]):
    """Writes the model as a Hugging Face folder and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": tied, "max_position_embeddings": context}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256}))
    (folder / "judge_template.jinja").write_text(TEMPLATE)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {byte: i for i, byte in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab={**vocab, "<end>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    save_file(weights or tiny_weights(), folder / "model.safetensors")
    if meta_head:
        generator = torch.Generator().manual_seed(9)
        head = {"weight": torch.randn(CONFIG["hidden_size"], generator=generator), "bias": torch.tensor([0.25])}
        save_file(head, folder / "meta_head.safetensors", metadata={"pooling": "last"})
    return folder
