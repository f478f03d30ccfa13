"""Forward pre-hooks on layers; they skip evaluation, copies of the model and checkpoint recomputation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sal_lightning.compiling import uncompiled
from sal_lightning.covering import Eye
from sal_lightning.layers import readable
from sal_lightning.padding import Padding
from sal_lightning.rules.base import Rule
from sal_lightning.rules.subspace import Subspace
from sal_lightning.surroundings import in_backward, on_weight_gradient

_INPUTS = ("input", "query", "key", "value")  # by whatever name a layer is given them

Heard = Callable[[Eye, tuple[Any, ...]], None]
Confirm = Callable[[], None]


class Hearing:
    """Hooks on the forward passes of layers.

    A pass counts if gradients are enabled and, where a trainer says so, a training step is running. Of a layer in
    training mode it counts at once; of one in evaluation mode when a backward pass computes the layer's gradient.
    """

    def __init__(self) -> None:
        self.always = False  # whether every pass counts, in evaluation too
        self.in_step = True  # whether a training step is running; a plain loop does not say
        self.padding = Padding()
        self._forward = set[Rule]()  # whose layer ran not only in a backward pass, as under reentrant checkpointing
        self._handles: dict[Rule, list[RemovableHandle]] = {}
        self._following = set[Rule]()  # those with a hook after the forward pass too
        self._running: dict[Rule, Confirm] = {}  # layers in evaluation mode, during their forward pass

    def listen(self, eye: Eye, heard: Heard, defer: Callable[[Eye, tuple[Any, ...]], Confirm]) -> None:
        """Hook this eye's layer too.

        Args:
            eye: its layer is hooked.
            heard: called with the input of a pass that counts at once.
            defer: called with the input of a pass in evaluation mode; what it returns is called if that pass counts.
        """
        module = _module(eye)
        handle = module.register_forward_pre_hook(self._listener(eye, heard, defer), with_kwargs=True)
        self._handles[eye] = [handle]
        if not module.training:  # code compiled later knows the hooks that are there by then
            self._follow(eye)

    def forget(self, eye: Rule) -> None:
        """Remove the hooks of this eye."""
        for handle in self._handles.pop(eye, []):
            handle.remove()
        self._following.discard(eye)
        self._running.pop(eye, None)

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in [handle for handles in self._handles.values() for handle in handles]:
            handle.remove()
        self._handles.clear()
        self.padding.end()
        self._following.clear()
        self._running.clear()

    def _listener(
        self, eye: Eye, heard: Heard, defer: Callable[[Eye, tuple[Any, ...]], Confirm]
    ) -> Callable[..., None]:
        weight = next(iter(eye.parameters.values()))
        watched = _module(eye)

        @uncompiled
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            counts = self.in_step and torch.is_grad_enabled() and weight.requires_grad
            if module is not watched or not (self.always or counts):
                return  # evaluation, or a copy of the model: hooks are copied with it
            given = args + tuple(kwargs[k] for k in _INPUTS if k in kwargs)
            if not (given and readable(given[0])):
                return
            if in_backward():
                if eye in self._forward:
                    return  # run again for its activations
            else:
                self._forward.add(eye)
            eye.real = self.padding.among(module, given)
            if self.always or module.training:
                heard(eye, given)
            else:
                self._running[eye] = defer(eye, given)
                self._follow(eye)

        return listen

    def _follow(self, eye: Eye) -> None:
        """Hook the end of this layer's forward passes, where its output can be asked for a backward pass."""
        if eye in self._following:
            return
        self._following.add(eye)
        weights, watched = list(eye.parameters.values()), _module(eye)

        @uncompiled
        def ended(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            confirm = self._running.pop(eye, None) if module is watched else None
            if confirm is not None:
                on_weight_gradient(output, [w for w in weights if w.requires_grad], confirm)

        self._handles[eye].append(watched.register_forward_hook(ended))


def _module(eye: Eye) -> nn.Module:
    return eye.layer.module if isinstance(eye, Subspace) else eye.table
