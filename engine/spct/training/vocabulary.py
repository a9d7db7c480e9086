"""The embedded model's tokenizer: single digits, whole words of the domains, bytes for everything else."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

EOS = "<|end|>"
# Headings and markers of the judge template are one piece each, which halves its share of a prompt.
# A word takes the space before it, a digit and a mark stand alone, a run of # is one piece, any other whitespace is single.
PIECES = r"#### [A-Za-z ]+ ####|\[The (?:Begin|End) of Response| ?\p{L}+| ?\p{N}| ?#+| ?[^\s\p{L}\p{N}#]|\s"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer in which any text round-trips; the pieces never join digits or cross a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
