"""Input lines that are no requests, each with what its error must say."""

import json

GOOD = {"id": "a", "query": "2+2?", "responses": ["4", "5"]}


def line(**fields):
    return json.dumps({**GOOD, **fields}).encode()


DEEP = b"[" * 10_000 + b"]" * 10_000
HOSTILE = {
    "not json": (b"hello", "malformed JSON"),
    "empty braces": (b"{}", "query"),
    "array": (b"[1]", "JSON object"),
    "number": (b"1", "JSON object"),
    "null": (b"null", "JSON object"),
    "string": (b'"x"', "JSON object"),
    "truncated": (line()[:-3], "malformed JSON"),
    "trailing": (line() + b" {}", "malformed JSON"),
    "single quotes": (b"{'query': 'a', 'responses': ['b']}", "malformed JSON"),
    "utf8": (line().replace(b"2+2", b"\xff\xfe"), "UTF-8"),
    "utf8 cut": (line(query="é").replace(b"\\u00e9", b"\xc3"), "UTF-8"),
    "utf16": (line().decode().encode("utf-16-le"), "JSON"),
    "nul": (b"\x00" * 40, "malformed JSON"),
    "raw control": (line().replace(b"2+2", b"2\x01\x00"), "malformed JSON"),
    "deep": (DEEP, "nested"),
    "deep field": (b'{"query": ' + DEEP + b', "responses": ["a"]}', "nested"),
    "deep objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested|unknown"),
    "nan": (b'{"query": "a", "responses": ["b"], "seed": NaN}', "NaN"),
    "infinity": (b'{"query": "a", "responses": ["b"], "seed": -Infinity}', "Infinity"),
    "1e400": (b'{"query": "a", "responses": ["b"], "seed": 1e400}', "out of range"),
    "huge int": (b'{"query": "a", "responses": ["b"], "seed": ' + b"9" * 100_000 + b"}", "100000 digits"),
    "2**64": (line(seed=2**64), "seed"),
    "negative seed": (line(seed=-1), "seed"),
    "float samples": (line(samples=2.0), "samples"),
    "no samples": (line(samples=0), "samples"),
    "negative samples": (line(samples=-5), "samples"),
    "bool samples": (line(samples=True), "samples"),
    "duplicate key": (b'{"query": "a", "responses": ["b"], "query": "c"}', 'duplicate key "query"'),
    "duplicate in turn": (b'{"query": [{"role": "user", "role": "user", "content": "a"}], "responses": ["b"]}', 'duplicate key "role"'),
    "unknown field": (line(answer="x"), 'unknown field "answer"'),
    "escape in field name": (line(**{"\x1b[31m": 1}), "unknown field"),
    "missing query": (b'{"responses": ["a"]}', "query: the field is missing"),
    "missing responses": (b'{"query": "a"}', "responses: the field is missing"),
    "null query": (line(query=None), "query"),
    "number query": (line(query=3), "query"),
    "object query": (line(query={"role": "user", "content": "a"}), "query: expected a string or a list"),
    "empty turns": (line(query=[]), "query"),
    "bad role": (line(query=[{"role": "root", "content": "a"}]), "role"),
    "list role": (line(query=[{"role": [[]], "content": "a"}]), "role"),
    "turn without content": (line(query=[{"role": "user"}]), "content"),
    "turn with more": (line(query=[{"role": "user", "content": "a", "name": "b"}]), "name"),
    "turn is text": (line(query=["a"]), "query"),
    "no responses": (line(responses=[]), "at least one"),
    "string responses": (line(responses="abc"), "responses"),
    "object responses": (line(responses={"a": "b"}), "responses"),
    "null response": (line(responses=["a", None]), r"responses\[1\]"),
    "nested response": (line(responses=[["a"]]), r"responses\[0\]"),
    "lone surrogate": (b'{"query": "\\ud800", "responses": ["b"]}', "surrogate"),
    "surrogate field": (b'{"\\udfff": 1, "query": "a", "responses": ["b"]}', "unknown field"),
    "number reference": (line(reference=1), "reference"),
    "object principles": (line(principles={"a": 1}), "principles"),
    "number principles": (line(principles=[1]), r"principles\[0\]"),
    "float id": (line(id=1.5), "id"),
    "bool id": (line(id=True), "id"),
    "list id": (line(id=["a"]), "id"),
    "huge id": (line(id=2**64), "id"),
    "surrogate id": (b'{"id": "\\ud800", "query": "a", "responses": ["b"]}', "id"),
}
