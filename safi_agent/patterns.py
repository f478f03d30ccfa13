r"""Regular expressions of value sets: the syntax and meaning of Python's ``re``, searched with a timeout.

The timeout is that of the library ``regex``, which differs in a few points where patterns are translated: ``\b``,
``\w`` and ``\s`` (for ``regex`` combining marks and some symbols are part of a word), braces that repeat nothing (for
``regex`` approximate matching), ``[`` inside a set, and the letters i of Turkish in a pattern that ignores case.
"""

import re
import time
from collections.abc import Iterable
from functools import lru_cache

import regex

_WORD = r"\p{L}\p{N}_"
_NOT_WORD = r"\p{M}\p{S}\p{Z}\p{C}\p{Pd}\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Po}\u203f\u2040\u2054\ufe33\ufe34\ufe4d-\ufe4f\uff3f"
_SPACE = r"\s\x1c-\x1f"
_ESCAPES = {
    r"\w": f"[{_WORD}]",
    r"\W": f"[^{_WORD}]",
    r"\s": f"[{_SPACE}]",
    r"\S": f"[^{_SPACE}]",
    r"\b": f"(?:(?<=[{_WORD}])(?![{_WORD}])|(?<![{_WORD}])(?=[{_WORD}]))",
    r"\B": f"(?:(?<=[{_WORD}])(?=[{_WORD}])|(?<![{_WORD}])(?![{_WORD}]))",
}
_IN_SETS = {r"\w": _WORD, r"\W": _NOT_WORD, r"\s": _SPACE, "[": r"\["}
_PARTS = (
    r"(?P<kept>\(\?\#[^)]*\)|\(\?P[<=][^>)]*|\\N\{[^}]*\}|\{(?:\d+(?:,\d*)?|,\d*)\})"
    r"|(?P<escape>\\.)"
    r"|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])"
    r"|(?P<brace>\{)"
    r"|(?P<dotless>[\u0131\u0130])"
)
_TOKEN = re.compile(_PARTS, re.DOTALL)
_TOKEN_OR_COMMENT = re.compile(rf"{_PARTS}|\#[^\n]*", re.DOTALL)
_IN_SET = re.compile(r"\\N\{[^}]*\}|\\.|\[", re.DOTALL)
WRONG = (re.error, regex.error, OverflowError, RecursionError, MemoryError)


@lru_cache(maxsize=10_000)
def compiled(pattern: str) -> regex.Pattern[str]:
    r"""The pattern, compiled once.

    Raises:
        ValueError: it is not a valid regular expression for ``re``, or not supported by ``regex``.

    >>> bool(compiled(r"(?i)\bguaranteed\b").search("GUARANTEED!"))
    True
    """
    try:
        flags = re.compile(pattern).flags
        return regex.compile(_translated(pattern, flags), regex.VERSION0)
    except WRONG as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _translated(pattern: str, flags: int) -> str:
    def of(token: re.Match[str]) -> str:
        text = token[0]
        if token.lastgroup == "escape" and not flags & re.ASCII:
            return _ESCAPES.get(text, text)
        if token.lastgroup == "set":
            return f"[{_IN_SET.sub(lambda part: _in_set(part[0], flags), text[1:-1])}]"
        if token.lastgroup == "brace":
            return r"\{"
        if token.lastgroup == "dotless" and flags & re.IGNORECASE and not flags & re.ASCII:
            return "[iI\u0131\u0130]"
        return text

    return (_TOKEN_OR_COMMENT if flags & re.VERBOSE else _TOKEN).sub(of, pattern)


def _in_set(part: str, flags: int) -> str:
    return part if part != "[" and flags & re.ASCII else _IN_SETS.get(part, part)


def search(pattern: str, texts: Iterable[str], until: float) -> bool:
    """Whether the pattern is found in one of the texts.

    Raises:
        TimeoutError: the search did not end by ``until``, a time of ``time.thread_time()`` in seconds, or took more
            memory than ``regex`` allows.
    """
    searched = compiled(pattern)
    for text in texts:
        if (left := until - time.thread_time()) <= 0:
            raise TimeoutError
        try:
            if searched.search(text, timeout=left):
                return True
        except MemoryError:
            raise TimeoutError from None
    return False
