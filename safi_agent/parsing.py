"""Reading JSON that a model wrote. Each rung forgives more; what stays unclear is None."""

import json
import re
from typing import Any

_FENCED = re.compile(r"```(?:json)?\s*\n?(.*?)```", re.DOTALL | re.IGNORECASE)
_TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")
_STRAY_BACKSLASH = re.compile(r'\\(?!["\\/bfnrtu])')


class _TwiceError(ValueError):
    pass


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise _TwiceError
    return dict(pairs)


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_no_key_twice)


def parse_json(text: str) -> Any | None:
    r"""The one JSON object or list in the text; None where there is none, or more than one, or a key stands twice.

    >>> parse_json('Here: ```json\n{"a": [1, 2,],}\n```')
    {'a': [1, 2]}
    >>> parse_json('{"a": 1} or {"a": 2}') is None
    True
    """
    fenced = _FENCED.findall(text)
    for candidate in (text, *(fenced if len(fenced) == 1 else ())):
        for repaired in (candidate, _repair(candidate)):
            found = _values(repaired)
            if len(found) == 1:
                return found[0]
    return None


def _repair(text: str) -> str:
    return _TRAILING_COMMA.sub("", _STRAY_BACKSLASH.sub(r"\\\\", text))


def _values(text: str) -> list[Any]:
    """Every outermost object or list, from left to right; None stands for one that is broken."""
    found, at = [], 0
    while (start := min((i for i in (text.find("{", at), text.find("[", at)) if i >= 0), default=-1)) >= 0:
        try:
            value, at = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            return [None, None]
        found.append(value)
    return found
