"""Unicode normalization in linear time: without invisible characters, in plain letters, in base letters."""

import re
import unicodedata

import regex

LONGEST_NAME = 200
# Every control character but tab and line breaks, every other code point without a character, what Unicode calls
# default ignorable, and two letters that are drawn as nothing although Unicode does not call them so.
_HIDDEN = regex.compile(r"[[\p{C}\p{Default_Ignorable_Code_Point}\U00016fe4\U0001d159]--[\t\n\r]]+", regex.VERSION1)
# The same in ASCII, and what is not: ``re`` is several times as fast as ``regex`` is with properties.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]+")
_FOREIGN = re.compile(r"[^\x00-\x7f]+")
_BLANKS = regex.compile("[\u2800\U00013441\U00013442]")  # of Braille and hieroglyphs, which do not count as spaces
_MARKS = regex.compile(r"\p{M}+")
# Lines over, under and through letters, and frames around them: a word is read through them.
_DRAWN = regex.compile(
    r"[\u0305\u0332-\u0338\u033f\u0347\u035f\u0489\u20d2\u20d3\u20d8-\u20da\u20dd-\u20e0\u20e2-\u20ef]+"
)
# Sorting the marks of one letter, which normalisation does, takes time quadratic in their number.
_PILE = regex.compile(r"([\p{M}\uff9e\uff9f]{30})[\p{M}\uff9e\uff9f]++")
_DOTLESS = str.maketrans("\u0131\u0130", "iI")  # case folding that ``re`` supports and ``regex`` does not


def visible(text: str) -> str:
    r"""The text without invisible characters; tabs and line breaks stay.

    >>> visible("guar\u034fan\u200bteed\x00\n")
    'guaranteed\n'
    """
    shown = _CONTROLS.sub("", text)
    return shown if shown.isascii() else _FOREIGN.sub(lambda match: _HIDDEN.sub("", match[0]), shown)


def plain(text: str) -> str:
    r"""The visible text in plain letters: NFKC, without lines through and frames around letters.

    At most 18 times as long as the text, which is the most that NFKC makes of one character. Of the combining marks of
    one letter the first 30 count.

    >>> plain("\uff47uaran\u200bteed")
    'guaranteed'
    """
    shown = visible(text)
    if shown.isascii():
        return shown
    before = ""
    while shown != before:  # what NFKC makes can be invisible in its turn, and letters that then meet can be composed
        before = shown
        shown = visible(_DRAWN.sub("", unicodedata.normalize("NFKC", _PILE.sub(r"\1", shown))))
    return shown.translate(_DOTLESS)


def letters(text: str) -> str:
    r"""The text in base letters: NFKD without marks and accents.

    >>> letters("\uff44r\u00e4\u0332ft")
    'draft'
    """
    if text.isascii():
        return text
    return _MARKS.sub("", unicodedata.normalize("NFKD", _MARKS.sub("", text))).translate(_DOTLESS)


def visible_characters(name: str) -> str:
    r"""The visible characters of a name.

    >>> visible_characters("lib\u2800rary\u200b")
    'library'
    """
    return _BLANKS.sub("", visible(name))


def is_name(text: str) -> bool:
    r"""Whether a text can name a memory, a turn or a value set: 1 to 200 printable characters, none of them invisible.

    >>> is_name("library"), is_name("library\u3164")
    (True, False)
    """
    return 1 <= len(text) <= LONGEST_NAME and text.isprintable() and visible_characters(text) == text


def many(count: int, what: str) -> str:
    """A count with its noun.

    >>> many(1, "turn"), many(1000, "turn")
    ('1 turn', '1,000 turns')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"
