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
from experiments.continual.baselines.gpm import GPM
from experiments.continual.baselines.l2 import L2
from experiments.continual.baselines.lwf import LwF
from experiments.continual.baselines.mas import MAS
from experiments.continual.baselines.owm import CONSTANT, FALLING, OWM
from experiments.continual.baselines.replay import AGEM, Replay
from experiments.continual.baselines.si import SI
from experiments.continual.closed_form import PENALTY, SHRINKAGE, Ridge, StreamingLDA
from experiments.continual.model import MLP, Model
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


def own_protocol(stream: str) -> Mapping[str, Any]:
    """OWM's optimizer as in the authors' code: for split and rotated images, and for permuted ones."""
    if stream.endswith("permuted"):
        return {"optimizer": "sgd", "lr": 2.0, "momentum": 0.0, "dropout": 0.2}
    return {"optimizer": "sgd", "lr": 0.2, "momentum": 0.9}


def owm(stream: str, **options: Any) -> Callback:
    """OWM with the published schedules of α for this stream, and the given options."""
    return OWM(**{"schedules": CONSTANT if stream.endswith("permuted") else FALLING} | options)


def gpm(stream: str, **options: Any) -> Callback:
    """GPM with the given options."""
    return GPM(**options)


class Method(NamedTuple):
    """A method to compare: its callback, its network with options, and the information that it is given."""

    callback: Callable[..., Callback | None] = lambda stream: None
    network: Callable[..., Model] = MLP
    model: Callable[[str], Mapping[str, Any]] = lambda stream: {}  # options of the network that the method sets
    joint: bool = False  # whether each batch is of all tasks
    told: str = "nothing"  # information or memory beyond the batches
    features: str = "trained"  # what the last layer is fitted to


METHODS: dict[str, Method] = {
    "plain": Method(),
    "sal": Method(sal),
    "sal-element": Method(partial(sal, protection="element")),
    "sal-tensor": Method(partial(sal, protection="tensor")),
    "stable-sgd": Method(model=lambda stream: {"optimizer": "sgd", "lr": 0.1, "decay": 0.8, "dropout": 0.5}),
    "slda": Method(network=StreamingLDA, model=lambda stream: {"shrinkage": SHRINKAGE}, features="pixels"),
    "ridge": Method(network=Ridge, model=lambda stream: {"width": 1000, "penalty": PENALTY}, features="random"),
    "l2": Method(partial(pull, L2, L2_STRENGTH), told="task ends"),
    "ewc": Method(partial(pull, EWC, EWC_STRENGTH), told="task ends"),
    "online-ewc": Method(partial(pull, OnlineEWC, ONLINE_EWC_STRENGTH), told="task ends"),
    "si": Method(partial(pull, SI, SI_STRENGTH), told="task ends"),
    "mas": Method(partial(pull, MAS, MAS_STRENGTH), told="task ends"),
    "lwf": Method(lambda stream: LwF(), told="task ends"),
    "owm": Method(owm, model=own_protocol, told="task ends"),
    "gpm": Method(
        lambda stream, **options: GPM(**options),
        model=lambda stream: {"optimizer": "sgd", "lr": 0.01},
        told="task ends",
    ),
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


def network(method: str, stream: StreamName, inputs: int, outputs: int, **settings: Any) -> Model:
    """The network of a method: of the given settings, except for those that the method sets itself."""
    name, options = parse(known(method))
    asked = METHODS[name]
    own = asked.model(stream)
    shared = settings if asked.network is MLP else {}
    asked_for = {key: options[key] for key in own if key in options}
    return asked.network(inputs, outputs, **{**shared, **own, **asked_for})


@contextmanager
def varied(method: str, stream: StreamName) -> Iterator[Callback | None]:
    """Context manager with a new callback of the method, None for ``plain``; named constants are patched within it.

    Raises:
        ValueError: an option or constant does not exist, or has an invalid value.
    """
    name, values = parse(known(method))
    constants = {key: values.pop(key) for key in list(values) if "." in key}
    values = {key: value for key, value in values.items() if key not in METHODS[name].model(stream)}
    with ExitStack() as changed:
        try:
            for key, value in constants.items():
                module, constant = key.rsplit(".", 1)
                changed.enter_context(patch.object(import_module(f"sal_lightning.{module}"), constant, value))
            callback = METHODS[name].callback(stream, **values)
        except (TypeError, AttributeError, ModuleNotFoundError) as error:
            raise ValueError(f"Expected method to vary existing options or constants, got {method!r}.") from error
        yield callback
