"""Lint the file of a value set: all errors at once, with their line numbers."""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from safi_agent.values.loading import with_weights
from safi_agent.values.model import Value, ValueSet, label, wrong_count, wrong_names, wrong_weights
from safi_agent.values.safe_yaml import read_yaml

SOUND = {"name": "sound", "values": [{"name": "sound", "weight": 1}]}
EXPECTED = {
    "string_type": "text in quotes",
    "string_too_short": "text that is not empty",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than_equal": "a number of at most {le:g}",
    "greater_than": "a number above {gt:g}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "tuple_type": "a list",
    "model_type": "a mapping with a name and a weight",
}
Path = tuple[str | int, ...]


class Error(NamedTuple):
    """An error and its line, from 1."""

    line: int
    what: str


def lint(text: str) -> list[Error]:
    """The errors of a value set in YAML, sorted by line.

    Empty if and only if ``load_values`` accepts the file and no key is duplicated; YAML uses the last of them.
    """
    try:
        root, content = read_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        message = " ".join(filter(None, (getattr(error, "context", ""), getattr(error, "problem", "")))) or str(error)
        return [Error(mark.line + 1 if mark else 1, f"This is not YAML: {message}.")]
    if not isinstance(content, Mapping) or root is None:
        return [Error(1, f"Expected a mapping with a name and values, got {type(content).__name__}.")]
    errors = [
        Error(_line(root, path), what) for path, what in [*_setting_errors(content)] or _combination_errors(content)
    ]
    return sorted({*_repeated(root, set()), *errors})


def _combination_errors(content: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Errors of the value set as a whole."""
    return [
        (_where(error), _error_message(error, ValueSet)) for error in _refused(ValueSet, with_weights(content, False))
    ]


def _setting_errors(content: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Errors with their paths: each setting alone, then the combinations."""
    around = {**content, "values": SOUND["values"]} if "values" in content else content
    for error in _refused(ValueSet, around):
        yield _where(error), _error_message(error, ValueSet)
    if "values" not in content:
        return
    rows = content["values"]
    if not isinstance(rows, list) or not rows:
        yield ("values",), f"values: expected a list of values, got {rows!r}."
        return
    if many := wrong_count(rows):
        yield ("values",), many
        return
    wrong = [(i, error) for i, row in enumerate(rows) for error in _refused(Value, _with_weight(row))]
    for i, error in wrong:
        yield ("values", i, *_where(error)), f"{_row_label(rows[i], i)}{_error_message(error, Value)}"
    yield from _together(content, rows, {i for i, error in wrong if "weight" in error["loc"]})


def _together(content: Mapping[str, Any], rows: Sequence[Any], wrong: set[int]) -> Iterator[tuple[Path, str]]:
    named = [(label(row["name"]), i) for i, row in enumerate(rows) if _has_name(row)]
    last = dict(named)
    for key, count in Counter(key for key, _ in named).items():
        if count > 1:
            yield ("values", last[key], "name"), next(wrong_names([key, key]))
    if wrong or not all(isinstance(row, Mapping) for row in rows):
        return
    try:
        weights = [float(row["weight"]) for row in with_weights(content, False)["values"]]
    except ValueError as error:
        yield ("values",), str(error)
    except KeyError:
        return  # weights cannot be shared if one of them is invalid, such as a string
    else:
        yield from ((("values",), what) for what in wrong_weights(weights))


def _has_name(row: object) -> bool:
    return isinstance(row, Mapping) and isinstance(row.get("name"), str) and bool(label(row["name"]))


def _with_weight(row: Any) -> Any:
    """The row with a placeholder weight if it has none."""
    return {**row, "weight": 1.0} if isinstance(row, Mapping) and row.get("weight") is None else row


def _refused(kind: type[BaseModel], content: Any) -> list[ErrorDetails]:
    try:
        kind.model_validate(content)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _where(error: ErrorDetails) -> Path:
    return tuple(error["loc"])


def _row_label(row: object, i: int) -> str:
    return f"Value {i + 1} ({row['name']!r}), " if isinstance(row, Mapping) and "name" in row else f"Value {i + 1}, "


def _error_message(error: ErrorDetails, kind: type[BaseModel]) -> str:
    setting, sort = ".".join(map(str, error["loc"])), error["type"]
    prefix = f"{setting}: " if setting else ""
    if sort == "missing":
        return f"{prefix}is missing."
    if sort == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), kind.model_fields, n=1)
        suggestion = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(kind.model_fields)}."
        return f"{prefix}there is no such setting; {suggestion}"
    if sort == "value_error":
        return f"{prefix}{error['msg'].removeprefix('Value error, ')}"
    if sort in EXPECTED:
        return f"{prefix}expected {EXPECTED[sort].format(**error.get('ctx', {}))}, got {error['input']!r}."
    return f"{prefix}{error['msg']}, got {error['input']!r}."


def _line(node: yaml.Node, path: Path) -> int:
    """The line of a setting, or of its parent if it is missing."""
    for step in path:
        below: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == str(step)]
            if pairs and (len(path) == 1 or step == path[-1]):
                return int(pairs[-1][0].start_mark.line) + 1
            below = pairs[-1][1] if pairs else None
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            below = node.value[step]
        if below is None:
            break
        node = below
    return int(node.start_mark.line) + 1


def _repeated(node: yaml.Node, seen: set[int]) -> Iterator[Error]:
    """Duplicate keys."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = int(key.start_mark.line) + 1
            if isinstance(key, yaml.ScalarNode) and key.value in first:
                yield Error(line, f"{key.value}: duplicate key, first on line {first[key.value]}.")
            elif isinstance(key, yaml.ScalarNode):
                first[key.value] = line
            yield from _repeated(value, seen)
