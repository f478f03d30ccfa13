"""Validation of a saved state before it is loaded: complete, finite and within bounds."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sal_lightning.logit_adjustment import LogitAdjustment
from sal_lightning.pull import Pull

LARGE = 1e12  # bound on weights, and on energies in units of the mean eigenvalue
SQUARES = 1e24  # bound on squared inputs and gradients
ROUND = 1e-3  # tolerance for rounding errors
PULL, CLASSES = Pull.name, LogitAdjustment.name
VERSIONS = (10,)

Check = Callable[[Any, str], None]


def check_callback(state: Any) -> None:
    """Check the state of a callback.

    Raises:
        ValueError: it is refused; the message names the part and the reason.
    """
    at = "the callback's state"
    _version(state, at)
    _fields({"layers": _layers, "analyzer": _analyzer}, {"watch": _watch}, extra=True)(state, at)


def check_layer(state: Any, at: str = "the state") -> None:
    """Check the state of a communication layer.

    Raises:
        ValueError: it is refused; the message names the part and the reason.
    """
    _version(state, at)
    required = {
        "protection": _text,
        "step": _whole,
        "events": _each(_whole),
        "detection": _detection,
        "samples": _named(_samples),
        "elements": _each(_text),
        "rules": _named(_rule),
        "input_rules": _named(_rule),
        "pull": _pull,
        "adjustment": _adjustment,
        "trusted": _optional(_named(_fields({"memory": _any}, extra=True))),
        "pending": _named(_pending),
        "output": _optional(_tensor(0, LARGE)),
    }
    _fields(required | {"evidence": _evidence, "statistics": _each(_text)}, extra=True)(state, at)
    for name, kept in (state["trusted"] or {}).items():
        where = f"{at}['trusted'][{name!r}]"
        if name == PULL:
            _fields(_importance_window() | {"memory": _anchors})(kept, where)
        elif name == CLASSES:
            _fields(_class_window() | {"memory": _outputs})(kept, where)
            _same_outputs(kept, where)
        elif name in state["rules"]:  # memories of rules that do not exist any more are not loaded
            kind = _kind(state["rules"][name], name)
            _fields(_rule_window(kind) | {"memory": _memory(kind)})(kept, where)


# --- parts ---


def _version(state: Any, at: str) -> None:
    _fields({"version": lambda x, where: None}, extra=True)(state, at)
    version = state["version"]
    if isinstance(version, bool) or version not in VERSIONS:
        raise ValueError(f"Expected {at} to be of a version in {VERSIONS}, got {version!r}.")


def _layers(x: Any, at: str) -> None:
    _each(check_layer)(x, at)
    if not x:
        raise ValueError(f"Expected {at} to be of at least one optimizer, got none.")


def _detection(x: Any, at: str) -> None:
    numbers = _number(-LARGE, LARGE)
    jumps = _fields({"usual": _each(numbers), "above": _each(numbers), "first": _any})
    trial = _optional(_named(_each(numbers)))
    _fields({"signals": _named(_novelty), "jumps": jumps, "trial": trial, "tried": _whole})(x, at)


def _novelty(x: Any, at: str) -> None:
    numbers = _each(_number(-LARGE, LARGE))
    required = {"evidence": _number(0, LARGE), "suspected": _whole, "count": _whole, "usual": numbers, "fresh": numbers}
    _fields(required)(x, at)
    if not len(x["usual"]) == len(x["fresh"]) == 3:
        raise ValueError(f"Expected {at} to have three numbers in 'usual' and in 'fresh'.")


def _evidence(x: Any, at: str) -> None:
    if not isinstance(x, Mapping):
        raise ValueError(f"Expected {at} to be a mapping, got {type(x).__name__}.")
    for step, text in x.items():
        _whole(step, f"a step in {at}")
        _text(text, f"{at}[{step}]")


def _rule(x: Any, at: str) -> None:
    name = at.rpartition("[")[2].strip("[]'\"")
    if not isinstance(x, Mapping):
        raise ValueError(f"Expected {at} to be a mapping, got {type(x).__name__}.")
    kind = _kind(x, name)
    if kind == "tensor":
        _fields({"previous": _named(_tensor(-LARGE, LARGE)), "s": _SHARE, "tau": _SHARE})(x, at)
        return
    cycle: dict[str, Check] = {"waited": _whole, "stirred": _any} if kind == "subspace" else {}
    _fields(_rule_window(kind) | cycle | {"memory": _memory(kind)})(x, at)


def _rule_window(kind: str) -> dict[str, Check]:
    """The checks of a rule's window."""
    if kind == "subspace":
        return {"age": _whole, "demand": _demand, "window": _or_empty(_window)}
    if kind == "tokens":
        return {"weight": _number(0, 1 + ROUND), "window": _fields({}, {"R": _shares, "usual": _shares})}
    return {"window": _named(_tensor(0, SQUARES**0.75))} if kind == "element" else {}


