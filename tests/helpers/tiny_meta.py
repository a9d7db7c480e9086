"""Tiny judges and scalar reward models of three families, as transformers writes them, with a byte-level tokenizer that has an end."""

import json

import torch
import transformers
from tiny_checkpoints import SHAPE, write_tokenizer

END = 257
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {"sliding_window": 40, "query_pre_attn_scalar": 24, "head_dim": 32}),
}
TEMPLATE = "{{ query }}{{ reference or '' }}{{ principles or '' }}{% for r in responses %}|{{ r }}{% endfor %}>"


def _write(folder, auto_class, family, seed, **options):
    config_class, own = FAMILIES[family]
    config = getattr(transformers, config_class)(**{**SHAPE, "max_position_embeddings": 1024, **own}, **options)
    torch.manual_seed(seed)
    model = auto_class.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif name == "score.weight":
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<special1>"}))
    return folder


def write_scalar(folder, family="llama", num_labels=1, seed=1):
    """A random sequence-classification folder."""
    return _write(folder, transformers.AutoModelForSequenceClassification, family, seed, num_labels=num_labels)


def write_judge(folder, family="llama", seed=1):
    """A random generative folder with a short judge template."""
    folder = _write(folder, transformers.AutoModelForCausalLM, family, seed)
    (folder / "judge_template.jinja").write_text(TEMPLATE)
    return folder
