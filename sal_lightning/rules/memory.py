"""What the subspace rule holds of a layer, and how it is kept in a state."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sal_lightning.directions import Directions
from sal_lightning.layers import Layer
from sal_lightning.processes import gather, part, sharded
from sal_lightning.rules.base import State


class Memory(NamedTuple):
    """What is held: directions with their stability, and how the weights have moved along them since."""

    directions: Directions
    f: Tensor  # (groups, k) of the first k directions: what the rest's hold lets through and theirs does not, in [0, 1]
    s_rest: Tensor  # (groups,)
    A: Tensor  # (groups, out, k): W U when it was last put right
    E: Tensor  # (groups, out, k): how far W U is from what was consolidated
    size: Tensor  # ‖W U‖ when it was consolidated
    path: Tensor  # Σ ‖ΔW U‖ over the times it was put right since, before anything was held back
    steps: Tensor  # how many of them found that anything had moved
    strength: float  # by which it is held, until it is consolidated anew

    @property
    def U(self) -> Tensor:
        """The directions that are held firmer than the rest: (groups, d, k)."""
        return self.directions.U[..., : self.f.shape[-1]]

    @property
    def s(self) -> Tensor:
        """Their stability, (groups, k): ``1 − s = (1 − s̄) (1 − f)``."""
        return self.s_rest[:, None] + (1 - self.s_rest[:, None]) * self.f

    def pack(self, weight: Tensor) -> State:
        """As named tensors, whole where the layer's ``weight`` is sharded."""
        state = self.directions._asdict() | self._asdict() | {"directions": None}
        if sharded(weight):
            state |= {name: gather(state[name][0], weight)[None] for name in ("A", "E")}
        return state

    @classmethod
    def unpack(cls, state: State, layer: Layer, weights: Sequence[Tensor], strength: float) -> "Memory":
        """What ``pack`` packed, where the layer's ``weights`` live; ``strength`` is that of a state of version 1."""
        device, whole = layer.weight.device, layer.weight
        m: dict[str, Any] = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in state.items()}
        if "A" not in m:  # version 1 put right what each step had moved
            m["A"] = layer.along(weights, m["U"]).to(m["E"].dtype)
        elif sharded(whole):
            m["A"] = part(m["A"][0], whole)[None]
        E = part(m["E"][0], whole)[None] if sharded(whole) else m["E"]
        found = Directions(m["U"], m["lam"], m["rest"])
        # Version 1 counted steps in Python.
        steps = torch.as_tensor(m["steps"], dtype=m["path"].dtype, device=device)
        f = m["f"] if "f" in m else 1 - (1 - m["s"]) / (1 - m["s_rest"][:, None]).clamp(min=1e-6)
        held = m.get("strength", strength)
        return cls(found, f, m["s_rest"], m["A"].clone(), E.clone(), m["size"], m["path"], steps, held)