def _kind(x: Mapping[str, Any], name: str) -> str:
    """The type of rule that the state belongs to."""
    if name == "tensor" and "age" not in x:
        return "tensor"
    if name == "element" and "age" not in x:
        return "element"
    return "tokens" if "weight" in x or "R" in (x.get("window") or {}) else "subspace"


def _memory(kind: str) -> Check:
    """The check of a rule's memory."""
    if kind == "subspace":
        return _or_empty(_directions)
    if kind == "tokens":
        return _or_empty(_fields({"lam": _tensor(0, LARGE), "s": _SHARE}))
    return _named(_tensor(0, LARGE))


def _window(x: Any, at: str) -> None:
    size = _tensor(0, SQUARES)
    required = {"Y": _tensor(-SQUARES, SQUARES), "trace": size, "weight": _SHARE, "along": size}
    _fields(required, {"P": _tensor(-1 - ROUND, 1 + ROUND)})(x, at)
    Y, trace = x["Y"].float(), x["trace"].float()
    if Y.dim() != 3 or trace.shape != Y.shape[:1]:
        raise ValueError(
            f"Expected {at} to have one trace for each group of 'Y', got {(*trace.shape,)} and {(*Y.shape,)}."
        )
    # Y = RΩ with columns of Ω of norm <= 1: no entry exceeds the trace of R, and not all are negligible beside it.
    most, size = Y.abs().amax((1, 2)), torch.linalg.vector_norm(Y, dim=(1, 2))
    least = ROUND * trace * Y.shape[2] ** 0.5 / Y.shape[1]
    if bool((most > (1 + ROUND) * trace).any()) or bool((size < least).any()):
        raise ValueError(f"Expected {at} to be a sketch whose norm matches its trace, got {size} and {trace}.")
    along = x["along"]
    if along.dim() != 2 or len(along) != len(trace) or bool((along.float().sum(-1) > (1 + ROUND) * trace).any()):
        raise ValueError(
            f"Expected {at}['along'] to have for each group at most the trace in all, got {along} and {trace}."
        )


def _importance_window() -> dict[str, Check]:
    return {"age": _whole, "sums": _named(_factors)}


def _class_window() -> dict[str, Check]:
    count = _named(_tensor(0, LARGE))
    return {"targets": count, "last": count, "steps": count, "steady": count, "priors": _named(_tensor(0, 1))}


def _same_outputs(x: Any, at: str) -> None:
    sizes = {name: times.shape for name, times in x["targets"].items()}
    if {name: last.shape for name, last in x["last"].items()} != sizes or set(x["steps"]) != set(sizes):
        raise ValueError(f"Expected {at} to have targets, last and steps of the same layers and outputs.")


