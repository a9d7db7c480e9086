"""A whole engine with weights in int8: near fp32, the same bits whatever is beside, replaced live, with adapters and a meta head."""

import json

import pytest
import torch
from decoder_harness import Sequence, teacher_forced
from safetensors.torch import load_file, save_file
from tiny_checkpoints import TINY, write_tiny
from tiny_model import tiny_weights, write_tiny_model

from spct import CheckpointError, ConfigError, Engine, SamplingParams, VotingParams, checkpoint
from spct.checkpoint.dtypes import plan_dtypes
from spct.checkpoint.weights import weights_bytes
from spct.cli.main import main
from spct_kernels import PackedLinear, pack

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
F32, BF16 = torch.float32, torch.bfloat16
BY_NAME = {tiny.name: tiny for tiny in TINY}
TOKENS = torch.randint(0, 256, (41,), generator=torch.Generator().manual_seed(2)).tolist()
SAMPLING = SamplingParams(samples=8, max_tokens=12, ignore_eos=True, seed=3)
PLANS = [
    ("auto", "int8", BF16, CPU, "auto", ("w8a8", "w8a8", BF16, F32, BF16)),
    ("auto", "w8a8", F32, CPU, "cpu", ("w8a8", "w8a8", F32, F32, BF16)),
    ("fp32", "int8", BF16, CPU, "auto", ("w8a8", "w8a8", F32, F32, F32)),
    ("auto", "int8", BF16, CUDA, "auto", ("int8", "bf16", BF16, BF16, BF16)),
    ("fp16", "int8", BF16, CUDA, "triton", ("int8", "fp16", torch.float16, torch.float16, torch.float16)),
    ("auto", "int8", F32, CPU, "triton", ("int8", "fp32", F32, F32, BF16)),
]


@pytest.mark.parametrize(("dtype", "weights", "stored", "device", "backend", "expected"), PLANS, ids=str)
def test_number_formats(dtype, weights, stored, device, backend, expected):
    plan = plan_dtypes(dtype, weights, stored, device, backend)
    assert (plan.scheme, plan.head, plan.weights, plan.activations, plan.kv) == expected
    assert plan.quantised and not plan_dtypes(dtype, "auto", stored, device).quantised


def test_dynamic_rows_need_a_cpu():
    with pytest.raises(ConfigError, match="'w8a8' has kernels on a CPU alone"):
        plan_dtypes("auto", "w8a8", F32, CUDA)


def matrices(model):
    weights = model.decoder.weights
    return [weights.head.lm_head, *(getattr(layer, key) for layer in weights.layers for key in ("qkv", "output", "gate_up", "down"))]


def close(ours, exact):
    """Relative error of logits, and how often the most likely token is the same."""
    error = (ours - exact).norm() / (exact - exact.mean(dim=-1, keepdim=True)).norm()
    return error.item(), (ours.argmax(-1) == exact.argmax(-1)).float().mean().item()


@pytest.mark.parametrize("name", ["llama", "llama-one-kv-head-biases", "qwen2", "qwen3", "gemma2", "gemma2-no-caps"])
def test_logits_are_near_those_of_fp32(tmp_path, name):
    folder = write_tiny(tmp_path, BY_NAME[name])
    exact, model = checkpoint.load(folder), checkpoint.load(folder, weights="int8")
    assert {matrix.scheme for matrix in matrices(model)} == {"w8a8"}
    tied = model.spec.tied_embeddings
    embedding = model.decoder.weights.embedding
    assert embedding is model.decoder.head.lm_head if tied else (not isinstance(embedding, PackedLinear) and embedding.dtype == F32)
    error, agreement = close(teacher_forced(model, TOKENS), teacher_forced(exact, TOKENS))
    assert 0 < error < 0.12 and agreement >= 0.8, (error, agreement)
    whole = teacher_forced(model, TOKENS)
    assert torch.equal(teacher_forced(model, TOKENS, [1, 7, 20]), whole), "chunks change no bit"
    sequence = Sequence(model, len(TOKENS))
    assert sequence.kv.k[0].dtype == BF16


