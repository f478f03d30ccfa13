"""What surrounds a forward pass: its backward pass, recomputation, a loop that casts or records gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._pytree import tree_leaves

from sal_lightning.distributed import sharded


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
