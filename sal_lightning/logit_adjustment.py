"""Logit adjustment of absent classes: the gradient at the logits treats them as rare, not as impossible."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sal_lightning import distributed
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.subspace import SubspaceRule

SHARE, PACE, LEAST = 0.1, 0.03, 1e-5  # target share, rate and minimum of the prior: see LogitAdjustment
STEADY = 16  # steps without a new target after which a batch of new targets only counts as a change
TARGET_SHARE = 0.9  # least share of the targets in the negative part of a softmax gradient
EXCLUDED = -1e30  # logit of an excluded class
ROUNDING = 1e4, 2e-2  # tolerance on row sums, relative to their size: in machine epsilons, and at most


def adjustment(z: Tensor, G: Tensor, absent: Tensor, prior: float | Tensor) -> tuple[Tensor, Tensor]:
    """The change of a cross-entropy gradient that gives ``absent`` classes this prior, and the others 1.

    With ``p = softmax(z)``, P the probability of the absent classes and D their gradient, summed:
    ``Z = 1 − (1 − prior) P``, absent ``g ← prior · g / Z``, others ``g ← g + (1 − prior) p D / Z``.
    This is the gradient at ``z + log prior`` (logit adjustment, Menon et al. 2021) for any sample weight. A class is
    not absent in rows of which it is the target.

    Args:
        z: logits, (..., n).
        G: gradient of the loss at the logits, (..., n); classes with gradient 0 are excluded.
        absent: (n,) of bool.
        prior: in (0, 1]; 1 changes nothing.

    Returns:
        The change (..., n), in single precision, and P of each row, (...).
    """
    g = G.float()
    p = torch.softmax(z.float().masked_fill(g == 0, EXCLUDED), -1)
    pushed = absent & (g > 0)
    P, D = (p * pushed).sum(-1, keepdim=True), (g * pushed).sum(-1, keepdim=True)
    Z = 1 - (1 - prior) * P
    return torch.where(pushed, (prior / Z - 1) * g, (1 - prior) * D / Z * p), P[..., 0]


def targets(G: Tensor) -> tuple[Tensor, Tensor]:
    """The targets in a gradient (..., n), and whether it is that of a softmax with one target per row.

    Each row of such a gradient sums to 0, since softmax is invariant to shifts, and is negative at the target only. All
    rows are tested together, weighted by their size: the gradient of a sample that is learned is mostly rounding.

    Returns:
        Indices (...), n for a row without target; and a bool, ().
    """
    times, most = ROUNDING
    g = G.float()
    low, at = g.min(-1)
    size, low = g.abs().sum(), low.clamp(max=0)
    balanced = g.sum(-1).abs().sum() <= min(times * torch.finfo(G.dtype).eps, most) * size
    fits = balanced & (-low.sum() >= TARGET_SHARE * size / 2)  # half of a balanced gradient is negative
    return torch.where((low < 0) & fits, at, G.shape[-1]), fits


class LogitAdjustment:
    """Adjusts the gradient at the logits for *absent* classes: targets before the last consolidation, and not since.

    In further training every sample lowers the logit of an absent class, so a classifier forgets it faster than
    anything else, independently of what is held in the weights.

    The first batch of a change is seen before anything is consolidated. If no new target has appeared for ``STEADY``
    steps, and then all targets of a batch are new, those of the window count as absent in it.

    The prior of absent classes cannot be estimated without their data. It starts at ``prior`` at a consolidation and
    is adapted in each step: ``prior ← prior · exp(PACE (P − SHARE))``, in [LEAST, 1], where P is the probability of
    absent classes on present samples. It grows while P exceeds SHARE: the last layer alone cannot separate old and new
    classes then, and the layers before it have to learn to.

    Args:
        prior: in (0, 1]; the initial prior of absent classes; 1 disables the adjustment.
    """

    name = "(logit adjustment)"  # its key among the names of rules

    def __init__(self, prior: float) -> None:
        self.prior = prior
        self.memory: dict[str, Tensor] | None = None  # by layer, outputs that were targets: (n,) of bool
        self.targets: dict[str, Tensor] = {}  # targets since the window began, by layer
        self.steady: dict[str, Tensor] = {}  # steps since a new target appeared, by layer: ()
        self.seen: dict[str, Tensor] = {}  # targets in this step, by layer
        self.priors: dict[str, Tensor] = {}  # current prior of absent classes, by layer
        self.shares: dict[str, Tensor] = {}  # (sum of P over the samples of this step, their number): (2,)
        self._names: dict[nn.Module, str] = {}

    def cover(self, rules: Iterable[Rule]) -> None:
        """Set the layers that may be the last: Linear layers that are not sharded."""
        layers = {rule.layer.module: rule for rule in rules if isinstance(rule, SubspaceRule)} if self.prior < 1 else {}
        whole = (m for m in layers if isinstance(m, nn.Linear) and not any(map(distributed.sharded, m.parameters())))
        self._names = {module: layers[module].name for module in whole}

    def holds(self, module: nn.Module) -> bool:
        """Whether outputs of this layer were targets, so that they may be absent."""
        name = self._names.get(module)
        return name in self.targets or name in (self.memory or {})

    def adjust(self, module: nn.Module, grad: Tensor, logits: Tensor | None) -> Tensor | None:
        """Record the targets in the gradient at a layer's output; returns the change of the gradient, None for none.

        Args:
            module: the layer.
            grad: the gradient at its output, (samples, classes).
            logits: its output; may be None if ``holds(module)`` is False.
        """
        if (name := self._names.get(module)) is None or grad.dim() != 2 or not grad.is_floating_point():
            return None  # for sequences, each position would cost a pass over the vocabulary
        at, fits = targets(grad)
        found = self._absent(name, self._record_targets(name, at, grad.shape[-1]))
        if found is None or logits is None:
            return None
        absent, first = found
        if absent.device.type == "cpu" and not absent.any():
            return None  # only on the CPU, where the check needs no synchronization
        start = torch.full((), self.prior, device=grad.device)  # a copy from the host would synchronize
        change, P = adjustment(logits, grad, absent, torch.where(first, start, self.priors.get(name, start)))
        if name in (self.memory or {}):
            self.priors.setdefault(name, start)
            share = torch.stack([P.sum(), (at < grad.shape[-1]).sum()]) * (fits & absent.any() & ~first)
            self.shares[name] = share + self.shares[name] if name in self.shares else share
        return (change * fits).to(grad.dtype)

    def _absent(self, name: str, seen: Tensor) -> tuple[Tensor, Tensor] | None:
        """The classes absent in a batch with the targets ``seen``, and whether it counts as the first of a change.

        Returns:
            (n,) of bool, and a bool, (); None if no class can be absent.
        """
        known, now = (self.memory or {}).get(name), self.targets.get(name)
        parts = [x for x in (known, now) if x is not None]
        if not parts or any(len(x) != len(seen) for x in parts):  # the layer may have grown
            return None
        known = torch.zeros_like(seen) if known is None else known
        if now is None:
            return known, torch.zeros_like(known[0])
        first = (self.steady[name] >= STEADY) & seen.any() & ~(now & seen).any()
        return torch.where(first, known | now, known & ~now), first

    def collect_predictions(self, module: nn.Module, logits: Tensor) -> None:
        """Record the predicted classes as targets."""
        if (name := self._names.get(module)) is not None and logits.dim() == 2:
            self._record_targets(name, logits.argmax(-1), logits.shape[-1])

    def _record_targets(self, name: str, at: Tensor, n: int) -> Tensor:
        seen = torch.zeros(n + 1, dtype=torch.bool, device=at.device)
        seen[at.flatten()] = True
        self.seen[name] = seen[:n] | self.seen[name] if name in self.seen else seen[:n]
        return seen[:n]

    def update(self) -> None:
        """Add this step's targets and adapt the priors; a collective, called by all processes."""
        if self.memory and distributed.count() > 1:
            names = sorted(self.memory)
            found = distributed.mean(
                [self.seen[n] if n in self.seen else torch.zeros_like(self.memory[n]) for n in names]
            )
            self.seen |= {name: x > 0 for name, x in zip(names, found, strict=True)}
        self._pace()
        for name, seen in self.seen.items():
            before, self.targets[name] = self.targets.get(name), _union(self.targets.get(name), seen)
            if before is None or len(before) != len(self.targets[name]):
                self.steady[name] = torch.zeros((), device=seen.device)
            else:
                self.steady[name] = torch.where((self.targets[name] == before).all(), self.steady[name] + 1, 0)
        self.discard_step()

    def _pace(self) -> None:
        held = self.memory or {}  # without what a suspicion held, if it was dismissed in this step
        names = sorted(held) if distributed.count() > 1 else [name for name in self.shares if name in held]
        shares = distributed.mean([self.shares.get(name, torch.zeros(2, device=held[name].device)) for name in names])
        for name, (total, number) in zip(names, shares, strict=True):
            if name in self.priors:
                grown = self.priors[name] * torch.exp(PACE * (total / number.clamp(min=1e-9) - SHARE))
                self.priors[name] = torch.where(number > 0, grown.clamp(LEAST, 1.0), self.priors[name])

    def discard_step(self) -> None:
        """Drop what was collected in this step."""
        self.seen, self.shares = {}, {}

    @torch.no_grad()
    def consolidate(self) -> None:
        """Add the targets of the window to the memory; a collective, called by all processes."""
        names = sorted(self.targets)
        found = distributed.mean([self.targets[name].float() for name in names])
        new = {name: x > 0 for name, x in zip(names, found, strict=True)}
        self.targets, past = dict(new), self.memory or {}
        self.memory = past | {name: _union(past.get(name), x) for name, x in new.items() if x.any()} or None

    def clear(self) -> None:
        """Start a new window."""
        self.targets, self.steady, self.priors = {}, {}, {}

    def window_state(self) -> State:
        """The window as tensors only."""
        return {"targets": dict(self.targets), "steady": dict(self.steady), "priors": dict(self.priors)}

    def load_window(self, state: State) -> None:
        """Replace the window by one that ``window_state`` returned."""
        parts = (self._placed(state[key]) for key in ("targets", "steady", "priors"))
        self.targets, self.steady, self.priors = parts

    def tensors(self) -> list[Tensor]:
        """The tensors kept between steps."""
        window = (self.targets, self.steady, self.priors)
        return [*(self.memory or {}).values(), *(x for part in window for x in part.values())]

    def absent(self) -> int:
        """The number of absent classes."""
        return sum(
            int((known & ~self._current_targets(name, known)).sum()) for name, known in (self.memory or {}).items()
        )

    def _current_targets(self, name: str, like: Tensor) -> Tensor:
        return _union(self.targets.get(name), torch.zeros_like(like))[: len(like)]

    def state_dict(self) -> State:
        """Tensors only."""
        step = {"seen": dict(self.seen), "shares": dict(self.shares)}
        return {"memory": self.pack(self.memory)} | self.window_state() | step

    def load_state_dict(self, state: State) -> None:
        """Continue from a saved state."""
        self.memory = self.unpack(state["memory"])
        self.load_window(state)
        self.seen, self.shares = self._placed(state["seen"]), self._placed(state["shares"])

    def pack(self, memory: dict[str, Tensor] | None) -> State:
        """A memory as named tensors; empty for None."""
        return dict(memory or {})

    def unpack(self, state: State) -> dict[str, Tensor] | None:
        """The memory that ``pack`` packed, on the layers' device."""
        return self._placed(state) or None

    def _placed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        devices = {name: p.device for module, name in self._names.items() for p in module.parameters()}
        return {name: x.to(devices.get(name)) for name, x in state.items()}


def _union(one: Tensor | None, other: Tensor) -> Tensor:
    """The union of two sets of outputs, which may differ in length if the layer has grown."""
    if one is None:
        return other
    n = max(len(one), len(other))
    return torch.nn.functional.pad(one, (0, n - len(one))) | torch.nn.functional.pad(other, (0, n - len(other)))
