"""TRL's own `GRPOTrainer` trains a tiny random policy for two steps on rewards of the embedded judge."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from spct import Engine
from spct.adapters.trl import reward_function

QUERY = "Leo has 23 coins and gets 41 coins more. What is the total? Above all, be exact."
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


@pytest.fixture(scope="module")
def judge():
    """The embedded judge, which remembers what it was asked and what it found."""
    with Engine.from_pretrained("embedded", max_context=400) as engine:
        score, engine.seen = engine.score_async, []

        async def remembering(request, **options):
            engine.seen.append((request, None))
            judgement = await score(request, **options)
            engine.seen.append((request, judgement))
            return judgement

        engine.score_async = remembering
        yield engine


@pytest.fixture(scope="module")
def policy(tiny_folder):
    """A random model that writes bytes, and its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=257, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, eos_token_id=256)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tiny_folder / "tokenizer.json"), eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = CHAT
    return LlamaForCausalLM(config), tokenizer


def first_byte(completions, **columns):
    """A second reward, so that no two responses are worth the same."""
    return [float(ord((response[0]["content"] or " ")[0])) for response in completions]


def test_two_steps(judge, policy, tmp_path):
    """A step has two responses each to two prompts, of which the second is too long for the judge: its rewards are missing."""
    model, tokenizer = policy
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    prompts = [[{"role": "user", "content": text}] for text in (QUERY, "far too long " * 150)]
    reward = reward_function(judge, reference_column="answer", sampling={"samples": 4, "max_tokens": 250}, group_size=2)
    args = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        max_steps=2,
        learning_rate=0.1,
        beta=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    rows = Dataset.from_dict({"prompt": prompts, "answer": ["64", "none"]})
    trainer = GRPOTrainer(model=model, reward_funcs=[reward, first_byte], args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()

    steps = [row for row in trainer.state.log_history if "rewards/spct/mean" in row]
    assert trainer.state.global_step == len(steps) == 2
    found = [judgement for request, judgement in judge.seen if request.query[0].content == QUERY and judgement is not None]
    assert [len(judgement.rewards) for judgement in found] == [2, 2], "one judgement a step, of the two responses together"
    assert not [judgement for request, judgement in judge.seen if request.query[0].content != QUERY and judgement is not None]
    for step, judgement in zip(steps, found, strict=True):
        mean = sum((total / judgement.num_votes - 1) / 9 for total in judgement.rewards) / 2
        assert step["rewards/spct/mean"] == pytest.approx(mean, rel=1e-5)
        assert step["spct/missing"] == 0.5
        # A missing reward adds nothing to the response's sum, where a 0 or NaN would show.
        assert step["reward"] == pytest.approx(step["rewards/first_byte/mean"] + mean / 2, rel=1e-5)
        assert math.isfinite(step["loss"])
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert all(weight.isfinite().all() for weight in model.parameters())
