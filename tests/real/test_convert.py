"""`spct convert` on GGUF files of every family: the folder holds the model that the file was made from, its tokenizer and its template."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from tiny_checkpoints import LLAMA3, Tiny, edit_config, oracle, write_tiny
from tiny_gguf import BOS, EOS, TEMPLATE, write_gguf
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM

from spct import CheckpointError, ConfigError, Engine
from spct.conversion import convert_gguf, gguf_weights
from spct.prompting.folder import read_text_folder
from spct.prompting.tokenizer import SafeTokenizer

ROOT = Path(__file__).parents[2]
ROPE3 = {**LLAMA3, "original_max_position_embeddings": 8192, "rope_theta": 500000.0}
MODELS = [
    Tiny("llama", "LlamaConfig", {"tie_word_embeddings": True}),
    Tiny("llama-biases", "LlamaConfig", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    Tiny("llama-llama3", "LlamaConfig", {"rope_parameters": ROPE3, "head_dim": 64}),
    Tiny("llama-linear", "LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}}),
    Tiny("llama-yarn", "LlamaConfig", {
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0},
    }),
    Tiny("mistral", "MistralConfig", {"sliding_window": 11}),
    Tiny("qwen2", "Qwen2Config"),
    Tiny("qwen3", "Qwen3Config", {"tie_word_embeddings": True, "head_dim": 32}),
    Tiny("gemma2", "Gemma2Config", {"sliding_window": 12, "query_pre_attn_scalar": 32, "head_dim": 32, "tie_word_embeddings": True}),
]  # fmt: skip
BY_NAME = {tiny.name: tiny for tiny in MODELS}
# Those whose configuration transformers reads from the file in full; of the others it leaves out rope scaling, window or biases.
READ_BY_TRANSFORMERS = ("llama", "qwen2")
TOKENS = [1, 200, 3, 77, 45, 45, 9, 256, 13, 100, 250, 31, 8, 90, 17, 2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Makes, once each, the checkpoint of a name and the GGUF file of it."""
    root, made = tmp_path_factory.mktemp("gguf"), {}

    def make(name):
        if name not in made:
            folder = root / name
            folder.mkdir()
            write_tiny(folder, BY_NAME[name])
            made[name] = folder, write_gguf(folder, root / f"{name}.gguf")
        return made[name]

    return make


def logits(folder):
    with Engine.from_pretrained(folder, device="cpu", dtype="fp32", kv_memory="4MiB") as engine:
        return engine.logits(TOKENS)


