"""Optimizers whose training and evaluation weights differ, such as schedule-free ones (Defazio et al. 2024)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sal_lightning.rules.base import Rule


def averages(optimizer: Any) -> bool:
    """Whether the optimizer averages weights and is in training mode, so that ``optimizer.eval()`` exchanges them."""
    return _changes(optimizer) and any(group.get("train_mode") for group in optimizer.param_groups)


def hides(optimizer: Any, inner: Any) -> bool:
    """Whether this wrapper averages the weights that the optimizer ``inner`` updates."""
    return optimizer is not inner and _changes(optimizer) and hasattr(optimizer, "train_mode")


def _changes(optimizer: Any) -> bool:
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


@contextmanager
def evaluated(optimizer: Any, rules: Sequence[Rule]) -> Iterator[None]:
    """Context in which the parameters have their evaluation weights; changes to them are applied to the average.

    A schedule-free optimizer trains at ``y = (1 − β) z + β x`` and is evaluated at ``x``. Changing ``x`` by ``Δ``
    changes ``y`` by ``β Δ``; ``z`` is unchanged.
    """
    if not averages(optimizer):
        yield
        return
    _exchange(optimizer.eval, rules)
    try:
        yield
    finally:
        _exchange(optimizer.train, rules)


def _exchange(by: Callable[[], Any], rules: Sequence[Rule]) -> None:
    versions = [rule.version_of_weights() for rule in rules]
    by()
    for rule, before in zip(rules, versions, strict=True):
        rule.weights_exchanged(rule.version_of_weights() - before)
