"""The pull: after each step every weight moves a little towards its anchor, in proportion to its importance."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sal_lightning.distributed import sharded
from sal_lightning.fisher import FIRST, Factors, Fisher
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.subspace import SubspaceRule

SAME = 1e-7  # relative difference of sums that is attributed to rounding
EVERY = 16  # steps after which the movement of the weights is measured again


class Anchor(NamedTuple):
    """The anchor of one parameter, with the importance of its weights."""

    weight: Tensor  # W*, the weights at the last consolidation
    rows: Tensor  # row sums of F, see Factors
    columns: Tensor  # column sums of F

    @property
    def importance(self) -> Tensor:
        """F summed over consolidations, each scaled to a mean of 1 over all weights; of the parameter's shape."""
        return Factors(self.rows, self.columns).matrix().view_as(self.weight)


class Pull:
    """``W ← W + c (W* − W)`` with ``c = t / (1 + t)`` and ``t = strength · v · F · ‖ΔW‖ / ‖W‖``.

    F is the Fisher information, averaged over consolidations and scaled to a mean of 1 over all weights. ‖ΔW‖ is the
    norm of the optimizer's update and ‖W‖ that of the weights, both over all parameters, so the rate does not depend
    on the learning rate, the optimizer or the scale of the loss. It is a proximal step on ``½ F (W − W*)²``, the
    penalty of elastic weight consolidation (Kirkpatrick et al. 2017), and never overshoots.

    v is the overlap of a layer's present inputs with its past ones, see ``directions.overlap``: where they use other
    directions, the hold alone protects the past.

    It is applied after the optimizer's step, so that adaptive optimizers do not rescale it, to parameters that have a
    gradient in this step.

    Args:
        strength: >= 0; 0 disables the pull.
    """

    name = "(pull)"  # its key among the names of rules

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.fisher = Fisher()
        self.memory: dict[str, Anchor] | None = None  # a new dict at each consolidation
        self.later: State = {}  # the part of a loaded memory whose parameters are not trainable yet
        self.biases: dict[str, str] = {}  # bias name to weight name, of the same layer
        self.left: dict[str, tuple[float, float]] = {}  # sums over the weights when training was last paused
        self.failure = ""  # why the pull is disabled; empty if it is not
        self._moving: set[str] = set()  # parameters with a gradient in this step
        self._forget_pace()

    def _forget_pace(self) -> None:
        self.moved: Tensor | None = None  # ‖ΔW‖² over all parameters
        self.age = 0  # steps since it was measured
        self.paces: dict[str, Tensor] = {}  # t / F of each parameter
        self._rates: dict[str, Tensor] = {}  # c of each parameter, computed for `_memory`
        self._memory: dict[str, Anchor] | None = None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The pulled parameters, by name."""
        return self.fisher.parameters

    def cover(self, rules: Sequence[Rule]) -> None:
        """Pull the parameters of the rules that are pulled, or none if any is sharded."""
        found = {n: p for rule in rules if rule.restores and rule.pulled for n, p in rule.parameters.items()}
        wanted = self.strength > 0
        if wanted and any(map(sharded, found.values())):
            self.failure = "the parameters are sharded over several processes"
        usable = wanted and not self.failure
        # Sorted by name, so that floating-point sums do not depend on the order of coverage.
        named = {name: found[name] for name in sorted(found) if not found[name].is_complex()}
        self.fisher.parameters = named if usable else {}
        self.biases = {}
        for rule in rules:
            if isinstance(rule, SubspaceRule) and len(rule.parameters) == 2 and not rule.layer.transposed:
                weight, bias = rule.parameters
                self.biases[bias] = weight
        kept = self.pack(self.memory) | self.later
        shapes = {name: p.shape for name, p in self.parameters.items() if name in kept}
        if any(
            name not in (self.memory or {}) or shape != kept[name]["weight"].shape for name, shape in shapes.items()
        ):
            self.memory = self.unpack(kept)
        for name in self._rates.keys() - self.parameters.keys():
            del self._rates[name], self.paces[name]

    @property
    def holds(self) -> bool:
        """Whether any parameter has an anchor."""
        return bool(self.memory)

    @property
    def problem(self) -> str:
        """Why the pull or the measurement of importance is disabled; empty if neither is."""
        return self.failure or self.fisher.failure

    @torch.no_grad()
    def consolidate(self, known: Mapping[str, Tensor] | None = None) -> None:
        """Set the anchors to the current weights, of the parameters whose importance was measured in this window.

        Args:
            known: for some parameters, the rows in use, (m,) of bool; their other rows are not pulled.
        """
        found = self.fisher.relative() if self.parameters else {}
        if not found:
            if self.parameters and self.fisher.age > FIRST[-1] and not self.memory:
                self.failure = (
                    self.fisher.failure or "no gradient was observed at the output of the layer that runs last"
                )
            return
        for bias, weight in self.biases.items():
            if bias in found and weight in found and len(found[bias].rows) == len(found[weight].rows):
                # Batch normalization cancels the gradient of a bias before it, but not the bias's effect in evaluation.
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
        """Start a new window."""
        self.fisher.clear()

    def window_state(self) -> State:
        """The window as tensors and numbers only."""
        return self.fisher.window_state()

    def load_window(self, state: State) -> None:
        """Replace the window by one that ``window_state`` returned."""
        self.fisher.load_window(state)

    def set_anchor(self, names: Iterable[str], moved: Tensor | None = None) -> None:
        """Move the anchors of these parameters to their current values, after a change from outside.

        Args:
            names: names of the parameters.
            moved: mask of the weights that were changed; None for all.
        """
        for name in names:
            if self.memory and name in self.memory and name in self.parameters:
                now, anchor = self.parameters[name].detach(), self.memory[name].weight
                anchor.copy_(now if moved is None else torch.where(moved, now, anchor))

    def scale_anchor(self, name: str, factor: Tensor) -> None:
        """Multiply a parameter's anchor, if it has one, by a factor of its shape."""
        if self.memory and name in self.memory:
            self.memory[name].weight.mul_(factor)

    def leave(self) -> None:
        """Record the weights at the end of a fit."""
        self.left = {name: _sums(self.parameters[name]) for name in self.memory or {} if name in self.parameters}

    def come_back(self) -> None:
        """Start a fit: move the anchors of parameters that were changed since ``leave``."""
        now = {name: _sums(self.parameters[name]) for name in self.left if name in self.parameters}
        self.set_anchor(n for n, (total, size) in now.items() if abs(total - self.left[n][0]) > SAME * max(size, 1e-30))

    def begin_step(self) -> None:
        """Before the optimizer's step: record which parameters have gradients, which some optimizers drop in it."""
        if self.memory:
            self._moving = {n for n, p in self.parameters.items() if p.grad is not None}

    def measure(self, rules: Iterable[Rule]) -> None:
        """After the optimizer's step and before ``restore``: measure ‖ΔW‖, every few steps."""
        if not self.memory:
            return
        if self._memory is not self.memory:
            self._forget_pace()
            self._memory = self.memory
        if self.age % EVERY == 0 or not self._rates:
            steps: dict[str, tuple[Tensor, Rule]] = {}
            for rule in rules:
                if rule.before is None:
                    continue
                for name, w, w0 in zip(rule.parameters, rule.weights(), rule.before, strict=True):
                    if name in self.memory and name in self._moving and name not in steps:  # once for a tied weight
                        steps[name] = torch.linalg.vector_norm((w - w0).float()).square(), rule
            if steps:
                self._set_rates(dict(sorted(steps.items())))
        self.age += 1

    def _set_rates(self, steps: Mapping[str, tuple[Tensor, Rule]]) -> None:
        """Compute the rates c from the squared update norms ‖ΔW‖² of single parameters, with their rules."""
        assert self.memory is not None
        now = torch.stack([step for step, _ in steps.values()]).sum()
        self.moved = now if self.moved is None else (self.moved + now) / 2
        size = torch.stack([torch.linalg.vector_norm(self.memory[n].weight.float()).square() for n in steps]).sum()
        importance = torch.stack([a.rows.sum() for a in self.memory.values()]).sum()
        mean = importance / sum(a.weight.numel() for a in self.memory.values())
        tiny = torch.finfo(mean.dtype).tiny
        pace = self.strength * (self.moved / size.clamp(min=tiny)).sqrt() / mean.clamp(min=tiny)
        for name, (step, rule) in steps.items():
            self.paces[name] = pace * rule.overlap() * (step > 0)
            self._set_rate(name)

    def _set_rate(self, name: str) -> None:
        assert self.memory is not None
        t = self.memory[name].importance * self.paces[name]
        self._rates[name] = (t / (1 + t)).to(self.memory[name].weight.dtype)

    def apply(self, moved: Mapping[str, Tensor]) -> None:
        """Apply the pull, except to weights that were changed from outside.

        Args:
            moved: masks of these weights, by parameter name.
        """
        if not self.memory:
            return
        names = [n for n in self._rates if n in self._moving and self.parameters[n].requires_grad]
        weights = [self.parameters[n].detach() for n in names]
        if names:
            rates = [self._rates[n] * ~moved[n] if n in moved else self._rates[n] for n in names]
            torch._foreach_lerp_(weights, [self.memory[n].weight for n in names], rates)

    def tensors(self) -> list[Tensor]:
        """The tensors kept between steps."""
        return [*self.fisher.tensors(), *(t for anchor in (self.memory or {}).values() for t in anchor)]

    @property
    def bytes(self) -> int:
        """Bytes of the parameters that have an anchor."""
        return sum(self.parameters[name].nbytes for name in self.memory or {} if name in self.parameters)

    @property
    def working(self) -> int:
        """Bytes of the rates, which are kept between steps but are not part of the state."""
        return sum(c.nbytes for c in self._rates.values())

    def state_dict(self) -> State:
        """Tensors and numbers only."""
        memory = self.pack(self.memory) | self.later
        known = self._memory is self.memory  # before the first step with this memory the rates are not known
        pace = {
            "age": self.age if known else 0,
            "moved": self.moved if known else None,
            "paces": dict(self.paces) if known else {},
        }
        return {"fisher": self.fisher.state_dict(), "memory": memory, "left": dict(self.left), **pace}

    def load_state_dict(self, state: State) -> None:
        """Continue from a saved state."""
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
        """The inverse of ``pack``, on the parameters' device; new rows or columns of a parameter are not pulled."""
        self.later = {name: kept for name, kept in state.items() if name not in self.parameters}
        known = {name: _placed(kept, self.parameters[name]) for name, kept in state.items() if name in self.parameters}
        return {name: anchor for name, anchor in known.items() if anchor is not None} or None


def _sums(p: nn.Parameter) -> tuple[float, float]:
    """The sum of the weights, and of their absolute values."""
    w = p.detach().double()
    return float(w.sum()), float(w.abs().sum())


def _placed(state: Mapping[str, Tensor], p: nn.Parameter) -> Anchor | None:
    """The saved anchor for a parameter that may have grown since; None if it has become smaller."""
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
