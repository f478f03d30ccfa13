"""Redaction: a function of the operator that is applied to the contents of a turn before they are stored."""

from collections.abc import Callable, Mapping
from typing import Any

from safi_agent.contents import IN_BODY
from safi_agent.errors import RedactionError

Redact = Callable[[str], str]  #: a function of a text that returns the text to store
CONTENTS = tuple(name for name in IN_BODY if name != "asked")  # which is a hash


def redact_body(body: Mapping[str, Any], redact: Redact) -> dict[str, Any]:
    """The body of a turn with redacted contents.

    Raises:
        RedactionError: the function failed, or returned something else than a text.
    """
    return {**body, **{name: redacted(body[name], redact) for name in CONTENTS if name in body}}


def redacted(item: Any, redact: Redact) -> Any:
    """A copy of JSON in which each text is redacted; the keys of objects are texts too.

    Raises:
        RedactionError: the function failed, or returned something else than a text.
    """
    if isinstance(item, str):
        return _call(redact, item)
    if isinstance(item, Mapping):
        return {redacted(name, redact): redacted(value, redact) for name, value in item.items()}
    if isinstance(item, list | tuple):
        return [redacted(part, redact) for part in item]
    return item


def _call(redact: Redact, text: str) -> str:
    result: object = None
    try:
        result = redact(text)
        cause = type(result).__name__
    except Exception as error:
        cause = type(error).__name__
    if isinstance(result, str):
        return result
    raise RedactionError(cause)  # outside of the handler: its context would refer to the text
