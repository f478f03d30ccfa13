"""The communication layer: ask what is stable, hold it back from the gradient, restore it after the step."""

import warnings
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sal_lightning import covering
from sal_lightning.novelty import CONFIRM, Novelty
from sal_lightning.remembering import energy, run
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.element import Element
from sal_lightning.rules.subspace import Subspace
from sal_lightning.rules.tokens import Tokens
from sal_lightning.settings import Protection, Settings, Trigger
from sal_lightning.stability import StabilitySpectrum, spectrum

VERSION = 1  # of the state_dict
_INPUTS = ("input", "query", "key", "value")  # by whatever name a layer is given them


class CommunicationLayer:
    """Protects what a model has learned while it goes on learning; plain PyTorch.

    Given the optimizer, protection holds under any of them (Adam, momentum, weight decay): what is held is put back
    after its step. Without it only the gradient is held back, which protects under plain SGD alone.

    >>> model = nn.Linear(4, 2)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> comm = CommunicationLayer(model, optimizer)
    >>> for _ in range(3):
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     comm.analyze()
    ...     comm.protect()
    ...     optimizer.step()
    >>> print(comm.spectrum())
    {'protected': 0%, 'neutral': 0%, 'volatile': 100%}

    Args:
        model: the module to protect; covered are the parameters that require a gradient and that ``optimizer`` owns.
        optimizer: the optimizer that will step these parameters.
        protection: the grain: ``"subspace"``, ``"element"`` or ``"tensor"``, see ``sal_lightning.rules``.
        consolidate_on: when what emerged is kept: ``"novelty"`` (the inputs change), ``"fit"`` (at every new fit of a
            ``SALCallback``; here the same as None), every so many steps, or ``None`` (only ``consolidate()``).
        strength: > 0; a direction of mean energy is held with stability ``1 / (1 + 1/strength)``.
        recall: >= 0; how fast drift along held directions is taken back, in units of the weights' own movement.
        share: in (0, 1]; no more directions are kept than hold this share of the energy.

    Raises:
        ValueError: a choice outside its range, a model with nothing to train, an optimizer of another model.
        NotImplementedError: training in several processes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        protection: Protection = "subspace",
        consolidate_on: Trigger = "novelty",
        strength: float = Settings.strength,
        recall: float = Settings.recall,
        share: float = Settings.share,
    ) -> None:
        self.settings = Settings(protection, consolidate_on, strength, recall, share)
        self.model, self.optimizer = model, optimizer
        covering.refuse_many_processes()
        owned = covering.owned(model, optimizer)
        self.rules = covering.rules_for(self.settings, owned, model)
        # What listens to forward passes. Single weights have no inputs: there a layer is watched without protecting it.
        watch = covering.layer_rules(self.settings, dict(owned), model) if protection == "element" else []
        self.eyes: list[Subspace | Tokens] = watch or [r for r in self.rules if isinstance(r, Subspace | Tokens)]
        self.novelty = Novelty()
        self.step = 0  # optimizer steps analyzed
        self.events: list[int] = []  # the steps at which something was consolidated
        self.excess = 0.0  # log of how much farther than usual the last batch was
        self.measure = False  # whether to measure what this step holds back
        self.measured: dict[str, Tensor] = {}  # (held², whole²) of the gradient ("suppressed"), the update ("effect")
        self._reached: dict[Subspace | Tokens, None] = {}  # the eyes whose layer ran in this step, in order
        self._known = set[Rule]()  # the eyes whose layer ever ran
        self._trusted: list[Any] | None = None  # what was held before a change was suspected
        self._depth, self._analyzed, self._remembering = 0, False, False
        self._handles: list[RemovableHandle] = []
        self.attach()

    @torch.no_grad()
    def analyze(self) -> None:
        """Ask, once a step after ``backward()``: what is the model used for now, and does it fit what came before?"""
        if self._analyzed or all(p.grad is None for rule in self.rules for p in rule.parameters.values()):
            return
        self._analyzed = self._depth > 0  # a closure may come several times in one step
        self.step += 1
        self._hand_over_unreached()
        familiar = self._familiar()
        for rule in self._observers():
            rule.observe() if familiar else rule.forget_step()
        self._reached.clear()
        every = self.settings.consolidate_on
        if isinstance(every, int) and self.step % every == 0:
            self.consolidate()

    @torch.no_grad()
    def protect(self) -> None:
        """Hold the gradient back where it would overwrite what is held: ``G ← G − held(G)``."""
        for rule in self.rules:
            # Inside a step a rule may just have begun to hold; without an optimizer nobody else keeps W₀.
            if self.optimizer is None or (self._depth and rule.before is None):
                rule.snapshot()
        self._measure("suppressed", [rule.mask(self.measure) for rule in self.rules])
        self._measure("effect", [])  # until the optimizer has stepped: it may skip this one

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what the step moved and should not have; the optimizer's own hook calls this where it is known."""
        self._measure("effect", [rule.restore(self.measure) for rule in self.rules])

    @torch.no_grad()
    def consolidate(self) -> None:
        """By hand: what the network does now is worth keeping."""
        self._dismiss()
        for rule in self.rules:
            rule.consolidate()
        self._begin_window()

    def remember(
        self, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None, limit: int | None = None
    ) -> None:
        """Keep what a trained model does on this data, before it is trained further; needs no labels.

        Importance of single weights is the gradient of the output's squared norm (MAS, Aljundi et al. 2018).

        Args:
            batches: what the model is run on: of a tuple or list the first entry, of a mapping all entries by name.
            forward: how to run the model on a batch, if not so.
            limit: look at no more batches than this.
        """
        self._dismiss()
        training, grads = self.model.training, [p.grad for p in self.model.parameters()]
        self._clear_windows()
        self.model.eval()
        self._remembering = True
        try:
            for batch in islice(batches, limit):
                self.model.zero_grad(set_to_none=True)
                with torch.enable_grad():
                    torch.autograd.backward(energy(forward(batch) if forward else run(self.model, batch)))
                self._hand_over_unreached()
                for rule in self._observers():
                    rule.observe()
                self._reached.clear()
        finally:
            self._remembering = False
            self.model.train(training)
            for p, grad in zip(self.model.parameters(), grads, strict=True):
                p.grad = grad
        self.consolidate()

    def spectrum(self) -> StabilitySpectrum:
        """Percent of the covered weights that the next update will meet as protected, neutral and volatile."""
        return spectrum(self.bands())

    def bands(self) -> Tensor:
        """Covered weights that are (protected, neutral, volatile): counts (3,)."""
        return torch.stack([rule.bands().to(rule.device) for rule in self.rules]).sum(0)

    def drift(self) -> Tensor:
        """Energy-weighted movement along held directions since they were consolidated, as (moved², size²): (2,)."""
        parts = [d for rule in self.rules if (d := rule.drift()) is not None]
        return torch.stack(parts).sum(0) if parts else self._nothing()

    def coverage(self) -> dict[str, str]:
        """The grain at which each covered parameter is protected."""
        return {name: rule.grain for rule in self.rules for name in rule.parameters}

    def memory(self) -> dict[str, float]:
        """Bytes: ``model`` (covered), ``state`` (kept), ``step`` (more in a step); ``ratio`` = state / model."""
        model = sum(p.nbytes for rule in self.rules for p in rule.parameters.values())
        state = sum(t.nbytes for rule in {*self.rules, *self.eyes} for t in rule.tensors())
        held = (rule for rule in self.rules if rule.holds and rule.restores)
        step = sum(p.nbytes for rule in held for p in rule.parameters.values())
        return {"model": model, "state": state, "step": step, "ratio": state / model}

    def attach(self) -> None:
        """Listen to the layers' forward passes and the optimizer's steps."""
        self.detach()
        for eye in self.eyes:
            module = eye.layer.module if isinstance(eye, Subspace) else eye.table
            self._handles.append(module.register_forward_pre_hook(self._listener(eye), with_kwargs=True))
        if self.optimizer is not None:
            self._handles.append(self.optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(self.optimizer.register_step_post_hook(self._after_step))
        elif self.settings.protection != "tensor":
            warnings.warn(
                "CommunicationLayer was given no optimizer: only the gradient is held back, which protects under plain "
                "SGD but not under Adam, momentum or weight decay. Pass the optimizer as second argument.",
                stacklevel=3,
            )

    def detach(self) -> None:
        """Stop listening; what was learned stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._depth, self._analyzed = 0, False
        for rule in self.rules:
            rule.before = None

    def state_dict(self) -> State:
        """Tensors, numbers and strings only, so that ``torch.load(weights_only=True)`` takes it."""
        trusted = self._trusted
        return {
            "version": VERSION,
            "protection": self.settings.protection,
            "step": self.step,
            "events": list(self.events),
            "novelty": self.novelty.state_dict(),
            "elements": [name for name, grain in self.coverage().items() if grain == "element"],
            "rules": {rule.name: rule.state_dict() for rule in self.rules},
            "eyes": {eye.name: eye.state_dict() for eye in self.eyes if eye not in self.rules},
            "trusted": None
            if trusted is None
            else {rule.name: rule.pack(memory) for rule, memory in zip(self.rules, trusted, strict=True)},
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where another layer on the same model stood.

        Raises:
            ValueError: a state of a newer version, of another rule or of another model.
        """
        if state["version"] > VERSION:
            raise ValueError(f"Expected a state of version <= {VERSION}, got {state['version']}.")
        if state["protection"] != self.settings.protection:
            raise ValueError(
                f"Expected the state of protection={self.settings.protection!r}, got that of {state['protection']!r}."
            )
        self._hand_over(
            [r for r in self.rules if r.grain == "subspace" and set(r.parameters) <= set(state["elements"])]
        )
        if strange := {rule.name for rule in self.rules} ^ set(state["rules"]):
            raise ValueError(f"Expected the state of the same model; these parts are not in both: {sorted(strange)}.")
        self.step, self.events = state["step"], list(state["events"])
        self.novelty.load_state_dict(state["novelty"])
        for rule in self.rules:
            rule.load_state_dict(state["rules"][rule.name])
        for eye in self.eyes:
            if eye.name in state["eyes"]:
                eye.load_state_dict(state["eyes"][eye.name])
        trusted = state["trusted"]
        self._trusted = None if trusted is None else [rule.unpack(trusted[rule.name]) for rule in self.rules]

    # --- asking ---

    def _familiar(self) -> bool:
        """Whether the batch fits the window; the first that does not is protected against before its own update."""
        first = self._first()
        surprise = None if first is None else first.surprise()
        if surprise is None:
            return True
        value = float(surprise)
        self.excess = self.novelty.excess(value)
        if not self.novelty.unusual(value) or self.settings.consolidate_on != "novelty":
            self._dismiss()
            self.novelty.learn(value)
            return True
        self.novelty.suspicious += 1
        if self.novelty.suspicious == 1:
            self._suspect()
        if self.novelty.suspicious == CONFIRM:
            self._trusted = None
            self._begin_window()
        return False

    def _suspect(self) -> None:
        """Hold what emerged provisionally: the change is confirmed or dismissed by the batches that follow."""
        self._trusted = [rule.memory for rule in self.rules]
        for rule in self.rules:
            rule.consolidate()

    def _dismiss(self) -> None:
        """It was no change: hold again what was held before."""
        if self._trusted is not None:
            for rule, memory in zip(self.rules, self._trusted, strict=True):
                rule.memory = memory
        self._trusted, self.novelty.suspicious = None, 0

    def _begin_window(self) -> None:
        """What emerged is kept: note the event and look at what comes with fresh eyes."""
        self.events.append(self.step)
        self.novelty.suspicious = 0
        self._clear_windows()

    def _clear_windows(self) -> None:
        self.novelty.clear()
        for rule in {*self.rules, *self.eyes}:
            rule.clear()

    def _first(self) -> Subspace | Tokens | None:
        """The layer that the forward pass of this step reached first: novelty is asked there."""
        return next(iter(self._reached), None)

    def _observers(self) -> list[Rule]:
        first = self._first()
        return self.rules if first is None or first in self.rules else [*self.rules, first]

    # --- listening ---

    def _listener(self, eye: Subspace | Tokens) -> Callable[..., None]:
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not (self._remembering or (module.training and torch.is_grad_enabled())):
                return
            self._known.add(eye)
            self._reached.setdefault(eye)
            if self._first() is eye or (eye.due and eye in self.rules):
                with torch.no_grad():
                    eye.see(args + tuple(kwargs[k] for k in _INPUTS if k in kwargs), self.step)

        return listen

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._depth += 1  # an optimizer whose step calls super().step() comes here twice
        if self._depth == 1:
            for rule in self.rules:
                rule.snapshot()

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.restore()
            self._analyzed = False

    def _hand_over_unreached(self) -> None:
        """Layers whose weights are used without calling the layer are protected weight by weight."""
        if self.step == 1 and not self._remembering:
            return  # the gradient may be older than these hooks
        lost: list[Rule] = [e for e in self.eyes if e in self.rules and e not in self._known]
        self._hand_over([r for r in lost if any(p.grad is not None for p in r.parameters.values())])

    def _hand_over(self, lost: list[Rule]) -> None:
        if not lost:
            return
        element = next((rule for rule in self.rules if isinstance(rule, Element)), None)
        self.rules = [rule for rule in self.rules if rule not in lost]
        self.eyes = [eye for eye in self.eyes if eye not in lost]
        for rule in lost:
            if element is None:
                element = Element({}, self.settings.strength)
                self.rules.append(element)
            element.adopt(rule.parameters)

    def _measure(self, name: str, parts: list[Tensor | None]) -> None:
        if self.measure:
            known = [part for part in parts if part is not None]
            self.measured[name] = torch.stack(known).sum(0) if known else self._nothing()

    def _nothing(self) -> Tensor:
        return torch.zeros(2, device=self.rules[0].device)
