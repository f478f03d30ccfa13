"""Classes that are absent from the data now: the gradient at the logits counts them as rare, not as ruled out."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sal_lightning import distributed
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.subspace import SubspaceRule

SHARE, PACE, LEAST = 0.1, 0.03, 1e-5  # of the prior: see LogitAdjustment
ALONE = 0.9  # of what is negative in the gradient: the targets' share, where each row has one
OUT = -1e30  # a logit that takes no part
ROUNDING = 1e4, 2e-2  # what rows may sum to, in their size: machine precisions, and at most


def adjustment(z: Tensor, G: Tensor, absent: Tensor, prior: float | Tensor) -> tuple[Tensor, Tensor]:
    """What has to be added to a cross-entropy's gradient where ``absent`` classes have this prior, the others 1.

    With ``p = softmax(z)``, P the probability of the absent classes and D their gradient, summed:
    ``Z = 1 − (1 − prior) P``, absent ``g ← prior · g / Z``, others ``g ← g + (1 − prior) p D / Z``.
    That is the gradient at ``z + log prior`` (logit adjustment, Menon et al. 2021), whatever the weight of a sample.
    A class that is the target of a row is not absent in it.

    Args:
        z: logits, (..., n).
        G: gradient of the loss there, (..., n); where it is 0 a class takes no part.
        absent: (n,) of bool.
        prior: in (0, 1]; 1 changes nothing.

    Returns:
        The change (..., n), in single precision, and P of each row, (...).
    """
    g = G.float()
    p = torch.softmax(z.float().masked_fill(g == 0, OUT), -1)
    pushed = absent & (g > 0)
    P, D = (p * pushed).sum(-1, keepdim=True), (g * pushed).sum(-1, keepdim=True)
    Z = 1 - (1 - prior) * P
    return torch.where(pushed, (prior / Z - 1) * g, (1 - prior) * D / Z * p), P[..., 0]


def targets(G: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row of a gradient (..., n) has its target, and whether it is that of a softmax with one target a row.

    Such a row sums to 0, since a softmax only compares logits, and is negative at the target alone. Judged are all rows
    together, by their sizes: of a sample that is learned, nothing but rounding is left.

    Returns:
        Indices (...), n where a row has no target; and a bool, ().
    """
    times, most = ROUNDING
    g = G.float()
    low, at = g.min(-1)
    size, low = g.abs().sum(), low.clamp(max=0)
    balanced = g.sum(-1).abs().sum() <= min(times * torch.finfo(G.dtype).eps, most) * size
    fits = balanced & (-low.sum() >= ALONE * size / 2)  # half of a balanced gradient is negative
    return torch.where((low < 0) & fits, at, G.shape[-1]), fits


