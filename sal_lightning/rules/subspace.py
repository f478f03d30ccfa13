"""The subspace rule: stability of the directions of a layer's input."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from sal_lightning import directions
from sal_lightning.directions import Directions
from sal_lightning.layers import Layer, homogeneous
from sal_lightning.rules.base import Rule, State, bands
from sal_lightning.window import Window

RANK = 0.3  # directions kept, as a share of the layer's inputs: window, memory and E come to about 1.5 weights' worth
MAX_RANK = 256  # and never more than these, however wide the layer
ROWS = 128  # rows of a batch that are looked at
DENSE, EVERY = 16, 8  # the first batches of a window are all seen, then one in EVERY
BETA = 0.99  # a window remembers about a hundred steps
FLOOR = 0.3  # in mean eigenvalues: how far a direction never seen is


class Memory(NamedTuple):
    """What is held: directions with their stability, and how the weights have moved along them since."""

    directions: Directions
    s: Tensor
    s_rest: Tensor
    E: Tensor  # (groups, out, k): how far W U is from what was consolidated
    size: Tensor  # ‖W U‖ when it was consolidated
    path: Tensor  # Σ ‖ΔW U‖ over the steps since, before anything was held back
    steps: int


class Subspace(Rule):
    """``held(X) = X S`` with ``S = U diag(s) Uᵀ + s̄ (1 − U Uᵀ)`` over the input directions of one layer.

    ``X`` is anything of the shape of ``W`` (groups, out, d), the weight with its bias as last column.

    After the step, what was let through along held directions is also slowly taken back: ``E ← E − ρ E diag(s)`` with
    ``ρ = recall · mean ‖ΔW U‖ / ‖W U‖``, so that noise does not add up while a steady push still moves the weights. The
    pace is the weights' own: half the learning rate over twice the steps comes to about the same.
    """

    grain = "subspace"

    def __init__(
        self, layer: Layer, parameters: dict[str, nn.Parameter], strength: float, recall: float, share: float
    ) -> None:
        super().__init__(layer.name or "model", parameters)
        self.layer, self.strength, self.recall, self.share = layer, strength, recall, share
        self.d = layer.weight[0].numel() + (layer.bias is not None)
        self.rank = max(1, min(int(RANK * self.d), MAX_RANK))
        self.window = Window(self.rank, BETA)
        self.age = 0  # steps since the window began
        self.seen: list[Tensor] = []  # rows of this step's batch
        self.memory: Memory | None = None

    @property
    def due(self) -> bool:
        """Whether the window wants the rows of this step."""
        return self.age < DENSE or self.age % EVERY == 0

    def see(self, args: tuple[Any, ...], step: int) -> None:
        """Gather sampled rows of the input in a forward pass; accumulated batches add up."""
        self.seen.append(self.layer.rows(self.layer.module, args, ROWS, step))

    def rows(self) -> Tensor | None:
        """This step's rows (groups, n, d), a 1 appended where the layer has a bias."""
        if not self.seen or not sum(x.shape[1] for x in self.seen):
            return None
        x = torch.cat(self.seen, 1)
        return x if self.layer.bias is None else homogeneous(x)

    @override
    def observe(self) -> None:
        if self.due and (x := self.rows()) is not None:
            self.window.update(x, steps=1 if self.age < DENSE else EVERY)
        self.age += 1
        self.forget_step()

    @override
    def forget_step(self) -> None:
        self.seen.clear()

    @override
    def consolidate(self) -> None:
        if self.window.B is None:
            return
        past = None if self.memory is None else self.memory.directions
        found = directions.merge(past, self.window.rows(), self.rank, self.share)
        W = [p.detach() for p in self.parameters.values()]
        A = self._along(W, found.U).float()
        s, s_rest = directions.stability(found.lam, self.strength), directions.stability(found.rest, self.strength)
        self.memory = Memory(
            found, s, s_rest, torch.zeros_like(A), torch.linalg.vector_norm(A), torch.zeros_like(A[0, 0, 0]), 0
        )

    @override
    def clear(self) -> None:
        self.window.clear()
        self.age = 0

    @override
    def held(self, X: Sequence[Tensor]) -> list[Tensor]:
        m = self.memory
        assert m is not None
        Y = self._along(X, m.directions.U) * (m.s - m.s_rest[:, None])[:, None, :]
        return self._spread(Y, m.directions.U, m.s_rest, X)

    @override
    def back(self, D: Sequence[Tensor]) -> list[Tensor]:
        m = self.memory
        assert m is not None
        U, s = m.directions.U, m.s[:, None, :]
        DU = self._along(D, U)
        path, steps = m.path + torch.linalg.vector_norm(DU).to(m.path.dtype), m.steps + 1
        rate = (self.recall * path / steps / m.size.clamp(min=torch.finfo(path.dtype).tiny)).clamp(max=1)
        E = m.E + (DU * (1 - s)).to(m.E.dtype)
        pull = E * s * rate
        self.memory = m._replace(E=E - pull, path=path, steps=steps)
        return self._spread(DU * (s - m.s_rest[:, None, None]) + pull, U, m.s_rest, D)

    def _along(self, X: Sequence[Tensor], U: Tensor) -> Tensor:
        """``X U`` (groups, out, k) of a weight-shaped and, if there is a bias, a bias-shaped tensor."""
        weight, *bias = map(self._matrix, X)
        U = U.to(weight.dtype)
        XU = weight @ U[:, : weight.shape[-1]]
        return XU + bias[0] * U[:, -1:] if bias else XU

    def _spread(self, Y: Tensor, U: Tensor, s_rest: Tensor, X: Sequence[Tensor]) -> list[Tensor]:
        """``Y Uᵀ + s̄ X``, split into the shapes of weight and bias."""
        weight, *bias = map(self._matrix, X)
        Y, U, outside = Y.to(weight.dtype), U.to(weight.dtype), s_rest.to(weight.dtype)[:, None, None]
        H = [torch.baddbmm(outside * weight, Y, U[:, : weight.shape[-1]].mT)]
        if bias:
            H.append(outside * bias[0] + (Y * U[:, -1:]).sum(-1, keepdim=True))
        return [h.reshape(x.shape).to(x.dtype) for h, x in zip(H, X, strict=True)]

    def _matrix(self, x: Tensor) -> Tensor:
        """As (groups, out, inputs), in single precision at least."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return wide.reshape(self.layer.groups, x.shape[0] // self.layer.groups, -1)

    @override
    def bands(self) -> Tensor:
        m = self.memory
        if m is None:
            return torch.tensor([0.0, 0.0, self.numel()])
        (_, out, k) = m.E.shape
        return bands(m.s, out) + bands(m.s_rest, (self.d - k) * out)

    @override
    def drift(self) -> Tensor | None:
        m = self.memory
        if m is None:
            return None
        A = self._along([p.detach() for p in self.parameters.values()], m.directions.U)
        energy = m.directions.lam[:, None, :]
        return torch.stack([(m.E.square() * energy).sum(), (A.square() * energy).sum()])

    def surprise(self) -> Tensor | None:
        """How unusual this step's rows are under the window; None while it is too young to say."""
        x = self.rows()
        return None if x is None or self.age < DENSE else self.window.surprise(x, FLOOR)

    @override
    def state_dict(self) -> State:
        return {"age": self.age, "window": self.window.state_dict(), "memory": self.pack(self.memory)}

    @override
    def load_state_dict(self, state: State) -> None:
        self.age = state["age"]
        self.window.load_state_dict(state["window"], self.device)
        self.memory = self.unpack(state["memory"])

    @override
    def pack(self, memory: Memory | None) -> State:
        return {} if memory is None else memory.directions._asdict() | memory._asdict() | {"directions": None}

    @override
    def unpack(self, state: State) -> Memory | None:
        if not state:
            return None
        m: dict[str, Any] = {name: x.to(self.device) if isinstance(x, Tensor) else x for name, x in state.items()}
        found = Directions(m["U"], m["lam"], m["rest"])
        return Memory(found, m["s"], m["s_rest"], m["E"], m["size"], m["path"], m["steps"])
