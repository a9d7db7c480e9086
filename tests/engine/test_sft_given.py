"""Supervised training on the demonstrations of a file: what is read and refused, how passes cover the rows, what the judge then writes."""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter

import pytest
import tiny_tokenizers
import torch
from safetensors.torch import load_file
from tiny_checkpoints import TINY as FAMILIES
from tiny_checkpoints import write_tiny

from spct import Engine, SamplingParams, ScoreRequest, VotingParams
from spct.cli.main import main as spct_main
from spct.errors import CapacityError, CheckpointError, ConfigError, InputError
from spct.prompting import JudgePrompt
from spct.training import given
from spct.training.checkpoints import load_state
from spct.training.given import encode_demonstration, read_demonstrations
from spct.training.packing import IGNORED
from spct.training.sft import STATE_FILE, run
from spct.training.sft_config import SftConfig

ROW = {"query": "q", "responses": ["yes", "no"], "demonstration": "First. \\boxed{9, 2}"}
SETTINGS = dict(prompts=2, group=2, micro_batches=2, workers=1, save_every=1e9, bf16=False)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count):
    """Rows that can be told apart, the i-th with 1 + i % 3 demonstrations."""
    return [
        {"query": f"q{i}", "responses": ["a", "b"], "demonstrations": [f"{i}/{d} \\boxed{{{i % 9 + 1}, 10}}" for d in range(1 + i % 3)]}
        for i in range(count)
    ]


def demonstrations_of(packed):
    """(prompt, demonstration) of a batch, as token ids, read back from its targets."""
    length = (packed.token_ids.shape[1] - packed.prompt_len) // packed.group
    for row, ids in enumerate(packed.token_ids.tolist()):
        prompt = tuple(ids[: int(packed.prompt_mask[row].sum())])
        for start in range(packed.prompt_len, len(ids), length):
            count = 1 + int((packed.targets[row, start : start + length] != IGNORED).sum())
            yield prompt, tuple(ids[start : start + count])


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_marks_of_thinking_are_tokens_and_nothing_else_of_a_text_is(kind, tmp_path):
    prompt = JudgePrompt(tiny_tokenizers.write_folder(tmp_path, kind))
    text = "<think>the </s> <tool_call> Response</think>\nthe <|im_end|> \\boxed{3} </think>"
    ids = encode_demonstration(prompt, text)
    marks = [prompt.tokenizer.encode_template(mark, first=False)[0] for mark in ("<think>", "</think>", "</think>")]
    assert [id for id in ids if id in prompt.control_ids] == [*marks, prompt.eos_token_ids[0]]
    assert prompt.decode(ids[:-1]) == text
    plain = "the Response 10, \\boxed{3}"
    assert encode_demonstration(prompt, plain) == (*prompt.tokenizer.encode_user(plain), prompt.eos_token_ids[0])


def test_a_vocabulary_without_the_marks_spells_them(tiny_folder):
    prompt = JudgePrompt(tiny_folder)
    ids = encode_demonstration(prompt, "<think>a</think>")
    assert prompt.decode(ids[:-1]) == "<think>a</think>" and prompt.control_ids.isdisjoint(ids[:-1])


def test_rows_are_encoded_as_inference_shows_them(tiny_folder, tmp_path):
    rows = [
        {**ROW, "best": 0, "reference": "ref", "id": 7, "domain": "d", "samples": 3, "seed": 1},
        {"query": "<end>", "responses": ["<end>"], "best": None, "demonstrations": ["\\boxed{2}", "<end>: \\boxed{1}"]},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    path.write_text("\n" + path.read_text().replace("\n", "\r\n"))
    prompt = JudgePrompt(tiny_folder)
    one, other = read_demonstrations(path, prompt, None).rows
    assert tuple(one.prompt) == prompt.encode(ScoreRequest("q", ["yes", "no"], reference="ref"))
    assert [prompt.decode(ids[:-1]) for ids in one.demonstrations] == [ROW["demonstration"]]
    assert [prompt.decode(ids[:-1]) for ids in other.demonstrations] == rows[1]["demonstrations"]
    assert tuple(other.prompt) == prompt.encode(ScoreRequest("<end>", ["<end>"])) and 256 not in other.prompt
    for row in (one, other):
        assert all(ids[-1] == 256 and 256 not in ids[:-1] for ids in row.demonstrations)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"demonstration": "no score"}, r"demonstration: expected a text with \\boxed\{…\} with 2 integers from 1 to 10.*got 'no score'"),
        ({"demonstration": "\\boxed{9}"}, "with 2 integers"),
        ({"demonstration": "\\boxed{11, 2}"}, "from 1 to 10"),
        ({"demonstration": "<think>\\boxed{9, 2}"}, "after any </think>"),
        ({"demonstration": ["\\boxed{9, 2}"]}, "demonstration: expected a string, got list"),
        ({"demonstration": "\\boxed{9, 2}<end>"}, "ends with the text '<end>'"),
        ({"demonstration": "\ud800 \\boxed{9, 2}"}, "demonstration: expected text that the model's vocabulary can spell"),
        ({"best": 1}, r"its scores \[9, 2\] disagree with best = 1"),
        ({"best": 2}, "best: expected the index of the best response, 0 to 1, got 2"),
        ({"best": None}, "best: expected the index"),
        ({"best": 0, "demonstration": "\\boxed{9, 9}"}, "disagree with best = 0"),
        ({"demonstrations": ["\\boxed{9, 2}"]}, "expected one of the two fields"),
        ({"demonstration": ..., "demonstrations": []}, "demonstrations: expected a list of at least one string"),
        ({"demonstration": ..., "demonstrations": "x"}, "demonstrations: expected a list"),
        ({"demonstration": ..., "demonstrations": ["\\boxed{9, 2}", "\\boxed{x}"]}, r"demonstrations\[1\]: expected a text with"),
        ({"demonstration": ...}, "expected one of the two fields"),
        ({"query": ...}, "query: the field is missing; a row needs query and responses"),
        ({"responses": []}, "responses: expected at least one response"),
        ({"answer": 1}, "unknown field 'answer'; known fields: .*demonstration"),
        ({"domain": 1}, "domain: expected a string"),
    ],
)
def test_a_row_that_teaches_wrong_things_is_refused_by_its_line(change, message, tiny_folder, tmp_path):
    row = {k: v for k, v in {**ROW, **change}.items() if v is not ...}
    path = write_rows(tmp_path / "rows.jsonl", [ROW, row])
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 2: .*{message}"):
        read_demonstrations(path, JudgePrompt(tiny_folder), None)


