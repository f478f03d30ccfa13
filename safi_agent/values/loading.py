"""Load a value set: a shipped one, a YAML file or a mapping."""

import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from safi_agent.values.model import TOLERANCE, Value, ValueSet
from safi_agent.values.safe_yaml import read_yaml


def shipped() -> tuple[str, ...]:
    """Names of the value sets that come with the package."""
    names = [file.name for file in files("safi_agent").joinpath("valuesets").iterdir()]
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_values(source: str | Path | Mapping[str, Any] | ValueSet, *, normalize: bool = False) -> ValueSet:
    """A value set from a shipped name, a YAML file, a mapping or a set.

    Values without a weight share the remainder of 1 equally. ``normalize`` divides the weights by their sum.

    Raises:
        ValueError: the source is none of these, or the values are inconsistent.
        TypeError: the source has another type.

    >>> len(load_values("unesco").values)
    15
    """
    if isinstance(source, ValueSet):
        return source
    if isinstance(source, Mapping):
        return ValueSet.model_validate(with_weights(source, normalize))
    if not isinstance(source, str | Path):
        raise TypeError(f"values: expected a name, a path, a mapping or a ValueSet, got {type(source).__name__}.")
    return ValueSet.model_validate(with_weights(_read(source), normalize))


def text_of(source: str | Path) -> str:
    """The YAML text of a shipped value set or of a file.

    Raises:
        ValueError: there is no such set or file, or it is not a text file.
        OSError: it cannot be read.
    """
    if source in shipped():
        return files("safi_agent").joinpath("valuesets", f"{source}.yaml").read_text("utf-8")
    if Path(source).is_file():
        return Path(source).read_text("utf-8")
    raise ValueError(f"values: expected one of {list(shipped())} or a YAML file, got {str(source)!r}.")


def _read(source: str | Path) -> Mapping[str, Any]:
    try:
        content = read_yaml(text_of(source)).content
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"values: {str(source)!r} is not YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"values: expected a mapping in {str(source)!r}, got {type(content).__name__}.")
    return content


def with_weights(content: Mapping[str, Any], normalize: bool) -> dict[str, Any]:
    """The content with a weight for each value; content of another shape is left to the schema's validation."""
    rows = content.get("values")
    if not isinstance(rows, list | tuple):
        return dict(content)
    values = [row.model_dump() if isinstance(row, Value) else row for row in rows]
    if not all(isinstance(row, Mapping) for row in values):
        return dict(content)
    explicit = [row["weight"] for row in values if row.get("weight") is not None]
    if not all(
        isinstance(w, int | float) and not isinstance(w, bool) and math.isfinite(w) and w >= 0 for w in explicit
    ):
        return dict(content)
    remainder, open_ = 1 - math.fsum(explicit), len(values) - len(explicit)
    share = max(remainder, 0) / open_ if open_ else 0.0
    if open_ and share <= TOLERANCE:
        raise ValueError(
            f"values: expected weights that sum to less than 1 if some values have none, got a sum of {1 - remainder}."
        )
    weights = [share if row.get("weight") is None else row["weight"] for row in values]
    total = math.fsum(weights) if normalize else 1
    if total == 0:
        raise ValueError("values: expected at least one weight above 0, got none.")
    return {**content, "values": [{**row, "weight": w / total} for row, w in zip(values, weights, strict=True)]}