def _pull(x: Any, at: str) -> None:
    numbers = _each(_number(-float("inf"), float("inf")))
    fisher = _fields(_importance_window() | {"seen": _named(_tensor(-SQUARES, SQUARES)), "drawn": _whole})
    size = _tensor(0, SQUARES)
    required: dict[str, Check] = {"fisher": fisher, "memory": _anchors, "left": _named(numbers), "age": _whole}
    _fields(required | {"moved": _optional(size), "paces": _named(size)})(x, at)


def _factors(x: Any, at: str) -> None:
    _fields({"rows": _tensor(0, SQUARES), "columns": _tensor(0, SQUARES)})(x, at)
    _same_sum(x, at)


def _anchors(x: Any, at: str) -> None:
    size = _tensor(0, LARGE)
    _named(_fields({"weight": _tensor(-LARGE, LARGE), "rows": size, "columns": size}))(x, at)
    for name, anchor in x.items():
        _same_sum(anchor, f"{at}[{name!r}]")
        if anchor["weight"].numel() != len(anchor["rows"]) * len(anchor["columns"]):
            raise ValueError(f"Expected {at}[{name!r}] to have a row and a column for each weight.")


def _same_sum(x: Any, at: str) -> None:
    rows, columns = float(x["rows"].sum()), float(x["columns"].sum())
    if abs(rows - columns) > 1e-2 * max(rows, columns):
        raise ValueError(f"Expected {at} to have rows and columns of the same sum, at most rounding apart.")


def _adjustment(x: Any, at: str) -> None:
    parts: dict[str, Check] = {"memory": _outputs, "seen": _outputs, "shares": _named(_tensor(0, LARGE))}
    _fields(_class_window() | parts)(x, at)
    _same_outputs(x, at)


def _outputs(x: Any, at: str) -> None:
    _named(_any)(x, at)
    for name, one in x.items():
        if not isinstance(one, Tensor) or one.dtype != torch.bool or one.dim() != 1:
            raise ValueError(f"Expected {at}[{name!r}] to be a tensor (outputs,) of bool.")


def _samples(x: Any, at: str) -> None:
    _fields({"age": _whole}, {"d": _whole, "window": _or_empty(_window)})(x, at)
    if ("d" in x) != ("window" in x):
        raise ValueError(f"Expected {at} to have both 'd' and 'window', or neither.")


def _demand(x: Any, at: str) -> None:
    size = _tensor(0, SQUARES)
    _fields({"sum": size, "weight": _SHARE, "most": size, "q": _SHARE})(x, at)


def _directions(x: Any, at: str) -> None:
    energy, moved = _tensor(0, LARGE), _tensor(-LARGE, LARGE)
    required = {"U": _orthonormal, "lam": energy, "rest": energy, "s_rest": _SHARE, "E": moved, "size": energy}
    required |= {"path": energy, "steps": energy, "f": _SHARE, "A": moved, "strength": _number(0, float("inf"))}
    _fields(required, {"directions": _any, "rows": _optional(_whole)})(x, at)


def _orthonormal(x: Any, at: str) -> None:
    _tensor(-1 - ROUND, 1 + ROUND)(x, at)
    if x.dim() != 3:
        raise ValueError(f"Expected {at} to be of shape (groups, inputs, directions), got {(*x.shape,)}.")
    gram = x.double().mT @ x.double()
    kept = (gram.diagonal(dim1=-2, dim2=-1) > 0.5).to(gram)  # a group may have fewer directions: columns of zeros
    if bool(((gram - torch.diag_embed(kept)).abs() > ROUND).any()):
        raise ValueError(f"Expected {at} to have orthonormal columns.")


def _shares(x: Any, at: str) -> None:
    _tensor(0, 1 + ROUND)(x, at)
    if float(x.sum()) > 1.01:
        raise ValueError(f"Expected {at} to be shares that sum to at most 1, got {float(x.sum()):.3g}.")


def _pending(x: Any, at: str) -> None:
    numbers = _tensor(-LARGE, LARGE)
    _fields({}, {"seen": _each(numbers), "counts": _optional(numbers), "surprise": _optional(numbers)})(x, at)


