"""A fresh model folder in Hugging Face layout: tokenizer, configuration, random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from spct.errors import ConfigError
from spct.prompting.judge import FOLDER_TEMPLATE, TEMPLATES
from spct.training.tasks import demonstrate, draw_items
from spct.training.vocabulary import EOS, train_tokenizer

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "judge_template.jinja",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Size of a fresh Llama model: the defaults make 2.3 million parameters."""

    width: int = 192
    layers: int = 5
    heads: int = 6
    kv_heads: int = 3
    mlp_width: int = 512
    vocab_size: int = 1280
    context: int = 4096


def domain_texts(template: str, count: int = 8000) -> list[str]:
    """Return texts of `count` training items, and the template, for the tokenizer to learn its words from."""
    texts = [template] * 50
    for item in draw_items("train", 0, count):
        order = tuple(range(len(item.responses)))
        texts += [item.query, *item.responses, item.reference or "", "\n".join(item.principles or ())]
        texts.append(demonstrate(item, order, Random(0)))
    return texts


def write_text_side(folder: Path, template: str, vocab_size: int, num_items: int = 8000) -> Tokenizer:
    """Train the tokenizer and write it with its settings and the judge template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(domain_texts(template, num_items), vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "clean_up_tokenization_spaces": False}
    _write_json(folder / "tokenizer_config.json", settings)
    end = tokenizer.token_to_id(EOS)
    _write_json(folder / "generation_config.json", {"eos_token_id": end, "do_sample": True, "temperature": 1.0})
    (folder / "judge_template.jinja").write_text(template, encoding="utf-8")
    return tokenizer


def copy_text_side(source: Path, target: Path, *, adapter: Path | None = None, template: str | Path | None = None) -> None:
    """Copy tokenizer, its settings and the templates, where the target has none of its own yet.

    adapter   a LoRA folder on `source`: the judge template that it was trained with comes before the source's
    template  a built-in template's name, or a file, that comes before both

    Raises: ConfigError if the template can't be read.
    """
    if template is not None:
        _write_template(target, read_template(template))
    if adapter is not None and (adapter / FOLDER_TEMPLATE).exists() and not (target / FOLDER_TEMPLATE).exists():
        (target / FOLDER_TEMPLATE).write_bytes((adapter / FOLDER_TEMPLATE).read_bytes())
    for name in TEXT_FILES:
        if (source / name).exists() and not (target / name).exists():
            (target / name).write_bytes((source / name).read_bytes())


def read_template(template: str | Path) -> str:
    """Read a judge template: a built-in one's name, or a file.

    Raises: ConfigError if it is neither.
    """
    builtin = TEMPLATES / f"{template}.jinja"
    try:
        return (builtin if builtin.exists() else Path(template)).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"template: expected a template's name or a readable UTF-8 file, got {str(template)!r}: {error}") from None


def _write_template(target: Path, text: str) -> None:
    own = target / FOLDER_TEMPLATE
    if own.exists() and own.read_text(encoding="utf-8") != text:
        raise ConfigError(f"template: {own} is another, with which this folder's run began; give the same, or another output folder")
    own.write_text(text, encoding="utf-8")


def fresh_model(size: ModelSize, vocab_size: int, end: int, seed: int) -> Any:
    """Return a randomly initialised Llama model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=size.width,
        intermediate_size=size.mlp_width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.width // size.heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def finish_folder(model: Any, folder: Path) -> None:
    """Write configuration and fp32 weights of `model`, each atomically, in Hugging Face's layout."""
    config = {**model.config.to_diff_dict(), "architectures": [type(model).__name__], "dtype": "float32"}
    for key in ("_attn_implementation", "attn_implementation", "_name_or_path"):
        config.pop(key, None)
    _replace(folder / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    _replace(folder / "model.safetensors", save(state, metadata={"format": "pt"}))


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(content)
    beside.replace(path)
