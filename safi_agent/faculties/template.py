"""Prompt templates: texts with placeholders such as ``{values}``, which are replaced once each."""

import re
from collections.abc import Collection, Mapping

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def render(template: str, parts: Mapping[str, str]) -> str:
    """The template with a part in place of each placeholder. Placeholders in a part are text.

    >>> render('{values}: {"a": 1}', {"values": "{values}"})
    '{values}: {"a": 1}'
    """
    return _PLACEHOLDER.sub(lambda match: parts.get(match[1], match[0]), template)


def check_placeholders(template: str, names: Collection[str]) -> None:
    """Raise unless the template has each of these placeholders once, and no other.

    Raises:
        ValueError: a placeholder is missing, unknown or repeated.
    """
    given = _PLACEHOLDER.findall(template)
    shown = ", ".join(f"{{{name}}}" for name in names)
    if sorted(given) != sorted(names):
        wrong = [f"{{{name}}} is missing" for name in names if name not in given]
        wrong += [f"{{{name}}} is unknown" for name in dict.fromkeys(given) if name not in names]
        wrong += [f"{{{name}}} is repeated" for name in names if given.count(name) > 1]
        raise ValueError(f"Expected the placeholders {shown}, each once: {', '.join(wrong)}.")
