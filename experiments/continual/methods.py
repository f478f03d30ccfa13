"""The methods in comparison: their names, callbacks, and changes to the network or the stream."""

import ast
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple
from unittest.mock import patch

from lightning.pytorch import Callback

from experiments.continual.baselines.ewc import EWC, OnlineEWC
from experiments.continual.baselines.l2 import L2
from experiments.continual.baselines.lwf import LwF
from experiments.continual.baselines.mas import MAS
from experiments.continual.baselines.replay import AGEM, Replay
from experiments.continual.baselines.si import SI
from experiments.continual.streams import StreamName


def sal(stream: str, **options: Any) -> Callback:
    """SAL with its defaults on every stream, and the given options."""
    from sal_lightning import SALCallback

    return SALCallback(**options)


def strengths(task: float, domain: float, clas: float, permuted: float) -> Mapping[str, float]:
    """Published best strengths of a method per kind of stream; rotated images use that of permuted ones."""
    return {"split-task": task, "split-domain": domain, "split-class": clas, "permuted": permuted, "rotated": permuted}


# van de Ven et al. 2022; SI's c is half of what its penalty's gradient is multiplied by.
EWC_STRENGTH = strengths(1e5, 1e10, 1e9, 1e2)
SI_STRENGTH = strengths(2 * 10, 2 * 5e4, 2 * 5e3, 2 * 10)
# Hsu et al. 2018; theirs likewise have no ½.
ONLINE_EWC_STRENGTH = strengths(2 * 400, 2 * 700, 2 * 100, 2 * 250)
MAS_STRENGTH = strengths(2 * 1, 2 * 1e4, 2 * 1, 2 * 0.1)
L2_STRENGTH = strengths(2 * 0.01, 2 * 0.5, 2 * 100, 2 * 0.02)
# Samples of each class.
BUDGET = {"permuted": 10, "rotated": 10}


def pull(kind: Callable[..., Callback], best: Mapping[str, float], stream: str, **options: Any) -> Callback:
    """A quadratic penalty with the given strength, or the best one published for this stream."""
    known = [strength for name, strength in best.items() if stream.startswith(name)]
    if not known and "strength" not in options:
        raise ValueError(f"Expected a strength, as none is published for {stream!r}: method:strength=…, got none.")
    return kind(**{"strength": known[0]} | options if known else options)


def replay(kind: Callable[..., Callback], stream: str, **options: Any) -> Callback:
    """Replay with the given memory size, or the usual one of this stream."""
    return kind(**{"budget": BUDGET.get(stream, 100)} | options)


class Method(NamedTuple):
    """A factory of callbacks, further arguments of the network, and whether training is joint."""

    callback: Callable[..., Callback | None] = lambda stream: None
    model: Mapping[str, Any] = {}
    joint: bool = False
    told: str = "nothing"  # information or memory beyond the batches


METHODS: dict[str, Method] = {
    "plain": Method(),
    "sal": Method(sal),
    "sal-element": Method(partial(sal, protection="element")),
    "sal-tensor": Method(partial(sal, protection="tensor")),
    "stable-sgd": Method(model={"optimizer": "sgd", "dropout": 0.5}),
    "l2": Method(partial(pull, L2, L2_STRENGTH), told="task ends"),
    "ewc": Method(partial(pull, EWC, EWC_STRENGTH), told="task ends"),
    "online-ewc": Method(partial(pull, OnlineEWC, ONLINE_EWC_STRENGTH), told="task ends"),
    "si": Method(partial(pull, SI, SI_STRENGTH), told="task ends"),
    "mas": Method(partial(pull, MAS, MAS_STRENGTH), told="task ends"),
    "lwf": Method(lambda stream: LwF(), told="task ends"),
    "agem": Method(partial(replay, AGEM), told="task ends; samples"),
    "replay": Method(partial(replay, Replay), told="task ends; samples"),
    "joint": Method(joint=True, told="all data at once"),
}


def known(method: str) -> str:
    """Validate a method's name; returns it.

    Raises:
        ValueError: the method is unknown, or the options do not have the form ``name=value,name=value``.
    """
    name, _ = parse(method)
    if name not in METHODS:
        raise ValueError(f"Expected method to be one of {tuple(METHODS)}, got {method!r}.")
    return method


def parse(method: str) -> tuple[str, dict[str, Any]]:
    """Split a method into its name and its options.

    >>> parse("sal:strength=8,rules.subspace.MASK=16,protection=tensor")
    ('sal', {'strength': 8, 'rules.subspace.MASK': 16, 'protection': 'tensor'})
    """
    name, _, rest = method.partition(":")
    try:
        pairs = [pair.split("=", 1) for pair in rest.split(",") if pair]
        return name, {key: _value(text) for key, text in pairs}
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"Expected method to be name:option=value,option=value, got {method!r}.") from error


def _value(text: str) -> Any:
    """Parse a literal; other text is returned as a string."""
    try:
        return ast.literal_eval(text)
    except ValueError:
        if text.isidentifier():
            return text
        raise


@contextmanager
def varied(method: str, stream: StreamName) -> Iterator[Callback | None]:
    """Context manager with a new callback of the method, None for ``plain``; named constants are patched within it.

    Raises:
        ValueError: an option or constant does not exist, or has an invalid value.
    """
    name, values = parse(known(method))
    constants = {key: values.pop(key) for key in list(values) if "." in key}
    with ExitStack() as changed:
        try:
            for key, value in constants.items():
                module, constant = key.rsplit(".", 1)
                changed.enter_context(patch.object(import_module(f"sal_lightning.{module}"), constant, value))
            callback = METHODS[name].callback(stream, **values)
        except (TypeError, AttributeError, ModuleNotFoundError) as error:
            raise ValueError(f"Expected method to vary existing options or constants, got {method!r}.") from error
        yield callback