def test_files_that_are_no_rows_are_refused(tiny_folder, tmp_path):
    prompt = JudgePrompt(tiny_folder)
    for content, message in [
        (b"\n", "empty file"),
        (b"[1]\n", "line 1: expected a JSON object"),
        (b'{"query"\n', "line 1"),
        (b"\xff\n", "line 1"),
    ]:
        (tmp_path / "rows.jsonl").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_demonstrations(tmp_path / "rows.jsonl", prompt, None)
    with pytest.raises(InputError, match="can't be read"):
        read_demonstrations(tmp_path / "none.jsonl", prompt, None)


def test_thinking_that_the_prompt_opened_must_be_closed(tmp_path):
    prompt = JudgePrompt(tiny_tokenizers.write_folder(tmp_path, chat_template="{{ messages[0].content }}<think>\n"))
    assert prompt.opens_think(2)
    path = write_rows(tmp_path / "rows.jsonl", [{**ROW, "demonstration": "so </think> \\boxed{9, 2}"}])
    (row,) = read_demonstrations(path, prompt, None).rows
    assert prompt.tokenizer.encode_template("</think>", first=False)[0] in row.demonstrations[0]
    with pytest.raises(InputError, match="after any </think>"):
        read_demonstrations(write_rows(path, [ROW]), prompt, None)


def test_long_rows_are_refused_or_counted(tiny_folder, tmp_path):
    prompt = JudgePrompt(tiny_folder)
    path = write_rows(tmp_path / "rows.jsonl", [ROW, {**ROW, "query": "q" * 300}, {**ROW, "demonstration": "x" * 90 + "\\boxed{9, 2}"}])
    (row,) = read_demonstrations(write_rows(tmp_path / "one.jsonl", [ROW]), prompt, None).rows
    exact = len(row.prompt) + len(row.demonstrations[0])
    data = read_demonstrations(path, prompt, exact, skip_long=True)
    assert data.rows == (row,) and data.num_long == 2
    with pytest.raises(CapacityError, match=r"line 2: .*got .*shorten"):
        read_demonstrations(path, prompt, exact)
    with pytest.raises(CapacityError, match=rf"line 1: expected at most {exact - 1} tokens of prompt and demonstration, got {exact}"):
        read_demonstrations(path, prompt, exact - 1)
    with pytest.raises(CapacityError, match="got 3 longer ones"):
        read_demonstrations(path, prompt, exact - 1, skip_long=True)


@pytest.mark.parametrize("num_prompts, group", [(1, 1), (4, 2), (7, 2), (8, 3), (40, 4)])
def test_a_pass_shows_every_row_once_and_passes_every_demonstration_alike(num_prompts, group, tiny_folder, tmp_path):
    rows = numbered(11)
    prompt = JudgePrompt(tiny_folder)
    data = read_demonstrations(write_rows(tmp_path / "rows.jsonl", rows), prompt, None)
    shape = dict(num_prompts=num_prompts, group=group, micro_batches=2)
    per_pass, orders, seen = data.steps_per_pass(num_prompts), [], Counter()
    for turn in range(6):
        shown = []
        for step in range(turn * per_pass, (turn + 1) * per_pass):
            batches = data.draw(step, seed=5, **shape)
            again = data.draw(step, seed=5, **shape)
            assert all(torch.equal(a.token_ids, b.token_ids) for a, b in zip(batches, again, strict=True))
            pairs = [pair for batch in batches for pair in demonstrations_of(batch)]
            seen.update(pairs)
            prompts = list(dict.fromkeys(p for p, _ in pairs))
            assert len(prompts) == sum(batch.token_ids.shape[0] for batch in batches) <= num_prompts
            shown += prompts
        assert sorted(shown) == sorted(tuple(row.prompt) for row in data.rows)
        orders.append(tuple(shown))
    expected = Counter()
    for row in data.rows:
        times = 6 * min(group, len(row.demonstrations)) // len(row.demonstrations)
        expected.update({(tuple(row.prompt), tuple(ids)): times for ids in row.demonstrations})
    assert seen == expected
    assert len(set(orders)) > 1


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", numbered(5))


