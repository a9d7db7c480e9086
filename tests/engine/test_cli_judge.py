"""`spct judge` and `spct info` on a tiny random model."""

import json

import pytest
from command_line import read_rows, spct, write_rows
from tiny_model import CONFIG, tiny_weights, write_tiny_model

from spct import Engine, Judgement, Sample, Timings, Usage

ASK = ("--query", "2+2?", "--response", "4", "--response", "five")


@pytest.fixture
def model(tiny_folder):
    return ("--model", tiny_folder, "--samples", 3, "--max-tokens", 8)


def test_the_json_is_the_row_that_score_writes(tmp_path, model, capsysbinary):
    assert spct("judge", *ASK, *model, "--json") == 0
    row = json.loads(capsysbinary.readouterr().out)
    source = write_rows(tmp_path / "in.jsonl", [{"query": "2+2?", "responses": ["4", "five"]}])
    assert spct("score", source, "-o", tmp_path / "out.jsonl", *model, "--include", "text") == 0
    (scored,) = read_rows(tmp_path / "out.jsonl")
    del row["timings"], scored["timings"]
    assert row == scored and len(row["samples"]) == 3


def test_a_person_reads_principles_critique_scores_and_a_dash(model, capsys, monkeypatch):
    text = "Specific Criteria: exact result (5)\nAnalysis: 1: 4 ok; 2: five no\nScores: \\boxed{9, 2}"
    voter = Sample((9, 2), "ok", True, None, (0, 1), text, 25, -0.3)
    lost = Sample(None, "truncated", False, None, (1, 0), "Specific", 8, -0.3)
    outcome = Judgement((9, 2), 0, 1, (0.0, 0.0), (lost, voter), Usage(40, 44, 33), Timings(1.0, 2.0, 250.0))
    asked = {}

    def score(self, request, **params):
        asked.update(params, request=request)
        return outcome

    monkeypatch.setattr(Engine, "score", score)
    assert spct("judge", *ASK, "--reference", "4", "--principles", "be right", *model) == 0
    assert (asked["request"].reference, asked["request"].principles, asked["sampling"].samples) == ("4", "be right", 3)
    printed = capsys.readouterr().out
    for part in ("best: 0   votes: 1 of 2 samples (1 truncated)", "sample 1: ok", "exact result (5)", "2: five no", "0: 9  1: 2"):
        assert part in printed
    assert "meta score  -" in printed and "40 prompt, 44 prefilled, 33 written" in printed and "0.25 s" in printed


def test_a_meta_score_is_shown(tiny_folder_with_meta_head, capsys):
    assert spct("judge", *ASK, "--model", tiny_folder_with_meta_head, "--samples", 2, "--max-tokens", 4) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("meta score"))
    assert float(line.split()[-1])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--query", "q"), 2, "--response"),
        (("--response", "a"), 2, "--query"),
        (("--query", "q", "--response", "a", "--samples", "0"), 2, "samples"),
        (("--query", "q", "--response", "a", "--samples", "9999"), 2, "9999"),
        (("--query", "x" * 600, "--response", "a"), 1, "512"),
        (("--query", "\udcff", "--response", "a"), 2, "surrogate"),
        (("--query", "q", "--response", "a", "--model", "/nowhere"), 2, "/nowhere"),
    ],
)
def test_what_cannot_be_judged_is_told(tiny_folder, capsys, words, code, message):
    assert spct("judge", "--model", tiny_folder, *words) == code
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err and printed.out == ""


def test_info_tells_what_the_model_is_and_what_fits(tmp_path, capsys):
    folder = write_tiny_model(tmp_path / "model", meta_head=True)
    assert spct("info", folder, "--kv-memory", "1MiB", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["parameters"] == sum(tensor.numel() for tensor in tiny_weights().values())
    assert (card["architecture"], card["layers"], card["max_context"]) == ("llama", 2, 512)
    # Two layers, keys and values of 2 heads of 16 numbers, 4 bytes each.
    assert card["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert card["kv_tokens"] == 2**20 // 512 and card["kv_memory"] == 2**20
    assert card["meta_head"] == "last" and card["weights"] == "fp32" and card["vocab_size"] == CONFIG["vocab_size"]
    assert card["options"]["max_samples"] == 4096 and card["options"]["kv_memory"] == 2**20
    for fit in card["fits"]:
        pages, prompt = 2**20 // 512 // 16, -(-fit["prompt_tokens"] // 16)
        assert fit["samples"] == (pages - prompt) // -(-fit["max_tokens"] // 16) > 0


def test_info_for_a_person(tiny_folder, capsys):
    assert spct("info", tiny_folder, "--dtype", "bf16") == 0
    printed = capsys.readouterr().out
    for part in ("llama, 78,208 parameters", "2 KV heads", "512 tokens", "weights bf16", "k that fits", "samples at once", "max_batch"):
        assert part in printed


def test_info_reads_no_weights(tmp_path, capsys):
    """A NaN in the weights is the engine's to find; a header that does not fit the configuration is told."""
    weights = tiny_weights()
    weights["model.norm.weight"][3] = float("nan")
    folder = write_tiny_model(tmp_path / "model", weights=weights)
    assert spct("info", folder) == 0
    assert spct("judge", *ASK, "--model", folder) == 1
    assert "model.norm.weight" in capsys.readouterr().err
    del weights["model.norm.weight"]
    assert spct("info", write_tiny_model(tmp_path / "less", weights=weights)) == 1
    assert "model.norm.weight" in capsys.readouterr().err
