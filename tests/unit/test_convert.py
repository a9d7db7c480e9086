"""The parts of the GGUF converter that need no GGUF file: rules of words, rope factors, what an output folder may be, messages."""

import sys
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from spct import CheckpointError, ConfigError
from spct.checkpoint.fields import Fields
from spct.conversion import convert, convert_gguf
from spct.conversion.gguf_config import family_of, llama3_factors, read_config, read_generation_config
from spct.conversion.gguf_file import GGUFFile
from spct.conversion.gguf_tokenizer import WORDS, _set_words
from spct.layers.rope import inverse_frequencies
from spct.layers.spec import RopeSpec

SHAPE = {
    "embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2, "feed_forward_length": 96, "block_count": 2,
    "context_length": 512, "attention.layer_norm_rms_epsilon": 9.999999974752427e-07, "rope.freq_base": 500000.0,
}  # fmt: skip


class Listed(list):
    """A list as the library hands it out."""

    def contents(self):
        return list(self)


def file(architecture="llama", tensors=("output.weight",), arrays=None, **changes):
    values = {**SHAPE, **{key.replace("__", "."): value for key, value in changes.items()}}
    metadata = {f"{architecture}.{key}": value for key, value in values.items() if value is not None and not key.startswith("tokenizer")}
    metadata |= {key: value for key, value in values.items() if key.startswith("tokenizer")}
    shape = torch.tensor([64, 300])
    tensors = {name: SimpleNamespace(shape=shape) for name in ("token_embd.weight", *tensors)}
    return GGUFFile("model.gguf", architecture, Fields(metadata, "model.gguf"), arrays or {}, tensors)


def config(*words, **changes):
    made = file(*words, **changes)
    return read_config(made, family_of(made), "bfloat16")


def test_config_says_what_the_metadata_says():
    got = config(tokenizer__ggml__eos_token_id=7)
    assert got["architectures"] == ["LlamaForCausalLM"] and got["vocab_size"] == 300 and got["head_dim"] == 16
    assert got["rms_norm_eps"] == 1e-6, "the decimal that was stored in 32 bits"
    assert (got["num_key_value_heads"], got["rope_theta"], got["rope_scaling"]) == (2, 500000.0, None)
    assert (got["eos_token_id"], got["bos_token_id"], got["tie_word_embeddings"]) == (7, None, False)
    assert config(tensors=())["tie_word_embeddings"] is True
    assert config(attention__head_count_kv=None)["num_key_value_heads"] == 4


def test_a_llama_with_a_window_is_a_mistral():
    got = config(attention__sliding_window=128)
    assert (got["architectures"], got["model_type"], got["sliding_window"]) == (["MistralForCausalLM"], "mistral", 128)


@pytest.mark.parametrize(("layers", "scalar"), [(26, 32), (46, 16)])
def test_gemma_2_scales_its_queries_by_the_head_but_in_the_largest_model(layers, scalar):
    got = config("gemma2", block_count=layers, attention__key_length=32, attention__sliding_window=9, attn_logit_softcapping=50.0)
    assert (got["query_pre_attn_scalar"], got["head_dim"]) == (scalar, 32)
    assert (got["attn_logit_softcapping"], got["final_logit_softcapping"], got["sliding_window"]) == (50.0, None, 9)


@pytest.mark.parametrize(("changes", "message"), [
    ({"embedding_length": None}, r"llama\.embedding_length.*integer"),
    ({"context_length": "long"}, r"llama\.context_length.*integer.*'long'"),
    ({"rope__dimension_count": 8}, r"rope\.dimension_count.*width of a head, 16.*8"),
    ({"attention__value_length": 32}, r"attention\.value_length.*16.*32"),
    ({"expert_count": 8}, r"may change it: llama\.expert_count"),
    ({"rope__scaling__type": "yarn"}, r"rope\.scaling\.factor"),
    ({"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0, "rope__scaling__original_context_length": 9,
      "rope__scaling__attn_factor": 0.5}, r"rope\.scaling\.attn_factor"),
])  # fmt: skip
def test_what_a_config_could_not_say_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        config(**changes)


def test_layers_that_differ_are_refused():
    with pytest.raises(CheckpointError, match=r"feed_forward_length.*one per layer"):
        config(arrays={"llama.feed_forward_length": Listed([1, 2])})


