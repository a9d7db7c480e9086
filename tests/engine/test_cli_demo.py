"""The demo runs as it stands, on the tiny random model here: a table of every request, one judgement in full."""

import importlib.util
import json

from command_line import ROOT, write_rows

from spct import SamplingParams
from spct.training.tasks import DOMAINS, draw_item


def test_the_demo_judges_every_request(tmp_path, tiny_folder, capsys):
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.SAMPLING = SamplingParams(samples=32, max_tokens=20)
    rows = [
        {"id": "first", "query": "is it?", "responses": ["yes", "no"]},
        {"id": "talk", "query": [{"role": "user", "content": "hello"}], "responses": ["well?"]},
        {"id": "past the end", "query": "x" * 600, "responses": ["a", "b", "c"]},
    ]
    demo.main(write_rows(tmp_path / "requests.jsonl", rows), str(tiny_folder))
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].startswith("3 requests, 32 samples each")
    for row in rows:
        assert sum(line.startswith(row["id"]) for line in lines) == 1
    (talk,) = (line for line in lines if line.startswith("talk"))
    assert "/32" in talk and "outside: a conversation of several turns" in talk
    (past,) = (line for line in lines if line.startswith("past the end"))
    assert "CapacityError" in past
    assert "one judgement in full: first" in printed and "meta score  -" in printed and "response 1  no" in printed


def test_the_requests_of_the_demo_are_requests():
    """Eight to twelve of them, with what the contract lists among them."""
    rows = [json.loads(line) for line in (ROOT / "examples" / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 8 <= len(rows) <= 12 and len({row["id"] for row in rows}) == len(rows)
    assert any(row.get("reference") for row in rows)
    assert {1, 2, 3} <= {len(row["responses"]) for row in rows}
    assert any("\\boxed{10}" in response for row in rows for response in row["responses"])
    assert any(not json.dumps(row, ensure_ascii=False).isascii() for row in rows)


def test_the_embedded_judge_was_not_trained_on_the_demo():
    """None of the demo's queries and responses is among the items of the two commands in docs/embedded-model.md."""
    rows = [json.loads(line) for line in (ROOT / "examples" / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = {row["query"] for row in rows} | {response for row in rows for response in row["responses"]}
    second = ["arithmetic", "sorting", "arithmetic", "table", "units", "arithmetic", "sorting", "strings", "constraints", "passage"]
    # The first command's steps 700 to 949 take 4 items of two responses at most, later ones 8.
    runs = [(0, range(700 * 4, 950 * 4), list(DOMAINS), 2), (0, range(950 * 8, 4400 * 8), list(DOMAINS), 6), (1, range(640 * 8), second, 6)]
    for seed, indices, turns, most in runs:
        for i in indices:
            item = draw_item("train", seed, i, domain=turns[i % len(turns)], max_responses=most)
            assert shown.isdisjoint((item.query, *item.responses))