@pytest.fixture(scope="module")
def trained(tiny_folder, demonstrations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(SftConfig(output=folder, model=tiny_folder, demonstrations=demonstrations, epochs=30, lr=5e-3, **SETTINGS))


def test_the_judge_writes_what_it_was_shown(trained):
    folder, result = trained
    assert (result.finished, result.step, result.steps, result.num_long) == (True, 90, 90, 0)
    assert json.loads((folder / "runs.jsonl").read_text())["rows"] == 5
    greedy, as_given = SamplingParams(samples=1, temperature=0.0, max_tokens=40), VotingParams(orders="given")
    with Engine.from_pretrained(folder) as engine:
        judged = [engine.score(r["query"], r["responses"], sampling=greedy, voting=as_given).samples[0].scores for r in numbered(5)]
    assert judged == [(i + 1, 10) for i in range(5)]


def test_a_stopped_run_ends_bitwise_like_the_unbroken_one(tiny_folder, demonstrations, tmp_path):
    settings = dict(model=tiny_folder, demonstrations=demonstrations, lr=5e-3, **SETTINGS)
    whole = run(SftConfig(output=tmp_path / "whole", **settings))
    assert whole.finished and whole.step == 6
    assert not run(SftConfig(output=tmp_path / "cut", tokens=200, **settings)).finished
    assert 1 <= load_state(tmp_path / "cut" / STATE_FILE)["step"] < 6
    assert run(SftConfig(output=tmp_path / "cut", **settings)).finished
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    changed = write_rows(tmp_path / "changed.jsonl", numbered(6))
    for wrong in ({"demonstrations": changed}, {"demonstrations": None, "steps": 9, "small_steps": 0}):
        with pytest.raises(CheckpointError, match="expected a run on the same demonstrations"):
            run(SftConfig(output=tmp_path / "cut", **{**settings, **wrong}))


@pytest.mark.parametrize("name", ["gemma2-tight-caps", "qwen3"])
def test_adapters_of_a_family_learn_a_file_from_the_command_line(name, demonstrations, tmp_path, capsys):
    (tiny,) = (t for t in FAMILIES if t.name == name)
    model = write_tiny(tmp_path / "model", tiny)
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<special1>"}))
    (model / "judge_template.jinja").write_text("{{ query }}{% for r in responses %}[{{ r }}]{% endfor %}")
    path = tmp_path / "rows.jsonl"
    path.write_text(demonstrations.read_text() + json.dumps({**ROW, "query": "q" * 400}) + "\n")
    flags = ["-o", str(tmp_path / "out"), "--model", str(model), "--demonstrations", str(path), "--lora", "2", "--fp32", "--workers", "1"]
    flags += ["--prompts", "3", "--micro-batches", "1", "--epochs", "1"]
    assert spct_main(["train", "sft", *flags]) != 0
    assert "rows.jsonl, line 6: " in capsys.readouterr().err
    assert spct_main(["train", "sft", *flags, "--skip-long"]) == 0
    told = capsys.readouterr().err
    assert "1 rows of" in told and "finished at step 2 of 2" in told
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any(float(t.abs().max()) > 0 for n, t in adapter.items() if "lora_B" in n)


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    for wrong, message in [
        (dict(epochs=1), "expected a file"),
        (dict(skip_long=True), "expected a file"),
        (dict(demonstrations=tmp_path, epochs=1, steps=1), "either epochs or steps"),
        (dict(demonstrations=tmp_path, epochs=0), "epochs: expected at least 1"),
        (dict(prompt_weight=float("nan")), "prompt_weight: expected a number from 0"),
        (dict(demonstrations=tmp_path, domains=("dates",)), "domains: expected none"),
    ]:
        with pytest.raises(ConfigError, match=message):
            SftConfig(output=tmp_path, **wrong)


def test_the_command_of_the_docstring_makes_such_a_file(tiny_folder, tmp_path):
    command = textwrap.dedent(given.__doc__[given.__doc__.index("    python -c") :])
    command = re.sub(r"\b1000\b", "12", command).replace("python -c", f"{sys.executable} -c").replace("demonstrations.jsonl", "$OUT")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path)), "OUT": str(tmp_path / "made.jsonl")}
    subprocess.run(command, shell=True, check=True, env=environment)
    data = read_demonstrations(tmp_path / "made.jsonl", JudgePrompt(tiny_folder, template="default"), None)
    assert len(data.rows) == data.num_texts == 12