@pytest.mark.parametrize("name", BY_NAME)
def test_folder_holds_the_model_that_the_file_was_made_from(files, tmp_path, name):
    published, gguf = files(name)
    convert_gguf(gguf, tmp_path / "out")
    expected, got = load_file(published / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    expected = {key: value for key, value in expected.items() if key in got or not BY_NAME[name].options.get("tie_word_embeddings")}
    assert got.keys() == expected.keys()
    for key in got:
        # Gemma's norms are stored plus one, which rounds.
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=3e-7 if "norm" in key and name == "gemma2" else 0)
    with torch.inference_mode():
        reference = oracle(published)(torch.tensor([TOKENS])).logits[0]
        again = oracle(tmp_path / "out")(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(again, reference, rtol=0, atol=2e-5)
    torch.testing.assert_close(logits(tmp_path / "out"), reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
@pytest.mark.parametrize("kind", [GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0])
def test_logits_are_those_of_transformers_own_loading(tmp_path, name, kind):
    folder = tmp_path / "published"
    folder.mkdir()
    # The quantised kinds store 32 numbers together.
    write_tiny(folder, Tiny(name, BY_NAME[name].config_class, {"hidden_size": 64, "intermediate_size": 96}))
    gguf = write_gguf(folder, tmp_path / "model.gguf", kind=kind)
    convert_gguf(gguf, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=gguf.name, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.inference_mode():
        reference = loaded(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(logits(tmp_path / "out"), reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_are_dequantised_once_and_rounded_once(files, tmp_path, dtype, expected):
    folder = tmp_path / "published"
    folder.mkdir()
    write_tiny(folder, Tiny("qwen2", "Qwen2Config", {"hidden_size": 64, "intermediate_size": 96}))
    gguf = write_gguf(folder, tmp_path / "model.gguf", kind=GGMLQuantizationType.Q4_1)
    written = convert_gguf(gguf, tmp_path / "out", dtype=dtype)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {expected}
    assert written.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert written.num_bytes == sum(tensor.nbytes for tensor in tensors.values())
    name = "model.layers.1.mlp.down_proj.weight"
    blocks = quantize(load_file(folder / "model.safetensors")[name].numpy(), GGMLQuantizationType.Q4_1)
    assert torch.equal(tensors[name], torch.from_numpy(dequantize(blocks, GGMLQuantizationType.Q4_1)).to(expected))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == str(expected).removeprefix("torch.")


def test_large_models_are_written_in_parts(files, tmp_path, monkeypatch):
    _, gguf = files("llama-biases")
    convert_gguf(gguf, tmp_path / "whole")
    monkeypatch.setattr(gguf_weights.write_weights, "__defaults__", (50_000,))
    convert_gguf(gguf, tmp_path / "parts")
    parts = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert len(parts) > 2 and parts[0] == f"model-00001-of-{len(parts):05d}.safetensors"
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert index["weight_map"].keys() == whole.keys()
    for name, part in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "parts" / part)[name], whole[name])
    assert torch.equal(logits(tmp_path / "parts"), logits(tmp_path / "whole"))


def test_text_side(files, tmp_path):
    _, gguf = files("qwen2")
    convert_gguf(gguf, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE
    folder = read_text_folder(tmp_path / "out")
    assert folder.special == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    assert folder.chat_template == TEMPLATE and folder.add_bos_token is False
    safe = SafeTokenizer(folder)
    assert set(safe.eos_token_ids) == {EOS, 259}, "the EOS of the file, and the end of a turn by its text"
    assert safe.start_ids == ()
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("the <s>").ids[-1] == BOS and tokenizer.encode("the").tokens == ["th", "e"]
    assert tokenizer.decode(tokenizer.encode("the 12 ünits\n\nit's", add_special_tokens=False).ids) == "the 12 ünits\n\nit's"


@pytest.mark.parametrize("says", [True, False, None])
def test_bos_stands_first_where_the_file_says_so_or_its_vocabulary_means_it(files, tmp_path, says):
    published, _ = files("llama")

    def metadata(writer):
        del writer.kv_data[0]["tokenizer.ggml.add_bos_token"]
        if says is not None:
            writer.add_add_bos_token(says)

    convert_gguf(write_gguf(published, tmp_path / "model.gguf", pre="llama-bpe", metadata=metadata, template=None), tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("a").ids == [BOS] * (says is not False) + tokenizer.encode("a", add_special_tokens=False).ids
    assert SafeTokenizer(read_text_folder(tmp_path / "out")).start_ids == (BOS,) * (says is not False)
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_unknown_pre_tokenizer_is_refused(files, tmp_path):
    published, _ = files("llama")
    gguf = write_gguf(published, tmp_path / "model.gguf", pre="made-up")
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.pre.*smollm.*made-up"):
        convert_gguf(gguf, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"], "nothing is left"


def _drop(name):
    return lambda tensors: tensors.pop(name)


def _set(name, values):
    return lambda tensors: tensors.__setitem__(name, values)


BAD_TENSORS = [
    (_drop("blk.1.ffn_up.weight"), r"blk\.1\.ffn_up\.weight.*missing"),
    (_drop("token_embd.weight"), r"token_embd\.weight.*missing"),
    (_set("blk.2.attn_norm.weight", np.ones(47, np.float32)), r"attn_norm.*\(48,\).*\(47,\)"),
    (_set("blk.0.ffn_gate_exps.weight", np.ones((2, 2), np.float32)), "ffn_gate_exps.*experts"),
    (_set("output_norm.weight", np.full(48, np.nan, np.float32)), r"output_norm\.weight.*NaN"),
    (_set("rope_freqs.weight", np.full(8, 3.0, np.float32)), r"rope_freqs\.weight.*Llama 3"),
]


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS)
def test_wrong_tensors_are_refused(files, tmp_path, change, message):
    published, _ = files("llama")
    gguf = write_gguf(published, tmp_path / "model.gguf", tensors=change)
    with pytest.raises(CheckpointError, match=message):
        convert_gguf(gguf, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"], "nothing is left"


BAD_METADATA = [
    (lambda writer: writer.add_uint32("llama.expert_count", 8), r"llama\.expert_count"),
    (lambda writer: writer.add_float32("llama.logit_scale", 2.0), r"llama\.logit_scale"),
    (lambda writer: writer.add_string("llama.rope.scaling.type", "longrope"), r"rope\.scaling\.type.*yarn.*longrope"),
    (lambda writer: writer.add_array("llama.attention.scales", [1, 2]), r"attention\.scales"),
    (lambda writer: writer.add_uint32("split.count", 3), "llama-gguf-split --merge"),
]


@pytest.mark.parametrize(("metadata", "message"), BAD_METADATA)
def test_metadata_that_would_change_the_model_is_refused(files, tmp_path, metadata, message):
    published, _ = files("llama")
    with pytest.raises(CheckpointError, match=message):
        convert_gguf(write_gguf(published, tmp_path / "model.gguf", metadata=metadata), tmp_path / "out")


def test_numbers_beyond_fp16_are_refused(files, tmp_path):
    published, _ = files("llama")
    gguf = write_gguf(published, tmp_path / "model.gguf", tensors=_set("output_norm.weight", np.full(48, 1e5, np.float32)))
    with pytest.raises(CheckpointError, match=r"output_norm\.weight.*--dtype bf16 or fp32"):
        convert_gguf(gguf, tmp_path / "out", dtype="fp16")
    convert_gguf(gguf, tmp_path / "out", dtype="bf16")


def test_unknown_architecture_is_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="architecture 'mamba': expected one of llama, qwen2, qwen3, gemma2"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out")


def test_a_file_that_is_cut_short_is_refused_wherever_it_ends(files, tmp_path):
    _, gguf = files("llama")
    whole = gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [4, 10, 23, 24, 100, 999, 5000, len(whole) // 2, len(whole) - 48 * 4]:
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="fetch the file again"):
            convert_gguf(cut, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf"]


def test_killed_runs_leave_nothing_that_looks_whole(files, tmp_path):
    """Stopped right before the folder gets its name: the folder asked for isn't there, an older one is as it was."""
    _, gguf = files("llama")
    convert_gguf(gguf, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    code = (
        "import os, sys\nfrom spct.conversion import convert, convert_gguf\n"
        "convert._put = lambda *_: os._exit(9)\n"
        "for output in sys.argv[2:]:\n"
        "    if os.fork() == 0:\n"
        "        convert_gguf(sys.argv[1], output, dtype='bf16', overwrite=True)\n"
        "    assert os.waitstatus_to_exitcode(os.wait()[1]) == 9\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in ("engine", "kernels"))}
    subprocess.run([sys.executable, "-c", code, gguf, tmp_path / "out", tmp_path / "new"], env=environment, timeout=300, check=True)
    assert not (tmp_path / "new").exists()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_overwrite_replaces_a_model_and_nothing_else(files, tmp_path):
    _, gguf = files("llama")
    convert_gguf(gguf, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("old")
    with pytest.raises(ConfigError, match="--overwrite"):
        convert_gguf(gguf, tmp_path / "out")
    convert_gguf(gguf, tmp_path / "out", dtype="bf16", overwrite=True)
    assert not (tmp_path / "out" / "notes.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]
    shutil.copy(gguf, tmp_path / "out" / "model.gguf")
    with pytest.raises(ConfigError, match=r"model\.gguf"):
        convert_gguf(tmp_path / "out" / "model.gguf", tmp_path / "out", overwrite=True)
    edit_config(tmp_path / "out", lambda config: config)  # still there, whole
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(ConfigError, match="no model folder"):
        convert_gguf(gguf, tmp_path / "out", overwrite=True)


def test_sentencepiece_vocabularies(files, tmp_path):
    """Llama 2's kind: pieces with scores, from which the merges are recovered; a blank before the text, bytes for the rest."""
    published, _ = files("llama")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a"]

    def metadata(writer):
        for key in ("model", "pre", "merges", "tokens", "token_type", "bos_token_id", "eos_token_id", "padding_token_id", "add_bos_token"):
            del writer.kv_data[0][f"tokenizer.ggml.{key}"]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(pieces)
        writer.add_token_scores([0.0] * 259 + [-1.0, -2.0])
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1, 1])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    convert_gguf(write_gguf(published, tmp_path / "model.gguf", metadata=metadata), tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("a a!").ids == [1, 259, 260, 259, 260, 3 + ord("!")]
    assert not isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    assert SafeTokenizer(read_text_folder(tmp_path / "out")).start_ids == (1,)
