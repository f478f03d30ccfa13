"""The pull: after each step every weight goes a little way back to what it was when it was consolidated."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sal_lightning.distributed import sharded
from sal_lightning.fisher import FIRST, Factors, Fisher
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.subspace import SubspaceRule

SAME = 1e-7  # of the sum of the weights' sizes: a difference of sums that is rounding
EVERY = 16  # steps after which the movement of the weights is measured again


class Anchor(NamedTuple):
    """What one parameter is pulled to, and how much depends on it."""

    weight: Tensor  # W*, as it was when it was consolidated last
    rows: Tensor  # F summed over its columns,
    columns: Tensor  # and over its rows: see Factors

    @property
    def importance(self) -> Tensor:
        """Summed over consolidations, each with a mean of 1 over all weights; of the parameter's shape."""
        return Factors(self.rows, self.columns).matrix().view_as(self.weight)


class Pull:
    """``W ← W + c (W* − W)`` with ``c = t / (1 + t)`` and ``t = strength · F · ‖ΔW‖ / ‖W‖``.

    F is the Fisher information, its mean over all weights scaled to 1, in the mean over consolidations. ‖ΔW‖ is the
    length of the optimizer's steps and ‖W‖ that of the weights, all together: the pace is the weights' own, whatever
    the learning rate, the optimizer or the scale of the loss. It is a step of proximal gradient descent on
    ``½ F (W − W*)²`` (as elastic weight consolidation has it, Kirkpatrick et al. 2017), which never overshoots.

    It acts after the step, so that Adam does not undo it, on parameters that have a gradient in this step.
    """

    name = "(pull)"  # among those of rules

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.fisher = Fisher()
        self.memory: dict[str, Anchor] | None = None  # a consolidation makes a new one
        self.later: State = {}  # of a loaded memory, what belongs to parameters that do not learn yet
        self.biases: dict[str, str] = {}  # of layers, and the weight of each
        self.left: dict[str, tuple[float, float]] = {}  # sums over the weights when training was last left
        self.failure = ""  # why nothing is pulled that should be
        self._moving: set[str] = set()  # parameters with a gradient in this step
        self._forget_pace()

    def _forget_pace(self) -> None:
        self.moved: Tensor | None = None  # ‖ΔW‖², of all parameters together
        self.age = 0  # steps since it was measured
        self.paces: dict[str, Tensor] = {}  # t / F of each parameter
        self._rates: dict[str, Tensor] = {}  # c, which follows from it, for the memory below
        self._memory: dict[str, Anchor] | None = None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is pulled, by name."""
        return self.fisher.parameters

    def cover(self, rules: Sequence[Rule]) -> None:
        """Pull what these rules protect: all of it, or nothing where parameters are sharded."""
        found = {n: p for rule in rules if rule.restores for n, p in rule.parameters.items()}
        wanted = self.strength > 0
        if wanted and any(map(sharded, found.values())):
            self.failure = "the parameters are dealt out to several processes"
        usable = wanted and not self.failure
        # By name, so that the order in which they were covered does not matter to the last bit.
        named = {name: found[name] for name in sorted(found) if not found[name].is_complex()}
        self.fisher.parameters = named if usable else {}
        self.biases = {}
        for rule in rules:
            if isinstance(rule, SubspaceRule) and len(rule.parameters) == 2 and not rule.layer.transposed:
                weight, bias = rule.parameters
                self.biases[bias] = weight
        kept = self.pack(self.memory) | self.later
        if any(self._is_new(name, one["weight"]) for name, one in kept.items() if name in self.parameters):
            self.memory = self.unpack(kept)
        for name in self._rates.keys() - self.parameters.keys():
            del self._rates[name], self.paces[name]

    def _is_new(self, name: str, weight: Tensor) -> bool:
        known = (self.memory or {}).get(name)
        return known is None or weight.shape != self.parameters[name].shape

    @property
    def holds(self) -> bool:
        """Whether anything is pulled."""
        return bool(self.memory)

    @property
    def problem(self) -> str:
        """Why nothing is pulled that should be; empty if all is well."""
        return self.failure or self.fisher.failure

    @torch.no_grad()
    def consolidate(self, known: Mapping[str, Tensor] | None = None) -> None:
        """Pull to what the weights are now; where nothing was measured, to what it was before.

        Args:
            known: of some parameters which rows are in use, (m,) of bool; the others are not pulled.
        """
        found = self.fisher.relative() if self.parameters else {}
        if not found:
            if self.parameters and self.fisher.age > FIRST[-1] and not self.memory:
                self.failure = self.fisher.failure or "no gradient was seen at the output of the layer that runs last"
            return
        for bias, weight in self.biases.items():
            if bias in found and weight in found and len(found[bias].rows) == len(found[weight].rows):
                # A normalisation over the batch cancels the gradient of a bias before it, not what the bias does later.
                rows = torch.maximum(found[bias].rows, found[weight].rows / len(found[weight].columns))
                found[bias] = Factors(rows, rows.sum()[None])
        for name, rows in (known or {}).items():
            if name in found and len(found[name].rows) == len(rows):
                found[name] = found[name].only(rows)
        past = self.memory or {}
        memory: dict[str, Anchor] = {}
        for name, p in self.parameters.items():
            new, old = found.get(name), past.get(name)
            if new is None:
                memory |= {} if old is None else {name: old}
                continue
            sums = new if old is None else Factors(new.rows + old.rows, new.columns + old.columns)
            memory[name] = Anchor(p.detach().clone(), *sums)
        self.memory = memory

    def clear(self) -> None:
        """Begin a new window."""
        self.fisher.clear()

    def set_anchor(self, names: Iterable[str], moved: Tensor | None = None) -> None:
        """Somebody else moved these parameters (``moved``: if so): they are pulled to where they are now."""
        for name in names:
            if self.memory and name in self.memory and name in self.parameters:
                now, anchor = self.parameters[name].detach(), self.memory[name].weight
                anchor.copy_(now if moved is None else torch.where(moved, now, anchor))

    def leave(self) -> None:
        """Training pauses here."""
        self.left = {name: _sums(self.parameters[name]) for name in self.memory or {} if name in self.parameters}

    def come_back(self) -> None:
        """Training begins again: what was moved in between is pulled to where it is now."""
        now = {name: _sums(self.parameters[name]) for name in self.left if name in self.parameters}
        self.set_anchor(n for n, (total, size) in now.items() if abs(total - self.left[n][0]) > SAME * max(size, 1e-30))

    def begin_step(self) -> None:
        """Before the optimizer's step: some drop the gradients before it ends."""
        if self.memory:
            self._moving = {n for n, p in self.parameters.items() if p.grad is not None}

    def measure(self, rules: Iterable[Rule]) -> None:
        """After it, and before anything is put back: how far it moved the weights."""
        if not self.memory:
            return
        if self._memory is not self.memory:
            self._forget_pace()
            self._memory = self.memory
        if self.age % EVERY == 0 or not self._rates:
            steps = {
                name: torch.linalg.vector_norm((w - w0).float()).square()
                for rule in rules
                if rule.before is not None
                for name, w, w0 in zip(rule.parameters, rule.weights(), rule.before, strict=True)
                if name in self.memory and name in self._moving
            }
            if steps:
                self._set_rates(dict(sorted(steps.items())))
        self.age += 1

    def _set_rates(self, steps: Mapping[str, Tensor]) -> None:
        """Take the rates c from the steps ‖ΔW‖² of single parameters."""
        assert self.memory is not None
        now = torch.stack(list(steps.values())).sum()
        self.moved = now if self.moved is None else (self.moved + now) / 2
        size = torch.stack([torch.linalg.vector_norm(self.memory[n].weight.float()).square() for n in steps]).sum()
        importance = torch.stack([a.rows.sum() for a in self.memory.values()]).sum()
        mean = importance / sum(a.weight.numel() for a in self.memory.values())
        tiny = torch.finfo(mean.dtype).tiny
        pace = self.strength * (self.moved / size.clamp(min=tiny)).sqrt() / mean.clamp(min=tiny)
        for name, step in steps.items():
            self.paces[name] = pace * (step > 0)
            self._set_rate(name)

    def _set_rate(self, name: str) -> None:
        assert self.memory is not None
        t = self.memory[name].importance * self.paces[name]
        self._rates[name] = (t / (1 + t)).to(self.memory[name].weight.dtype)

    def apply(self, moved: Mapping[str, Tensor]) -> None:
        """Pull, but for parameters that somebody else ``moved``, if so."""
        if not self.memory:
            return
        names = [n for n in self._rates if n in self._moving and self.parameters[n].requires_grad]
        weights = [self.parameters[n].detach() for n in names]
        if names:
            rates = [self._rates[n] * ~moved[n] if n in moved else self._rates[n] for n in names]
            torch._foreach_lerp_(weights, [self.memory[n].weight for n in names], rates)

    def tensors(self) -> list[Tensor]:
        """What is kept between steps."""
        return [*self.fisher.tensors(), *(t for anchor in (self.memory or {}).values() for t in anchor)]

    @property
    def bytes(self) -> int:
        """Of the parameters that are pulled."""
        return sum(self.parameters[name].nbytes for name in self.memory or {} if name in self.parameters)

    @property
    def working(self) -> int:
        """Bytes that it keeps between steps beside its state: the rates, which follow from it."""
        return sum(c.nbytes for c in self._rates.values())

    def state_dict(self) -> State:
        """Tensors and numbers only."""
        memory = self.pack(self.memory) | self.later
        known = self._memory is self.memory  # of a memory that no step has met yet no pace is known
        pace = {
            "age": self.age if known else 0,
            "moved": self.moved if known else None,
            "paces": dict(self.paces) if known else {},
        }
        return {"fisher": self.fisher.state_dict(), "memory": memory, "left": dict(self.left), **pace}

    def load_state_dict(self, state: State) -> None:
        """Continue where another stood."""
        self.fisher.load_state_dict(state["fisher"])
        self.memory = self.unpack(state["memory"])
        self.left = dict(state["left"])
        self._forget_pace()
        self._memory, self.age = self.memory, state["age"]
        device = next((p.device for p in self.parameters.values()), None)
        self.moved = None if state["moved"] is None else state["moved"].to(device)
        self.paces = {name: x.to(device) for name, x in state["paces"].items() if name in (self.memory or {})}
        for name in self.paces:
            self._set_rate(name)

    def pack(self, memory: dict[str, Anchor] | None) -> State:
        """A memory as named tensors; empty for None."""
        return {name: anchor._asdict() for name, anchor in (memory or {}).items()}

    def unpack(self, state: State) -> dict[str, Anchor] | None:
        """The memory that ``pack`` packed, on the parameters' device; what is new in a parameter is free."""
        self.later = {name: kept for name, kept in state.items() if name not in self.parameters}
        known = {name: _placed(kept, self.parameters[name]) for name, kept in state.items() if name in self.parameters}
        return {name: anchor for name, anchor in known.items() if anchor is not None} or None


def _sums(p: nn.Parameter) -> tuple[float, float]:
    """Of the weights, and of their sizes."""
    w = p.detach().double()
    return float(w.sum()), float(w.abs().sum())


def _placed(state: Mapping[str, Tensor], p: nn.Parameter) -> Anchor | None:
    """An anchor for a parameter that may have grown since; None where it has got smaller."""
    device, kept = p.device, state["weight"]
    weight, rows, columns = kept.to(device, p.dtype), state["rows"].to(device), state["columns"].to(device)
    if kept.shape == p.shape:
        return Anchor(weight.clone(), rows.clone(), columns.clone())
    if kept.dim() != p.dim() or any(a > b for a, b in zip(kept.shape, p.shape, strict=True)):
        return None
    larger, inside = p.detach().clone(), tuple(slice(n) for n in kept.shape)
    larger[inside] = weight
    more_rows, more_columns = rows.new_zeros(p.shape[0]), columns.new_zeros(p.shape[1:])
    more_rows[: len(rows)] = rows
    more_columns[inside[1:]] = columns.view(kept.shape[1:]) if kept.dim() > 1 else columns
    return Anchor(larger, more_rows, more_columns.flatten())
