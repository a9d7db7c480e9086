"""The embedded model's tokenizer: single digits, whole words of the domains, bytes for everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

EOS = "<|end|>"
# Headings and markers of the judge template are one piece each, which halves its share of a prompt.
# A word takes the space before it, a digit and a mark stand alone, a run of # is one piece, any other whitespace is single.
PIECES = r"#### [A-Za-z ]+ ####|\[The (?:Begin|End) of Response| ?\p{L}+| ?\p{N}| ?#+| ?[^\s\p{L}\p{N}#]|\s"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Make a byte-level tokenizer in which any text round-trips and the commonest pieces of `texts` are one token each.

    A byte-level BPE without merges, whose pieces are looked up whole (`ignore_merges`): a piece that is no entry falls apart into bytes.
    Learned merges would add a fragment ("ap", "app", …) for every word, half of a vocabulary that a small model has to pay for.

    texts       what the pieces are counted in; a piece that occurs once is left to the bytes
    vocab_size  most entries: the end marker, 256 bytes, then pieces, the commonest first, ties by spelling
    """
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in split.pre_tokenize_str(text))
    entries = [EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known = set(entries)
    words = [piece for piece, count in sorted(counts.items(), key=lambda c: (-c[1], c[0])) if count > 1 and piece not in known]
    entries += words[: max(0, vocab_size - len(entries))]
    tokenizer = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    return tokenizer
