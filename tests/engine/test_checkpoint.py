"""What a loaded checkpoint holds beside its weights, number formats, live replacement and adapters."""

import json
import os
import subprocess
import sys

import pytest
import torch
from decoder_harness import teacher_forced
from safetensors.torch import load_file, save_file
from tiny_checkpoints import TINY, edit_config, oracle, write_tiny

from spct import CheckpointError, ConfigError, checkpoint
from spct.checkpoint.dtypes import plan_dtypes
from spct.checkpoint.weights import weights_bytes
from spct.models.kv import KVCache, bytes_per_slot
from spct.models.parameters import parameters

BY_NAME = {tiny.name: tiny for tiny in TINY}
TOKENS = torch.randint(0, 256, (41,), generator=torch.Generator().manual_seed(2)).tolist()


@pytest.fixture
def folder(tmp_path):
    return write_tiny(tmp_path / "model", BY_NAME["llama"])


def test_side_files(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 3, 257]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "from the field"}))
    model = checkpoint.load(folder)
    assert model.generation.eos_token_ids == (257, 3)
    assert model.generation.bos_token_id == 256, "what generation_config.json leaves out is in config.json"
    assert model.tokenizer_path == folder / "tokenizer.json" and model.folder == folder
    assert model.chat_template == "from the field"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "from the list"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert checkpoint.load(folder).chat_template == "from the list"
    (folder / "chat_template.jinja").write_text("from the file é")
    assert checkpoint.load(folder).chat_template == "from the file é"
    for name in ("generation_config.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    model = checkpoint.load(folder)
    assert model.generation.eos_token_ids == (257,) and model.chat_template is None


def test_meta_head(folder):
    plain = checkpoint.load(folder)
    assert plain.decoder.head.meta_weight is None and plain.decoder.head.meta_logits(torch.zeros(3, 48)) is None
    weight, bias = torch.randn(48, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])
    save_file({"weight": weight.to(torch.bfloat16), "bias": bias}, folder / "meta_head.safetensors", metadata={"pooling": "mean"})
    model = checkpoint.load(folder)
    head = model.decoder.head
    assert head.pooling == "mean" and head.meta_bias == 0.5 and head.meta_weight.dtype == torch.float32
    assert model.weights_digest != plain.weights_digest
    hidden = torch.randn(5, 48)
    normed = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + model.spec.norm_eps) * head.norm_weight
    torch.testing.assert_close(head.meta_logits(hidden), normed @ weight.bfloat16().float() + 0.5, atol=1e-5, rtol=1e-5)
    save_file({"weight": weight, "bias": bias}, folder / "meta_head.safetensors")
    assert checkpoint.load(folder).decoder.head.pooling == "last"


@pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.name)
def test_parameters_are_those_of_transformers(tmp_path, tiny):
    """Names, shapes and count agree with the model that wrote the checkpoint."""
    folder = write_tiny(tmp_path, tiny)
    spec = checkpoint.load(folder).spec
    theirs = {name: tuple(p.shape) for name, p in oracle(folder).named_parameters()}
    ours = {piece.name: piece.shape for parameter in parameters(spec) for piece in parameter.pieces}
    assert ours == theirs
    assert spec.num_parameters == sum(torch.Size(shape).numel() for shape in theirs.values())


def test_unknown_keys_are_ignored_with_a_warning(folder, caplog):
    before = checkpoint.load(folder)
    assert not caplog.records
    edit_config(folder, lambda c: c.update(residual_multiplier=0.5, _private=1, router=None))
    assert checkpoint.load(folder).spec == before.spec
    assert "residual_multiplier" in caplog.text and "_private" not in caplog.text and "router" not in caplog.text


def test_digest_tells_weights_apart_however_they_are_stored(folder):
    digest = checkpoint.load(folder).weights_digest
    assert checkpoint.load(folder, dtype="bf16").weights_digest == digest
    tensors = load_file(folder / "model.safetensors")
    save_file(dict(sorted(tensors.items())), folder / "model.safetensors", metadata={"format": "pt", "note": "other header"})
    assert checkpoint.load(folder).weights_digest == digest
    tensors["model.layers.2.mlp.down_proj.weight"][47, 87] += 1e-3
    save_file(tensors, folder / "model.safetensors")
    assert checkpoint.load(folder).weights_digest != digest


