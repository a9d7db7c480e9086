"""What a model folder says about text, and what it may not say."""

import json
import subprocess
import sys
import threading

import pytest
import tiny_tokenizers as tiny

from spct.errors import CheckpointError, ConfigError
from spct.prompting import JudgePrompt
from spct.types import ScoreRequest

REQUEST = ScoreRequest("q", ["a", "b"])


def ids_of(folder, *texts):
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return tuple(vocab[text] for text in texts)


def test_neither_prompting_nor_voting_needs_torch():
    code = (
        "import sys, spct.prompting, spct.voting; sys.exit(any(m.split('.')[0] in ('torch', 'transformers', 'numpy') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False).returncode == 0


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, ("</s>",)),
        ({"eos_token_id": [3, 2]}, None, ("<|im_end|>", "<|im_start|>", "</s>")),
        ({"eos_token_id": 3}, {"eos_token_id": 2}, ("<|im_end|>", "</s>")),
        ({"temperature": 1.0}, {"eos_token_id": [2, 2]}, ("<|im_start|>", "</s>")),
        ({"eos_token_id": None}, {"eos_token_id": 1}, ("</s>",)),
    ],
)
def test_every_end_of_sequence_is_known(generation, config, expected, tmp_path):
    folder = tiny.write_folder(tmp_path)
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    assert JudgePrompt(folder).eos_token_ids == ids_of(folder, *expected)


@pytest.mark.parametrize("value", ["</s>", [1, "2"], [True], -1, 1.0, {}])
def test_a_malformed_end_of_sequence_is_refused(value, tmp_path):
    folder = tiny.write_folder(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id"):
        JudgePrompt(folder)


def test_the_chat_template_file_wins(tmp_path):
    folder = tiny.write_folder(tmp_path, chat_template="config {{ messages[0].content }}")
    assert JudgePrompt(folder).text(REQUEST).startswith("config ")
    (folder / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    assert JudgePrompt(folder).text(REQUEST).startswith("file ")


def test_a_list_of_chat_templates_gives_its_default(tmp_path):
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "listed {{ messages[0].content }}"}]
    assert JudgePrompt(tiny.write_folder(tmp_path, chat_template=named)).text(REQUEST).startswith("listed ")


@pytest.mark.parametrize("template", [[{"name": "rag", "template": "x"}], [], {"default": "x"}, 7, [{"name": "default", "template": None}]])
def test_a_chat_template_that_can_not_be_chosen_is_refused(template, tmp_path):
    with pytest.raises(CheckpointError, match="chat_template: expected a string or a list"):
        JudgePrompt(tiny.write_folder(tmp_path, chat_template=template))


def test_special_tokens_come_from_either_file_in_either_form(tmp_path):
    chat = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ messages[0].content }}"
    folder = tiny.write_folder(tmp_path, chat_template=chat, bos_token={"content": "<s>", "lstrip": False}, eos_token=None)
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "pad_token": "</s>", "bos_token": "no"})
    )
    prompt = JudgePrompt(folder)
    assert prompt.text(REQUEST).startswith("<s>|<|im_end|>|</s>|")
    assert prompt.eos_token_ids == ids_of(folder, "<|im_end|>")


