"""What the subspace rule holds of a layer, and how it is kept in a state."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from sal_lightning.distributed import gather, part, sharded
from sal_lightning.layers import Layer
from sal_lightning.rules.base import State
from sal_lightning.rules.directions import Directions


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
    rows: int | None = None  # the layer's first outputs are held, those added later free; None: all are held

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

    def old(self, X: Tensor) -> Tensor:
        """``X`` (groups, out, …) with zeros at outputs that were added since it was consolidated."""
        if self.rows is not None:
            X[:, self.rows :] = 0
        return X

    @classmethod
    def unpack(cls, state: State, layer: Layer, weights: Sequence[Tensor]) -> "Memory":
        """What ``pack`` packed, where the layer's ``weights`` live."""
        device, whole = layer.weight.device, layer.weight
        state = _fitted(state, layer)
        m: dict[str, Any] = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in state.items()}
        if sharded(whole):
            m["A"] = part(m["A"][0], whole)[None]
        E = part(m["E"][0], whole)[None] if sharded(whole) else m["E"]
        found = Directions(m["U"], m["lam"], m["rest"])
        A, rows = m["A"].clone(), m.get("rows")
        if rows is not None:
            A[:, rows:] = layer.along(weights, m["U"][..., : A.shape[-1]])[:, rows:]
        return cls(found, m["f"], m["s_rest"], A, E.clone(), m["size"], m["path"], m["steps"], m["strength"], rows)


def _fitted(state: State, layer: Layer) -> State:
    """A state of a layer that may have got more outputs since.

    Raises:
        ValueError: its inputs, or fewer outputs, are others than those that are held.
    """
    groups, inputs = state["U"].shape[:2]
    here, name = layer.inputs + (layer.bias is not None), layer.name or "the model"
    if (groups, inputs) != (layer.groups, here):
        raise ValueError(
            f"Expected layer {name!r} to have the {inputs} inputs (its bias is one) in {groups} groups that are held, "
            f"got {here} in {layer.groups}."
        )
    out = state["E"].shape[1]
    if out == layer.out:
        return state
    if out > layer.out or groups > 1 or sharded(layer.weight):
        raise ValueError(
            f"Expected layer {name!r} to have at least the {out} outputs of a group that are held "
            f"(as many in groups or sharded), got {layer.out}."
        )
    rows = state.get("rows")
    more = {key: F.pad(state[key], (0, 0, 0, layer.out - out)) for key in ("A", "E") if key in state}
    return state | more | {"rows": out if rows is None else rows}
