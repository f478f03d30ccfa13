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
from sal_lightning.rules import directions, firmness
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.directions import Directions
from sal_lightning.rules.embedding import EmbeddingRule
from sal_lightning.rules.firmness import LEAST, MOST, firmed, worth
from sal_lightning.rules.input_statistics import InputStatistics
from sal_lightning.rules.scores import Scores
from sal_lightning.settings import Settings


class SubspaceMemory(NamedTuple):
    """What is held: directions with their stability, and the movement of the weights along them since."""

    directions: Directions
    f: Tensor  # (groups, k) of the first k directions, in [0, 1]: share held beyond s_rest
    s_rest: Tensor  # (groups,)
    A: Tensor  # (groups, out, k): W U when it last settled
    E: Tensor  # (groups, out, k): deviation of W U from its value at the consolidation
    size: Tensor  # ‖W U‖ at the consolidation
    path: Tensor  # Σ ‖ΔW U‖ over the settlements since, before anything was undone
    steps: Tensor  # number of settlements that found any movement
    strength: float  # strength until the next consolidation
    rows: int | None = None  # number of outputs that are held, the first ones; None: all

    @property
    def U(self) -> Tensor:
        """The directions held more firmly than the rest: (groups, d, k)."""
        return self.directions.U[..., : self.f.shape[-1]]

    @property
    def s(self) -> Tensor:
        """Their stability, (groups, k): ``1 − s = (1 − s̄) (1 − f)``."""
        return self.s_rest[:, None] + (1 - self.s_rest[:, None]) * self.f

    def pack(self, weight: Tensor) -> State:
        """Convert to named tensors; where the layer's ``weight`` is sharded, they are gathered."""
        state = self.directions._asdict() | self._asdict() | {"directions": None}
        if sharded(weight):
            state |= {name: gather(state[name][0], weight)[None] for name in ("A", "E")}
        return state

    def old(self, X: Tensor) -> Tensor:
        """Set the outputs of ``X`` (groups, out, …) that were added after the consolidation to zero, in place."""
        if self.rows is not None:
            X[:, self.rows :] = 0
        return X

    @classmethod
    def unpack(cls, state: State, layer: Layer, weights: Sequence[Tensor]) -> "SubspaceMemory":
        """Inverse of ``pack``: the memory, on the device of the layer's ``weights``."""
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
    """Pad the state to the outputs of a layer that may have more of them now.

    Raises:
        ValueError: the layer has other inputs than the state, or fewer outputs.
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
MIN_RANK, MAX_RANK = 32, 128  # within these bounds, so that small layers keep all and the cost of wide ones is bounded
MASK = 32  # the gradient is masked along this many of the strongest directions, which contain nearly all of it
SETTLE = 16  # steps between two settlements; until then only the mask acts along held directions
AT_ONCE = ("cpu",)  # devices without a queue, where reading a result does not synchronize
SAME = 1e-6  # relative difference of two fingerprints that is attributed to rounding


class Operands(NamedTuple):
    """Factors used in each step, cached for the current memory and demand; views of its directions if possible."""

    memory: SubspaceMemory
    q: Tensor  # the demand they were computed for
    U: list[Tensor]  # masked directions: the rows of the weight and, if there is one, of the bias, (groups, columns, k)
    f: Tensor  # (groups, 1, k)
    back: Tensor  # share of each step that is undone: (groups, out, 1), or a scalar if it is the same for all


class SubspaceRule(InputStatistics):
    """``held(X) = X S`` with ``S = U diag(s) Uᵀ + s̄ (1 − U Uᵀ)`` over the input directions of one layer.

    ``X`` is a gradient or update of the shape of ``W`` (groups, out, d), the weight with its bias as last column.

    Mask: the gradient is reduced along the strongest directions, which contain nearly all of it,
    ``G ← G − (G U) diag(f) Uᵀ`` with ``f = (s − s̄) / (1 − s̄)``, the part of s that s̄ does not cover.

    The rest, all directions that are not kept, has one stability ``s̄ = λ̄ / (λ̄ + α o)``, with ``o`` from 1/16 to 1 its
    mean energy in the present data: Adam moves these directions as fast as others, however small their gradient is.

    Restore: s̄ applies to every step of the optimizer; the movement along U is undone every 16 steps together,
    ``W ← W − (W U − A) diag(f) Uᵀ``, with ``A`` the value of ``W U`` at the last settlement. Where there is no
    optimizer step to restore after, the mask removes all that is held.

    Once the present data is learned, the step is reduced further, as the rest would be with α q in place of α: ``s̄ₚ``
    replaces s̄, ``1 − s̄ₚ = p (1 − s̄)`` with ``p = q / (s̄ + q (1 − s̄))``, see ``Demand``.

    Recall: the movement that remains along held directions decays, ``E ← E − ρ E diag(s)`` with
    ``ρ = recall · mean ‖ΔW U‖ / ‖W U‖``, so that noise does not accumulate while a consistent gradient still moves the
    weights. ρ scales with the movement: half the learning rate over twice the steps has about the same effect.

    Args:
        layer: the layer as a matrix.
        parameters: its weight and, if it has one, its bias.
        settings: ``strength`` (α), ``recall`` (factor of ρ) and ``share`` (no more directions are kept than hold this
            share of the energy).
        factor: multiplies the strength.
    """

    grain = "subspace"

    def __init__(
        self, layer: Layer, parameters: dict[str, nn.Parameter], settings: Settings, factor: float = 1
    ) -> None:
        d = layer.inputs + (layer.bias is not None)
        super().__init__(layer, parameters, rank=min(d, max(MIN_RANK, min(int(RANK * d), MAX_RANK))))
        self.strength, self.recall, self.share = factor * settings.strength, settings.recall, settings.share
        self.memory: SubspaceMemory | None = None
        self.table: EmbeddingRule | None = None  # of the weight, if it is an embedding's table too
        self.moved: Tensor | None = None  # ‖ΔW U‖² at the last settlement, of the rows in this process
        self.waited = 0  # steps since the last settlement,
        self.stirred: Tensor | None = None  # and whether the optimizer moved any weight in them
        self._operands: Operands | None = None
        self.fed = False  # whether there is a gradient in this step
        self.version = 0  # version counter of the weights after the last step
        self._marked: Tensor | None = None  # their fingerprint then
        self.same = SAME

    @override
    def adapt_hold(self) -> None:
        m = self.memory
        if m is None or self.window.Y is None:
            return
        k = m.f.shape[-1]
        o = self.window.outside(k).clamp(LEAST, 1)
        self.demand.measure(o)
        f, s_rest = firmness.hold(m.directions, k, o, firmed(m.strength, self.age))
        self.memory = m._replace(f=f, s_rest=s_rest)

    @override
    def overlap(self) -> Tensor | float:
        m, window = self.memory, self.window
        if m is None or window.along.shape[-1] != m.f.shape[-1]:
            return 1.0  # nothing is held, or no inputs were collected since
        return directions.overlap(m.directions, window.along, window.trace, window.squared()).mean()

    @override
    def consolidate(self) -> None:
        if self.window.Y is None or not self.window.weight:
            return
        past = None if self.memory is None else self.memory.directions
        found = directions.merge(past, self.window.rows(), self.rank, self.share)
        agree(found)
        self.hold(found)

    def hold(self, found: Directions) -> None:
        """Hold these directions from now on, and the present weights along them."""
        k = worth(found, MOST * self.strength)  # computed for the largest strength that will be reached
        # The next data determines how much the rest is needed; until then o has its smallest value.
        f, s_rest = firmness.hold(found, k, torch.full_like(found.rest, LEAST), self.strength)
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
        if m.rows is not None or self.table is not None:
            for h in H:
                self.layer.write(h, self.kept(self.layer.matrix(h)))
        return [h.neg_() for h in H]

    def kept(self, X: Tensor) -> Tensor:
        """Set the outputs of ``X`` (groups, out, …) that are not held to zero, in place.

        These are outputs that were added after the consolidation, and rows of a table that present data look up: as
        embeddings they have to learn in all directions, and are held by ``EmbeddingRule`` alone.
        """
        X = self._held.old(X)
        return X if self.table is None else X.mul_(self.table.unused)

    @override
    def undone(self, X: Sequence[Tensor]) -> list[Tensor]:
        pairs = [(self.layer.matrix(x), self.layer.matrix(h)) for x, h in zip(X, self.held(X), strict=True)]
        return [
            self.kept(torch.lerp(x, h, let_through(self._held.s_rest, self.demand.q).to(x.dtype))) for x, h in pairs
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
        # Version counters miss changes through `.data`, and also count changes that were reverted.
        if at_once or self.version != self.version_of_weights():
            found = bool(moved)
            if found:
                self.accept_weights()
            self.version = self.version_of_weights()
            return found
        # Reading `moved` here would synchronize; the next settlement uses it.
        self.touched = moved if self.touched is None else self.touched | moved
        return False

    @override
    def weights_exchanged(self, versions: int) -> None:
        self.version += versions
        # Exchanging weights and exchanging them back changes them by rounding.
        self.same = max(SAME, 8 * torch.finfo(self.layer.weight.dtype).eps)

    @override
    def snapshot(self) -> None:
        # Some optimizers free the gradients before their step ends.
        self.fed = any(g is not None for g in self.gradients())
        if self.table is not None and self.table.before is not None and self.holds and len(self.parameters) == 1:
            self.before = self.table.before  # the same weight, which neither rule overwrites
        super().snapshot()

    @override
    def accept_weights(self) -> None:
        if self.memory is not None:
            self.memory.A.copy_(self.layer.along(self.weights(), self.memory.U))
            self._begin_cycle()

    def _begin_cycle(self) -> None:
        """Start to measure the movement along held directions."""
        self.waited, self.stirred, self.touched = 0, None, None
        self._mark()

    def _mark(self) -> None:
        """Record the version and the fingerprint of the weights after a step."""
        self.version, self._marked = self.version_of_weights(), fingerprint(self.layer, self.weights())

    @override
    def hold_back(self, G: Sequence[Tensor]) -> None:
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
        Y = self.kept(Y.mul_(f))
        for g, x, u in zip(G, M, U, strict=True):
            self.layer.write(g, x.baddbmm_(Y, u.mT, alpha=-1))

    @override
    def put_back(self, W: Sequence[Tensor | None], W0: Sequence[Tensor]) -> None:
        if all(w is None for w in W):
            return
        # Checked in the first and the last step before settling: with a learning rate of 0 nothing moves.
        if self.waited in (0, SETTLE - 1):
            D = [torch.linalg.vector_norm(w - w0) for w, w0 in zip(W, W0, strict=True) if w is not None]
            moved = torch.stack(D).sum() > 0
            self.stirred = moved if self.stirred is None else self.stirred | moved
        back = self.operands.back if self.table is None else self.operands.back * self.table.unused
        for w, w0 in zip(W, W0, strict=True):
            if w is not None and not back.dim() and w.dtype == back.dtype:
                w.lerp_(w0, back)
            elif w is not None:
                M = self.layer.matrix(w)
                self.layer.write(w, M.lerp_(self.layer.matrix(w0), back.to(M.dtype)))
        self.waited += 1
        # A layer without a gradient in this step does not settle, even if it is due.
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
        # If the optimizer did not move the weights, differences are rounding: nothing is undone or recalled.
        stirred = self.stirred if self.touched is None else self.stirred & ~self.touched
        M = self.kept((WU - m.A) * stirred)
        pace = m.path / m.steps.clamp(min=1) / m.size.clamp(min=torch.finfo(m.path.dtype).tiny)
        rate = (self.recall * pace).clamp(max=1) * stirred
        pull = m.E.addcmul_(M, 1 - f) * (s * rate)
        m.E.sub_(pull)
        Y = pull.addcmul_(M, f)
        torch.where(self.stirred if self.touched is None else self.stirred | self.touched, WU - Y, m.A, out=m.A)
        subtract(self.layer, W, None, Y, m.U, m.s_rest)
        # The movement without the effect of s̄; clamped, as it cannot be computed for s̄ near 1.
        self.moved = (M / (1 - m.s_rest)[:, None, None].clamp(min=1e-6)).square().sum()
        self._begin_cycle()

    def update_pace(self, moved: Tensor) -> None:
        """Add a settlement to the mean movement; ``moved`` is ‖ΔW U‖², summed over all processes' rows."""
        m = self._held
        self.memory, self.moved = m._replace(path=m.path + moved.sqrt(), steps=m.steps + (moved > 0)), None

    @property
    def operands(self) -> Operands:
        """Factors used in this step."""
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
        k, rows = m.f.shape[-1], self.layer.out if m.rows is None else m.rows
        out: float | Tensor = rows if self.table is None else rows * self.table.unused.mean()
        free = self.layer.out - out
        share = self.trained() / self.numel()  # a direction is one of weight and bias together
        parts = [
            Scores(m.s, out),
            Scores(m.s_rest, (self.d - k) * out),
            Scores(torch.zeros_like(m.s_rest), self.d * free),
        ]
        return [Scores(s, size * share) for s, size in parts]

    @override
    def drift(self) -> Tensor | None:
        m = self.memory
        if m is None:
            return None
        A = self.kept(self.layer.along(self.weights(), m.U))
        energy = m.directions.lam[:, None, : m.f.shape[-1]]
        return torch.stack([(m.E.square() * energy).sum(), (A.square() * energy).sum()])

    @override
    def state_dict(self) -> State:
        cycle = {"waited": self.waited, "stirred": self.stirred is not None and bool(self.stirred)}
        return self.window_state() | cycle | {"memory": self.pack(self.memory)}

    @override
    def load_state_dict(self, state: State) -> None:
        window = state["window"]
        if not state["memory"] and "Y" in window and window["Y"].shape[:2] != (self.layer.groups, self.d):
            return  # the state holds nothing, of a layer with other inputs: start anew
        self.load_window(state)
        self.waited = state["waited"]
        self.stirred = torch.tensor(True, device=self.device) if state["stirred"] else None
        self.memory, self.touched = self.unpack(state["memory"]), None
        self._mark()

    @override
    def pack(self, memory: SubspaceMemory | None) -> State:
        return {} if memory is None else memory.pack(self.layer.weight)

    @override
    def unpack(self, state: State) -> SubspaceMemory | None:
        return SubspaceMemory.unpack(state, self.layer, self.weights()) if state else None


