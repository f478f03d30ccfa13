"""Text without characters that cannot be seen, so that two texts that look the same are the same."""

import regex

LONGEST_NAME = 200
# Characters without a glyph that Unicode does not list as ignorable: blanks of Braille, music, Khitan and hieroglyphs.
_BLANKS = "\u2800\U0001d159\U00016fe4\U00013441\U00013442"
_INVISIBLE = regex.compile(rf"(?V1)[\p{{Default_Ignorable_Code_Point}}\p{{Cc}}\p{{Cf}}\p{{Cs}}{_BLANKS}--\t\n\r]")


def visible(text: str) -> str:
    r"""The text without default-ignorable code points, format characters, half surrogates, blanks and controls.

    Tab, line feed and carriage return stay.

    >>> visible("guar\u034fanteed\x00")
    'guaranteed'
    """
    return _INVISIBLE.sub("", text)


def is_name(text: str) -> bool:
    """Whether a text can name a memory, a turn or a value set: 1 to 200 printable characters, none of them invisible.

    >>> is_name("library"), is_name("library\u3164")
    (True, False)
    """
    return 1 <= len(text) <= LONGEST_NAME and text.isprintable() and visible(text) == text
