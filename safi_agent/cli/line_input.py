"""Lines from a terminal, with line editing and history, or from a pipe; without control characters."""

import re
import sys
from collections.abc import Callable

PROMPT = "you: "
# What a key or a pasted text can send besides characters: CSI and OSC sequences, and other escapes of two characters.
_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -~])")
# Control characters but tabs and line breaks, and the surrogates that stand for bytes that are not text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def without_controls(text: str) -> str:
    r"""The text without terminal sequences and control characters; tabs and line breaks stay.

    >>> without_controls("wh\x1b[Dat\x00 is\r\nthis")
    'what is\nthis'
    """
    return _CONTROLS.sub("", _SEQUENCES.sub("", text))


def line_reader() -> Callable[[], str]:
    """A function that reads one line; it raises EOFError at the end of the input and KeyboardInterrupt at Ctrl-C.

    The history is kept in memory only: a file would keep prompts that "safi erase" removes from the store.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return lambda: without_controls(sys.stdin.readline() or _end()).strip()
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession(PROMPT)
    return lambda: without_controls(session.prompt()).strip()


def _end() -> str:
    raise EOFError
