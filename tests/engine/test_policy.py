"""The trainer's model says of every token what transformers and the engine say, in either layout, whole or through adapters."""

import itertools
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_checkpoints import SHAPE, TINY, oracle, write_tiny

from spct import Engine, SamplingParams
from spct.errors import CheckpointError, ConfigError
from spct.training.packed_model import ATTENTION
from spct.training.policy import Policy, packs
from spct.training.sample_batches import Example, packed_batch, padded_batch, split_examples

CPU = torch.device("cpu")
BY_NAME = {tiny.name: tiny for tiny in TINY}
PADDED = {
    "mistral-window",
    "qwen2-window-layers",
    "qwen2-layer-types",
    "qwen3-window-bias",
    "gemma2",
    "gemma2-tight-caps",
    "gemma2-no-caps",
}


def ids(length, seed):
    return tuple(torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


# Prompts and samples of unlike lengths, groups of unlike sizes.
EXAMPLES = [
    Example(ids(9, 1), (ids(5, 2), ids(1, 3), ids(14, 4))),
    Example(ids(21, 5), (ids(3, 6),)),
    Example(ids(1, 7), (ids(8, 8), ids(7, 9))),
]


def plain_logprobs(model, examples):
    """Every sample alone, in a forward of its own."""
    parts = []
    for example in examples:
        for sample in example.samples:
            logits = model(torch.tensor([[*example.prompt, *sample]])).logits[0, len(example.prompt) - 1 : -1]
            parts.append(logits.float().log_softmax(-1).gather(-1, torch.tensor(sample)[:, None])[:, 0])
    return torch.cat(parts)


@pytest.mark.parametrize("name", BY_NAME)
def test_packed_attention_is_chosen_where_it_is_exact(name):
    tiny = BY_NAME[name]
    config = getattr(transformers, tiny.config_class)(**{**SHAPE, **tiny.options})
    assert packs(config) == (name not in PADDED)


@pytest.mark.parametrize(
    "name", ["llama-llama3", "mistral-full", "qwen2", "qwen3", "gemma2-tight-caps", "qwen2-layer-types", "mistral-window"]
)
def test_scores_are_those_of_plain_forwards_and_of_the_engine(name, tmp_path):
    folder = write_tiny(tmp_path, BY_NAME[name])
    policy = Policy(folder, device=CPU)
    assert policy.is_packed == (name not in PADDED)
    (cut,), (batch,) = policy.batches(EXAMPLES, 10**6)
    with torch.no_grad():
        got = policy.scores(batch)
        expected = plain_logprobs(oracle(folder), [EXAMPLES[i] for i in cut])
    assert float((got.logprob - expected).abs().max()) < 1e-4
    assert (got.entropy > 0).all() and (got.entropy < 6).all()

    with Engine.from_pretrained(folder, dtype="float32", max_batch=4) as engine:
        drawn = engine.generate(EXAMPLES[0].prompt, SamplingParams(samples=3, max_tokens=9, seed=5))
    example = Example(EXAMPLES[0].prompt, tuple(g.token_ids for g in drawn))
    with torch.no_grad():
        again = policy.scores(policy.batches([example], 10**6)[1][0]).logprob
    assert float((again - torch.tensor([p for g in drawn for p in g.logprobs])).abs().max()) < 1e-4


def test_both_layouts_have_the_same_gradients(tmp_path):
    folder = write_tiny(tmp_path, BY_NAME["llama-tied-mha"])
    policy = Policy(folder, device=CPU)
    gradients = []
    for lay_out, attention in ((packed_batch, ATTENTION), (padded_batch, "eager")):
        policy.model.set_attn_implementation(attention)
        scores = policy.scores(lay_out(EXAMPLES, CPU))
        weight = torch.linspace(-1, 1, len(scores.logprob))
        gradients.append(torch.autograd.grad((weight * scores.logprob).sum(), policy.parameters()))
    for one, other in zip(*gradients, strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * float(one.abs().max()) + 1e-6


def test_large_vocabularies_are_scored_in_chunks(tmp_path, monkeypatch):
    policy = Policy(write_tiny(tmp_path, BY_NAME["qwen3"]), device=CPU)
    _, (batch,) = policy.batches(EXAMPLES, 10**6)
    outcomes = []
    for most in (2**25, 261 * 7):
        monkeypatch.setattr("spct.training.policy._MAX_LOGITS", most)
        scores = policy.scores(batch)
        outcomes.append((scores.logprob, *torch.autograd.grad(scores.logprob.square().sum(), policy.parameters())))
    for one, other in zip(*outcomes, strict=True):
        assert float((one - other).detach().abs().max()) <= 1e-5 * float(one.detach().abs().max())


def test_micro_batches_hold_every_example_once_and_keep_to_their_size():
    examples = [Example(ids(10 + i % 7, i), (ids(3 + i % 5, i),) * (1 + i % 3)) for i in range(40)]
    for packed, lay_out in ((True, packed_batch), (False, padded_batch)):
        cuts = split_examples(examples, 150, packed=packed)
        assert sorted(i for cut in cuts for i in cut) == list(range(40)) and len(cuts) > 5
        batches = [lay_out([examples[i] for i in cut], CPU) for cut in cuts]
        assert all(b.inputs["input_ids"].numel() <= 150 for b in batches)
        assert sum(b.num_tokens for b in batches) == sum(e.num_tokens for e in examples)
    assert split_examples(examples[:2], 1, packed=True) == [[0], [1]]


def test_a_folder_that_is_saved_loads_everywhere(tmp_path):
    source = write_tiny(tmp_path / "source", BY_NAME["qwen2"], dtype=torch.bfloat16)
    policy = Policy(source, device=CPU)
    with torch.no_grad():
        policy.parameters()[0].add_(0.25)
    saved = tmp_path / "saved"
    saved.mkdir()
    policy.save(saved)
    (saved / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    assert json.loads((saved / "config.json").read_text())["dtype"] == "float32"
    assert {t.dtype for t in load_file(saved / "model.safetensors").values()} == {torch.float32}
    prompt = EXAMPLES[1].prompt
    with Engine.from_pretrained(saved, dtype="float32") as engine, torch.no_grad():
        expected = oracle(saved)(torch.tensor([prompt])).logits[0]
        assert float((engine.logits(prompt) - expected).abs().max()) < 1e-3
        engine.load_weights(policy.named_tensors())
        assert float((engine.logits(prompt) - expected).abs().max()) < 1e-3


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        Policy(tmp_path / "nothing", device=CPU)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="transformers can't load this model"):
        Policy(tmp_path, device=CPU)
    policy = Policy(write_tiny(tmp_path / "tiny", BY_NAME["llama"]), device=CPU)
    with pytest.raises(CheckpointError, match="expected the tensors of this model"):
        policy.load_state({"a": torch.zeros(1)})


def test_an_adapter_that_is_none_is_refused(tmp_path):
    folder = write_tiny(tmp_path, BY_NAME["llama"])
    with pytest.raises(ConfigError, match=r"expected a LoRA folder with adapter_config\.json"):
        Policy(folder, device=CPU, adapter=Path(tmp_path))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A base, a policy with adapters that change something, and the folder in which they are saved."""
    base = write_tiny(tmp_path_factory.mktemp("base"), BY_NAME["qwen2"])
    policy = Policy(base, device=CPU, rank=4, alpha=8.0, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    saved = tmp_path_factory.mktemp("adapter")
    policy.save(saved)
    return base, policy, saved


def scores_of(policy, examples=EXAMPLES):
    with torch.no_grad():
        return policy.scores(policy.batches(examples, 10**6)[1][0]).logprob


def test_only_adapters_are_trained_and_fresh_ones_change_nothing(adapted):
    base, _, _ = adapted
    fresh = Policy(base, device=CPU, rank=4)
    assert all(".lora_" in name for name in fresh.state()) and len(fresh.state()) == 2 * 7 * 3
    assert float((scores_of(fresh) - scores_of(Policy(base, device=CPU))).abs().max()) < 1e-5


def test_the_engine_runs_an_adapter_as_it_was_trained(adapted):
    base, policy, saved = adapted
    prompt = EXAMPLES[1].prompt
    with Engine.from_pretrained(base, dtype="float32", adapter=str(saved)) as merged_on_load, Engine.from_pretrained(base) as live:
        assert float((merged_on_load.logits(prompt) - live.logits(prompt)).abs().max()) > 0.1
        live.load_weights(policy.named_tensors())
        assert float((merged_on_load.logits(prompt) - live.logits(prompt)).abs().max()) < 1e-4
        drawn = live.generate(prompt, SamplingParams(samples=2, max_tokens=8))
    ours = scores_of(policy, [Example(prompt, tuple(g.token_ids for g in drawn))])
    assert float((ours - torch.tensor([p for g in drawn for p in g.logprobs])).abs().max()) < 1e-4


def test_adapters_compute_what_peft_computes(adapted):
    base, _, saved = adapted

    def outcome(dtype, fused):
        policy = Policy(base, device=CPU, dtype=dtype, adapter=saved)
        _, (batch,) = policy.batches(EXAMPLES, 10**6)
        layers = [module for module in policy.model.modules() if hasattr(module, "lora_A")]
        assert len(layers) == 7 * 3 and all("forward" in vars(layer) for layer in layers)
        for layer in layers if not fused else ():
            del layer.forward
        assert all(p.dtype == torch.float32 for p in policy.parameters())
        scores = policy.scores(batch).logprob
        weight = torch.linspace(-1, 1, len(batch.targets))
        return torch.cat([g.flatten() for g in (scores, *torch.autograd.grad((weight * scores).sum(), policy.parameters()))]).detach()

    exact = outcome("float32", False)
    error = {key: float((outcome(*key) - exact).norm() / exact.norm()) for key in itertools.product(("float32", "bfloat16"), (True, False))}
    assert error["float32", True] < 1e-5 and error["float32", False] == 0.0
    assert 0 < error["bfloat16", True] < 1.1 * error["bfloat16", False]


def test_the_reference_is_the_model_as_it_was_at_the_start(adapted):
    base, policy, saved = adapted
    _, (batch,) = policy.batches(EXAMPLES, 10**6)
    before = scores_of(policy)
    with policy.reference() as scores:
        assert torch.allclose(scores(batch).logprob, scores_of(Policy(base, device=CPU)), atol=1e-5)
    assert torch.equal(scores_of(policy), before) and all(p.requires_grad for p in policy.parameters())

    continued = Policy(base, device=CPU, adapter=saved)
    assert torch.allclose(scores_of(continued), before, atol=1e-5)
    with torch.no_grad():
        continued.parameters()[0].add_(0.5)
    assert not torch.allclose(scores_of(continued), before, atol=1e-3)
    with continued.reference() as scores:
        assert torch.allclose(scores(batch).logprob, before, atol=1e-5)


def test_a_whole_model_keeps_its_start_too(tmp_path):
    policy = Policy(write_tiny(tmp_path, BY_NAME["gemma2"]), device=CPU)
    before = scores_of(policy)
    with torch.no_grad():
        policy.parameters()[0].mul_(1.5)
    _, (batch,) = policy.batches(EXAMPLES, 10**6)
    assert not torch.allclose(scores_of(policy), before, atol=1e-3)
    with policy.reference() as scores:
        assert torch.equal(scores(batch).logprob, before) and not scores(batch).logprob.requires_grad
