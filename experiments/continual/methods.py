"""The methods that are compared: a name, and the callback it adds to the Trainer."""

import ast
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

from lightning.pytorch import Callback


def plain() -> None:
    """No callback: ordinary training."""


def sal(**options: Any) -> Callback:
    """SAL with its defaults, but for the options given."""
    from sal_lightning import SALCallback

    return SALCallback(**options)


METHODS: dict[str, Callable[..., Callback | None]] = {
    "plain": plain,
    "sal": sal,
    "sal-element": partial(sal, protection="element"),
    "sal-tensor": partial(sal, protection="tensor"),
}


def known(method: str) -> str:
    """The method's name, if there is such a one.

    Raises:
        ValueError: an unknown method, or options that are no ``name=value,name=value``.
    """
    name, _ = parse(method)
    if name not in METHODS:
        raise ValueError(f"Expected method to be one of {tuple(METHODS)}, got {method!r}.")
    return method


def parse(method: str) -> tuple[str, dict[str, Any]]:
    """A method's name and what it varies.

    >>> parse("sal:strength=8,rules.subspace.MASK=16")
    ('sal', {'strength': 8, 'rules.subspace.MASK': 16})
    """
    name, _, rest = method.partition(":")
    try:
        pairs = [pair.split("=", 1) for pair in rest.split(",") if pair]
        return name, {key: ast.literal_eval(value) for key, value in pairs}
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"Expected method to be name:option=value,option=value, got {method!r}.") from error


@contextmanager
def varied(method: str) -> Iterator[Callback | None]:
    """A new callback for this method, none for ``plain``; until the end the constants it names are as it says."""
    name, values = parse(known(method))
    constants = {key: values.pop(key) for key in list(values) if "." in key}
    with ExitStack() as changed:
        for key, value in constants.items():
            module, constant = key.rsplit(".", 1)
            changed.enter_context(patch.object(import_module(f"sal_lightning.{module}"), constant, value))
        yield METHODS[name](**values)
