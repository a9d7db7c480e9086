"""The tokenizer of the judging tasks: whole words in few entries, any text round-trips, and items as short as training counts on."""

import re
from pathlib import Path
from random import Random

import pytest

import spct
from spct.prompting import JudgePrompt
from spct.training.folder import domain_texts, write_text_side
from spct.training.tasks import DOMAINS, demonstrate, draw_item
from spct.training.tasks.core import MAX_PIECES, count_pieces
from spct.training.vocabulary import EOS, train_tokenizer

TEMPLATE = (Path(spct.__file__).parent / "embedded" / "judge_template.jinja").read_text(encoding="utf-8")
MAX_VOCABULARY, MAX_TOKENS, MEAN_TOKENS = 1600, 640, 535


@pytest.fixture(scope="module")
def prompt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    write_text_side(folder, TEMPLATE, MAX_VOCABULARY, num_items=1500)
    return JudgePrompt(folder)


@pytest.fixture(scope="module")
def encoded(prompt):
    """Items with the ids of their prompt and of four demonstrations."""
    rows = []
    for domain in DOMAINS:
        for i in range(80):
            item = draw_item("validation", 1, i, domain=domain)
            order = tuple(range(len(item.responses)))
            demos = [prompt.encode_text(demonstrate(item, order, Random(n))) for n in range(4)]
            rows.append((item, prompt.encode(item.request(), order), demos))
    return rows


def test_words_of_unseen_items_are_one_token_each(prompt, encoded):
    texts = [text for item, _, _ in encoded for text in (item.query, *item.responses, item.reference or "")]
    words = [word for text in texts for word in re.findall(r"[^\W\d_]+", text)]
    split = [w for w in words if min(len(prompt.encode_text(f)) for f in (w, f" {w}")) > 1]
    assert len(words) > 20_000 and len(split) < len(words) / 1000, sorted(set(split))


def test_vocabulary_holds_bytes_and_words_within_its_bound():
    texts = domain_texts(TEMPLATE, 1500)
    tokenizer = train_tokenizer(texts, MAX_VOCABULARY)
    assert 600 < tokenizer.get_vocab_size() < MAX_VOCABULARY  # below: no word was cut off
    assert tokenizer.get_vocab() == train_tokenizer(texts, MAX_VOCABULARY).get_vocab()
    assert tokenizer.token_to_id(EOS) == 0
    small = train_tokenizer(texts, 300)
    assert small.get_vocab_size() == 300
    for text in ("Zwölf 漢字\n\n  x", f"a {EOS}", "The result is 42 kg.", texts[60]):
        assert small.decode(small.encode(text).ids, skip_special_tokens=False) == text


def test_digits_and_marks_stand_alone(prompt):
    assert len(prompt.encode_text("10429")) == 5
    assert len(prompt.encode_text(" 7 * 8 = 56,")) == 7


def test_items_are_as_short_as_training_counts_on(encoded):
    lengths = {}
    for item, ids, demos in encoded:
        assert len(ids) + max(map(len, demos)) <= MAX_TOKENS
        assert count_pieces(item.query) + sum(map(count_pieces, item.responses)) <= MAX_PIECES
        lengths.setdefault(item.domain, []).append(len(ids) + sum(map(len, demos)))
    means = {domain: sum(n) / len(n) for domain, n in lengths.items()}
    assert all(mean < 1.1 * MEAN_TOKENS for mean in means.values()), means
    assert sum(means.values()) / len(means) < MEAN_TOKENS, means


def test_no_item_can_outgrow_its_bound(prompt):
    # The longest items that the bound on pieces allows, with what the template and the longest critique add.
    longest = max((draw_item("train", 2, i, domain="passage") for i in range(500)), key=lambda i: sum(map(len, i.responses)))
    order = tuple(range(len(longest.responses)))
    added = len(prompt.encode(longest.request(), order)) - count_pieces(longest.query) - sum(map(count_pieces, longest.responses))
    demo = max(len(prompt.encode_text(demonstrate(longest, order, Random(n)))) for n in range(20))
    assert MAX_PIECES + added + demo <= MAX_TOKENS
