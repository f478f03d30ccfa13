"""Refusing settings that cannot be meant."""

import math
from typing import Any

from safi_agent.faculties.spirit import beta_out


def check(chain: Any) -> None:
    """Look at a chain's settings as a whole.

    Raises:
        ValueError: one is out of its range; the text names it, what is allowed and what came.
        TypeError: a hook cannot be called.
    """
    if beta_out(chain.beta):
        raise ValueError(f"beta: expected a number in [0, 1), got {chain.beta!r}.")
    for name, least in (("audit_attempts", 1), ("audit_backoff", 0), ("audit_timeout", 0), ("drift_above", 0)):
        number = getattr(chain, name)
        if not (math.isfinite(number) and number >= least):
            raise ValueError(f"{name}: expected a number of at least {least}, got {number!r}.")
    if not math.isfinite(chain.review_below):
        raise ValueError(f"review_below: expected a number, got {chain.review_below!r}.")
    for hook in chain.hooks:
        if not callable(hook):
            raise TypeError(f"hooks: expected callables, got {type(hook).__name__}.")