def test_every_end_of_a_turn_ends_a_sample():
    tokens = Listed(["<s>", "</s>", "<|eot_id|>", "<|im_end|>", "<|end|>"])
    made = file(arrays={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": Listed([3, 3, 3, 1, 3])},
                tokenizer__ggml__eos_token_id=1, tokenizer__ggml__eot_token_id=2)  # fmt: skip
    # <|im_end|> is a word of this vocabulary, no control token.
    assert read_generation_config(made)["eos_token_id"] == [1, 2, 4]


@pytest.mark.parametrize(("theta", "factor", "head_dim"), [(500000.0, 8.0, 128), (500000.0, 32.0, 64), (10000.0, 4.0, 16)])
def test_rope_factors_are_those_of_the_engines_own_rule(theta, factor, head_dim):
    plain = inverse_frequencies(RopeSpec(head_dim, theta)).double()
    scaled = inverse_frequencies(RopeSpec(head_dim, theta, "llama3", factor, 8192, 1.0, 4.0)).double()
    torch.testing.assert_close(llama3_factors(head_dim, theta, factor), plain / scaled, rtol=1e-5, atol=0)


def words_of(name, text):
    """How text is cut: with no merges but those inside ASCII words, every token is a character, so the pre-tokenizer is asked itself."""
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    _set_words(tokenizer, WORDS[name])
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    return [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def test_words_are_cut_as_in_training():
    text = "He's 12345 a\n\nB"
    assert words_of("gpt-2", text) == ["He", "'s", " 12345", " a", "\n", "\n", "B"]
    assert words_of("smollm", text) == ["He", "'s", " ", "1", "2", "3", "4", "5", " a", "\n", "\n", "B"]
    assert words_of("qwen2", text) == ["He", "'s", " ", "1", "2", "3", "4", "5", " a", "\n\n", "B"]
    assert words_of("llama-bpe", text) == ["He", "'s", " ", "123", "45", " a", "\n\n", "B"]
    assert words_of("tekken", "HelloWorld 12") == ["Hello", "World", " ", "1", "2"]
    assert words_of("qwen2", "e\u0301") == words_of("qwen2", "\u00e9") != words_of("deepseek-r1-qwen", "e\u0301")


def test_a_word_of_the_vocabulary_is_whole_where_the_model_takes_it_so():
    vocab = {"a": 0, "b": 1, "ab": 2}
    for name, expected in (("llama-bpe", [2]), ("qwen2", [0, 1])):
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        _set_words(tokenizer, WORDS[name])
        assert tokenizer.encode("ab").ids == expected


def test_missing_libraries_are_named_with_their_extra(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"gguf.*pip install 'spct\[gguf\]'"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out")


def test_what_is_no_gguf_file_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(CheckpointError, match="expected to begin with b'GGUF'"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected to begin with b'GGUF'"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    for path in (tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(ConfigError, match="expected a GGUF file"):
            convert_gguf(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="auto"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out", dtype="auto")


def test_outputs_that_would_be_lost_are_refused(tmp_path):
    source, full = tmp_path / "model.gguf", tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    for overwrite, message in ((False, "--overwrite"), (True, "no model folder")):
        with pytest.raises(ConfigError, match=message):
            convert_gguf(source, full, overwrite=overwrite)
    with pytest.raises(ConfigError, match="got a file"):
        convert_gguf(source, full / "thesis.txt", overwrite=True)
    with pytest.raises(ConfigError, match="does not exist"):
        convert_gguf(source, tmp_path / "no" / "such")
    assert (full / "thesis.txt").read_text() == "mine"


def test_a_complete_folder_gets_its_name_and_the_older_one_goes(tmp_path):
    def partial(text):
        folder = tmp_path / ".out.partial"
        folder.mkdir()
        (folder / "config.json").write_text(text)
        (folder / "config.json").chmod(0o600)
        return folder

    out = tmp_path / "out"
    convert._put(partial("first"), out)
    (out / "old.txt").write_text("old")
    convert._put(partial("second"), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and [path.name for path in out.iterdir()] == ["config.json"]
    assert (out / "config.json").read_text() == "second" and (out / "config.json").stat().st_mode & 0o444 == 0o444
    (tmp_path / "empty").mkdir()
    convert._put(partial("third"), tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").read_text() == "third"
