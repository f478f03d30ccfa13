"""The subspace rule for the two matrices of a LoRA adapter, ``y = W x + c B A x`` with x the layer's input.

What an adapter changes for old inputs is ``B A x``. While B is zero it changes nothing, and A is free to choose: it is
moved out of the directions of old inputs and held there, so that ``B A x`` stays small for old x whatever B learns.

Notation: ``C`` (in, in) the energy of old inputs, with ``U``, ``λ`` and ``λ̄`` as in ``rules.directions``; ``α`` the
strength.

* ``A ← A − A U diag(g) Uᵀ`` with ``1 − g = (1 + α λ̄) / (1 + α λ)``, at a consolidation, in the rows of A whose column
  of B is zero. Apart from a factor this is ``A ← A (1 + α C)⁻¹``. Related: LoRA-Null (Tang et al. 2025) and InfLoRA
  (Liang & Li 2024), which start or keep an adapter in a subspace without old inputs.
* Movement of A along U is held as that of any layer's weight.
* B is held along ``A C Aᵀ / (‖A‖²/r)``, the energy of old inputs in B's own input: hardly, where A was moved out; as
  firmly as a layer whose input has this energy, where it was not, since B had been trained before.
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from sal_lightning.adapters import Adapter
from sal_lightning.distributed import gather, local, part, totals
from sal_lightning.layers import Layer
from sal_lightning.rules.base import State
from sal_lightning.rules.directions import Directions, outside
from sal_lightning.rules.subspace import SubspaceRule
from sal_lightning.settings import Settings

FIRM = 64  # factor on the strength of A, which has other directions to learn in
REPLACED = 1e-3  # relative difference beyond which A was replaced
_TINY = torch.finfo(torch.float32).tiny


def moved_out(A: Tensor, U: Tensor, lam: Tensor, rest: Tensor, strength: float) -> Tensor:
    """``A − A U diag(g) Uᵀ`` with ``1 − g = (1 + α λ̄) / (1 + α λ)``, for g in [0, 1].

    Args:
        A: (groups, r, in).
        U: (groups, in, k), orthonormal columns.
        lam: λ, (groups, k).
        rest: λ̄, the mean energy of a direction outside U, (groups,).
        strength: α, > 0.

    >>> A = torch.tensor([[[4.0, 4.0]]])
    >>> moved_out(A, torch.tensor([[[1.0], [0.0]]]), torch.tensor([[3.0]]), torch.tensor([0.0]), strength=1.0)
    tensor([[[1., 4.]]])
    """
    g = (1 - (1 + strength * rest[:, None]) / (1 + strength * lam)).clamp(min=0)
    return A - (A @ U * g[:, None]) @ U.mT


def passed_on(A: Tensor, C: Directions) -> Directions:
    """The directions and energies of ``A C Aᵀ / (‖A‖²/r)``, the second moment of B's input for old inputs.

    The unit is what inputs of energy 1 in every direction give in the mean.

    Args:
        A: (groups, r, in).
        C: the energy of old inputs.
    """
    A = A.double()
    AU = A @ C.U.double()
    R = (AU * C.lam[:, None]) @ AU.mT + C.rest[:, None, None] * (A @ A.mT - AU @ AU.mT)
    unit = A.square().sum((-2, -1)) / A.shape[-2]
    lam, V = torch.linalg.eigh(R / unit.clamp(min=_TINY)[:, None, None])
    lam, V = lam.flip(-1).clamp(min=0).to(C.lam), V.flip(-1).to(C.lam)
    return Directions(V.contiguous(), lam.contiguous(), torch.zeros_like(C.rest))


def known_energy(state: State) -> float:
    """The total energy that a rule's ``state_dict()`` holds: the number of inputs for each consolidation."""
    m = state["memory"]
    return float(m["lam"].sum() + (m["U"].shape[-2] - m["U"].shape[-1]) * m["rest"].sum()) if m else 0.0


class LoraARule(SubspaceRule):
    """Moves A out of the directions of old inputs at a consolidation, and holds it there.

    A is held with FIRM times the strength, in the formula above too: other directions are left for it, and B.

    Args:
        layer: A as a matrix.
        parameters: its weight.
        settings: as in ``SubspaceRule``.
        adapter: the adapter that A belongs to.
    """

    pulled = False

    def __init__(self, layer: Layer, parameters: dict[str, nn.Parameter], settings: Settings, adapter: Adapter) -> None:
        super().__init__(layer, parameters, settings, FIRM)
        self.adapter, self.modules = adapter, adapter.modules
        self._moved = False  # whether the last consolidation moved A

    @override
    def hold(self, found: Directions) -> None:
        super().hold(found)
        self.move_out()

    @torch.no_grad()
    def move_out(self) -> None:
        """Move the rows of A whose column of B is zero out of the held directions."""
        m, (W,) = self._held, self.weights()
        A, free, k = self.layer.matrix(W), self._free(), m.f.shape[-1]
        moved = moved_out(A, m.U, m.directions.lam[:, :k], outside(m.directions)[:, k], self.strength)
        self.layer.write(W, torch.where(free[:, None], moved, A))
        self._moved = bool(free.any())
        super().accept_weights()

    def inherit(self, state: State) -> None:
        """Take over the directions and the window of another adapter of the same layer, from its ``state_dict()``."""
        self.load_window(state)
        self.demand.clear()
        if m := state["memory"]:
            self.hold(Directions(*(m[name].to(self.device) for name in ("U", "lam", "rest"))))

    @override
    def accept_weights(self) -> None:
        # Other weights for an adapter whose B is zero: a new adapter took the place of this one.
        if self.memory is not None and self._replaced():
            self.move_out()
        super().accept_weights()

    @override
    def rolled_back(self) -> None:
        if self._moved:
            super().accept_weights()

    def _replaced(self) -> bool:
        """Whether A is not what was held, beyond rounding."""
        m = self._held
        now = self.layer.along(self.weights(), m.U).to(m.A.dtype)
        return bool(torch.linalg.vector_norm(now - m.A) > REPLACED * torch.linalg.vector_norm(m.A))

    def _free(self) -> Tensor:
        """The rows of A in this process whose column of B is zero, (r,) of bool."""
        B = self.adapter.B.weight.detach()
        sizes = totals([local(B).abs().flatten(1).sum(0)], [B])[0]
        return part(sizes == 0, self.layer.weight)


class LoraBRule(SubspaceRule):
    """Holds B along the directions that A passes on for old inputs.

    Neither is pulled: the anchor of B is zero, and a pull towards it would undo what the adapter learns.

    Args:
        layer: B as a matrix.
        parameters: its weight.
        settings: as in ``SubspaceRule``.
        A: the rule of the adapter's A, which consolidates first.
    """

    pulled = False

    def __init__(self, layer: Layer, parameters: dict[str, nn.Parameter], settings: Settings, A: LoraARule) -> None:
        super().__init__(layer, parameters, settings)
        self.A = A

    @property
    @override
    def used(self) -> bool:
        return self.A.used

    @override
    def consolidate(self) -> None:
        if self.A.memory is not None:
            (W,) = self.A.weights()
            A = self.A.layer.matrix(gather(W, self.A.layer.weight))
            self.hold(passed_on(A, self.A.memory.directions))
