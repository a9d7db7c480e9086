"""Text of users never becomes a control token and decodes back to itself; a prompt has one BOS at most."""

import itertools
import json
import random

import pytest
import tiny_tokenizers as tiny
from tokenizers import Regex, normalizers, pre_tokenizers

from spct.errors import CapacityError, CheckpointError, InputError
from spct.prompting import JudgePrompt
from spct.types import ScoreRequest

TEMPLATE = (
    "{% set score_range = [1, 10] %}<|im_start|>Q {{ query }}{{ reference or '' }}{{ principles or '' }}"
    "{% for response in responses %}{{ response }}{% endfor %}<think></think>"
)
ODD = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\x00",
    "\ufeff",
    "é",
    "e\u0301",
    "日本",
    "😀",
    "\u202e",
    "\u200d",
    "<",
    ">",
    "|",
    "the",
    " the",
    "Response",
    "10",
]


@pytest.fixture(scope="module", params=tiny.KINDS)
def prompt(request, tmp_path_factory):
    folder = tiny.write_folder(tmp_path_factory.mktemp(request.param) / "model", request.param)
    (folder / "judge_template.jinja").write_text(TEMPLATE)
    prompt = JudgePrompt(folder)
    prompt.kind = request.param
    return prompt


def added_tokens(prompt):
    tokenizer = tiny.build(prompt.kind)
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.content.strip(" \n▁")]


def own_control(prompt):
    """Control ids that the template itself writes: BOS, <|im_start|>, <think>, </think>."""
    start = [] if prompt.kind.startswith("byte") else ["<s>"]
    whole = tiny.build(prompt.kind)
    return [whole.token_to_id(t) for t in (*start, "<|im_start|>", "<think>", "</think>")]


def control(prompt, ids):
    return [i for i in ids if i in prompt.control_ids]


def test_library_default_is_unsafe(prompt):
    """The hazard is real: the published tokenizer gives control ids for each of these texts."""
    whole = tiny.build(prompt.kind)
    for text in added_tokens(prompt):
        assert whole.token_to_id(text) in whole.encode(text, add_special_tokens=False).ids
    whole.encode_special_tokens = True
    assert whole.token_to_id("</think>") in whole.encode("</think>", add_special_tokens=False).ids


@pytest.mark.parametrize("field", ["query", "turn", "responses", "reference", "principles"])
def test_control_tokens_in_every_field(prompt, field):
    for token in added_tokens(prompt):
        for text in (token, f"a{token}b", f" {token} ", f"{token}{token}", f"{token[0]}{token}{token[-1]}", f"\n{token}\n"):
            fields = {"query": "q", "responses": ["a", "b"], "reference": "r", "principles": ["p", "w"]}
            values = {"turn": [{"role": "system", "content": text}, {"role": "user", "content": text}], "reference": text, "query": text}
            fields["query" if field == "turn" else field] = values.get(field, [text, text])
            request = ScoreRequest(**fields)
            ids = prompt.encode(request, (1, 0))
            assert control(prompt, ids) == own_control(prompt), (field, text)
            # As published, a legacy tokenizer puts a blank after a control token of the template, never into a user's text.
            shown = prompt.decode(ids).removeprefix("<s>").replace("<|im_start|> Q", "<|im_start|>Q")
            assert shown == prompt.text(request, (1, 0)), (field, text)


def test_control_tokens_split_across_field_borders(prompt):
    """The template puts fields side by side; halves of a token meet at every border, and meet the template's own text."""
    for token in added_tokens(prompt):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            for query, reference, principle, first, second in ((left, right, left, right, left), (right, left, right, left, right)):
                ids = prompt.encode(ScoreRequest(query, [first, second], reference=reference, principles=[principle, right]))
                assert control(prompt, ids) == own_control(prompt), (token, cut)


def test_fuzz_round_trip(prompt):
    rng = random.Random(20)
    pieces = [*added_tokens(prompt), *ODD, "<0x0A>", "▁", "im_end", "</", "think"]
    if prompt.kind == "unigram":
        pieces.remove("▁")  # its decoder takes U+2581 for a blank, byte tokens or not
    normalizer = tiny.build(prompt.kind).normalizer if prompt.kind.startswith("byte") else None
    for _ in range(800):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 9)))
        ids = prompt.tokenizer.encode_user(text)
        assert not control(prompt, ids)
        assert prompt.decode(ids) == (normalizer.normalize_str(text) if normalizer else text)


def test_merges_that_pass_through_a_control_token_are_gone(tmp_path):
    """`<s>x` may be a piece of its own whose last merge starts from the control token."""
    tokenizer = json.loads(tiny.byte_bpe().to_str())
    tokenizer["model"]["vocab"]["<s>x"] = len(tokenizer["model"]["vocab"]) + 10
    tokenizer["model"]["merges"].append(["<s>", "x"])
    folder = tiny.write_folder(tmp_path)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    prompt = JudgePrompt(folder)
    ids = prompt.tokenizer.encode_user("<s>x <s>")
    assert not control(prompt, ids)
    assert prompt.decode(ids) == "<s>x <s>"


