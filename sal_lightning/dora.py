"""DoRA: the magnitude follows the norm of the adapted weight, so that the scale of old outputs stays as it is.

DoRA computes ``y = (m / n) (W x + c B A x)`` with ``n = ‖W + c B A‖``, one m and one n for each output. Learning
changes n, and with it every output, also where ``B A x`` is zero. After each step therefore ``m ← m n / n₀``, with n₀
the norm before the step: what remains of a step is the movement of ``m / n`` that the rule of m has let through.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sal_lightning.adapters import Adapter
from sal_lightning.distributed import sharded
from sal_lightning.pull import Pull
from sal_lightning.rules.base import Rule
from sal_lightning.rules.lora import LoraARule


class Magnitudes:
    """Corrects the magnitudes of the DoRA adapters that are held, after each step."""

    def __init__(self) -> None:
        self.before: dict[Adapter, Tensor] = {}  # n₀, only while an optimizer step runs

    @torch.no_grad()
    def begin_step(self, rules: Iterable[Rule]) -> None:
        """Measure n₀ of the adapters whose A is held."""
        held = (rule.adapter for rule in rules if isinstance(rule, LoraARule) and rule.holds)
        self.before = {one: norms(one, m) for one in held if (m := magnitude(one)) is not None}

    @torch.no_grad()
    def end_step(self, pull: Pull) -> None:
        """Correct the magnitudes, and their anchors."""
        names = {id(p): name for name, p in pull.parameters.items()} if self.before else {}
        for adapter, before in self.before.items():
            m = magnitude(adapter)
            if m is not None:
                ratio = norms(adapter, m) / before.clamp(min=torch.finfo(before.dtype).tiny)
                m.weight.mul_(ratio)
                pull.scale_anchor(names.get(id(m.weight), ""), ratio)
        self.before = {}


def magnitude(adapter: Adapter) -> Any:
    """The module of the magnitude; None if this is no DoRA adapter, or if its magnitude is frozen or sharded."""
    known = getattr(adapter.layer, "lora_magnitude_vector", None)
    m = known[adapter.name] if isinstance(known, nn.ModuleDict) and adapter.name in known else None
    weights = [m.weight, adapter.A.weight, adapter.B.weight] if m is not None else []
    return None if not weights or not weights[0].requires_grad or any(map(sharded, weights)) else m


def norms(adapter: Adapter, m: Any) -> Tensor:
    """n, of the shape of the magnitude."""
    from peft.utils.integrations import dequantize_module_weight

    layer, A, B = adapter.layer, adapter.A.weight, adapter.B.weight
    W = dequantize_module_weight(layer.get_base_layer()).to(A.dtype)
    change = B.flatten(1) @ A.flatten(1)
    change = change if W.dim() == 2 else change.view_as(W)
    n: Tensor = m.get_weight_norm(W, change, layer.scaling[adapter.name])
    return n.view_as(m.weight)
