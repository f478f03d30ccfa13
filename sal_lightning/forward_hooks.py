"""Forward pre-hooks on layers; they skip evaluation, copies of the model and checkpoint recomputation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from sal_lightning.coverage import Eye
from sal_lightning.distributed import sharded
from sal_lightning.layers import given
from sal_lightning.padding import Padding
from sal_lightning.rules.base import Rule
from sal_lightning.torch_compile import uncompiled


def in_backward() -> bool:
    """Whether a backward pass is running: under checkpointing it runs forward passes again."""
    return bool(torch._C._current_graph_task_id() != -1)  # as torch.utils.module_tracker asks


def tensors(output: Any) -> list[Tensor]:
    """The tensors in a module's output that have a gradient."""
    return [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]


def on_weight_gradient(output: Any, weights: Sequence[Tensor], do: Callable[[Tensor, int], object]) -> None:
    """Call ``do``, once, when a backward pass through a module's ``output`` also computes a gradient of ``weights``.

    It is given the gradient at the output, and which of ``tensors(output)`` that is.

    ``torch.autograd.grad`` with respect to the inputs alone, as in adversarial attacks, does not call it. Without
    ``weights`` any backward pass through the output does.
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

    for place, x in enumerate(reached):  # of several outputs a loss may use any
        x.register_hook(partial(hook, place))  # type: ignore[no-untyped-call]


def _executed(node: Node) -> bool:
    """Whether the running backward pass computes the gradient of the parameter that this node accumulates."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # it is asked for by `torch.autograd.grad`: torch does not answer then
        return True


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Without gradients, and in the tensors' own precision whatever the loop around it casts to."""
    casts = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
    with torch.no_grad(), casts:
        yield


Heard = Callable[[Eye, tuple[Any, ...]], None]
Confirm = Callable[[], None]
Defer = Callable[[Eye, tuple[Any, ...]], Confirm]


class _Ear(NamedTuple):
    """What is called when a module of this eye runs."""

    eye: Eye
    heard: Heard
    defer: Defer


class ForwardHooks:
    """Hooks on the forward passes of modules, one for all eyes of a module.

    A pass counts if gradients are enabled and, where a trainer says so, a training step is running. Of a module in
    training mode it counts at once; of one in evaluation mode when a backward pass computes the layer's gradient.
    """

    def __init__(self) -> None:
        self.always = False  # whether every pass counts, in evaluation too
        self.in_step = True  # whether a training step is running; a plain loop does not say
        self.padding = Padding()
        self._forward = set[Rule]()  # whose layer ran not only in a backward pass, as under reentrant checkpointing
        self._ears: dict[nn.Module, list[_Ear]] = {}
        self._handles: dict[nn.Module, list[RemovableHandle]] = {}
        self._following = set[nn.Module]()  # those with a hook after the forward pass too
        self._running: dict[nn.Module, list[tuple[Eye, Confirm]]] = {}  # in evaluation mode, during their forward pass

    def listen(self, eye: Eye, heard: Heard, defer: Defer) -> None:
        """Hook the modules of this eye too.

        Args:
            eye: its modules are hooked.
            heard: called with the input of a pass that counts at once.
            defer: called with the input of a pass in evaluation mode; what it returns is called if that pass counts.
        """
        for module in eye.modules:
            ears = self._ears.setdefault(module, [])
            ears.append(_Ear(eye, heard, defer))
            if module not in self._handles:
                handle = module.register_forward_pre_hook(self._listener(module, ears), with_kwargs=True)
                self._handles[module] = [handle]
            if not module.training:  # code compiled later knows the hooks that are there by then
                self._follow(module)

    def forget(self, eye: Rule) -> None:
        """Stop listening for this eye."""
        for module, ears in list(self._ears.items()):
            ears[:] = [ear for ear in ears if ear.eye is not eye]
            if not ears:
                self._unhook(module)

    def remove(self) -> None:
        """Remove all hooks."""
        for module in list(self._ears):
            self._unhook(module)
        self.padding.end()

    def _unhook(self, module: nn.Module) -> None:
        for handle in self._handles.pop(module):
            handle.remove()
        del self._ears[module]
        self._following.discard(module)
        self._running.pop(module, None)

    def _listener(self, watched: nn.Module, ears: list[_Ear]) -> Callable[..., None]:
        @uncompiled
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is not watched or not (self.always or (self.in_step and torch.is_grad_enabled())):
                return  # evaluation, or a copy of the model: hooks are copied with it
            counting = [ear for ear in ears if self._counts(ear.eye)]
            inputs = given(module, args, kwargs) if counting else ()
            if not inputs:
                return
            real = self.padding.among(module, inputs)
            for ear in counting:
                ear.eye.real = real
            if self.always or module.training:
                for eye, heard, _ in counting:
                    heard(eye, inputs)
            else:
                self._running[module] = [(eye, defer(eye, inputs)) for eye, _, defer in counting]
                self._follow(module)

        return listen

    def _counts(self, eye: Eye) -> bool:
        """Whether a pass counts for this eye: its weight learns, and the layer is not run again for its activations."""
        if not (self.always or next(iter(eye.parameters.values())).requires_grad):
            return False
        if in_backward():
            return eye not in self._forward
        self._forward.add(eye)
        return True

    def _follow(self, watched: nn.Module) -> None:
        """Hook the end of this module's forward passes, where its output can be asked for a backward pass."""
        if watched in self._following:
            return
        self._following.add(watched)

        @uncompiled
        def ended(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            running = self._running.pop(module, []) if module is watched else []
            for eye, confirm in running:
                weights = [p for p in eye.parameters.values() if p.requires_grad]
                on_weight_gradient(output, weights, _counted(confirm))

        self._handles[watched].append(watched.register_forward_hook(ended))


def _counted(confirm: Confirm) -> Callable[[Tensor, int], None]:
    return lambda gradient, place: confirm()
