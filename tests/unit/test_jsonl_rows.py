"""Reading of input rows: no line stops the others, every line gives one row, and keys tell content and occurrence."""

import io
import json
import random

import pytest
from hostile_rows import DEEP, GOOD, HOSTILE, line

from spct.cli import jsonl
from spct.cli.jsonl import parse_request, read_rows, recover_id
from spct.cli.rows import error_row
from spct.errors import InputError


def rows_of(data):
    return list(read_rows(io.BytesIO(data)))


def test_reads_every_field():
    full = {**GOOD, "reference": "4", "principles": ["be right"], "samples": 8, "seed": 3}
    (row,) = rows_of(json.dumps(full).encode())
    request = row.request
    assert (row.line, row.id, row.error) == (1, "a", None)
    assert (request.query, request.responses, request.reference) == ("2+2?", ("4", "5"), "4")
    assert (request.principles, request.samples, request.seed, request.id) == (("be right",), 8, 3, "a")


def test_turns_bom_crlf_blank_lines_and_missing_last_newline():
    turns = json.dumps({"query": [{"role": "user", "content": "hi"}], "responses": ["x"]}).encode()
    rows = rows_of(b"\xef\xbb\xbf" + line() + b"\r\n\r\n   \n\t\n" + turns + b"\r\n" + line(id=7))
    assert [(r.line, r.id, r.error) for r in rows] == [(1, "a", None), (5, None, None), (6, 7, None)]
    assert rows[1].request.query[0].content == "hi"


def test_an_empty_input_has_no_rows():
    assert rows_of(b"") == rows_of(b"\n \r\n") == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_line_becomes_one_row_with_an_error(name):
    data, message = HOSTILE[name]
    before, bad, after = rows_of(line(id=1) + b"\n" + data + b"\n" + line(id=2))
    assert (before.id, after.id, after.line) == (1, 2, 3)
    assert bad.request is None and bad.line == 2
    with pytest.raises(InputError, match=message):
        raise bad.error


def test_hostile_lines_together_give_one_row_each():
    rows = rows_of(b"\n".join(data for data, _ in HOSTILE.values()))
    assert len(rows) == len(HOSTILE) and all(row.error is not None for row in rows)
    assert len({row.key for row in rows}) == len(HOSTILE)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"id": "x", "query": 1e400}', "x"),
        (b'{"query": NaN, "id": 12}', 12),
        (b'{"query": ' + b"9" * 9000 + b', "id": -3}', -3),
        (b'{"id": "x", "query": "torn', "x"),
        (b'{"id": "x", "query": ' + DEEP + b"}", "x"),
        (b'{"query": ' + DEEP + b', "id": "x"}', None),
        (b'{"query": "a", "id": "x" "responses"', "x"),
        (b'  {"id": "\xff", "query": "a"}', "\ufffd"),
        ('{"query": "\udcff", "id": "é"}'.encode("utf-8", "surrogateescape"), "é"),
        (b'{"id": "x", "id": "y"}', None),
        (b'{"id": "x", "a": 1, "a": 2}', "x"),
        (b'{"id": 1.5}', None),
        (b'{"id": true}', None),
        (b'{"id": null}', None),
        (b'{"id": ["x"]}', None),
        (b'{"id": "\\ud800"}', None),
        (b'{"id": 99999999999999999999}', None),
        (b'[{"id": "x"}]', None),
        (b'{"a": {"id": "x"}}', None),
        (b"{'id': 'x'}", None),
        (b"{", None),
        (b'{"id"', None),
        (b'{"id": ', None),
        (b"", None),
        (b"{1: 2}", None),
    ],
)
def test_the_id_is_read_where_it_can_be(data, expected):
    assert recover_id(data) == expected


def test_keys_tell_equal_rows_apart_and_ignore_spelling():
    spaced = b'{ "responses": ["4", "5"], "query":"2+2?", "reference": null,   "id": "a" }'
    rows = rows_of(line() + b"\n" + line() + b"\n" + spaced + b"\n" + line(id="b") + b"\n" + line(query="2+3?"))
    keys = [row.key for row in rows]
    assert len(set(keys)) == 5
    assert [key.split("-")[0] == keys[0].split("-")[0] for key in keys] == [True, True, True, False, False]
    assert [key.split("-")[1] for key in keys] == ["0", "1", "2", "0", "0"]


