"""Recognize provider errors that refuse a feature: structured output, or a temperature."""

import re
from typing import Any, Literal

Feature = Literal["schema", "temperature"]
FEATURES: tuple[Feature, ...] = ("schema", "temperature")
_MOST = 20_000  # characters of an error that are read
_STATUS = frozenset({400, 404, 405, 415, 422, 500, 501})
_NAMES: dict[Feature, re.Pattern[str]] = {
    "schema": re.compile(
        r"response[_ ]?(?:format|schema|json|mime)|json[_ ]?(?:schema|mode|object)|structured|schema\b|guided|grammar|"
        r"\btools?\b|tool[_ ]?(?:choice|config|use)|function[_ ]?(?:call|declaration)|output[_ ](?:format|config)"
    ),
    "temperature": re.compile(r"temperature"),
}
_REFUSED = re.compile(
    r"support|invalid|unknown|unrecogni[sz]ed|unexpected|unavailable|not (?:available|permitted|allowed|implemented)|"
    r"may not|cannot|can't|enabled|requires?\b"
)
# Errors that mention tools or schemas but are not caused by them.
_OTHER = re.compile(
    r"context[_ ]?(?:length|window)|maximum context|too many tokens|reduce the length|too long|"
    r"content[_ ](?:filter|management|policy)|api[_ ]?key|unauthori[sz]ed|permission|quota|billing|rate[_ ]?limit|"
    r"model_not_found|failed_generation|did not match"
)


def unsupported_features(error: Exception) -> frozenset[Feature]:
    """The features without which a call may be retried.

    Providers use different classes and status codes for this, so the text of the error decides: it has to name the
    feature and state that it is not supported. Errors with other causes (context length, content filter, wrong key,
    rate limit) are excluded, regardless of class and status.
    """
    if isinstance(error, NotImplementedError):
        return frozenset({"schema"})
    status = _status(error)
    text = _text(error)
    if (status is not None and status not in _STATUS) or _OTHER.search(text) or not _REFUSED.search(text):
        return frozenset()
    return frozenset(feature for feature in FEATURES if _NAMES[feature].search(text))


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    places = ((error, "status_code"), (response, "status_code"), (error, "http_status"), (error, "code"))
    codes = (getattr(place, name, None) for place, name in places)
    return next((number for number in codes if isinstance(number, int)), None)


def _text(error: Exception) -> str:
    """The text of the error, and the body of its response if there is one."""
    parts: list[Any] = [error, getattr(error, "body", "")]
    try:
        parts.append(getattr(getattr(error, "response", None), "text", ""))
    except Exception:  # an unread stream has no text
        parts.append("")
    return " ".join(str(part)[:_MOST] for part in parts).lower()
