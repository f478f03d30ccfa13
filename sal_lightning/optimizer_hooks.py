"""Optimizer hooks: one callback per step, including nested steps, closures, exceptions and optimizers inside others."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

Closure = Callable[[], Any]


class Listener(Protocol):
    """What is told of a step, in this order."""

    def gradients_begin(self) -> None:
        """A closure is about to compute them: once or, with LBFGS and its like, many times in a step."""

    def gradients_ready(self) -> None:
        """They are there, and the weights have not moved since."""

    def inner_step_begins(self) -> None:
        """An optimizer inside of the one whose step is running is about to move the weights."""

    def stepped(self) -> None:
        """The optimizer has moved the weights."""

    def step_ended(self) -> None:
        """It is over, also where an exception ended it."""


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that is really stepped: a wrapper such as accelerate's takes no hooks."""
    while hasattr(optimizer, "param_groups") and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        found = next((o for o in _attributes(optimizer) if isinstance(o, Optimizer)), None)
        if found is None:
            raise TypeError(
                f"Expected optimizer to take step hooks as torch.optim.Optimizer does, got {type(optimizer).__name__}, "
                "which has none: call super().__init__() in its class, or give the optimizer that it wraps."
            )
        optimizer = found
    return optimizer


def inner(optimizer: Optimizer) -> list[Optimizer]:
    """Optimizers inside of this one that step its parameters for it, as in SAM or Lookahead; outermost first."""
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found: list[Optimizer] = []
    waiting = [optimizer]
    while waiting:
        for other in filter(_hooked, _attributes(waiting.pop())):
            new = not any(other is one for one in (optimizer, *found))
            if new and any(id(p) in owned for group in other.param_groups for p in group["params"]):
                found.append(other)
                waiting.append(other)
    return found


def _hooked(x: Any) -> bool:
    return isinstance(x, Optimizer) and hasattr(x, "_optimizer_step_pre_hooks")


class UnobservedSteps:
    """Whether weights move although no step of their optimizer is seen; looked at ever more rarely."""

    FIRST, SAMPLE = 16, 64  # passes before it is looked at, and again after twice as many; weights that are compared

    def __init__(self) -> None:
        self.passes, self.next = 0, self.FIRST
        self.before: Tensor | None = None

    def due(self, weight: Tensor) -> bool:
        """One more forward pass: whether it is time to look."""
        self.passes += 1
        if self.before is None:
            self.before = self._sampled(weight)
        due = self.passes >= self.next
        self.next *= 1 + due
        return due

    def moved(self, weight: Tensor) -> bool:
        """Whether this weight is not what it was in the first pass."""
        return self.before is not None and not torch.equal(self.before, self._sampled(weight))

    def _sampled(self, weight: Tensor) -> Tensor:
        return weight.detach().flatten()[: self.SAMPLE].clone()


def _attributes(optimizer: Optimizer) -> Iterator[Any]:
    for value in vars(optimizer).values():
        yield value
        if isinstance(value, list | tuple):
            yield from value


class OptimizerHooks:
    """Hooks on the steps of one optimizer, and of those inside of it."""

    def __init__(self, optimizer: Optimizer, listener: Listener) -> None:
        self.listener, self.optimizer = listener, optimizer
        self.inner = inner(optimizer)
        self.steps = 0  # steps that came to their end
        self.depth = 0  # steps that are running: one inside another where a child's step calls its parent's
        self.closure: Closure | None = None  # of the step that is running
        every = (optimizer, *self.inner)
        self.handles = [o.register_step_pre_hook(self._before) for o in every]
        self.handles += [o.register_step_post_hook(self._after) for o in every]

    def remove(self) -> None:
        """Stop listening."""
        for handle in self.handles:
            handle.remove()
        self.end()

    def end(self) -> None:
        """Whatever was running is over."""
        self.depth, self.closure = 0, None
        self.listener.step_ended()

    def forward_begins(self) -> None:
        """A forward pass in a step without a closure: that step never came to its end."""
        if self.depth and self.closure is None:
            self.end()

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.depth and optimizer is not self.optimizer:
            self.depth += 1
            self.listener.inner_step_begins()
            return None
        given = kwargs.get("closure") or next((a for a in args[1:] if callable(a)), None)
        if self.depth and given is not self.closure:
            self.end()  # an exception left the last step unfinished
        self.depth += 1
        if self.depth > 1:
            return None
        if given is None:
            self.listener.gradients_ready()
            return None
        self.closure = told = self._told(given)
        return tuple(told if a is given else a for a in args), {n: told if a is given else a for n, a in kwargs.items()}

    def _told(self, closure: Closure) -> Closure:
        def told() -> Any:
            self.listener.gradients_begin()
            try:
                loss = closure()
            except BaseException:
                self.end()
                raise
            self.listener.gradients_ready()
            return loss

        return told

    def _after(self, *_: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.steps += 1
            self.listener.stepped()
            self.end()
