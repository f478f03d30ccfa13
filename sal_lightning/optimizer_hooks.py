"""Optimizer hooks: one callback per step, including nested steps, closures, exceptions and optimizers inside others."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

Closure = Callable[[], Any]


class Listener(Protocol):
    """Callbacks of one optimizer step, in the order in which they are called."""

    def gradients_begin(self) -> None:
        """The closure is about to compute gradients; several times per step with optimizers such as LBFGS."""

    def gradients_ready(self) -> None:
        """The gradients are computed, and the weights have not been updated yet."""

    def inner_step_begins(self) -> None:
        """An inner optimizer of the running step is about to update the weights."""

    def stepped(self) -> None:
        """The optimizer has updated the weights."""

    def step_ended(self) -> None:
        """The step has ended, possibly with an exception."""


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside a wrapper that does not support step hooks, such as accelerate's.

    Raises:
        TypeError: neither the optimizer nor one that it wraps supports step hooks.
    """
    while hasattr(optimizer, "param_groups") and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        found = next((o for o in _attributes(optimizer) if isinstance(o, Optimizer)), None)
        if found is None:
            raise TypeError(
                f"Expected optimizer to take step hooks as torch.optim.Optimizer does, got {type(optimizer).__name__}, "
                "which has none: call super().__init__() in its class, or pass the optimizer that it wraps."
            )
        optimizer = found
    return optimizer


def inner(optimizer: Optimizer) -> list[Optimizer]:
    """Inner optimizers that update this optimizer's parameters, as in SAM or Lookahead; outermost first."""
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
    """Detects weights that change although no step of their optimizer is observed, at doubling intervals."""

    FIRST, SAMPLE = 16, 64  # forward passes before the first check, doubled after each; weights compared

    def __init__(self) -> None:
        self.passes, self.next = 0, self.FIRST
        self.before: Tensor | None = None

    def due(self, weight: Tensor) -> bool:
        """Count a forward pass; returns whether a check is due."""
        self.passes += 1
        if self.before is None:
            self.before = self._sampled(weight)
        due = self.passes >= self.next
        self.next *= 1 + due
        return due

    def moved(self, weight: Tensor) -> bool:
        """Whether this weight has changed since the first pass."""
        return self.before is not None and not torch.equal(self.before, self._sampled(weight))

    def _sampled(self, weight: Tensor) -> Tensor:
        return weight.detach().flatten()[: self.SAMPLE].clone()


def _attributes(optimizer: Optimizer) -> Iterator[Any]:
    for value in vars(optimizer).values():
        yield value
        if isinstance(value, list | tuple):
            yield from value


class OptimizerHooks:
    """Hooks on the steps of one optimizer and its inner optimizers.

    Args:
        optimizer: the optimizer, already unwrapped.
        listener: the object whose methods are called.
    """

    def __init__(self, optimizer: Optimizer, listener: Listener) -> None:
        self.listener, self.optimizer = listener, optimizer
        self.inner = inner(optimizer)
        self.steps = 0  # completed steps
        self.depth = 0  # nesting depth of running steps: a subclass's step may call its parent's
        self.closure: Closure | None = None  # closure of the running step
        every = (optimizer, *self.inner)
        self.handles = [o.register_step_pre_hook(self._before) for o in every]
        self.handles += [o.register_step_post_hook(self._after) for o in every]

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in self.handles:
            handle.remove()
        self.end()

    def end(self) -> None:
        """End the running step."""
        self.depth, self.closure = 0, None
        self.listener.step_ended()

    def forward_begins(self) -> None:
        """A forward pass begins; a running step without a closure must have been ended by an exception."""
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
        self.closure = new = self._wrapped(given)
        return tuple(new if a is given else a for a in args), {n: new if a is given else a for n, a in kwargs.items()}

    def _wrapped(self, closure: Closure) -> Closure:
        def wrapped() -> Any:
            self.listener.gradients_begin()
            try:
                loss = closure()
            except BaseException:
                self.end()
                raise
            self.listener.gradients_ready()
            return loss

        return wrapped

    def _after(self, *_: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.steps += 1
            self.listener.stepped()
            self.end()
