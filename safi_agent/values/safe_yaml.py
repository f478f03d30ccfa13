"""Safe YAML: parse untrusted YAML without running code and with bounded memory."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

MOST_ENTRIES = 100_000  # entries of a file, with aliases expanded


class Yaml(NamedTuple):
    """A parsed YAML document: its nodes, with line numbers, and its content."""

    root: yaml.Node | None
    content: Any


def read_yaml(text: str) -> Yaml:
    """Parse YAML with the safe loader, which creates no objects and runs no code.

    Raises:
        YAMLError: it is not YAML, is nested too deeply, or its aliases expand to more than ``MOST_ENTRIES`` entries.
    """
    try:
        loader = yaml.SafeLoader(text)
        if (root := loader.get_single_node()) is None:
            return Yaml(None, None)
        if _entries(root, {}) > MOST_ENTRIES:
            raise yaml.YAMLError(f"expected at most {MOST_ENTRIES:,} entries after alias expansion")
        return Yaml(root, loader.construct_document(root))
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def read_mapping(path: str | Path, argument: str) -> dict[Any, Any]:
    """The mapping in a YAML file; ``argument`` is named in errors.

    Raises:
        ValueError: the file does not exist, is not YAML, or has something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"{argument}: expected a YAML file, got {str(path)!r}.")
    try:
        content = read_yaml(Path(path).read_text("utf-8")).content
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{argument}: {str(path)!r} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{argument}: expected a mapping in {str(path)!r}, got {type(content).__name__}.")
    return content


def _entries(node: yaml.Node, counts: dict[int, int]) -> int:
    """The number of entries of a node, with aliases expanded; a recursive node exceeds any limit."""
    if id(node) not in counts:
        counts[id(node)] = MOST_ENTRIES
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = (part for item in below for part in (item if isinstance(item, tuple) else (item,)))
        counts[id(node)] = 1 + sum(_entries(part, counts) for part in inner)
    return counts[id(node)]
