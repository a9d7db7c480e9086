"""Logits and greedy text equal to transformers' (eager, fp32) on random checkpoints of every family and option."""

import pytest
import torch
from decoder_harness import greedy, teacher_forced
from tiny_checkpoints import TINY, Tiny, edit_config, oracle, write_tiny

from spct import checkpoint

TOLERANCE = 2e-4
LENGTH = 83  # prime, beyond every window of TINY and beyond the original context of its scaled ropes


def prompt(length=LENGTH, seed=5):
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def reference_logits(model, token_ids):
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].float()


@pytest.fixture(scope="module", params=TINY, ids=lambda tiny: tiny.name)
def folder(request, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module")
def reference(folder):
    return oracle(folder)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_logits_are_those_of_transformers(folder, reference, backend):
    expected = reference_logits(reference, prompt())
    got = teacher_forced(checkpoint.load(folder, backend=backend), prompt())
    assert got.shape == expected.shape and got.dtype == torch.float32
    assert expected.std() > 0.05, "an oracle that says nothing proves nothing"
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_chunked_prefill_gives_the_same_logits(folder, reference):
    expected = reference_logits(reference, prompt())
    got = teacher_forced(checkpoint.load(folder), prompt(), chunks=[1, 7, 16, 30, 1])
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_greedy_continuation_is_that_of_transformers(folder, reference):
    start = prompt(37)
    with torch.inference_mode():
        expected = reference.generate(
            torch.tensor([start]), attention_mask=torch.ones(1, len(start)), max_new_tokens=40, min_new_tokens=40, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )[0, len(start) :].tolist()  # fmt: skip
    assert greedy(checkpoint.load(folder), start, 40) == expected


def test_options_of_a_checkpoint_matter(tmp_path):
    """Each option changes the logits: an option that is read and then forgotten would pass nowhere else."""
    seen = {}
    for tiny in TINY:
        if tiny.config_class in ("LlamaConfig", "Gemma2Config"):
            model = checkpoint.load(write_tiny(tmp_path / tiny.name, tiny))
            seen[tiny.name] = teacher_forced(model, prompt())
    names = list(seen)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert (seen[a] - seen[b]).abs().max() > 10 * TOLERANCE, f"{a} and {b} agree"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "tiny", [t for t in TINY if t.name in ("llama-llama3", "qwen2", "qwen3", "mistral-window", "gemma2")], ids=lambda t: t.name
)
def test_half_precision_is_as_close_as_transformers(tmp_path, tiny, dtype):
    """err(ours, fp32) <= 2 err(transformers in the same dtype, fp32), the truth being the stored weights widened to fp32."""
    folder = write_tiny(tmp_path, tiny, dtype)
    truth = reference_logits(oracle(folder, torch.float32), prompt())
    theirs = (reference_logits(oracle(folder, dtype), prompt()) - truth).abs().max()
    stored = teacher_forced(checkpoint.load(folder), prompt())
    torch.testing.assert_close(stored, truth, atol=TOLERANCE, rtol=0)
    asked = teacher_forced(checkpoint.load(folder, dtype=dtype), prompt())
    assert (asked - truth).abs().max() <= 2 * theirs


OLD_SPELLING = {
    "llama-theta": lambda c: c.update(rope_theta=c.pop("rope_parameters")["rope_theta"], torch_dtype=c.pop("dtype")),
    "llama-llama3": lambda c: _old_scaling(c, "rope_type"),
    "llama-linear": lambda c: _old_scaling(c, "type"),
    "llama-yarn": lambda c: _old_scaling(c, "type"),
    "qwen2-window-layers": lambda c: (c.pop("layer_types"), c.pop("rope_parameters"), c.update(rope_theta=10000.0)),
    "qwen3-window-bias": lambda c: c.pop("layer_types"),
    "gemma2": lambda c: (c.pop("layer_types"), c.pop("tie_word_embeddings"), c.update(hidden_act="gelu_pytorch_tanh")),
}


def _old_scaling(config, key):
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {key: rope.pop("rope_type"), **rope}


@pytest.mark.parametrize("name", OLD_SPELLING)
def test_old_spellings_mean_the_same(tmp_path, name):
    tiny = next(t for t in TINY if t.name == name)
    folder = write_tiny(tmp_path, tiny)
    expected = checkpoint.load(folder).spec
    edit_config(folder, OLD_SPELLING[name])
    assert checkpoint.load(folder).spec == expected


def test_ropes_per_layer_type(tmp_path):
    """The nested spelling: each layer type has its own rope, and equals the model that has this rope everywhere."""
    sliding, full = {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 90000.0}
    options = {"use_sliding_window": True, "sliding_window": 9}
    folder = write_tiny(
        tmp_path,
        Tiny("nested", "Qwen2Config", {**options, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}),
    )
    edit_config(folder, lambda c: c.update(rope_parameters={"sliding_attention": sliding, "full_attention": full}))
    spec = checkpoint.load(folder).spec
    assert [spec.ropes[layer.rope].theta for layer in spec.layers] == [500.0, 90000.0, 500.0, 90000.0]
    for kind, rope in (("sliding_attention", sliding), ("full_attention", full)):

        def uniform(config, kind=kind, rope=rope):
            config.update(layer_types=[kind] * 4, rope_parameters={kind: rope})

        edit_config(folder, uniform)
        nested = teacher_forced(checkpoint.load(folder), prompt())
        edit_config(folder, lambda c, rope=rope: c.update(rope_parameters=rope))
        torch.testing.assert_close(nested, reference_logits(oracle(folder), prompt()), atol=TOLERANCE, rtol=0)


def test_context_of_yarn_is_the_extended_one(tmp_path):
    folder = write_tiny(tmp_path, next(t for t in TINY if t.name == "llama-yarn"))
    edit_config(folder, lambda c: c.update(max_position_embeddings=64))
    assert checkpoint.load(folder).spec.max_context == 256