CPU, CUDA = torch.device("cpu"), torch.device("cuda")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [
    ("auto", "auto", F32, CPU, ("fp32", F32, F32, F32)),
    ("auto", "auto", BF16, CPU, ("bf16", BF16, F32, F32)),
    ("auto", "auto", F16, CPU, ("fp16", F16, F32, F32)),
    ("fp32", "auto", BF16, CPU, ("fp32", F32, F32, F32)),
    ("bfloat16", "auto", F32, CPU, ("bf16", BF16, F32, BF16)),
    (F16, "auto", F32, CPU, ("fp16", F16, F32, F16)),
    ("auto", "bf16", F32, CPU, ("bf16", BF16, F32, F32)),
    ("fp32", "bf16", F32, CPU, ("bf16", BF16, F32, F32)),
    ("auto", "auto", BF16, CUDA, ("bf16", BF16, BF16, BF16)),
    ("auto", "auto", F32, CUDA, ("fp32", F32, F32, F32)),
    ("fp16", "auto", BF16, CUDA, ("fp16", F16, F16, F16)),
]


@pytest.mark.parametrize(("dtype", "weights", "stored", "device", "expected"), DTYPES, ids=str)
def test_number_formats(dtype, weights, stored, device, expected):
    plan = plan_dtypes(dtype, weights, stored, device)
    assert (plan.scheme, plan.weights, plan.activations, plan.kv) == expected


