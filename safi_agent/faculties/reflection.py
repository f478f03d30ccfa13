"""Split a draft into the answer and the reflection after it. Nothing else is removed from the answer."""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from safi_agent.parsing import parse_text

# Of these, only those that begin a line count. <Reflection> may be an element of the code that the user asked for.
_LINE = re.compile(r"<(?:reflection|REFLECTION)>")
_RULE = re.compile(r"(?<!-)--++[ \t]*+reflection[ \t]*+--++[ \t]*+(?=[\n\r]|\Z)", re.IGNORECASE)
_BLOB = re.compile(r'(?:```(?:json)?\s*+)?(?P<object>\{\s*+"reflection"\s*+:\s*+")')
_CODE = re.compile(r"```")
_INDENT = re.compile(r"(?:[\n\r]|\A) {0,3}\Z")

_OPENING = re.compile(r"<reflection>", re.IGNORECASE)
_CLOSING = re.compile(r"</reflection>\s*+\Z", re.IGNORECASE)
_HALF = re.compile(r'\s*+(?:```(?:json)?\s*+)?\{\s*+"(?:answer|reflection)"\s*+:\s*+"')
_TAG = re.compile(r"</?reflection>", re.IGNORECASE)
_DECODER = json.JSONDecoder(strict=False)


class Split(NamedTuple):
    """A draft's two parts."""

    answer: str
    reflection: str


def split(text: str, *, broken_off: bool = False) -> Split:
    r"""Answer and reflection of a draft.

    A draft that is one JSON object with exactly the keys "answer" and "reflection" is split into their texts.
    Otherwise the reflection is the first of these that exists, up to the end of the draft:

    1. the last ``<reflection>`` that begins a line outside of code, closed or not;
    2. the last ``<reflection>`` where ``</reflection>`` ends the draft, or where the model was ``broken_off``;
    3. what follows the last line ``--- reflection ---`` outside of code;
    4. a last object ``{"reflection": "…"}`` that begins a line, with no other key, closed or not.

    If none exists, the whole draft is the answer.

    >>> split("Yes.\n<reflection>Honest.</reflection>")
    Split(answer='Yes.', reflection='Honest.')
    >>> split("Write it in <reflection> tags.")
    Split(answer='Write it in <reflection> tags.', reflection='')
    """
    whole = parse_text(text)
    if whole is not None and set(whole) == {"answer", "reflection"} and isinstance(whole["answer"], str):
        reflection = whole["reflection"] or ""
        return Split(whole["answer"].strip(), reflection if isinstance(reflection, str) else json.dumps(reflection))
    if whole is None and _is_half(text):
        return Split("", text.strip())
    start = _start(text, broken_off)
    if start is None:
        return Split(text.strip(), "")
    return Split(text[:start].strip(), _RULE.sub("", _TAG.sub("", text[start:])).strip())


def _start(text: str, broken_off: bool) -> int | None:
    """Where the reflection begins."""
    tag = _last_outside_code(_LINE, text)
    if tag is None and (broken_off or _CLOSING.search(text)):
        tag = max((match.start() for match in _OPENING.finditer(text)), default=None)
    if tag is None:
        tag = _last_outside_code(_RULE, text)
    return _reflection_object_start(text) if tag is None else tag


def _last_outside_code(pattern: re.Pattern[str], text: str) -> int | None:
    """The start of the last match outside of fenced code blocks; None if there is none."""
    fences, last = _beginning_a_line(_CODE, text), None
    fence, inside = next(fences, None), False
    for match in _beginning_a_line(pattern, text):
        while fence is not None and fence.start() < match.start():
            fence, inside = next(fences, None), not inside
        last = last if inside else match.start()
    return last


def _beginning_a_line(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """The matches with nothing before them on their line but up to three spaces, as in Markdown."""
    for match in pattern.finditer(text):
        if _INDENT.search(text[max(0, match.start() - 4) : match.start()]):
            yield match


def _reflection_object_start(text: str) -> int | None:
    blobs = list(_beginning_a_line(_BLOB, text))
    if not blobs:
        return None
    last = blobs[-1]
    try:
        content, end = _DECODER.raw_decode(text, last.start("object"))
    except (ValueError, RecursionError):
        return last.start()  # cut off
    alone = text[end:].strip().strip("`") == ""
    return last.start() if alone and set(content) == {"reflection"} else None


def _is_half(text: str) -> bool:
    """Whether the draft begins with the structured form, but it is truncated, malformed or followed by text.

    It is then unclear which part of it is the answer.
    """
    if _HALF.match(text) is None or re.search(r'"reflection"\s*+:', text) is None:
        return False
    try:
        content, _ = _DECODER.raw_decode(text, text.index("{"))
    except (ValueError, RecursionError):
        return True
    return set(content) == {"answer", "reflection"}
