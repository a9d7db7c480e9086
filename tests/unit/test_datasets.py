"""Every benchmark's format loads into the one form, is told from the others, and refuses what is malformed by file, line and field."""

import gzip
import json
from pathlib import Path

import pytest

from spct.cli.eval_options import FORMAT_NAMES
from spct.errors import ConfigError, InputError
from spct.evaluation.accuracy import Truth, credit
from spct.evaluation.datasets import FORMATS, BenchmarkItem, detect, load, read_items, take_in_turn, truth_of
from spct.evaluation.datasets.reading import read_rows
from spct.types import Turn

TURNS = [{"role": "user", "content": "a?", "language": "English"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c?"}]
RATING = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
PANDALM = {"idx": 7, "instruction": "Sort.", "input": "b a", "response1": "a b", "response2": True}
CORRECTNESS = {"question_id": "q", "prompt": "1+1?", "response_1": "2", "response_2": "3", "response_3": "two"}

# One row of each format, and the items it makes: (subset, query, responses, good, cell).
ROWS = {
    "rewardbench": (
        {"prompt": "Hi", "chosen": "Hello", "rejected": "", "subset": "hep-go", "id": 3},
        [("hep-go", "Hi", ("Hello", ""), (0,), "")],
    ),
    "rewardbench2": (
        {"id": "tied:5", "prompt": "A colour?", "chosen": ["red", "blue"], "rejected": ["two"], "num_correct": 2, "subset": "Ties"},
        [("Ties", "A colour?", ("red", "blue", "two"), (0, 1), "tied")],
    ),
    "rm-bench": (
        {"id": 1, "prompt": "Q", "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"], "domain": "code"},
        [
            ("code", "Q", (good, bad), (0,), f"{first}-{second}")
            for good, first in zip("abc", ("concise", "detailed", "markdown"), strict=True)
            for bad, second in zip("xyz", ("concise", "detailed", "markdown"), strict=True)
        ],
    ),
    "llmbar": ({"input": "Q", "output_1": "a", "output_2": "b", "label": 2}, [("data", "Q", ("a", "b"), (1,), "")]),
    "judgebench": (
        {"pair_id": "p", "source": "mmlu-pro-law", "question": "Q", "response_A": "a", "response_B": "b", "label": "B>A"},
        [("knowledge", "Q", ("a", "b"), (1,), "mmlu-pro-law")],
    ),
    "pandalm": (
        {**PANDALM, "annotator1": 1, "annotator2": 0, "annotator3": 0},
        [("pandalm", "Sort.\n\nb a", ("a b", "True"), (), "")],
    ),
    "ppe-preference": (
        {"question_id": "q", "prompt": "Q", "response_1": "a", "response_2": "b", "winner": "model_b", "language": "German"},
        [("preference", "Q", ("a", "b"), (1,), "German")],
    ),
    "ppe-correctness": (
        {**CORRECTNESS, "scores": [True, False, True], "sampled_conflict_pairs": [[0, 1], [1, 2]]},
        [("data", "1+1?", ("2", "3"), (0,), ""), ("data", "1+1?", ("3", "two"), (1,), "")],
    ),
    "rmb-pairs": (
        {
            "pair_uid": "8",
            "conversation_input": TURNS,
            "chosen": {"llm_name": "m", "answer": "x"},
            "reject": {"llm_name": "n", "answer": "y"},
            "category_path": "Pairwise_set/Helpfulness/Chat",
        },
        [("Helpfulness/Chat", tuple(Turn(t["role"], t["content"]) for t in TURNS), ("x", "y"), (0,), "pairs")],
    ),
    "rmb-best-of-n": (
        {
            "bon_uid": "9",
            "conversation_input": TURNS[:1],
            "bon_best": {"answer": "x"},
            "loser_list": [{"answer": "y"}, {"answer": "z"}],
            "category_path": "BoN_set/Harmlessness/S1",
        },
        [("Harmlessness/S1", "a?", ("x", "y", "z"), (0,), "best-of-n")],
    ),
    "realmistake": (
        {"input": "Q", "llm_response": "a", "label": "error", "metadata": {"llm_response_model": "gpt-4-0613"}},
        [("data", "Q", ("a",), (), "gpt-4-0613")],
    ),
    "helpsteer": ({"prompt": "Q", "response": "a", "helpfulness": 3, **RATING}, [("helpsteer", "Q", ("a",), (0,), "")]),
    "helpsteer-preference": (
        {"context": TURNS[:1], "response1": "a", "response2": "b", "overall_preference": -2, "domain": "stem"},
        [("stem", "a?", ("a", "b"), (0,), "")],
    ),
    "spct": (
        {"query": TURNS[1:], "responses": ["a", "b", "c"], "best": [2, 0], "principles": ["short"], "samples": 4},
        [("data", tuple(Turn(t["role"], t["content"]) for t in TURNS[1:]), ("a", "b", "c"), (0, 2), "")],
    ),
}
# RMB's turns carry a language, ours may not.
ROWS["spct"][0]["query"] = [{"role": t["role"], "content": t["content"]} for t in TURNS[1:]]


def write(path, rows, *, as_array=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) if as_array else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def shapes(items):
    return [(item.subset, item.query, item.responses, item.good, item.cell) for item in items]


def test_help_and_page_name_every_format():
    assert tuple(FORMATS) == FORMAT_NAMES
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `") and not line.startswith("| `--")}
    assert set(rows) == set(FORMATS)


def test_every_format_has_a_row_here():
    assert set(ROWS) == set(FORMATS)


@pytest.mark.parametrize("as_array", [True, False])
@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_items_and_its_format_is_found(tmp_path, name, as_array):
    row, expected = ROWS[name]
    path = write(tmp_path / "data.json", [row], as_array=as_array)
    assert detect(path) == name
    items = list(read_items(path))
    assert shapes(items) == expected == shapes(read_items(path, name))
    for item in items:
        request = item.request()
        assert request.responses == item.responses
        assert truth_of(item).acceptable == item.good


@pytest.mark.parametrize("name", ROWS)
def test_a_missing_field_is_named_with_file_and_line(tmp_path, name):
    row, _ = ROWS[name]
    needed = [f for f in FORMATS[name].fields if isinstance(f, str) and f in row]
    for field in needed:
        path = write(tmp_path / "data.jsonl", [row, {k: v for k, v in row.items() if k != field}])
        with pytest.raises(InputError) as refusal:
            list(read_items(path))
        assert f"data.jsonl, line 2, {field}" in str(refusal.value)


MALFORMED = [
    ("rewardbench", {"chosen": 3}, "chosen: expected a string, got 3"),
    ("rewardbench", {"chosen": "\ud800"}, "chosen: expected valid Unicode"),
    ("rewardbench", {"prompt": [{"role": "robot", "content": ""}]}, "prompt[0].role: expected system, user, assistant or tool"),
    ("rewardbench2", {"num_correct": 1}, "num_correct: expected 2, the number of chosen responses, got 1"),
    ("rewardbench2", {"id": "5"}, 'id: expected "ref:N" or "tied:N"'),
    ("rewardbench2", {"chosen": ["red"], "num_correct": 1}, "chosen: expected two or more right responses"),
    ("rewardbench2", {"rejected": []}, "rejected: expected a list of strings, got []"),
    ("rm-bench", {"rejected": ["x", "y"]}, "rejected: expected a list of 3 strings"),
    ("rm-bench", {"chosen": ["a", "b", None]}, "chosen[2]: expected a string, got null"),
    ("llmbar", {"label": "2"}, 'label: expected 1 or 2, got "2"'),
    ("llmbar", {"label": True}, "label: expected 1 or 2, got true"),
    ("judgebench", {"label": "A=B"}, 'label: expected "A>B" or "B>A"'),
    ("pandalm", {"annotator3": 3}, "annotator3: expected 0, 1 or 2, got 3"),
    ("pandalm", {"response1": None}, "response1: expected a string, got null"),
    ("ppe-preference", {"winner": "a"}, "winner: expected"),
    ("ppe-correctness", {"sampled_conflict_pairs": [[0, 3]]}, "sampled_conflict_pairs[0]: expected two indices from 0 to 2, got [0, 3]"),
    ("ppe-correctness", {"sampled_conflict_pairs": [[0, 2]]}, "sampled_conflict_pairs[0]: expected a right and a wrong response"),
    ("ppe-correctness", {"scores": [True, False, True, True]}, "response_4: the field is missing"),
    ("rmb-pairs", {"reject": {"llm_name": "n"}}, "reject: expected an object with answer"),
    ("rmb-best-of-n", {"loser_list": [{"answer": "y"}, "z"]}, "loser_list[1]: expected an object with answer"),
    ("rmb-best-of-n", {"loser_list": []}, "loser_list: expected a list of at least one object"),
    ("realmistake", {"label": "maybe"}, 'label: expected "error" or "no_error"'),
    ("helpsteer", {"helpfulness": 5}, "helpfulness: expected a number from 0 to 4, got 5"),
    ("helpsteer-preference", {"overall_preference": None}, "overall_preference: expected a number from -3 to 3, got null"),
    ("spct", {"best": 3}, "best: expected an index from 0 to 2"),
    ("spct", {"best": [1, 1]}, "best: expected an index from 0 to 2"),
    ("spct", {"best": []}, "best: expected an index from 0 to 2"),
    ("spct", {"colour": 1}, "colour: expected one of the fields"),
    ("spct", {"responses": []}, "responses: expected at least one response"),
]


@pytest.mark.parametrize(("name", "change", "message"), MALFORMED)
def test_a_malformed_row_is_refused_by_file_line_and_field(tmp_path, name, change, message):
    row, _ = ROWS[name]
    # Blank lines count as lines and are no rows.
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(row)}\n\n{json.dumps({**row, **change})}\n")
    with pytest.raises(InputError) as refusal:
        list(read_items(path))
    assert f"data.jsonl, line 3, {message}" in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b" \n\n", "got an empty file"),
        (b"[]", "got an empty file"),
        (b"prompt,chosen\n", "begins with b'p'"),
        (b"PAR1....PAR1", "a Parquet file"),
        (b'{"query": "q"\n', "line 1: malformed JSON"),
        (b'{"query": "\xff"}\n', "line 1: not UTF-8"),
        (b'{"query": 1, "query": 2}\n', "line 1: query: the field stands twice"),
        (b'{"query": NaN}\n', "line 1: NaN is not JSON"),
        (b'[{"query": "q"},\n 3]', "line 2: expected a JSON object, got 3"),
        (b'[{"query": "q"}\n {"query": "q"}]', "line 2: malformed JSON: expected , or ] after a row"),
        (b'[{"query": "q"},\n]', "line 2: malformed JSON"),
        (b'[{"query": "q"}]\nmore', "line 2: malformed JSON: there is text after the array"),
        (b'[{"query": "q"', "malformed JSON"),
        (b'[{"query":\n "\xff"}]', "line 2: not UTF-8"),
        (b'{"query": ' + b"[" * 100_000, "line 1"),
        (b"\x1f\x8bnot really", "can't be read"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        list(read_rows(path))
    assert "data.json" in str(refusal.value) and message in str(refusal.value)


def test_lines_of_an_array_are_those_of_its_rows(tmp_path):
    row, _ = ROWS["llmbar"]
    path = write(tmp_path / "data.json", [row, row, {**row, "label": 9}], as_array=True)
    begins = [number for number, line in enumerate(path.read_text().splitlines(), 1) if line == " {"]
    with pytest.raises(InputError, match=f"line {begins[2]}, label"):
        list(read_items(path))


def test_an_unknown_format_says_what_was_looked_for(tmp_path):
    path = write(tmp_path / "data.jsonl", [{"text": "a", "stars": 4}])
    with pytest.raises(InputError) as refusal:
        detect(path)
    message = str(refusal.value)
    assert "the row has text, stars" in message and all(f"\n  {name}: " in message for name in FORMATS)
    with pytest.raises(ConfigError, match="--format: expected auto or one of rewardbench"):
        list(read_items(path, "csv"))


def test_a_row_of_two_formats_must_be_named(tmp_path):
    row = {**ROWS["llmbar"][0], "llm_response": "x", "label": 1}
    path = write(tmp_path / "data.jsonl", [row])
    with pytest.raises(InputError, match="may be llmbar or realmistake; say which with --format"):
        detect(path)
    assert [item.benchmark for item in read_items(path, "llmbar")] == ["llmbar"]


def test_a_byte_order_mark_and_gzip_are_read(tmp_path):
    row, expected = ROWS["llmbar"]
    plain = tmp_path / "data.jsonl"
    plain.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode())
    (tmp_path / "data.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    assert shapes(read_items(plain)) == shapes(read_items(tmp_path / "data.gz")) == expected
    with pytest.raises(InputError, match="can't be read: No such file"):
        detect(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="got a folder"):
        load([tmp_path])


def test_names_of_files_tell_subsets(tmp_path):
    llmbar, rm, ppe, mistake = (ROWS[name][0] for name in ("llmbar", "rm-bench", "ppe-correctness", "realmistake"))
    paths = {
        "LLMBar/Adversarial/Neighbor/dataset.json": (llmbar, "adversarial-neighbor"),
        "LLMBar/Natural/dataset.json": (llmbar, "natural"),
        "adversarial-gptout.json": (llmbar, "adversarial-gptout"),
        "safety-refuse_filtered.json": ({k: v for k, v in rm.items() if k != "domain"}, "safety-refuse"),
        "PPE-MMLU-Pro-Best-of-K.jsonl": (ppe, "mmlu_pro"),
        "finegrained_fact_verification/gpt-4-0613.jsonl": (mistake, "finegrained_fact_verification"),
    }
    for name, (row, subset) in paths.items():
        assert {item.subset for item in read_items(write(tmp_path / name, [row]))} == {subset}, name


def test_pandalm_counts_the_majority_and_else_the_first_annotator(tmp_path):
    votes = [(1, 1, 2), (2, 0, 2), (0, 1, 0), (2, 1, 0), (0, 2, 1)]
    rows = [{**PANDALM, "annotator1": a, "annotator2": b, "annotator3": c} for a, b, c in votes]
    items = list(read_items(write(tmp_path / "p.json", rows, as_array=True)))
    assert [item.good for item in items] == [(0,), (1,), (), (1,), ()]
    assert [item.is_tie for item in items] == [False, False, True, False, True]
    blank = [{**rows[0], "input": " "}, {**rows[0], "instruction": ""}]
    assert [item.query for item in read_items(write(tmp_path / "q.json", blank))] == ["Sort.", "b a"]


def test_helpsteer_joins_the_responses_to_one_prompt(tmp_path):
    given = [("p", 3), ("p", 4), ("q", 2), ("q", 2), ("r", 2), ("s", 3), ("t", 1), ("t", 4), ("t", 4)]
    rows = [{"prompt": p, "response": str(i), "helpfulness": h, **RATING} for i, (p, h) in enumerate(given)]
    items = list(read_items(write(tmp_path / "h.jsonl", rows)))
    assert [(item.query, item.responses, item.good) for item in items] == [
        ("p", ("0", "1"), (1,)),
        ("q", ("2", "3"), ()),
        ("r", ("4",), ()),
        ("s", ("5",), (0,)),
        ("t", ("6", "7", "8"), (1, 2)),
    ]
    assert items[0].ratings == (3.0, 4.0)


def test_preferences_of_helpsteer_2_and_3_point_the_same_way(tmp_path):
    for strength, good in [(-3, (0,)), (0, ()), (1, (1,))]:
        second = {"prompt": "Q", "response_1": "a", "response_2": "b", "preference_strength": strength}
        third = {**ROWS["helpsteer-preference"][0], "overall_preference": strength}
        assert [item.good for item in load([write(tmp_path / "2.jsonl", [second]), write(tmp_path / "3.jsonl", [third])])] == [good] * 2


def item(subset, group, cell="", benchmark="b"):
    return BenchmarkItem(benchmark, group, subset, "q", ("a", "b"), (0,), cell=cell, group=group)


def test_a_limit_takes_subsets_and_cells_in_turn_and_keeps_groups_whole():
    items = [item("x", f"x{i}", "first" if i < 4 else "second") for i in range(8)] + [item("y", f"y{i}") for i in range(2)]
    assert [i.group for i in take_in_turn(items, 6)] == ["x0", "x1", "x4", "x5", "y0", "y1"]
    assert take_in_turn(items, 100) == items
    nine = [item("x", str(row), cell) for row in range(3) for cell in "abcdefghi"]
    assert [i.group for i in take_in_turn(nine, 20)] == ["0"] * 9 + ["1"] * 9
    for limit in (8, 0):
        with pytest.raises(ConfigError, match="limit: expected at least 9"):
            take_in_turn(nine, limit)


def test_rows_of_two_files_never_share_a_group(tmp_path):
    row, _ = ROWS["judgebench"]
    items = load([write(tmp_path / "a.jsonl", [row, row]), write(tmp_path / "b.jsonl", [row])])
    assert len({i.group for i in items}) == 3
    ties = [{**ROWS["rewardbench2"][0], "id": id} for id in ("ref:1", "tied:1")]
    assert len({i.group for i in load([write(tmp_path / f"{i}.jsonl", [tie]) for i, tie in enumerate(ties)])}) == 1


@pytest.mark.parametrize(
    ("num_responses", "good", "totals", "plain", "strict"),
    [
        (3, (0, 2), (5, 1, 5), 1, 1),
        (3, (0, 2), (5, 5, 1), 0.5, 0),
        (3, (0, 2), (5, 5, 5), 2 / 3, 0),
        (3, (0, 2), (1, 9, 5), 0, 0),
        (2, (), (4, 4), 1, 1),
        (3, (), (4, 4, 3), 0, 0),
        (2, (), None, 0, 0),
        (1, (0,), (6,), 1, 1),
        (1, (), (6,), 0, 0),
        (1, (), (5,), 1, 1),
    ],
)
def test_credit_with_several_acceptable_responses_with_none_and_with_one(num_responses, good, totals, plain, strict):
    truth = Truth("s", num_responses, good[0] if len(good) == 1 else None, good)
    assert credit(truth, totals, 5.5) == pytest.approx(plain)
    assert credit(truth, totals, 5.5, strict=True) == strict
