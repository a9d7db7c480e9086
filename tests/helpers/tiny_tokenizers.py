"""Small tokenizers of every kind that models use, hostile on purpose: their vocabularies and merges can spell control tokens."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA2 = "{{ bos_token }}{% for message in messages %}[INST] {{ message.content.strip() }} [/INST]{% endfor %}"

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
PLAIN_ADDED = ("<think>", "</think>", "<tool_call>")
KINDS = ("byte_bpe", "byte_bpe_whole_words", "sentencepiece_bpe", "metaspace_bpe", "unigram", "gemma_bpe")


def merges_of(words, vocab):
    """Merges that spell every word from its left, and the pieces they need."""
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            for piece in (*pair, word[:end]):
                vocab.setdefault(piece, len(vocab))
            if pair not in merges:
                merges.append(pair)
    return merges


def byte_bpe(*, whole_words=False):
    """GPT-2 and Qwen: bytes, a regular expression for words, NFC."""
    vocab = {token: i for i, token in enumerate(SPECIAL)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[character] = len(vocab)
    merges = merges_of(["Ġthe", "Response", "<s>", "</s>", "</think>", "ĊĊ", "10"], vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=whole_words))
    tokenizer.normalizer = normalizers.NFC()
    words = r"</?[a-z]+>|<\|[a-z_]+\|>|\p{L}+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _add(tokenizer)


def _sentencepiece_vocab():
    vocab = {token: i for i, token in enumerate(("<unk>", *SPECIAL))}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for character in "▁\nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!#[](){}<>|/\\_-'\"":
        vocab[character] = len(vocab)
    return vocab


def sentencepiece_bpe():
    """Llama 2: a blank before every text by the normaliser, byte fallback, BOS by the post-processor."""
    vocab = _sentencepiece_vocab()
    merges = merges_of(["▁the", "Response", "<s>", "</s>", "<|im_end|>", "<0x0A>"], vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    _bos(tokenizer)
    return _add(tokenizer)


def metaspace_bpe():
    """Llama 2 without the legacy blank: a blank before the first word only."""
    tokenizer = sentencepiece_bpe()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return tokenizer


def gemma_bpe():
    """Gemma: no blank before a text, runs of newlines and blanks as added tokens that are not special."""
    vocab = _sentencepiece_vocab()
    for token in ("<start_of_turn>", "<end_of_turn>", "\n\n", "▁▁"):
        vocab[token] = len(vocab)
    merges = merges_of(["▁the", "Response", "<s>", "</s>"], vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _bos(tokenizer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<start_of_turn>", "<end_of_turn>")])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("\n\n", "▁▁")])
    return _add(tokenizer)


def unigram():
    """T5 and XLM-R: pieces with scores, control tokens among them with the best scores, byte pieces too."""
    pieces = [(token, 0.0) for token in ("<unk>", *SPECIAL, *PLAIN_ADDED)]
    pieces += [(piece, 0.0 if piece.startswith("<0x") else -8.0) for piece in _sentencepiece_vocab() if (piece, 0.0) not in pieces]
    pieces += [("▁the", -3.0), ("Response", -4.0), ("<s", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)]
    )
    _bos(tokenizer)
    return _add(tokenizer)


def _bos(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", tokenizer.token_to_id("<s>"))])


def _add(tokenizer):
    unk = ("<unk>",) if tokenizer.token_to_id("<unk>") is not None else ()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*unk, *SPECIAL)])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=t == "<tool_call>") for t in PLAIN_ADDED])
    return tokenizer


def build(kind):
    """Make one of `KINDS`."""
    if kind == "byte_bpe_whole_words":
        return byte_bpe(whole_words=True)
    return {
        "byte_bpe": byte_bpe,
        "sentencepiece_bpe": sentencepiece_bpe,
        "metaspace_bpe": metaspace_bpe,
        "gemma_bpe": gemma_bpe,
        "unigram": unigram,
    }[kind]()


def write_folder(folder, kind="byte_bpe", *, chat_template=None, **config):
    """Write the text side of a model folder; give its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    build(kind).save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", **config}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
