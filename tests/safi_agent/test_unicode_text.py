"""What is left of a text for who reads it."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safi_agent.unicode_text import letters, plain, visible
from tests.safi_agent.invisible_characters import CONTROLS, HIDDEN, IGNORABLE, OTHERS

ASSIGNED = st.characters(categories=["L", "N", "P", "S", "Z", "M"])


def test_the_tables_are_those_of_unicode() -> None:
    assert len(IGNORABLE) == 4174
    assert sum(not unicodedata.category(c).startswith("C") for c in IGNORABLE) == 267
    assert len(CONTROLS) == 62


def test_what_is_not_drawn_is_left_out_and_tabs_and_line_breaks_stay() -> None:
    for char in [*HIDDEN, *OTHERS, "\U00016fe4", "\U0001d159"]:
        assert visible(f"a{char}b{char}{char}") == plain(f"a{char}b{char}{char}") == "ab", hex(ord(char))
    assert visible("a\tb\r\nc \u2028d\u00a0e\u2800") == "a\tb\r\nc \u2028d\u00a0e\u2800"


@given(st.text(ASSIGNED))
def test_what_is_drawn_is_left_in(text: str) -> None:
    assert visible(text) == "".join(c for c in text if c not in HIDDEN and c not in "\U00016fe4\U0001d159")


@given(st.text(st.one_of(ASSIGNED, st.sampled_from(HIDDEN), st.sampled_from("e\u0301\u0327\uffa0\u3164\u0336\ufb01"))))
def test_plain_text_is_stable_and_has_nothing_hidden(text: str) -> None:
    once = plain(text)
    assert plain(once) == once == unicodedata.normalize("NFKC", once)
    assert not set(HIDDEN) & set(once)
    assert len(once) <= 18 * len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\uff47\uff55aran\ufb01", "guaranfi"),
        ("e\u200b\u0301", "\u00e9"),
        ("\uffa0a\u1160\u115fb", "ab"),
        ("g\u0332u\u0336a\u20ddr", "guar"),
        ("\u2260 \u00e9 \u0928\u0940", "\u2260 \u00e9 \u0928\u0940"),
        ("r\u0131sk R\u0130SK", "risk RISK"),
    ],
)
def test_plain_removes_invisible_and_replaces_compatible_characters(text: str, expected: str) -> None:
    assert plain(text) == expected


@pytest.mark.parametrize(
    "text", ["dr\u00e4ft", "\uff44\u0323r\u24d0\u02b3\u0301", "\U0001d41d\u0301\U0001d42b", "re\ufb02ec"]
)
def test_letters_are_base_letters(text: str) -> None:
    assert letters(text).isascii()


@pytest.mark.parametrize("unit", ["\u0315\u0300", "\uff9e\u0300", "\u200b", "\ufdfa"])
def test_piles_of_marks_and_long_expansions_take_linear_time(unit: str) -> None:
    text = "a" + unit * (20_000 if unit == "\ufdfa" else 100_000)  # NFKC alone takes 40 s for the first two
    start = time.process_time()
    plain(text), letters(text), visible(text)
    assert time.process_time() - start < 15
