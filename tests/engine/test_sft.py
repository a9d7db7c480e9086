"""Supervised training: the packed layout equals plain forwards, the loss falls, a killed run ends as an unbroken one."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import TINY as FAMILIES
from tiny_checkpoints import oracle, write_tiny
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from spct import Engine, SamplingParams, ScoreRequest
from spct.cli.main import main as spct_main
from spct.errors import CheckpointError, ConfigError
from spct.prompting import JudgePrompt
from spct.training.checkpoints import load_state
from spct.training.demonstration_loss import demonstration_loss
from spct.training.folder import ModelSize, write_text_side
from spct.training.optimisers import learning_rate
from spct.training.packed_model import ATTENTION, packed_loss
from spct.training.packing import draw_batches, example_tokens, pack
from spct.training.policy import Policy
from spct.training.rft import RftConfig
from spct.training.session import Session as RftSession
from spct.training.sft import STATE_FILE, run
from spct.training.sft_config import SftConfig
from spct.training.tasks import draw_item

TEMPLATE = (
    "{{ query }}\n{% if reference %}= {{ reference }}\n{% endif %}{% if principles %}{{ principles }}\n{% endif %}"
    "{% for r in responses %}[{{ loop.index }}]\n{{ r }}\n{% endfor %}"
)
TINY = ModelSize(width=32, layers=2, heads=2, kv_heads=1, mlp_width=64)
SETTINGS = dict(
    size=TINY, prompts=2, group=2, micro_batches=2, workers=1, warmup=2, decay=4, easy_steps=2, small_steps=2, mixed_steps=3, lr=1e-2
)


@pytest.fixture(scope="module")
def text_side(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    write_text_side(folder, TEMPLATE, 600, num_items=80)
    return folder


@pytest.fixture(scope="module")
def trained(text_side, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    result = run(SftConfig(output=folder, tokenizer=text_side, steps=24, save_every=1e9, **SETTINGS))
    return folder, result


def test_loss_falls(trained):
    folder, result = trained
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, 25)) and result.finished
    assert sum(r["loss"] for r in rows[-5:]) / 5 < rows[0]["loss"] - 0.7


def test_the_loss_that_a_short_run_tells_is_that_of_its_end(trained):
    losses = [json.loads(line)["loss"] for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    assert min(losses[-6:]) <= trained[1].loss <= max(losses[-9:]) < losses[0]


def test_resumed_run_ends_bitwise_like_the_unbroken_one(trained, text_side, tmp_path):
    program = (
        "from pathlib import Path; from spct.training.folder import ModelSize; from spct.training.sft import run; "
        "from spct.training.sft_config import SftConfig; "
        f"run(SftConfig(output=Path({str(tmp_path)!r}), tokenizer=Path({str(text_side)!r}), steps=24, save_every=0.0, "
        f"**dict({SETTINGS!r}, size=ModelSize(**{dict(width=32, layers=2, heads=2, kv_heads=1, mlp_width=64)!r}))))"
    ).replace(f"'size': {TINY!r}, ", "")
    metrics = tmp_path / "metrics.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    child = subprocess.Popen([sys.executable, "-c", program], env=environment)
    deadline = time.monotonic() + 300
    while child.poll() is None and time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 6):
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert 1 <= load_state(tmp_path / STATE_FILE)["step"] < 24
    result = run(SftConfig(output=tmp_path, tokenizer=text_side, steps=24, save_every=1e9, **SETTINGS))
    assert result.finished
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 25))
    one, other = load_file(trained[0] / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_packed_loss_equals_plain_forwards(trained):
    folder, _ = trained
    prompt = JudgePrompt(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    examples = [example_tokens(prompt, draw_item("validation", 3, i), 3, Random(i)) for i in range(4)]
    plain, count = 0.0, 0
    with torch.no_grad():
        for start, demos in examples:
            for demo in demos:
                logits = model(torch.tensor([[*start, *demo]])).logits[0, len(start) - 1 : -1]
                plain += float(torch.nn.functional.cross_entropy(logits, torch.tensor(demo), reduction="sum"))
                count += len(demo)
        model.set_attn_implementation(ATTENTION)
        loss, own, seen = packed_loss(model, pack(examples), 0.0)
    assert int(seen) == count
    assert float(own) == pytest.approx(plain, rel=1e-5) and float(loss) == float(own)


@pytest.mark.parametrize("name", ["gemma2-tight-caps", "qwen2-layer-types", "qwen3"])
def test_the_loss_of_every_family_equals_plain_forwards(name, tmp_path):
    (tiny,) = (t for t in FAMILIES if t.name == name)
    policy = Policy(write_tiny(tmp_path, tiny), device=torch.device("cpu"))
    rng = Random(name)
    examples = [
        (tuple(rng.randrange(256) for _ in range(p)), [tuple(rng.randrange(256) for _ in range(d)) for d in lengths])
        for p, lengths in ((9, (5, 1)), (20, (3, 14)), (2, (7, 7)))
    ]
    judge = oracle(tmp_path)
    own, of_prompts, count = 0.0, 0.0, 0
    with torch.no_grad():
        for start, demos in examples:
            for g, demo in enumerate(demos):
                ids = torch.tensor([*start, *demo])
                each = torch.nn.functional.cross_entropy(judge(ids[None, :-1]).logits[0], ids[1:], reduction="none")
                own += float(each[len(start) - 1 :].sum())
                of_prompts += float(each[: len(start) - 1].sum()) if g == 0 else 0.0
                count += len(demo)
        loss, got, seen = demonstration_loss(policy.model, pack(examples), 0.25)
    assert int(seen) == count and float(got) == pytest.approx(own, rel=1e-5)
    assert float(loss) == pytest.approx(own + 0.25 * of_prompts, rel=1e-5)


def test_demonstrations_have_no_bos_behind_their_prompt(tmp_path):
    (tiny,) = (t for t in FAMILIES if t.name == "llama")
    write_tiny(tmp_path, tiny)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    bos = tokenizer.token_to_id("<special0>")
    tokenizer.post_processor = TemplateProcessing(single="<special0> $A", special_tokens=[("<special0>", bos)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<special0>", "eos_token": "<special1>"}))
    prompt = JudgePrompt(tmp_path)
    start, demos = example_tokens(prompt, draw_item("train", 0, 0), 2, Random(0))
    assert start[0] == bos and all(bos not in demo for demo in demos)


def test_adapters_learn_demonstrations(trained, tmp_path):
    settings = {**SETTINGS, "small_steps": 0, "lr": 2e-2}
    first = run(SftConfig(output=tmp_path / "a", model=trained[0], lora=8, steps=3, save_every=1e9, **settings))
    assert first.finished and not (tmp_path / "a" / "model.safetensors").exists()
    run(SftConfig(output=tmp_path / "b", model=trained[0], lora=8, steps=2, save_every=1e9, **settings))
    resumed = run(SftConfig(output=tmp_path / "b", model=trained[0], lora=8, steps=3, save_every=1e9, **settings))
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert one.keys() == other.keys() and any(float(t.abs().max()) > 0 for n, t in one.items() if "lora_B" in n)
    assert resumed.step == 3 and all(torch.equal(one[n], other[n]) for n in one)
    with Engine.from_pretrained(trained[0], adapter=str(tmp_path / "a")) as engine:
        assert engine.score("q", ["a"], sampling=SamplingParams(samples=1, max_tokens=3)).samples
    for wrong in (dict(lora=2), dict(model=trained[0], lora=2, adapter=tmp_path / "a"), dict(model=trained[0], lora=1, lora_alpha=0.0)):
        with pytest.raises(ConfigError, match="lora"):
            SftConfig(output=tmp_path, **wrong)


def test_an_adapter_keeps_the_template_that_it_was_trained_with(trained, tmp_path, capsys):
    template = tmp_path / "own.jinja"
    template.write_text("Judge: {{ query }}{% for response in responses %}|{{ response }}{% endfor %}")
    command = ["train", "sft", "--model", str(trained[0]), "--lora", "2", "--prompts", "2", "--micro-batches", "1", "--workers", "1"]
    small = ["--steps", "1", "--easy-steps", "0", "--template", str(template), "-o", str(tmp_path / "a")]
    assert spct_main([*command, *small]) == 0
    assert (tmp_path / "a" / "judge_template.jinja").read_text() == template.read_text()
    shown = JudgePrompt(trained[0], template=template).encode(ScoreRequest("q", ["a", "b"]))
    with Engine.from_pretrained(trained[0], adapter=str(tmp_path / "a")) as engine:
        assert engine.prompt.encode(ScoreRequest("q", ["a", "b"])) == shown
    with Engine.from_pretrained(trained[0], adapter=str(tmp_path / "a"), template="default") as engine:
        assert engine.prompt.encode(ScoreRequest("q", ["a", "b"])) != shown
    # Another method goes on with it, and so does this one in a folder of its own.
    RftSession(RftConfig(output=tmp_path / "b", model=str(trained[0]), adapter=tmp_path / "a")).close()
    run(SftConfig(output=tmp_path / "c", model=trained[0], adapter=tmp_path / "a", steps=1, small_steps=0, prompts=1, micro_batches=1))
    assert all((tmp_path / name / "judge_template.jinja").read_text() == template.read_text() for name in "bc")
    template.write_text(template.read_text() + "!")
    capsys.readouterr()
    assert spct_main([*command, *small]) == 2
    assert "is another, with which this folder's run began" in capsys.readouterr().err
    assert spct_main([*command, *small[:-3], str(tmp_path / "none"), "-o", str(tmp_path / "d")]) == 2
    assert "expected a template's name or a readable UTF-8 file" in capsys.readouterr().err


def test_training_prompts_are_those_of_inference(trained):
    prompt = JudgePrompt(trained[0])
    for i in range(8):
        item = draw_item("train", 0, i)
        start, demos = example_tokens(prompt, item, 2, Random(i))
        orders = [o for o in permutations(range(len(item.responses))) if prompt.encode(item.request(), o) == start]
        assert orders
        assert all(d[-1] == prompt.eos_token_ids[0] and prompt.eos_token_ids[0] not in d[:-1] for d in demos)
        assert all(prompt.encode_text(prompt.decode(d[:-1])) == d[:-1] for d in demos)


def test_batches_depend_on_seed_and_step_alone(trained):
    prompt = JudgePrompt(trained[0])
    settings = dict(split="train", seed=1, num_prompts=6, group=2, micro_batches=3)
    one, again, other = (draw_batches(prompt, step=step, **settings) for step in (5, 5, 6))
    assert len(one) == 3 and all(torch.equal(a.token_ids, b.token_ids) for a, b in zip(one, again, strict=True))
    assert any(a.token_ids.shape != b.token_ids.shape or not torch.equal(a.token_ids, b.token_ids) for a, b in zip(one, other, strict=True))


def test_tokenizer_is_lossless_on_any_text(text_side):
    prompt = JudgePrompt(text_side)
    for text in [
        "",
        "a  b\n\n\tc",
        "12.50 €, naïve 日本語 🙂",
        "[The Begin of Response 1] #### x ####",
        "\\boxed{10} <|end|>",
        "\x00\u2028\r\n",
    ]:
        assert prompt.decode(prompt.encode_text(text)) == text
    assert len(prompt.encode_text(" 4711")) == 4


def test_time_and_token_limits_stop_resumably(text_side, tmp_path):
    result = run(SftConfig(output=tmp_path, tokenizer=text_side, steps=24, tokens=1, **SETTINGS))
    assert result.step == 1 and not result.finished
    result = run(SftConfig(output=tmp_path, tokenizer=text_side, steps=24, time_limit=0.0, **SETTINGS))
    assert result.step == 1


def test_learning_rate_rises_holds_and_falls():
    rates = [learning_rate(s, steps=100, warmup=10, decay=20, peak=1.0) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:80] == [1.0] * 71 and rates[80:] == sorted(rates[80:], reverse=True)
    assert 0 < rates[-1] < 0.1


def test_bad_settings_and_broken_states_are_refused(text_side, tmp_path):
    with pytest.raises(ConfigError, match="micro_batches: expected at most prompts=1"):
        SftConfig(output=tmp_path, prompts=1, micro_batches=2)
    with pytest.raises(ConfigError, match='optimizer: expected "adamw" or "muon"'):
        run(SftConfig(output=tmp_path, tokenizer=text_side, steps=1, **{**SETTINGS, "optimizer": "sgd"}))
    (tmp_path / STATE_FILE).write_bytes(b"no state")
    with pytest.raises(CheckpointError, match=r"training_state\.safetensors: expected a training state"):
        run(SftConfig(output=tmp_path, tokenizer=text_side, steps=1, **SETTINGS))


def test_command_line_continues_from_a_folder(trained, tmp_path, capsys):
    flags = ["--prompts", "2", "--group", "1", "--micro-batches", "1", "--workers", "1", "--steps", "2", "--optimizer", "adamw", "--fp32"]
    assert spct_main(["train", "sft", "-o", str(tmp_path / "next"), "--model", str(trained[0]), *flags]) == 0
    assert "finished at step 2 of 2" in capsys.readouterr().err
    assert (tmp_path / "next" / "model.safetensors").stat().st_size == (Path(trained[0]) / "model.safetensors").stat().st_size