def test_a_matrix_quantised_while_it_is_read_is_the_packed_matrix(tmp_path):
    folder = write_tiny(tmp_path, BY_NAME["llama"], torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    model = checkpoint.load(folder, weights="int8")
    layer, names = model.decoder.weights.layers[1], ("q_proj", "k_proj", "v_proj")
    joined = torch.cat([tensors[f"model.layers.1.self_attn.{name}.weight"] for name in names])
    for ours, weight in ((layer.qkv, joined), (model.decoder.head.lm_head, tensors["lm_head.weight"])):
        expected = pack(weight, "w8a8")
        assert all(torch.equal(getattr(ours, part), getattr(expected, part)) for part in ("panels", "scale", "sums"))
    assert model.decoder.weights.embedding.dtype == BF16
    assert weights_bytes(model.spec, model.dtypes, CPU) == sum(matrix.nbytes for matrix in matrices(model)) + (261 * 48 * 2) + 48 * 4 * (
        2 * 3 + 1
    )


def test_weights_that_int8_cannot_hold_are_refused_with_their_name(tmp_path):
    folder = write_tiny_model(tmp_path)
    with Engine.from_pretrained(folder, weights="int8", check_weights=False) as engine:
        broken = tiny_weights(1)
        broken["model.layers.1.mlp.down_proj.weight"][3, 3] = torch.inf
        with pytest.raises(CheckpointError, match="down_proj"):
            engine.load_weights(broken)
        assert engine.weights_version == 0
    save_file(broken, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"down_proj.*inf at \[3, 3\]"):
        Engine.from_pretrained(folder, weights="int8", check_weights=False)


def samples(judgement):
    return [(s.text, s.logprob, s.meta_score) for s in judgement.samples]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("int8"), weights=tiny_weights(0), meta_head=True)


def test_a_judgement_is_near_that_of_fp32_and_keeps_its_bits(folder):
    with Engine.from_pretrained(folder) as engine:
        exact = engine.score("query", ["one", "two"], sampling=SAMPLING)
    with Engine.from_pretrained(folder, weights="int8") as engine:
        few = engine.score("query", ["one", "two"], sampling=SAMPLING)
        many = engine.score("query", ["one", "two"], sampling=SamplingParams(samples=32, max_tokens=12, ignore_eos=True, seed=3))
        again = engine.score("another query", ["three"], sampling=SAMPLING)
        repeated = engine.score("query", ["one", "two"], sampling=SAMPLING)
    with Engine.from_pretrained(folder, weights="int8", max_batch=3, max_prefill_tokens=5) as engine:
        small = engine.score("query", ["one", "two"], sampling=SAMPLING)
    assert samples(many)[:8] == samples(few) == samples(repeated) == samples(small)
    assert samples(again) != samples(few)
    pairs = list(zip(samples(few), samples(exact), strict=True))
    assert all(abs(ours[1] - theirs[1]) < 0.2 for ours, theirs in pairs if ours[0] == theirs[0])
    assert sum(ours[0][:1] == theirs[0][:1] for ours, theirs in pairs) >= 6


@pytest.mark.parametrize("as_stream", [False, True])
def test_new_weights_judge_as_if_loaded_from_disk(folder, tmp_path, as_stream):
    other = write_tiny_model(tmp_path / "other", weights=tiny_weights(1), meta_head=True)
    with Engine.from_pretrained(other, weights="int8") as engine:
        expected = samples(engine.score("query", ["one", "two"], sampling=SAMPLING))
    with Engine.from_pretrained(folder, weights="int8") as engine:
        before = samples(engine.score("query", ["one", "two"], sampling=SAMPLING))
        weights = tiny_weights(1)
        engine.load_weights(iter(weights.items()) if as_stream else weights)
        assert samples(engine.score("query", ["one", "two"], sampling=SAMPLING)) == expected != before


def test_an_adapter_is_merged_before_the_matrix_is_quantised(folder, tmp_path):
    generator = torch.Generator().manual_seed(4)
    name = "model.layers.0.mlp.down_proj"
    a, b = torch.randn(2, 96, generator=generator), torch.randn(64, 2, generator=generator)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 1}))
    save_file(
        {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}, adapter / "adapter_model.safetensors"
    )
    weights = tiny_weights(0)
    weights[f"{name}.weight"] = weights[f"{name}.weight"] + (b @ a) * 0.5
    merged = checkpoint.load(folder, weights="int8", adapter=adapter)
    expected = checkpoint.load(write_tiny_model(tmp_path / "merged", weights=weights, meta_head=True), weights="int8")
    assert torch.equal(teacher_forced(merged, TOKENS), teacher_forced(expected, TOKENS))


def test_the_card_and_the_rows_tell_int8_from_fp32(folder, capsys):
    cards = {}
    for scheme in ("fp32", "int8"):
        assert main(["info", str(folder), "--json", "--weights", scheme]) == 0
        cards[scheme] = json.loads(capsys.readouterr().out)
    assert (cards["int8"]["weights"], cards["int8"]["kv_dtype"], cards["fp32"]["kv_dtype"]) == ("w8a8", "bfloat16", "float32")
    assert 0.25 < cards["int8"]["weights_bytes"] / cards["fp32"]["weights_bytes"] < 0.35
    with Engine.from_pretrained(folder, weights="int8") as int8, Engine.from_pretrained(folder) as fp32:
        ours, theirs = (engine.fingerprints(SAMPLING, VotingParams()) for engine in (int8, fp32))
    assert ours["numerics"] != theirs["numerics"] and ours["weights"] == theirs["weights"]
