"""The same parity through the front door: Engine.logits and Engine.generate on one checkpoint of every family and rope."""

import pytest
import torch
from tiny_checkpoints import TINY, oracle, write_tiny

from spct import CheckpointError, Engine, SamplingParams

NAMES = ["llama-tied-mha", "llama-llama3", "llama-linear", "llama-yarn"]
NAMES += ["mistral-window", "qwen2-window-layers", "qwen3", "gemma2-tight-caps"]
GREEDY = SamplingParams(samples=1, temperature=0.0, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    tiny = next(t for t in TINY if t.name == request.param)
    folder = write_tiny(tmp_path_factory.mktemp("tiny"), tiny)
    with Engine.from_pretrained(folder, device="cpu", kv_memory="4MiB") as engine:
        yield engine, oracle(folder)


def prompt(length, seed):
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("length", [1, 2, 61])
def test_logits(pair, length):
    engine, reference = pair
    ids = prompt(length, 7)
    with torch.inference_mode():
        expected = reference(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(engine.logits(ids), expected, atol=2e-4, rtol=0)


def test_greedy_text_and_its_log_probabilities(pair):
    engine, reference = pair
    ids = prompt(29, 8)
    (generation,) = engine.generate(ids, GREEDY)
    with torch.inference_mode():
        expected = reference.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=40, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )[0, len(ids) :].tolist()  # fmt: skip
        assert list(generation.token_ids) == expected
        logits = reference(torch.tensor([ids + expected])).logits[0, len(ids) - 1 : -1].double()
    logprobs = torch.log_softmax(logits, -1).gather(1, torch.tensor(expected)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(generation.logprobs).double(), logprobs, atol=4e-4, rtol=0)


def test_a_refused_checkpoint_gives_no_engine(tmp_path):
    folder = write_tiny(tmp_path, TINY[0])
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*truncated"):
        Engine.from_pretrained(folder)