def test_a_bare_tokenizer_is_enough(tmp_path):
    folder = tiny.write_folder(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    prompt = JudgePrompt(folder)
    assert prompt.decode(prompt.encode(REQUEST)) == prompt.text(REQUEST)
    assert prompt.eos_token_ids == ()


def test_a_missing_or_malformed_file_is_a_checkpoint_error_that_names_it(tmp_path):
    with pytest.raises(CheckpointError, match="expected a model folder, got nothing"):
        JudgePrompt(tmp_path / "nosuch")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        JudgePrompt(tmp_path)
    folder = tiny.write_folder(tmp_path)
    with pytest.raises(CheckpointError, match="got a file"):
        JudgePrompt(folder / "tokenizer.json")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        before = (folder / name).read_bytes() if (folder / name).exists() else b"{}"
        for content in (b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b'"text"', b""):
            (folder / name).write_bytes(content)
            with pytest.raises(CheckpointError, match=name):
                JudgePrompt(folder)
        (folder / name).write_bytes(before)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: expected UTF-8"):
        JudgePrompt(folder)


def test_a_chat_template_that_does_not_compile_names_its_line(tmp_path):
    with pytest.raises(ConfigError, match=r"chat template of .*line 2"):
        JudgePrompt(tiny.write_folder(tmp_path, chat_template="a\n{% for %}"))


def test_digests_tell_what_changed(tmp_path):
    folder = tiny.write_folder(tmp_path / "a")
    same = JudgePrompt(tiny.write_folder(tmp_path / "b")).digest
    assert JudgePrompt(folder).digest == same
    other_tokenizer = JudgePrompt(tiny.write_folder(tmp_path / "c", "gemma_bpe")).digest
    other_chat = JudgePrompt(tiny.write_folder(tmp_path / "d", chat_template=tiny.CHATML)).digest
    other_bos = JudgePrompt(tiny.write_folder(tmp_path / "e", add_bos_token=True)).digest
    assert [digest[0] == same[0] for digest in (other_tokenizer, other_chat, other_bos)] == [False, True, False]
    assert [digest[1] == same[1] for digest in (other_tokenizer, other_chat, other_bos)] == [True, False, True]


def test_every_text_is_encoded_once_for_all_orders(tmp_path):
    prompt = JudgePrompt(tiny.write_folder(tmp_path))
    calls = []
    encode = prompt.tokenizer.encode_user
    prompt.tokenizer.encode_user = lambda text, **kwargs: calls.append(text) or encode(text, **kwargs)
    request = ScoreRequest("q", ["a", "b", "c"], reference="r")
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1)):
        assert prompt.decode(prompt.encode(request, order)) == prompt.text(request, order)
    assert sorted(calls) == ["a", "b", "c", "q", "r"]


def test_the_cache_of_texts_is_bounded_and_right(tmp_path, monkeypatch):
    monkeypatch.setattr("spct.prompting.judge._MAX_CACHED_BYTES", 20_000)
    prompt = JudgePrompt(tiny.write_folder(tmp_path))
    for i in range(50):
        request = ScoreRequest("q" * i, [f"{i}" * i, "x" * 200])
        assert prompt.decode(prompt.encode(request)) == prompt.text(request)
        held = sum(
            sys.getsizeof(text) + sys.getsizeof(ids) + sum(map(sys.getsizeof, ids)) for (text, _), ids in prompt._spans._spans.items()
        )
        assert 0 < held <= prompt._spans._bytes <= 20_000


def test_the_cache_drops_what_was_not_used_for_longest(tmp_path, monkeypatch):
    monkeypatch.setattr("spct.prompting.judge._MAX_CACHED_BYTES", 1200)
    prompt = JudgePrompt(tiny.write_folder(tmp_path))
    for i in range(20):
        prompt.encode(ScoreRequest("often", [f"{i}"]))
    assert "often" in {text for text, _ in prompt._spans._spans}


def test_threads_share_a_prompt(tmp_path):
    prompt = JudgePrompt(tiny.write_folder(tmp_path, chat_template=tiny.CHATML))
    requests = [ScoreRequest(f"q{i}", [f"r{j} of {i}" for j in range(1 + i % 5)], reference="x" if i % 2 else None) for i in range(60)]
    expected = [prompt.text(request) for request in requests]
    wrong = []

    def work(start):
        for i in range(len(requests)):
            place = (start + i) % len(requests)
            if prompt.decode(prompt.encode(requests[place])) != expected[place]:
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 60, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_thousand_responses(tmp_path):
    prompt = JudgePrompt(tiny.write_folder(tmp_path))
    request = ScoreRequest("q", [f"response {i}" for i in range(1000)])
    order = tuple(reversed(range(1000)))
    text = prompt.decode(prompt.encode(request, order))
    assert text == prompt.text(request, order)
    assert text.index("response 999\n") < text.index("response 1\n")
