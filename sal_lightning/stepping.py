"""Knowing when an optimizer steps: once a step, nested or not, given a closure or not, and also if it falls."""

from collections.abc import Callable
from typing import Any, Protocol

from torch.optim import Optimizer

Closure = Callable[[], Any]


class Listener(Protocol):
    """What is told of a step, in this order."""

    def gradients_begin(self) -> None:
        """A closure is about to compute them: once or, with LBFGS and its like, many times in a step."""

    def gradients_ready(self) -> None:
        """They are there, and the weights have not moved since."""

    def stepped(self) -> None:
        """The optimizer has moved the weights."""

    def step_ended(self) -> None:
        """It is over, also where an exception ended it."""


class Stepping:
    """Listens to one optimizer through its own hooks."""

    def __init__(self, optimizer: Optimizer, listener: Listener) -> None:
        self.listener = listener
        self.depth = 0  # steps that are running: one inside another where a child's step calls its parent's
        self.closure: Closure | None = None  # of the step that is running
        hooks = optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)
        self.handles = list(hooks)

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
            self.listener.stepped()
            self.end()
