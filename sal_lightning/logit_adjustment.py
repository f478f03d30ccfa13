"""Logit adjustment of absent classes: the gradient at the logits treats them as rare, not as impossible."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sal_lightning import distributed
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.subspace import SubspaceRule

SHARE, PACE, LEAST = 0.1, 0.03, 1e-5  # target share, rate and minimum of the prior: see LogitAdjustment
LAPSE, RARE = 100, 20  # a class counts as absent once it was no target for so many steps and mean intervals
STEADY = 16  # steps without a new target after which a batch of new targets only counts as a change
TARGET_SHARE = 0.9  # least share of the targets in the negative part of a softmax gradient
WINDOW = ("targets", "last", "steps", "steady", "priors")  # attributes that are kept between steps
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

    Where data change gradually, classes disappear some time after the consolidation: a class is absent too once it was
    no target for ``LAPSE`` steps and for ``RARE`` times the mean interval at which it was one.

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
        self.targets: dict[str, Tensor] = {}  # steps of the window in which an output was a target, by layer: (n,)
        self.last: dict[str, Tensor] = {}  # the last of these steps, counted from 1: (n,)
        self.steps: dict[str, Tensor] = {}  # steps of the window: ()
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
        known, now = (self.memory or {}).get(name), self._present(name)
        parts = [x for x in (known, now) if x is not None]
        if not parts or any(len(x) != len(seen) for x in parts):  # the layer may have grown
            return None
        known = torch.zeros_like(seen) if known is None else known
        if now is None:
            return known, torch.zeros_like(known[0])
        met = self.targets[name] > 0
        first = (self.steady[name] >= STEADY) & seen.any() & ~(met & seen).any()
        return torch.where(first, known | met, known & ~now), first

    def _present(self, name: str) -> Tensor | None:
        """The targets of the window that are none of those that have disappeared again, (n,) of bool."""
        if (times := self.targets.get(name)) is None:
            return None
        last = self.last[name]
        patience = (RARE * last / times.clamp(min=1)).clamp(min=LAPSE)
        return (times > 0) & (self.steps[name] - last <= patience)

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
            self._count(name, seen)
        self.discard_step()

    def _count(self, name: str, seen: Tensor) -> None:
        """Add a step with the targets ``seen``."""
        before = self.targets.get(name)
        times, seen = _aligned(before, seen.float())
        new = before is None or len(before) != len(times) or ((times == 0) & (seen > 0)).any()
        self.targets[name] = times + seen
        steps = self.steps.get(name, torch.zeros((), device=seen.device)) + 1
        last, _ = _aligned(self.last.get(name), seen)
        self.steps[name], self.last[name] = steps, torch.where(seen > 0, steps, last)
        zero = torch.zeros_like(steps)
        self.steady[name] = zero if new is True else torch.where(new, zero, self.steady[name] + 1)

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
        found = distributed.mean([self.targets[name] for name in names])
        new = {name: x > 0 for name, x in zip(names, found, strict=True)}
        for name, x in zip(names, found, strict=True):  # those of other processes were targets just now
            self.last[name] = torch.where((x > 0) & (self.targets[name] == 0), self.steps[name], self.last[name])
            self.targets[name] = torch.maximum(self.targets[name], x)
        past = self.memory or {}
        self.memory = past | {name: _union(past.get(name), x) for name, x in new.items() if x.any()} or None

    def clear(self) -> None:
        """Start a new window."""
        self.load_window({key: {} for key in WINDOW})

    def window_state(self) -> State:
        """The window as tensors only."""
        return {key: dict(getattr(self, key)) for key in WINDOW}

    def load_window(self, state: State) -> None:
        """Replace the window by one that ``window_state`` returned."""
        for key in WINDOW:
            setattr(self, key, self._placed(state[key]))

    def tensors(self) -> list[Tensor]:
        """The tensors kept between steps."""
        window = (getattr(self, key).values() for key in WINDOW)
        return [*(self.memory or {}).values(), *(x for part in window for x in part)]

    def absent(self) -> int:
        """The number of absent classes."""
        pairs = ((known, self._present(name)) for name, known in (self.memory or {}).items())
        return sum(int((known & ~_aligned(now, known)[0][: len(known)]).sum()) for known, now in pairs)

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


def _aligned(one: Tensor | None, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two vectors over outputs, padded with zeros to the same length; the layer may have grown."""
    if one is None:
        return torch.zeros_like(other), other
    n = max(len(one), len(other))
    pad = torch.nn.functional.pad
    return pad(one, (0, n - len(one))), pad(other, (0, n - len(other)))


def _union(one: Tensor | None, other: Tensor) -> Tensor:
    """The union of two sets of outputs."""
    a, b = _aligned(one, other)
    return a | b
