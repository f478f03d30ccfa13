"""Knowing when a layer is called in training: by its own model, and once if it runs again for its activations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sal_lightning.covering import Eye
from sal_lightning.layers import readable
from sal_lightning.rules.base import Rule
from sal_lightning.rules.subspace import Subspace
from sal_lightning.surroundings import in_backward

_INPUTS = ("input", "query", "key", "value")  # by whatever name a layer is given them

Heard = Callable[[Eye, tuple[Any, ...]], None]


class Hearing:
    """Hooks on the forward passes of layers."""

    def __init__(self) -> None:
        self.always = False  # whether a call in evaluation counts too
        self._forward = set[Rule]()  # whose layer ran not only in a backward pass, as under reentrant checkpointing
        self._handles: dict[Rule, RemovableHandle] = {}

    def listen(self, eye: Eye, heard: Heard) -> None:
        """Listen to this eye's layer too; ``heard`` is told when it is called, and what it is given."""
        self._handles[eye] = _module(eye).register_forward_pre_hook(self._listener(eye, heard), with_kwargs=True)

    def remove(self) -> None:
        """Stop listening."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _listener(self, eye: Eye, heard: Heard) -> Callable[..., None]:
        weight = next(iter(eye.parameters.values()))
        watched = _module(eye)

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            training = module.training and torch.is_grad_enabled() and weight.requires_grad
            if module is not watched or not (self.always or training):
                return  # evaluation, or a copy of the model: hooks are copied with it
            given = args + tuple(kwargs[k] for k in _INPUTS if k in kwargs)
            if not (given and readable(given[0])):
                return
            if in_backward():
                if eye in self._forward:
                    return  # run again for its activations
            else:
                self._forward.add(eye)
            heard(eye, given)

        listener: Callable[..., None] = listen
        return listener


def _module(eye: Eye) -> nn.Module:
    return eye.layer.module if isinstance(eye, Subspace) else eye.table