@pytest.mark.parametrize("field", ["query", "responses", "reference", "principles", "id", "samples", "seed"])
def test_every_field_is_part_of_the_key(field):
    other = {"query": "q", "responses": ["4", "6"], "reference": "4", "principles": "4", "id": "b", "samples": 2, "seed": 2}[field]
    a, b = rows_of(line() + b"\n" + line(**{field: other}))
    assert a.key.split("-")[0] != b.key.split("-")[0]


def test_texts_do_not_run_into_each_other_in_the_key():
    a, b = rows_of(line(responses=["ab", "c"]) + b"\n" + line(responses=["a", "bc"]))
    assert a.key.split("-")[0] != b.key.split("-")[0]


def test_keys_of_bad_rows_depend_on_their_bytes_alone():
    one, two = rows_of(b"oops\n" + line() + b"\noops \n"), rows_of(line() + b"\noops\r\n")
    assert one[0].key == two[1].key and one[2].key == one[0].key.replace("-0", "-1")


def test_a_line_past_the_limit_is_refused_and_skipped(monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_ROW_BYTES", 200)
    exact = line(query="")
    exact = line(query="x" * (200 - len(exact)))
    rows = rows_of(exact + b"\n" + line(query="y" * 5_000_000) + b"\n" + line(id=3) + b"\n" + line(query="z" * 300))
    assert [row.error is None for row in rows] == [True, False, True, False]
    assert [row.line for row in rows] == [1, 2, 3, 4] and rows[1].key != rows[3].key
    assert "longer than 200 bytes" in str(rows[1].error)


def test_input_is_read_lazily():
    class Endless:
        count = 0

        def readline(self, limit):
            self.count += 1
            return line() + b"\n"

    stream = Endless()
    rows = read_rows(stream)
    for expected in range(1, 11):
        assert next(rows).error is None
        assert stream.count == expected


def test_numbers_at_the_edge_are_kept():
    request = parse_request(line(seed=2**63 - 1, id=2**64 - 1))
    assert (request.seed, request.id) == (2**63 - 1, 2**64 - 1)


def test_damaged_lines_give_one_row_each_and_nothing_but_input_errors():
    rng = random.Random(20)
    good = [line(), line(query="é漢字🙂\\ \n"), line(responses=["a" * 50, "b"], reference="r", seed=5)]
    bad = [data for data, _ in HOSTILE.values() if 0 < len(data) < 2000]
    lines = []
    for _ in range(3000):
        data = bytearray(rng.choice(rng.choice([good, bad])))
        for _ in range(rng.randrange(1, 3)):
            at = rng.randrange(len(data) + 1)
            kind = rng.randrange(4)
            if kind == 0 and data:
                data[min(at, len(data) - 1)] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.randrange(1, 9)]
            elif kind == 2:
                data[at:at] = rng.choice([b'"', b"\\", b"{", b"[", b"\\ud83d", b"\xf0\x9f", b"\0", b"1e999", b"NaN", b'"id":'])
            else:
                data[at:at] = data[at // 2 : at]
        lines.append(bytes(data).replace(b"\n", b" ") or b"x")
    lines = [data for data in lines if data.strip()]
    rows = rows_of(b"\n".join(lines))
    assert len(rows) == len(lines) and len({row.key for row in rows}) == len(rows)
    refused = [row for row in rows if row.error is not None]
    assert len(refused) > 1000 and len(rows) - len(refused) > 100
    for row in refused:
        told = json.loads(error_row(row, row.error, {"weights": "a"}).decode("utf-8"))
        assert told["id"] == row.id and told["error"]["type"] == "InputError" and told["error"]["message"]


def test_a_message_is_short_however_long_the_row():
    (row,) = rows_of(b'{"query": [{"role": "' + b"x" * 100_000 + b'", "content": "a"}], "responses": ["a"]}')
    assert len(json.loads(error_row(row, row.error, {}))["error"]["message"]) <= 1001
