"""The methods that are compared: a name, and the callback it adds to the Trainer."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import Callback


def plain() -> None:
    """No callback: ordinary training."""


def sal(**options: Any) -> Callback:
    """SAL with its defaults, but for the options given."""
    from sal_lightning import SALCallback

    return SALCallback(**options)


METHODS: dict[str, Callable[[], Callback | None]] = {
    "plain": plain,
    "sal": sal,
    "sal-element": partial(sal, protection="element"),
    "sal-tensor": partial(sal, protection="tensor"),
}


def callback(method: str) -> Callback | None:
    """A new callback for this method, none for ``plain``."""
    if method not in METHODS:
        raise ValueError(f"Expected method to be one of {tuple(METHODS)}, got {method!r}.")
    return METHODS[method]()