def test_mixed_storage_follows_the_matrices(folder):
    """Norms in fp32 beside bf16 matrices: the matrices decide."""
    tensors = {n: t if t.ndim == 1 else t.bfloat16() for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    model = checkpoint.load(folder)
    assert model.dtypes.scheme == "bf16" and model.decoder.weights.layers[0].qkv.panels.dtype == BF16


def test_a_wider_matrix_among_others_keeps_its_numbers(folder):
    """An fp32 head on a bf16 model: auto never rounds; an explicit dtype does."""
    wide = ("lm_head.weight", "model.layers.1.self_attn.v_proj.weight")
    tensors = {n: t if n in wide else t.bfloat16() for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    model = checkpoint.load(folder)
    assert model.dtypes.scheme == "bf16" and model.decoder.weights.layers[1].qkv.scheme == "fp32"
    torch.testing.assert_close(model.decoder.head.lm_head.unpack(), tensors["lm_head.weight"], atol=0, rtol=0)
    assert checkpoint.load(folder, dtype="bf16").decoder.head.lm_head.scheme == "bf16"
    before = teacher_forced(model, TOKENS)
    checkpoint.replace_weights(model, tensors)
    assert torch.equal(teacher_forced(model, TOKENS), before)


def test_kv_layout(tmp_path):
    spec = checkpoint.load(write_tiny(tmp_path, BY_NAME["gemma2"])).spec
    assert [layer.kv.window for layer in spec.layers] == [12, None, 12]
    kv = KVCache.allocate(spec, 7, BF16)
    assert kv.num_slots == 7 and all(cache.shape == (7, 2, 32) for cache in (*kv.k, *kv.v))
    assert bytes_per_slot(spec, BF16) == 3 * 2 * (32 + 32) * 2 == sum(c[0].nbytes for c in (*kv.k, *kv.v))


def other_weights(folder, seed=9):
    write_tiny(folder, BY_NAME["gemma2"], seed=seed)
    return load_file(folder / "model.safetensors")


@pytest.fixture
def live(tmp_path):
    """A Gemma-2 model (tied, norms with an offset), and other weights for it with the logits that they give."""
    model = checkpoint.load(write_tiny(tmp_path / "old", BY_NAME["gemma2"]))
    new = other_weights(tmp_path / "new")
    return model, new, teacher_forced(checkpoint.load(tmp_path / "new"), TOKENS)


@pytest.mark.parametrize("kind", ["mapping", "stream", "reversed stream", "stream of one buffer", "bf16"])
def test_replaced_weights_are_as_if_loaded(live, kind):
    model, new, expected = live
    memory = model.decoder.head.lm_head.panels.data_ptr()
    if kind == "bf16":
        widened = {name: tensor.bfloat16() for name, tensor in new.items()}
        checkpoint.replace_weights(model, widened)
        assert (teacher_forced(model, TOKENS) - expected).abs().max() < 1
        return
    if kind == "stream of one buffer":
        buffer = torch.empty(max(t.numel() for t in new.values()))
        given = ((name, buffer[: t.numel()].view(t.shape).copy_(t)) for name, t in new.items())
    else:
        given = {"mapping": new, "stream": iter(new.items()), "reversed stream": reversed(new.items())}[kind]
    checkpoint.replace_weights(model, given)
    assert torch.equal(teacher_forced(model, TOKENS), expected) and model.decoder.complete
    assert model.decoder.head.lm_head.panels.data_ptr() == memory, "in place"


def test_a_tied_head_among_new_weights_is_ignored(live):
    model, new, expected = live
    checkpoint.replace_weights(model, {**new, "lm_head.weight": new["model.embed_tokens.weight"]})
    assert torch.equal(teacher_forced(model, TOKENS), expected)


NAME = "model.layers.1.self_attn.k_proj.weight"
BAD = {
    "missing": lambda w: w.pop(NAME),
    "unknown": lambda w: w.update({NAME + "2": w[NAME]}),
    "misshapen": lambda w: w.update({NAME: w[NAME].T}),
    "integers": lambda w: w.update({NAME: w[NAME].int()}),
    "nan": lambda w: w[NAME][3].fill_(float("nan")),
    "inf": lambda w: w[NAME][3].fill_(float("-inf")),
    "no tensor": lambda w: w.update({NAME: [1.0]}),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_mapping_changes_nothing(live, bad):
    model, new, _ = live
    before = teacher_forced(model, TOKENS)
    BAD[bad](new)
    with pytest.raises(CheckpointError, match="weights:" if bad == "no tensor" else NAME):
        checkpoint.replace_weights(model, new)
    assert torch.equal(teacher_forced(model, TOKENS), before) and model.decoder.complete


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_stream_leaves_the_decoder_incomplete_until_a_full_load(live, bad):
    model, new, expected = live
    good = {name: tensor.clone() for name, tensor in new.items()}
    BAD[bad](new)
    with pytest.raises(CheckpointError):
        checkpoint.replace_weights(model, iter(new.items()))
    assert not model.decoder.complete
    checkpoint.replace_weights(model, good)
    assert model.decoder.complete and torch.equal(teacher_forced(model, TOKENS), expected)


def test_a_stream_that_raises_or_repeats(live):
    model, new, _ = live

    def raising():
        yield from list(new.items())[:4]
        raise OSError("the trainer went away")

    with pytest.raises(OSError, match="went away"):
        checkpoint.replace_weights(model, raising())
    assert not model.decoder.complete
    with pytest.raises(CheckpointError, match="twice"):
        checkpoint.replace_weights(model, [*new.items(), *new.items()])


def test_replaced_weights_must_fit_the_dtype(tmp_path):
    model = checkpoint.load(write_tiny(tmp_path, BY_NAME["llama"]), dtype="fp16")
    new = load_file(tmp_path / "model.safetensors")
    new[NAME][0, 0] = 1e5
    with pytest.raises(CheckpointError, match=rf"{NAME}.*65504"):
        checkpoint.replace_weights(model, new)


def write_adapter(folder, base, rank=3, alpha=5.0, targets=("q_proj", "v_proj", "up_proj", "down_proj"), **config):
    """A random LoRA folder for a base folder, and the merged weights."""
    folder.mkdir()
    weights, lora = load_file(base / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(1)
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    for name in list(weights):
        if any(target in name for target in targets):
            rows, columns = weights[name].shape
            a, b = torch.randn(rank, columns, generator=generator) * 0.2, torch.randn(rows, rank, generator=generator) * 0.2
            module = f"base_model.model.{name.removesuffix('.weight')}"
            lora |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            weights[name] = weights[name] + scale * b @ a
    save_file(lora, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    return weights


@pytest.mark.parametrize("options", [{}, {"rank": 1}, {"use_rslora": True}, {"rank": 16, "alpha": 0.5}], ids=str)
def test_adapter_is_merged(tmp_path, folder, options):
    merged = write_adapter(tmp_path / "lora", folder, **options)
    base = checkpoint.load(folder)
    model = checkpoint.load(folder, adapter=tmp_path / "lora")
    assert model.weights_digest != base.weights_digest
    got = teacher_forced(model, TOKENS)
    assert (got - teacher_forced(base, TOKENS)).abs().max() > 0.1
    save_file(merged, folder / "model.safetensors")
    torch.testing.assert_close(got, teacher_forced(checkpoint.load(folder), TOKENS), atol=1e-4, rtol=0)


ADAPTERS = [
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "bias"),
    ({"peft_type": "IA3"}, "peft_type"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"r": 0}, "'r'"),
    ({"r": 4}, "shape"),
    ({"lora_alpha": "16"}, "lora_alpha"),
]


@pytest.mark.parametrize(("config", "word"), ADAPTERS, ids=str)
def test_adapters_that_are_not_supported_are_refused(tmp_path, folder, config, word):
    write_adapter(tmp_path / "lora", folder)
    edited = {**json.loads((tmp_path / "lora" / "adapter_config.json").read_text()), **config}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(edited))
    with pytest.raises(CheckpointError, match=f"adapter_.*{word}"):
        checkpoint.load(folder, adapter=tmp_path / "lora")


LORA = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS = {
    "one side": lambda t: t.pop(f"{LORA}.lora_A.weight"),
    "unknown layer": lambda t: t.update({f"{LORA.replace('.0.', '.9.')}.lora_A.weight": torch.zeros(3, 48)}),
    "other kind": lambda t: t.update({f"{LORA}.lora_magnitude_vector": torch.zeros(3)}),
    "a norm": lambda t: t.update({"base_model.model.model.norm.lora_A.weight": torch.zeros(3, 48)}),
    "nan": lambda t: t[f"{LORA}.lora_B.weight"].fill_(float("nan")),
    "empty": lambda t: t.clear(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_adapter_tensors_that_do_not_fit_are_refused(tmp_path, folder, name):
    write_adapter(tmp_path / "lora", folder)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    TENSORS[name](tensors)
    save_file(tensors, tmp_path / "lora" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors"):
        checkpoint.load(folder, adapter=tmp_path / "lora")


def test_no_adapter_there(tmp_path, folder):
    with pytest.raises(ConfigError, match="no such folder"):
        checkpoint.load(folder, adapter=tmp_path / "nothing")
    (tmp_path / "lora").mkdir()
    with pytest.raises(CheckpointError, match=r"adapter_config.json"):
        checkpoint.load(folder, adapter=tmp_path / "lora")
    write_adapter(tmp_path / "pickled", folder)
    (tmp_path / "pickled" / "adapter_model.safetensors").rename(tmp_path / "pickled" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model.bin.*pickled"):
        checkpoint.load(folder, adapter=tmp_path / "pickled")


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
RSS = """
import sys
from spct import checkpoint
def peak():
    # Not ru_maxrss, which a child inherits from the process that forked it.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = peak()
model = checkpoint.load(sys.argv[1], dtype=sys.argv[2], weights=sys.argv[3])
print(peak() - before, model.spec.num_parameters)
"""


@pytest.mark.parametrize(("tied", "dtype", "weights"), [(True, "auto", "auto"), (False, "fp32", "auto"), (False, "auto", "int8")])
def test_peak_memory_is_near_the_weights_own_size(tmp_path, tied, dtype, weights):
    """A bf16 checkpoint of some 100 MB: while loading, memory peaks at the weights plus 40 MiB, in whatever format they are kept."""
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "head_dim": 64, "tie_word_embeddings": tied, **shape}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    spec = checkpoint.config.read_spec(tmp_path / "config.json")
    tensors = {piece.name: torch.full(piece.shape, 0.01, dtype=BF16) for p in parameters(spec) for piece in p.pieces}
    save_file(tensors, tmp_path / "model.safetensors")
    plan = plan_dtypes(dtype, weights, BF16, torch.device("cpu"), "auto")
    size = weights_bytes(spec, plan, torch.device("cpu"))
    out = subprocess.run([sys.executable, "-c", RSS, tmp_path, dtype, weights], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    peak, count = map(int, out.stdout.split())
    assert count == sum(t.numel() for t in tensors.values()) and size > 60e6
    assert size * 0.9 < peak < size + (40 << 20), f"{peak / 1e6:.0f} MB for {size / 1e6:.0f} MB of weights"