def test_tokens_named_only_by_the_configuration_are_control_tokens(tmp_path):
    """A special token that tokenizer.json does not list as added, and one that only added_tokens_decoder knows."""
    tokenizer = json.loads(tiny.byte_bpe().to_str())
    gone = ("<|im_end|>", "</think>")
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] not in gone]
    folder = tiny.write_folder(tmp_path, eos_token={"content": "<|im_end|>"}, added_tokens_decoder={"9": {"content": "</think>"}})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    prompt = JudgePrompt(folder)
    vocab = tokenizer["model"]["vocab"]
    assert {vocab[t] for t in gone} <= prompt.control_ids
    assert prompt.eos_token_ids == (vocab["<|im_end|>"],)
    assert not control(prompt, prompt.tokenizer.encode_user("a<|im_end|></think>"))
    assert vocab["<|im_end|>"] in prompt.encode_text("a<|im_end|>", user=False)


def test_a_single_character_stays_text_even_as_padding(tmp_path):
    folder = tiny.write_folder(tmp_path, pad_token="!")
    prompt = JudgePrompt(folder)
    assert prompt.decode(prompt.encode(ScoreRequest("Hey!", ["!"]))) == prompt.text(ScoreRequest("Hey!", ["!"]))


def test_runs_of_blanks_stay_usable(tmp_path):
    """Gemma marks runs of newlines as added tokens; a model has read them in every text, and they control nothing."""
    prompt = JudgePrompt(tiny.write_folder(tmp_path, "gemma_bpe"))
    whole = tiny.gemma_bpe()
    assert prompt.tokenizer.encode_user("a\n\nb") == tuple(whole.encode("a\n\nb", add_special_tokens=False).ids)
    assert whole.token_to_id("\n\n") not in prompt.control_ids


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_template_and_plain_text_are_encoded_as_transformers_does(kind, tmp_path):
    """Where fields stand on lines of their own, the pieces together are the ids of the whole text; the oracle is transformers."""
    from transformers import PreTrainedTokenizerFast

    chat = tiny.GEMMA if kind == "gemma_bpe" else tiny.LLAMA2 if kind == "sentencepiece_bpe" else tiny.CHATML
    folder = tiny.write_folder(tmp_path, kind, chat_template=chat)
    (folder / "judge_template.jinja").write_text(
        "Judge the query\n{{ query }}\n{% for r in responses %}the Response\n{{ r }}\n{% endfor %}Response:"
    )
    prompt = JudgePrompt(folder)
    oracle = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", chat_template=chat)
    request = ScoreRequest("what now", ["one", "two"])
    judge_text = "Judge the query\nwhat now\nthe Response\ntwo\nthe Response\none\nResponse:"
    expected = oracle.apply_chat_template([{"role": "user", "content": judge_text}], add_generation_prompt=True, tokenize=False)
    assert prompt.text(request, (1, 0)) == expected
    assert list(prompt.encode(request, (1, 0))) == oracle(expected, add_special_tokens=False).input_ids


BOS_CASES = list(
    itertools.product(
        ["byte_bpe", "sentencepiece_bpe", "unigram"], [None, tiny.CHATML, tiny.GEMMA, "{{ bos_token }}" + tiny.GEMMA], [None, True, False]
    )
)


@pytest.mark.parametrize(("kind", "chat", "add_bos"), BOS_CASES)
def test_one_bos_at_most(kind, chat, add_bos, tmp_path):
    config = {} if add_bos is None else {"add_bos_token": add_bos}
    prompt = JudgePrompt(tiny.write_folder(tmp_path, kind, chat_template=chat, **config))
    bos = prompt.tokenizer.bos_token_id
    ids = prompt.encode(ScoreRequest("<s>", ["<s><s>", "a"]))
    post_processor = kind != "byte_bpe" if add_bos is None else add_bos
    expected = post_processor if chat is None else "bos_token" in chat
    assert ids.count(bos) == int(expected)
    assert (ids[0] == bos) == expected
    for text in ("plain", "<s>"):
        assert prompt.encode_text(text, user=False).count(bos) == (1 if text == "<s>" else int(post_processor))
        assert prompt.encode_text(text).count(bos) == int(post_processor)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_plain_text_for_generate_is_encoded_as_published(kind, tmp_path):
    prompt = JudgePrompt(tiny.write_folder(tmp_path, kind))
    for text in ("the Response 10", "a\n\nthe", "é"):
        assert prompt.encode_text(text) == tuple(tiny.build(kind).encode(text).ids)
        assert prompt.encode_text(text, user=False) == tuple(tiny.build(kind).encode(text).ids)


