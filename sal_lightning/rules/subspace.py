"""The subspace rule: stability of the directions of a layer's input."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from sal_lightning.distributed import agree, gather, part, sharded, totals
from sal_lightning.input_sketch import probe
from sal_lightning.layers import Layer
from sal_lightning.rules import directions
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.directions import Directions
from sal_lightning.rules.firmness import LEAST, MOST, firmed, hold, worth
from sal_lightning.rules.input_statistics import InputStatistics
from sal_lightning.rules.scores import Scores


class SubspaceMemory(NamedTuple):
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
    def unpack(cls, state: State, layer: Layer, weights: Sequence[Tensor]) -> "SubspaceMemory":
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


RANK = 0.3  # directions kept, as a share of the layer's inputs,
MIN_RANK, MAX_RANK = 32, 128  # within these: a small layer is held whole, a wide one costs no more for being wide
MASK = 32  # directions that the gradient is held back along: the strongest, where nearly all of it lies
SETTLE = 16  # steps after which what moved along held directions is put back; until then the mask alone acts there
AT_ONCE = ("cpu",)  # devices that have nothing queued, so that a result can be asked for
SAME = 1e-6  # a relative difference of two fingerprints that is rounding


class Operands(NamedTuple):
    """What each step multiplies by, computed once for a memory: views of its directions where they can be."""

    memory: SubspaceMemory
    q: Tensor  # the demand it was computed for
    U: list[Tensor]  # the masked directions' rows of the weight and, if there is one, of the bias: (groups, columns, k)
    f: Tensor  # (groups, 1, k)
    back: Tensor  # what is put back of each step: (groups, out, 1), or one number where that is the same everywhere


class SubspaceRule(InputStatistics):
    """``held(X) = X S`` with ``S = U diag(s) Uᵀ + s̄ (1 − U Uᵀ)`` over the input directions of one layer.

    ``X`` is anything of the shape of ``W`` (groups, out, d), the weight with its bias as last column.

    The gradient is held back along the strongest directions, where nearly all of it lies: ``G ← G − (G U) diag(f) Uᵀ``
    with ``f = (s − s̄) / (1 − s̄)``, what s̄ does not take of s anyway.

    ``s̄`` is the mean of what no direction was kept for. Adam moves it as fast as the rest of the layer, however little
    the gradient asks for it, so ``s̄ = λ̄ / (λ̄ + α o)`` with ``o`` from 1/16 to 1: its mean energy in the present data.

    The optimizer's step is held back by s̄ at once, along U every few steps together: ``W ← W − (W U − A) diag(f) Uᵀ``,
    ``A`` being ``W U`` when that was last done. Without an optimizer to restore after, the gradient is held back whole.

    Where present data has been learned the step is held back further, as the rest would be with α q for α: by ``s̄ₚ`` in
    place of s̄, ``1 − s̄ₚ = p (1 − s̄)`` with ``p = q / (s̄ + q (1 − s̄))``, see ``Demand``.

    What was let through along held directions is also slowly taken back: ``E ← E − ρ E diag(s)`` with
    ``ρ = recall · mean ‖ΔW U‖ / ‖W U‖``, so that noise does not add up while a steady push still moves the weights. The
    pace is the weights' own: half the learning rate over twice the steps comes to about the same.
    """

    grain = "subspace"

    def __init__(
        self, layer: Layer, parameters: dict[str, nn.Parameter], strength: float, recall: float, share: float
    ) -> None:
        d = layer.inputs + (layer.bias is not None)
        super().__init__(layer, parameters, rank=min(d, max(MIN_RANK, min(int(RANK * d), MAX_RANK))))
        self.strength, self.recall, self.share = strength, recall, share
        self.memory: SubspaceMemory | None = None
        self.moved: Tensor | None = None  # ‖ΔW U‖² when last put right, of the rows that live in this process
        self.waited = 0  # steps since then,
        self.stirred: Tensor | None = None  # and whether the optimizer moved anything in them
        self._operands: Operands | None = None
        self.fed = False  # whether there is a gradient in this step
        self.version = 0  # of the weights, after the last step,
        self._marked: Tensor | None = None  # what they were then,
        self.same = SAME

    @override
    def adapt_hold(self) -> None:
        m = self.memory
        if m is None or self.window.Y is None:
            return
        k = m.f.shape[-1]
        o = self.window.outside(k).clamp(LEAST, 1)
        self.demand.measure(o)
        f, s_rest = hold(m.directions, k, o, firmed(m.strength, self.age))
        self.memory = m._replace(f=f, s_rest=s_rest)

    @override
    def consolidate(self) -> None:
        if self.window.Y is None or not self.window.weight:
            return
        past = None if self.memory is None else self.memory.directions
        found = directions.merge(past, self.window.rows(), self.rank, self.share)
        agree(found)
        k = worth(found, MOST * self.strength)  # what will be worth it once it is held as firmly as it ever is
        # How far the rest is needed shows when the next data comes: until then it is shut as far as it ever is.
        f, s_rest = hold(found, k, torch.full_like(found.rest, LEAST), self.strength)
        A = self.layer.along(self.weights(), found.U[..., :k]).float()
        size = totals([A.square().sum()], [self.layer.weight])[0].sqrt()
        zero = torch.zeros_like(size)
        self.memory = SubspaceMemory(found, f, s_rest, A, torch.zeros_like(A), size, zero, zero, self.strength)
        self._begin_cycle()

    @override
    def held(self, X: Sequence[Tensor]) -> list[Tensor]:
        m = self._held
        H = [torch.zeros_like(x) for x in X]
        subtract(self.layer, H, X, self.layer.along(X, m.U) * (m.s - m.s_rest[:, None])[:, None, :], m.U, m.s_rest)
        if m.rows is not None:
            for h in H:
                self.layer.write(h, m.old(self.layer.matrix(h)))
        return [h.neg_() for h in H]

    @override
    def undone(self, X: Sequence[Tensor]) -> list[Tensor]:
        pairs = [(self.layer.matrix(x), self.layer.matrix(h)) for x, h in zip(X, self.held(X), strict=True)]
        return [
            self._held.old(torch.lerp(x, h, let_through(self._held.s_rest, self.demand.q).to(x.dtype)))
            for x, h in pairs
        ]

    @override
    def detect_external_change(self) -> bool:
        if self.before is not None or self.memory is None:
            return False
        assert self._marked is not None, "what is held has no mark"
        now, at_once = fingerprint(self.layer, self.weights()), self.device.type in AT_ONCE
        if at_once and torch.equal(now, self._marked):
            return False
        moved = torch.linalg.vector_norm(now - self._marked) > self.same * torch.linalg.vector_norm(self._marked)
        # Versions tell what was set in place, but not what was set through `.data`, nor whether it was put back.
        if at_once or self.version != self.version_of_weights():
            found = bool(moved)
            if found:
                self.accept_weights()
            self.version = self.version_of_weights()
            return found
        # No device is waited for: the next time it is put back this is.
        self.touched = moved if self.touched is None else self.touched | moved
        return False

    @override
    def weights_exchanged(self, versions: int) -> None:
        self.version += versions
        # Exchanged and back again they differ by rounding.
        self.same = max(SAME, 8 * torch.finfo(self.layer.weight.dtype).eps)

    @override
    def snapshot(self) -> None:
        # Some optimizers drop the gradients before their step ends.
        self.fed = any(g is not None for g in self.gradients())
        super().snapshot()

    @override
    def accept_weights(self) -> None:
        if self.memory is not None:
            self.memory.A.copy_(self.layer.along(self.weights(), self.memory.U))
            self._begin_cycle()

    def _begin_cycle(self) -> None:
        """What moves along held directions is counted from here."""
        self.waited, self.stirred, self.touched = 0, None, None
        self._mark()

    def _mark(self) -> None:
        """Remember the weights as the last step left them."""
        self.version, self._marked = self.version_of_weights(), fingerprint(self.layer, self.weights())

    @override
    def hold_back(self, G: Sequence[Tensor]) -> None:
        m = self._held
        if self.alone:
            super().hold_back(G)
            return
        U, f = self.operands.U, self.operands.f
        M = [self.layer.matrix(g) for g in G]
        if M[0].dtype is not f.dtype:
            U = [u.to(M[0].dtype) for u in U]
        Y = torch.bmm(M[0], U[0])
        if len(M) > 1:
            Y.baddbmm_(M[1], U[1])
        Y = m.old(Y.mul_(f))
        for g, x, u in zip(G, M, U, strict=True):
            self.layer.write(g, x.baddbmm_(Y, u.mT, alpha=-1))

    @override
    def put_back(self, W: Sequence[Tensor | None], W0: Sequence[Tensor]) -> None:
        if all(w is None for w in W):
            return
        # Looked at in the first step and in the last one before it is put back: a rate of zero moves nothing.
        if self.waited in (0, SETTLE - 1):
            D = [torch.linalg.vector_norm(w - w0) for w, w0 in zip(W, W0, strict=True) if w is not None]
            moved = torch.stack(D).sum() > 0
            self.stirred = moved if self.stirred is None else self.stirred | moved
        back = self.operands.back
        for w, w0 in zip(W, W0, strict=True):
            if w is not None and not back.dim() and w.dtype == back.dtype:
                w.lerp_(w0, back)
            elif w is not None:
                M = self.layer.matrix(w)
                self.layer.write(w, M.lerp_(self.layer.matrix(w0), back.to(M.dtype)))
        self.waited += 1
        # A layer without a gradient rests in this step, even if it was due.
        if self.waited >= SETTLE and self.fed:
            self.settle()

    @property
    @override
    def settles(self) -> bool:
        return self.waited >= SETTLE - 1 and self.fed

    @override
    def record_weights(self) -> None:
        if self.memory is not None:
            self._mark()

    @override
    def settle(self) -> None:
        if self.stirred is None:
            return
        m, f, s = self._held, self._held.f[:, None, :], self._held.s[:, None, :]
        W = [w if p.requires_grad else None for w, p in zip(self.weights(), self.parameters.values(), strict=True)]
        WU = self.layer.along(self.weights(), m.U).to(m.A.dtype)
        # Where the optimizer left the weights alone rounding is no movement, and nothing is recalled.
        stirred = self.stirred if self.touched is None else self.stirred & ~self.touched
        M = m.old((WU - m.A) * stirred)
        pace = m.path / m.steps.clamp(min=1) / m.size.clamp(min=torch.finfo(m.path.dtype).tiny)
        rate = (self.recall * pace).clamp(max=1) * stirred
        pull = m.E.addcmul_(M, 1 - f) * (s * rate)
        m.E.sub_(pull)
        Y = pull.addcmul_(M, f)
        torch.where(self.stirred if self.touched is None else self.stirred | self.touched, WU - Y, m.A, out=m.A)
        subtract(self.layer, W, None, Y, m.U, m.s_rest)
        # As far as it would have moved had the rest been open; where it is all but shut that cannot be told.
        self.moved = (M / (1 - m.s_rest)[:, None, None].clamp(min=1e-6)).square().sum()
        self._begin_cycle()

    def update_pace(self, moved: Tensor) -> None:
        """Count a step by which ``W U`` moved: ‖ΔW U‖², of all processes' rows."""
        m = self._held
        self.memory, self.moved = m._replace(path=m.path + moved.sqrt(), steps=m.steps + (moved > 0)), None

    @property
    def operands(self) -> Operands:
        """What this step multiplies by."""
        m, q, known = self._held, self.demand.q, self._operands
        if known is None or known.memory is not m or known.q is not q:
            back = 1 - let_through(self._held.s_rest, self.demand.q) * (1 - m.s_rest[:, None, None])
            if m.rows is not None:
                back = m.old(back.repeat(1, self.layer.out, 1))
            elif self.layer.groups == 1:
                back = back.squeeze()
            U = m.U[..., :MASK]
            parts = [U[:, : self.inputs]] + ([U[:, self.inputs :]] if self.d > self.inputs else [])
            self._operands = known = Operands(m, q, parts, m.f[:, None, :MASK], back)
        return known

    @property
    def _held(self) -> SubspaceMemory:
        assert self.memory is not None, "nothing is held yet"
        return self.memory

    @override
    def stabilities(self) -> list[Scores]:
        m = self.memory
        if m is None:
            return [Scores(torch.zeros(1), self.trained())]
        k, out = m.f.shape[-1], self.layer.out if m.rows is None else m.rows
        free = [] if m.rows is None else [Scores(torch.zeros_like(m.s_rest), self.d * (self.layer.out - out))]
        share = self.trained() / self.numel()  # a direction is one of weight and bias together
        parts = [Scores(m.s, out), Scores(m.s_rest, (self.d - k) * out), *free]
        return [Scores(s, size * share) for s, size in parts]

    @override
    def drift(self) -> Tensor | None:
        m = self.memory
        if m is None:
            return None
        A = m.old(self.layer.along(self.weights(), m.U))
        energy = m.directions.lam[:, None, : m.f.shape[-1]]
        return torch.stack([(m.E.square() * energy).sum(), (A.square() * energy).sum()])

    @override
    def state_dict(self) -> State:
        return {
            "age": self.age,
            "waited": self.waited,
            "stirred": self.stirred is not None and bool(self.stirred),
            "window": self.window.state_dict(),
            "demand": self.demand.state_dict(),
            "memory": self.pack(self.memory),
        }

    @override
    def load_state_dict(self, state: State) -> None:
        window = state["window"]
        if not state["memory"] and "Y" in window and window["Y"].shape[:2] != (self.layer.groups, self.d):
            return  # nothing is held of a layer with other inputs: this is a new layer
        self.age, self.waited = state["age"], state["waited"]
        self.stirred = torch.tensor(True, device=self.device) if state["stirred"] else None
        self.window.load_state_dict(state["window"], self.device)
        self.demand.load_state_dict(state["demand"], self.device)
        self.memory, self.touched = self.unpack(state["memory"]), None
        self._mark()

    @override
    def pack(self, memory: SubspaceMemory | None) -> State:
        return {} if memory is None else memory.pack(self.layer.weight)

    @override
    def unpack(self, state: State) -> SubspaceMemory | None:
        return SubspaceMemory.unpack(state, self.layer, self.weights()) if state else None