class LogitAdjustment:
    """Knows which outputs of the last layer were targets before something was held, and since.

    One that was and is not any more is *absent*. Trained further, a classifier lowers its logit for every sample and
    so forgets it fastest of all, whatever its weights: nothing in the data speaks for it.

    How rare absent classes are to be cannot be known without their data. It starts at ``prior`` when something is
    consolidated, and grows while absent classes have more than SHARE of the probability of present samples: the last
    layer alone cannot tell old and new apart then, and the others have to learn it. It falls while they have less:
    ``prior ← prior · exp(PACE (P − SHARE))`` in each step, in [LEAST, 1].
    """

    name = "(logit adjustment)"  # among those of rules

    def __init__(self, prior: float) -> None:
        self.prior = prior
        self.memory: dict[str, Tensor] | None = None  # by layer, outputs that were targets: (n,) of bool
        self.targets: dict[str, Tensor] = {}  # since the window began,
        self.seen: dict[str, Tensor] = {}  # and in this step
        self.priors: dict[str, Tensor] = {}  # by layer, of absent classes, since the window began
        self.shares: dict[str, Tensor] = {}  # the sum of P over the samples of this step, and their number: (2,)
        self._names: dict[nn.Module, str] = {}

    def cover(self, rules: Iterable[Rule]) -> None:
        """The layers that may be the last."""
        layers = {rule.layer.module: rule for rule in rules if isinstance(rule, SubspaceRule)} if self.prior < 1 else {}
        whole = (m for m in layers if isinstance(m, nn.Linear) and not any(map(distributed.sharded, m.parameters())))
        self._names = {module: layers[module].name for module in whole}

    def holds(self, module: nn.Module) -> bool:
        """Whether outputs of this layer may be absent."""
        return self._names.get(module) in (self.memory or {})

    def adjust(self, module: nn.Module, grad: Tensor, logits: Tensor | None) -> Tensor | None:
        """Note the targets in the gradient at a layer's output; returns what has to be added to it, None for nothing.

        Args:
            module: the layer.
            grad: the gradient there.
            logits: the output; it may be left out where the layer holds nothing.
        """
        if (name := self._names.get(module)) is None or grad.dim() != 2 or not grad.is_floating_point():
            return None  # of sequences, as in a language model, each place would cost a pass over the vocabulary
        at, fits = targets(grad)
        self._note(name, at, grad.shape[-1])
        known = (self.memory or {}).get(name)
        if known is None or logits is None or len(known) != grad.shape[-1]:
            return None
        now = self.targets.get(name)
        absent = known if now is None else known & ~now
        if absent.device.type == "cpu" and not absent.any():
            return None  # on a device nobody waits to know
        if name not in self.priors:
            self.priors[name] = torch.tensor(self.prior, device=grad.device)
        change, P = adjustment(logits, grad, absent, self.priors[name])
        share = torch.stack([P.sum(), (at < grad.shape[-1]).sum()]) * (fits & absent.any())
        self.shares[name] = share + self.shares[name] if name in self.shares else share
        return (change * fits).to(grad.dtype)

    def collect_predictions(self, module: nn.Module, logits: Tensor) -> None:
        """What the model answers counts as the targets."""
        if (name := self._names.get(module)) is not None and logits.dim() == 2:
            self._note(name, logits.argmax(-1), logits.shape[-1])

    def _note(self, name: str, at: Tensor, n: int) -> None:
        seen = torch.zeros(n + 1, dtype=torch.bool, device=at.device)
        seen[at.flatten()] = True
        self.seen[name] = seen[:n] | self.seen[name] if name in self.seen else seen[:n]

    def update(self) -> None:
        """What was a target in this step counts; all processes call it together."""
        if self.memory and distributed.count() > 1:
            names = sorted(self.memory)
            found = distributed.mean(
                [self.seen[n] if n in self.seen else torch.zeros_like(self.memory[n]) for n in names]
            )
            self.seen |= {name: x > 0 for name, x in zip(names, found, strict=True)}
        self._pace()
        for name, seen in self.seen.items():
            self.targets[name] = _union(self.targets.get(name), seen)
        self.discard_step()

    def _pace(self) -> None:
        names = sorted(self.memory or {}) if distributed.count() > 1 else list(self.shares)
        nothing = {name: torch.zeros(2, device=self.memory[name].device) for name in names if self.memory}
        shares = distributed.mean([self.shares.get(name, nothing[name]) for name in names])
        for name, (total, number) in zip(names, shares, strict=True):
            if name in self.priors:
                grown = self.priors[name] * torch.exp(PACE * (total / number.clamp(min=1e-9) - SHARE))
                self.priors[name] = torch.where(number > 0, grown.clamp(LEAST, 1.0), self.priors[name])

    def discard_step(self) -> None:
        """Drop what was gathered in this step."""
        self.seen, self.shares = {}, {}

    @torch.no_grad()
    def consolidate(self) -> None:
        """The targets of the window are known; all processes call it together."""
        names = sorted(self.targets)
        found = distributed.mean([self.targets[name].float() for name in names])
        new = {name: x > 0 for name, x in zip(names, found, strict=True)}
        self.targets, past = dict(new), self.memory or {}
        self.memory = past | {name: _union(past.get(name), x) for name, x in new.items() if x.any()} or None

    def clear(self) -> None:
        """Begin a new window."""
        self.targets, self.priors = {}, {}

    def tensors(self) -> list[Tensor]:
        """What is kept between steps."""
        return [*(self.memory or {}).values(), *self.targets.values(), *self.priors.values()]

    def absent(self) -> int:
        """How many outputs were targets and are not any more."""
        return sum(int((known & ~self._now(name, known)).sum()) for name, known in (self.memory or {}).items())

    def _now(self, name: str, like: Tensor) -> Tensor:
        return _union(self.targets.get(name), torch.zeros_like(like))[: len(like)]

    def state_dict(self) -> State:
        """Tensors only."""
        parts = {"targets": self.targets, "seen": self.seen, "priors": self.priors, "shares": self.shares}
        return {"memory": self.pack(self.memory)} | {key: dict(part) for key, part in parts.items()}

    def load_state_dict(self, state: State) -> None:
        """Continue where another stood."""
        self.memory = self.unpack(state["memory"])
        parts = (self._placed(state[key]) for key in ("targets", "seen", "priors", "shares"))
        self.targets, self.seen, self.priors, self.shares = parts

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
    """Of two sets of outputs; a layer may have grown between them."""
    if one is None:
        return other
    n = max(len(one), len(other))
    return torch.nn.functional.pad(one, (0, n - len(one))) | torch.nn.functional.pad(other, (0, n - len(other)))