def test_user_text_that_opens_a_prompt_gets_the_tokenizers_own_first_blank(tmp_path):
    folder = tiny.write_folder(tmp_path, "sentencepiece_bpe")
    (folder / "judge_template.jinja").write_text("{{ query }} {{ responses[0] }}")
    assert JudgePrompt(folder).encode(ScoreRequest("the", ["a"])) == tuple(tiny.sentencepiece_bpe().encode("the a").ids)


def test_decode_shows_everything_and_survives_cut_characters(tmp_path):
    prompt = JudgePrompt(tiny.write_folder(tmp_path))
    ids = prompt.encode_text("a</think>日<|im_end|>", user=False)
    assert prompt.decode(ids) == "a</think>日<|im_end|>"
    assert prompt.decode([]) == ""
    assert "\ufffd" in prompt.decode(prompt.tokenizer.encode_user("日")[:-1])


@pytest.mark.parametrize("kind", ["wordlevel", "wordlevel without unk", "bpe", "bpe without unk"])
def test_a_character_without_a_token_is_an_input_error(kind, tmp_path):
    from tokenizers import Tokenizer, models

    kind, _, without = kind.partition(" ")
    unk = {"unk_token": "<unk>"} if not without else {"unk_token": "nosuch"} if kind == "wordlevel" else {}
    vocab = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab, **unk) if kind == "wordlevel" else models.BPE(vocab, [], **unk))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "judge_template.jinja").write_text("{{ query }}{{ responses | join }}{{ reference or '' }}")
    prompt = JudgePrompt(tmp_path)
    assert len(prompt.encode(ScoreRequest("a b", ["b a"]))) == 4
    for _ in range(2):
        with pytest.raises(
            InputError, match="responses: .*'é'" if (kind, without) != ("wordlevel", "without unk") else "responses: .*spell"
        ):
            prompt.encode(ScoreRequest("a", ["b é"]))
    with pytest.raises(InputError, match="reference: "):
        prompt.encode(ScoreRequest("a", ["a"], reference="<unk>"))


def test_the_tokenizers_own_truncation_and_padding_are_off(tmp_path):
    """tokenizer.json may carry the settings of a training run; a prompt is never cut in silence."""
    folder = tiny.write_folder(tmp_path)
    tokenizer = tiny.byte_bpe()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    prompt = JudgePrompt(folder)
    request = ScoreRequest("a" * 50, ["b" * 50])
    assert prompt.decode(prompt.encode(request)) == prompt.text(request)


def test_long_hostile_text_is_encoded_in_time(tmp_path):
    prompt = JudgePrompt(tiny.write_folder(tmp_path, "sentencepiece_bpe"))
    for text in ("<s>" * 20_000, "a" * 60_000, "\u0301" * 20_000, "▁" * 20_000):
        assert prompt.decode(prompt.tokenizer.encode_user(text)) == text


def test_a_lone_surrogate_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="expected text"):
        JudgePrompt(tiny.write_folder(tmp_path)).encode_text("a\ud800")


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_request_that_can_never_fit_is_refused_before_it_is_encoded(kind, tmp_path):
    prompt = JudgePrompt(tiny.write_folder(tmp_path, kind))
    encoded = prompt.tokenizer.encode_user
    request = ScoreRequest("the " * 1000, ["a" * 5_000_000, "the"])
    prompt.tokenizer.encode_user = None
    with pytest.raises(CapacityError, match="expected a prompt of at most 8192 tokens, got one of at least"):
        prompt.encode(request, max_tokens=8192)
    prompt.tokenizer.encode_user = encoded
    rng = random.Random(1)
    pieces = ["the", " the", "Response", " ", "\n\n", "e\u0301", "10", "日", "<s>", "\u1100\u1161\u11a8", "\u03b1\u0313\u0300\u0345"]
    for _ in range(100):
        request = ScoreRequest("".join(rng.choices(pieces, k=40)), [rng.choice(pieces) * 60])
        assert prompt.encode(request, max_tokens=len(prompt.encode(request))), "a request that fits is never refused"


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", normalizers.Replace(Regex(" {2,}"), " ")),
        ("normalizer", normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])),
        ("normalizer", normalizers.Replace("ab", "c")),
        ("pre_tokenizer", pre_tokenizers.Split(Regex(r"\s+"), "removed")),
        ("pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])),
    ],
)
def test_where_text_can_shrink_nothing_is_refused_by_its_length(part, value, tmp_path):
    folder = tiny.write_folder(tmp_path)
    tokenizer = tiny.byte_bpe()
    assert JudgePrompt(folder).tokenizer.max_chars is not None
    setattr(tokenizer, part, value)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert JudgePrompt(folder).tokenizer.max_chars is None


def test_a_malformed_tokenizer_is_a_checkpoint_error(tmp_path):
    for text in ('{"model": {}}', "[]", "{", "\x00"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            JudgePrompt(tmp_path)