def fingerprint(layer: Layer, weights: Sequence[Tensor]) -> Tensor:
    """``W z + b``, (outputs,), with random signs z: it depends on every weight."""
    weight, *bias = weights
    W = weight.mT if layer.transposed else weight if layer.stacked else weight.flatten(1)
    z = probe(W.shape[-1], 1, W.device)[:, 0].to(W.dtype)
    if bias and W.dim() == 2:
        return torch.addmv(bias[0], W, z)
    return W @ z + bias[0] if bias else W @ z


def let_through(s_rest: Tensor, q: Tensor) -> Tensor:
    """``p = q / (s̄ + q (1 − s̄))``, the factor of ``1 − s̄`` for the demand q: (groups, 1, 1), for s̄ and q (groups,)."""
    s_rest, q = s_rest[:, None, None], q.reshape(-1, 1, 1)
    p: Tensor = q / (s_rest + q * (1 - s_rest))
    return p


def subtract(
    layer: Layer, T: Sequence[Tensor | None], X: Sequence[Tensor] | None, Y: Tensor, U: Tensor, s_rest: Tensor
) -> None:
    """``T ← T − (s̄ X + Y Uᵀ)``, in place where the layout allows it; ``X`` = None stands for 0."""
    s_rest = s_rest[:, None, None]
    for i, t in enumerate(T):
        if t is not None:
            M, u = layer.matrix(t), U[:, layer.inputs :] if i else U[:, : layer.inputs]
            if X is not None:
                M.addcmul_(layer.matrix(X[i]), s_rest.to(M.dtype), value=-1)
            layer.write(t, M.baddbmm_(Y.to(M.dtype), u.mT.to(M.dtype), alpha=-1))


def update_pace(rules: Iterable[Rule]) -> None:
    """Sum the movement of ``W U`` over all processes, and update the rules that settled in this step."""
    moved = {r: r.moved for r in rules if isinstance(r, SubspaceRule) and r.moved is not None}
    if moved:
        sums = totals(list(moved.values()), [rule.layer.weight for rule in moved])
        for rule, total in zip(moved, sums, strict=True):
            rule.update_pace(total)
