"""Forward hooks under ``torch.compile``, which run as plain Python between compiled graphs."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

_CURE = "compile without fullgraph=True"
_REASON = f"sal_lightning observes layers by forward hooks, which run between compiled graphs: {_CURE}"

Hook = TypeVar("Hook", bound=Callable[..., Any])


def uncompiled(hook: Hook) -> Hook:
    """Exclude a hook from compilation."""
    known = "reason" in inspect.signature(torch.compiler.disable).parameters  # since torch 2.7
    disabled: Hook = torch.compiler.disable(hook, **({"reason": _REASON} if known else {}))  # type: ignore[no-untyped-call]
    return disabled


def check(model: nn.Module) -> None:
    """Check that hooks can run in a model.

    Raises:
        ValueError: the model, or a module in it, was compiled with ``fullgraph=True``.
    """
    for name, module in model.named_modules():
        if any(getattr(context, "fullgraph", False) for context in _contexts(module)):
            raise ValueError(
                f"Expected a model compiled without fullgraph=True, got one with it at {name or 'the model itself'!r}: "
                f"layers are observed by forward hooks, which run between compiled graphs. To be protected, {_CURE}."
            )


def renew() -> None:
    """Reset the compiler, since compiled code ignores hooks that were added to a module after its first call."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@contextmanager
def eagerly() -> Iterator[None]:
    """Context in which compiled modules run eagerly, so that hooks added after compilation are called."""
    if hasattr(torch.compiler, "set_stance"):  # since torch 2.6
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        renew()
        yield


def _contexts(module: nn.Module) -> Iterator[Any]:
    """The compilation contexts of a module: ``torch.compile(module)``, ``module.compile()`` and Lightning's."""
    found = module.__dict__
    yield found.get("dynamo_ctx")
    if isinstance(by_lightning := found.get("_compiler_ctx"), dict):
        yield by_lightning.get("dynamo_ctx")
    for cell in getattr(found.get("_compiled_call_impl"), "__closure__", None) or ():
        yield cell.cell_contents
