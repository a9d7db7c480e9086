"""The vocabulary in a GGUF file -> `tokenizer.json`, its settings and the chat template.

transformers rebuilds the tokenizer; how text is cut into words before the merges is set here, from `tokenizer.ggml.pre`. For a name
that it doesn't know, transformers would take GPT-2's rule: every number and every line break would become other tokens than the
model was trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors

from spct.checkpoint.quiet import quiet_transformers
from spct.conversion.gguf_file import EMBEDDING, EXTRA, GGUFFile
from spct.errors import CheckpointError, ConfigError

# The rules of the published tokenizer.json files of Llama 3, Qwen2 and Mistral Nemo.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Words:
    """How a byte-level tokenizer cuts text into words.

    rule          regular expression of a word; None: GPT-2's, which is built into `tokenizers`
    digits        every digit stands alone
    nfc           text is composed first
    whole_words   a word that is in the vocabulary is taken as it is, whatever the merges would make of it
    starts        a text begins with BOS where the file doesn't say whether
    """

    rule: str | None = None
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    starts: bool = False


_LLAMA3_WORDS = Words(_LLAMA3, whole_words=True, starts=True)
# Values of `tokenizer.ggml.pre` (llama.cpp, llama-vocab.cpp) that models of the supported architectures have.
WORDS = {
    "llama-bpe": _LLAMA3_WORDS,
    "llama3": _LLAMA3_WORDS,
    "llama-v3": _LLAMA3_WORDS,
    "smaug-bpe": _LLAMA3_WORDS,
    "falcon3": _LLAMA3_WORDS,
    "qwen2": Words(_QWEN2, nfc=True),
    "deepseek-r1-qwen": Words(_QWEN2),
    "tekken": Words(_TEKKEN, whole_words=True, starts=True),
    "gpt-2": Words(),
    "smollm": Words(digits=True),
    "minerva-7b": Words(digits=True),
}
_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def write_tokenizer(file: GGUFFile, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and, where the file has one, chat_template.jinja.

    Raises: ConfigError if transformers is missing; CheckpointError if the vocabulary is of a kind that isn't known, or is larger than
    the model's.
    """
    words = _words(file)
    tokenizer = _without_additions(_rebuild(file.path), len(file.array("tokenizer.ggml.tokens")))
    vocab_size = file.shape(EMBEDDING)[0]
    if tokenizer.get_vocab_size() > vocab_size:
        raise CheckpointError(f"{file.path}: {tokenizer.get_vocab_size()} tokens for a model that has {vocab_size}")
    if words is not None:
        _set_words(tokenizer, words)
    named = {f"{name}_token": _text(file, key) for name, key in _SPECIAL.items()}
    switch = file.metadata.raw("tokenizer.ggml.add_bos_token", None)
    add_bos = (words is None or words.starts) if switch is None else bool(switch)
    bos = named["bos_token"]
    if add_bos and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, tokenizer.token_to_id(bos))])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: text for key, text in named.items() if text is not None},
    }
    settings |= {"add_bos_token": add_bos and bos is not None, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    template = file.metadata.optional_string("tokenizer.chat_template")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _rebuild(path: Path) -> Tokenizer:
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise ConfigError(f"the tokenizer of a GGUF file is rebuilt by transformers, which is not installed; {EXTRA}") from None
    whole = path.resolve()
    with quiet_transformers():
        try:
            rebuilt = PreTrainedTokenizerFast.from_pretrained(str(whole.parent), gguf_file=whole.name, local_files_only=True)
        except Exception as error:  # whatever the rebuilding met in a vocabulary that it wasn't made for
            raise CheckpointError(f"{path}: the vocabulary can't be rebuilt ({type(error).__name__}: {error})") from None
    tokenizer: Tokenizer = rebuilt.backend_tokenizer
    return tokenizer


def _without_additions(tokenizer: Tokenizer, num_tokens: int) -> Tokenizer:
    """The tokenizer with the file's tokens alone.

    transformers adds the special tokens of the class that it builds on (GPT-2's <|endoftext|>) where the file has none of that name,
    under ids past the model's last: a user's text could spell one.
    """
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < num_tokens]
    return Tokenizer.from_str(json.dumps(spec))


def _text(file: GGUFFile, key: str) -> str | None:
    """The text of a special token, None where the file names none."""
    index = file.metadata.optional_integer(f"tokenizer.ggml.{key}_token_id", 0, (1 << 32) - 1)
    tokens = file.array("tokenizer.ggml.tokens")
    if index is None or index >= len(tokens):
        return None
    return str(tokens[index])


def _words(file: GGUFFile) -> Words | None:
    """The rule of the file's vocabulary; None for one that needs none."""
    model = file.metadata.optional_string("tokenizer.ggml.model")
    if not file.array("tokenizer.ggml.tokens") or model not in (_BYTE_LEVEL, _SENTENCEPIECE):
        raise CheckpointError(
            f"{file.path}: key 'tokenizer.ggml.model': expected a vocabulary of kind {_BYTE_LEVEL!r} (bytes) or {_SENTENCEPIECE!r} "
            f"(SentencePiece), got {model!r}"
        )
    if model == _SENTENCEPIECE:
        return None
    name = file.metadata.optional_string("tokenizer.ggml.pre")
    if name not in WORDS:
        raise CheckpointError(
            f"{file.path}: key 'tokenizer.ggml.pre': expected one of {', '.join(WORDS)}, got {name!r}; "
            "how such a vocabulary cuts text into words isn't known here"
        )
    return WORDS[name]


def _set_words(tokenizer: Tokenizer, words: Words) -> None:
    if words.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.model.ignore_merges = words.whole_words
    steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)] if words.digits else []
    if words.rule is not None:
        steps.append(pre_tokenizers.Split(Regex(words.rule), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words.rule is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
