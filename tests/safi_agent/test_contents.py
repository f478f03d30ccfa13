"""The contents of a record and their erasure: what is removed, what is left, and that the seal stays the same."""

import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safi_agent.contents import (
    IN_BODY,
    IN_RECORD,
    erase_body,
    erase_record,
    erased_turns,
    had_contents,
    has_contents,
    is_erased,
    new_salt,
)
from safi_agent.log.hash_chain import beginning, erase_line, genuine, read_seal, record_of, seal, sealed_form

KEY = b"k" * 32
TEXT = st.one_of(st.none(), st.text(max_size=20))
ROWS = st.lists(
    st.fixed_dictionaries(
        {"value": st.text(max_size=9), "score": st.floats(-1, 1), "confidence": st.floats(0, 1), "reason": st.text()}
    ),
    max_size=4,
)
RECORDS = st.fixed_dictionaries(
    {
        "timestamp": st.just("2026-03-01T08:00:00Z"),
        "turnId": st.text(max_size=9),
        **{name: TEXT for name in IN_RECORD if name != "metadata"},
        "conscienceLedger": ROWS,
        "mu": st.dictionaries(st.sampled_from(["Truth", "userPrompt", "salt", "reason"]), st.floats(-1, 1)),
    },
    optional={"metadata": st.dictionaries(st.text(), st.one_of(st.text(), st.lists(st.text())))},
)


def salted(record: dict[str, Any]) -> str:
    metadata = {"metadata": record["metadata"]} if "metadata" in record else {}
    return json.dumps(
        {name: item for name, item in record.items() if name != "metadata"} | metadata | {"salt": new_salt()}
    )


def plain_erased(record: dict[str, Any], text: str) -> dict[str, Any]:
    """What the page on the log says is left of a record: the slow twin."""
    left = {name: item for name, item in record.items() if name != "salt"}
    for name in ("userPrompt", "intellectDraft", "intellectReflection", "finalOutput", "willReflection"):
        left[name] = None if left[name] is None else ""
    if "metadata" in left:
        left["metadata"] = {}
    left["conscienceLedger"] = [{**row, "reason": ""} for row in left["conscienceLedger"]]
    return {**left, "erased": hashlib.sha256(text.encode()).hexdigest()}


@given(RECORDS)
def test_an_erased_record_is_what_the_slow_twin_leaves_and_is_not_longer(record: dict[str, Any]) -> None:
    text = salted(record)
    erased = erase_record(text)
    assert json.loads(erased) == plain_erased(record, text)
    assert list(json.loads(erased)) == [*list(json.loads(text))[:-1], "erased"]
    assert len(erased) <= len(text)
    assert (has_contents(text), is_erased(text), had_contents(text)) == (True, False, False)
    assert (has_contents(erased), is_erased(erased), had_contents(erased)) == (False, True, True)


@given(RECORDS)
def test_an_erased_line_has_the_seal_the_length_and_the_sealed_form_of_before(record: dict[str, Any]) -> None:
    line, _ = seal(salted(record), beginning(), KEY)
    erased = erase_line(line)
    assert erase_line(erased) == erased
    assert (len(erased), read_seal(erased)) == (len(line), read_seal(line))
    assert sealed_form(erased) == sealed_form(line)
    assert json.loads(record_of(erased)) == json.loads(erase_record(record_of(line)))
    found = read_seal(line)
    assert found
    assert genuine(line, found, KEY)
    assert genuine(erased, found, KEY)


@pytest.mark.slow
@given(RECORDS, st.data())
def test_any_other_byte_in_a_line_is_another_sealed_form(record: dict[str, Any], data: st.DataObject) -> None:
    line, _ = seal(salted(record), beginning(), KEY)
    line = data.draw(st.sampled_from([line, sealed_form(line)]))
    at = data.draw(st.integers(0, len(line) - 1))
    changed = line[:at] + bytes([data.draw(st.integers(0, 255))]) + line[at + 1 :]
    assert (sealed_form(changed) == sealed_form(line)) == (changed == line)


@given(RECORDS, st.integers(0, 9), st.data())
def test_spaces_count_except_in_place_of_contents(record: dict[str, Any], spaces: int, data: st.DataObject) -> None:
    line, _ = seal(salted(record), beginning(), KEY)
    place = line.rindex(b', "line": ')
    changed = line[:place] + b" " * spaces + line[place:]
    assert (sealed_form(changed) == sealed_form(line)) == (spaces == 0)


def test_the_hash_in_an_erased_line_depends_on_the_salt() -> None:
    record = {"turnId": "t", "userPrompt": "yes"}
    assert json.loads(erase_record(salted(record)))["erased"] != json.loads(erase_record(salted(record)))["erased"]
    assert len(bytes.fromhex(new_salt())) == 33
    assert new_salt() != new_salt()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"a": "b"}', '{"salt": "00"}'])
def test_what_has_no_salt_at_its_end_is_not_erased(text: str) -> None:
    assert not is_erased(text)
    with pytest.raises(ValueError, match="expected a record that ends with a salt"):
        erase_record(text)


def test_texts_that_imitate_names_of_contents_are_erased_whole() -> None:
    imitated = '", "reason": "x", "metadata": {"a": 1}, "salt": "00"}\\" \\", "userPrompt": "'
    record = {name: imitated for name in IN_RECORD if name != "metadata"} | {"metadata": {imitated: [imitated]}}
    row = {"value": imitated, "score": 1.0, "confidence": 1.0, "reason": imitated}
    text = salted({"turnId": imitated, "conscienceLedger": [row, row], **record})
    erased = json.loads(erase_record(text))
    assert erased == plain_erased(json.loads(text), text)
    assert (erased["turnId"], erased["conscienceLedger"][1]["value"]) == (imitated, imitated)


def test_a_line_without_contents_is_sealed_as_it_is() -> None:
    for text in ('{"a": 1}', '{"a": 1, "erased": null}'):
        line, _ = seal(text, beginning(), KEY)
        found = read_seal(line)
        assert found
        assert (sealed_form(line), erase_line(line), genuine(line, found, KEY)) == (line, line, True)
    assert sealed_form(b"\xff\n") == b"\xff\n"


def test_the_record_of_erasures_is_recognized() -> None:
    record = {"timestamp": "2026-03-01T08:00:00Z", "erasedTurns": ["a", "b", 1], "turnId": "c"}
    assert erased_turns(json.dumps(record)) == ["a", "b"]
    for other in ({"turnId": "c", "metadata": record}, {**record, "erasedTurns": "a"}, record | {"erasedTurns": None}):
        assert erased_turns(json.dumps(other)) == []
    assert erased_turns('{"timestamp": "", "erasedTurns": [') == []


def test_a_body_keeps_nothing_that_was_written_by_people_or_models() -> None:
    body = {name: "words" for name in IN_BODY} | {"metadata": {"a": "words"}, "salt": "00", "id": "t", "models": {}}
    erased = erase_body(body)
    assert not re.search("words|salt", json.dumps(erased))
    assert (erased["id"], erased["models"], erased["erased"]) == ("t", {}, True)
    assert erase_body(erased) == erased
