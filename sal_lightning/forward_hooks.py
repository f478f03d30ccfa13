"""Forward pre-hooks on layers; they skip evaluation, copies of the model and checkpoint recomputation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from sal_lightning.distributed import sharded
from sal_lightning.layers import given
from sal_lightning.padding import Padding
from sal_lightning.rules.base import Rule
from sal_lightning.rules.input_rule import InputRule
from sal_lightning.torch_compile import uncompiled


def in_backward() -> bool:
    """Whether a backward pass is running; forward passes in it are checkpoint recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)  # as in torch.utils.module_tracker


def tensors(output: Any) -> list[Tensor]:
    """The tensors in a module's output that have a gradient."""
    return [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]


def on_weight_gradient(output: Any, weights: Sequence[Tensor], do: Callable[[Tensor, int], object]) -> None:
    """Call ``do``, once, when a backward pass through a module's ``output`` also computes a gradient of ``weights``.

    ``torch.autograd.grad`` with respect to inputs only, as in adversarial attacks, does not call it.

    Args:
        output: the output of the module.
        weights: parameters of the module; if empty, any backward pass through the output calls ``do``.
        do: called with the gradient at the output and the index of that output in ``tensors(output)``.
    """
    reached = tensors(output)
    if not reached:
        return
    # FSDP2 computes with gathered copies: the parameters themselves are not in the graph.
    nodes = [] if any(map(sharded, weights)) else [get_gradient_edge(w).node for w in weights]
    left = [do]

    def hook(place: int, grad: Tensor) -> None:
        if left and (not nodes or any(map(_executed, nodes))):
            left.pop()(grad, place)

    for place, x in enumerate(reached):  # a loss may use any of several outputs
        x.register_hook(partial(hook, place))  # type: ignore[no-untyped-call]


def _executed(node: Node) -> bool:
    """Whether the running backward pass computes the gradient of the parameter that this node accumulates."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # raised in `torch.autograd.grad` with inputs
        return True


Collect = Callable[[InputRule, tuple[Any, ...]], None]
Confirm = Callable[[], None]
CollectLater = Callable[[InputRule, tuple[Any, ...]], Confirm]


class ForwardHooks:
    """Hooks that collect the inputs of modules in forward passes; one hook for all rules of a module.

    A forward pass counts if gradients are enabled and a training step is running (``in_step``). A pass of a module in
    training mode counts at once; one in evaluation mode counts when a backward pass computes the gradient of the
    rule's weights.
    """

    def __init__(self) -> None:
        self.always = False  # whether every pass counts, in evaluation too
        self.in_step = True  # whether a training step is running; a plain loop leaves this True
        self.padding = Padding()
        self._forward = set[Rule]()  # rules whose layer ran outside a backward pass, unlike reentrant checkpointing
        self._collect: Collect | None = None
        self._collect_later: CollectLater | None = None
        self._rules: dict[nn.Module, list[InputRule]] = {}
        self._handles: dict[nn.Module, list[RemovableHandle]] = {}
        self._with_forward_hook = set[nn.Module]()
        self._running: dict[nn.Module, list[tuple[InputRule, Confirm]]] = {}  # passes in evaluation mode

    def begin(self, collect: Collect, collect_later: CollectLater) -> None:
        """Remove all hooks, and collect by these functions from now on.

        Args:
            collect: called with the input of a pass that counts at once.
            collect_later: called with the input of a pass in evaluation mode. It returns a function that is called
                when that pass counts.
        """
        self.clear()
        self._collect, self._collect_later = collect, collect_later

    def add(self, rule: InputRule) -> None:
        """Hook the modules of this rule."""
        for module in rule.modules:
            rules = self._rules.setdefault(module, [])
            rules.append(rule)
            if module not in self._handles:
                handle = module.register_forward_pre_hook(self._pre_hook(module, rules), with_kwargs=True)
                self._handles[module] = [handle]
            if not module.training:  # compiled code runs only hooks that were registered before
                self._add_forward_hook(module)

    def remove(self, rule: Rule) -> None:
        """Remove the hooks of this rule."""
        for module, rules in list(self._rules.items()):
            rules[:] = [other for other in rules if other is not rule]
            if not rules:
                self._remove_module(module)

    def clear(self) -> None:
        """Remove all hooks."""
        for module in list(self._rules):
            self._remove_module(module)
        self.padding.end()
        self._collect = self._collect_later = None

    def _remove_module(self, module: nn.Module) -> None:
        for handle in self._handles.pop(module):
            handle.remove()
        del self._rules[module]
        self._with_forward_hook.discard(module)
        self._running.pop(module, None)

    def _pre_hook(self, hooked: nn.Module, rules: list[InputRule]) -> Callable[..., None]:
        @uncompiled
        def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is not hooked or not (self.always or (self.in_step and torch.is_grad_enabled())):
                return  # evaluation, or a copy of the model: hooks are copied with it
            counting = [rule for rule in rules if self._counts(rule)]
            inputs = given(module, args, kwargs) if counting else ()
            if not inputs:
                return
            real = self.padding.among(module, inputs)
            for rule in counting:
                rule.real = real
            assert self._collect is not None
            assert self._collect_later is not None
            if self.always or module.training:
                for rule in counting:
                    self._collect(rule, inputs)
            else:
                self._running[module] = [(rule, self._collect_later(rule, inputs)) for rule in counting]
                self._add_forward_hook(module)

        return pre_hook

    def _counts(self, rule: InputRule) -> bool:
        """Whether a pass counts for this rule: its weight is trained, and the pass is no checkpoint recomputation."""
        if not (self.always or next(iter(rule.parameters.values())).requires_grad):
            return False
        if in_backward():
            return rule not in self._forward
        self._forward.add(rule)
        return True

    def _add_forward_hook(self, hooked: nn.Module) -> None:
        """Hook the end of this module's forward passes, where a backward hook can be added to its output."""
        if hooked in self._with_forward_hook:
            return
        self._with_forward_hook.add(hooked)

        @uncompiled
        def forward_hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            running = self._running.pop(module, []) if module is hooked else []
            for rule, confirm in running:
                weights = [p for p in rule.parameters.values() if p.requires_grad]
                on_weight_gradient(output, weights, _without_arguments(confirm))

        self._handles[hooked].append(hooked.register_forward_hook(forward_hook))


def _without_arguments(confirm: Confirm) -> Callable[[Tensor, int], None]:
    return lambda gradient, place: confirm()