def _analyzer(x: Any, at: str) -> None:
    if x:
        places, means = _named(_tensor(0, float("inf"))), _named(_tensor(-SQUARES, SQUARES))
        _fields({"places": places, "means": means})(x, at)
        if set(x["means"]) - set(x["places"]):
            raise ValueError(f"Expected {at} to have the places of all its means.")


def _watch(x: Any, at: str) -> None:
    if x is not None:
        field = _fields({"rank": _whole}, {"d": _whole, "window": _or_empty(_window)})
        shift = _fields({"mean": _tensor(-LARGE, LARGE), "weight": _SHARE, "logs": _tensor(-LARGE, LARGE)})
        _fields({"steps": _whole, "field": field, "shift": _or_empty(shift)})(x, at)
        if ("d" in x["field"]) != ("window" in x["field"]):
            raise ValueError(f"Expected {at}['field'] to have both 'd' and 'window', or neither.")


# --- values ---


def _any(x: Any, at: str) -> None:
    """Accepts any value."""


def _text(x: Any, at: str) -> None:
    if not isinstance(x, str):
        raise ValueError(f"Expected {at} to be text, got {x!r}.")


def _whole(x: Any, at: str) -> None:
    if isinstance(x, bool) or not isinstance(x, int) or x < 0:
        raise ValueError(f"Expected {at} to be a whole number >= 0, got {x!r}.")


def _number(low: float, high: float) -> Check:
    def check(x: Any, at: str) -> None:
        if isinstance(x, bool) or not isinstance(x, int | float) or not low <= x <= high:
            raise ValueError(f"Expected {at} to be a number in [{low:g}, {high:g}], got {x!r}.")

    return check


def _tensor(low: float, high: float) -> Check:
    def check(x: Any, at: str) -> None:
        if not isinstance(x, Tensor):
            raise ValueError(f"Expected {at} to be a tensor, got {type(x).__name__}.")
        if not x.numel():
            return
        if not bool(x.isfinite().all()):
            bad = int((~x.isfinite()).sum())
            raise ValueError(f"Expected {at} to be finite, got NaN or infinity in {bad} of {x.numel()} numbers.")
        least, most = float(x.min()), float(x.max())
        if least < low or most > high:
            wrong = least if least < low else most
            raise ValueError(f"Expected {at} to lie in [{low:g}, {high:g}], got {wrong:g}.")

    return check


_SHARE = _tensor(0, 1 + ROUND)


def _optional(check: Check) -> Check:
    return lambda x, at: None if x is None else check(x, at)


def _or_empty(check: Check) -> Check:
    return lambda x, at: None if isinstance(x, Mapping) and not x else check(x, at)


def _each(check: Check) -> Check:
    def every(x: Any, at: str) -> None:
        if not isinstance(x, list | tuple):
            raise ValueError(f"Expected {at} to be a list, got {type(x).__name__}.")
        for i, one in enumerate(x):
            check(one, f"{at}[{i}]")

    return every


def _named(check: Check) -> Check:
    def every(x: Any, at: str) -> None:
        if not isinstance(x, Mapping):
            raise ValueError(f"Expected {at} to be a mapping, got {type(x).__name__}.")
        for name, one in x.items():
            check(one, f"{at}[{name!r}]")

    return every


def _fields(required: dict[str, Check], optional: dict[str, Check] | None = None, extra: bool = False) -> Check:
    def check(x: Any, at: str) -> None:
        known = required | (optional or {})
        if not isinstance(x, Mapping):
            raise ValueError(f"Expected {at} to be a mapping, got {type(x).__name__}.")
        if missing := [name for name in required if name not in x]:
            raise ValueError(f"Expected {at} to have {missing}, which are missing.")
        if not extra and (strange := [name for name in x if name not in known]):
            raise ValueError(f"Expected {at} to have no {strange}.")
        for name in x:
            if name in known:
                known[name](x[name], f"{at}[{name!r}]")

    return check
