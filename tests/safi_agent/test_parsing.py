"""JSON as models write it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safi_agent.parsing import parse_json

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
documents = st.lists(plain) | st.dictionaries(st.text(), plain)


@given(documents)
def test_what_json_wrote_is_read_as_json_reads_it(document: Any) -> None:
    assert parse_json(json.dumps(document)) == document
    assert parse_json(json.dumps(document, indent=1, ensure_ascii=False)) == document


@given(
    documents,
    st.text(st.characters(exclude_characters="{}[]`\\,")),
    st.text(st.characters(exclude_characters="{}[]`\\,")),
)
def test_words_around_it_change_nothing(document: Any, before: str, after: str) -> None:
    assert parse_json(f"{before}{json.dumps(document)}{after}") == document


@given(st.text())
def test_noise_is_never_an_error(text: str) -> None:
    parse_json(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('```\n{"a": 1}```', {"a": 1}),
        ('Sure {x}! ```json\n{"a": 1}\n```', {"a": 1}),
        ('{"a": 1,}', {"a": 1}),
        ("[1, 2, ]", [1, 2]),
        ('{"a": "line\nbreak"}', {"a": "line\nbreak"}),
        (r'{"a": "\(x\)"}', {"a": r"\(x\)"}),
    ],
)
def test_usual_faults_are_forgiven(text: str, value: Any) -> None:
    assert parse_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "{",
        '{"a": 1',
        '{"a": 1} {"a": 2}',
        "[1] [2]",
        '{"a": 1, "a": 2}',
        '{"a": [{"b": 1, "b": 2}]}',
        "[" * 9999,
    ],
)
def test_what_is_unclear_is_none(text: str) -> None:
    assert parse_json(text) is None