def fingerprint(layer: Layer, weights: Sequence[Tensor]) -> Tensor:
    """``W z + b``, (all outputs,), with random signs z: it changes with every weight."""
    weight, *bias = weights
    W = weight.mT if layer.transposed else weight if layer.stacked else weight.flatten(1)
    z = probe(W.shape[-1], 1, W.device)[:, 0].to(W.dtype)
    if bias and W.dim() == 2:
        return torch.addmv(bias[0], W, z)
    return W @ z + bias[0] if bias else W @ z


def let_through(s_rest: Tensor, q: Tensor) -> Tensor:
    """``p = q / (s̄ + q (1 − s̄))``: the share of what passes otherwise, (groups, 1, 1), for s̄ and q (groups,)."""
    s_rest, q = s_rest[:, None, None], q.reshape(-1, 1, 1)
    p: Tensor = q / (s_rest + q * (1 - s_rest))
    return p


def subtract(
    layer: Layer, T: Sequence[Tensor | None], X: Sequence[Tensor] | None, Y: Tensor, U: Tensor, s_rest: Tensor
) -> None:
    """``T ← T − (s̄ X + Y Uᵀ)``, in place where the layout allows it; no X is zero."""
    s_rest = s_rest[:, None, None]
    for i, t in enumerate(T):
        if t is not None:
            M, u = layer.matrix(t), U[:, layer.inputs :] if i else U[:, : layer.inputs]
            if X is not None:
                M.addcmul_(layer.matrix(X[i]), s_rest.to(M.dtype), value=-1)
            layer.write(t, M.baddbmm_(Y.to(M.dtype), u.mT.to(M.dtype), alpha=-1))


def update_pace(rules: Iterable[Rule]) -> None:
    """Tell those that were put right in this step how far all processes' rows of ``W U`` had moved."""
    moved = {r: r.moved for r in rules if isinstance(r, SubspaceRule) and r.moved is not None}
    if moved:
        sums = totals(list(moved.values()), [rule.layer.weight for rule in moved])
        for rule, total in zip(moved, sums, strict=True):
            rule.update_pace(total)
