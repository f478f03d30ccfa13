"""The communication layer: ask what is stable, hold it back from the gradient, restore it after the step."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sal_lightning import covering, processes
from sal_lightning.covering import Coverage
from sal_lightning.novelty import CONFIRM, SUSPECT, Novelty
from sal_lightning.readback import Readback
from sal_lightning.remembering import energy, run
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.subspace import Subspace
from sal_lightning.rules.tokens import Tokens
from sal_lightning.settings import Protection, Settings, Trigger
from sal_lightning.stability import StabilityAnalyzer, StabilitySpectrum, spectrum
from sal_lightning.stepping import Stepping

VERSION = 2  # of the state_dict
STRIDE = 4  # steps from one look of the analyzer to the next
_INPUTS = ("input", "query", "key", "value")  # by whatever name a layer is given them


class CommunicationLayer:
    """Protects what a model has learned while it goes on learning; plain PyTorch.

    Given the optimizer, protection holds under any of them (Adam, momentum, weight decay): what is held is put back
    after its step. Without it only the gradient is held back, which protects under plain SGD alone. If a loop calls
    ``analyze()`` or ``protect()`` not by itself, it happens when the optimizer steps.

    Under DDP and FSDP2 every process makes its own layer; they agree on what they saw.

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
        scaler: the loss scaler of 16-bit training: a step that it skips observes nothing and restores nothing. Call its
            ``unscale_(optimizer)`` before ``analyze()``, but for a fused optimizer, which unscales by itself.

    Raises:
        ValueError: a choice outside its range, a model with nothing to train, an optimizer of another model.
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
        scaler: GradScaler | None = None,
    ) -> None:
        self.settings = Settings(protection, consolidate_on, strength, recall, share)
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        covering.check(model, optimizer)
        self._coverage = Coverage(model, optimizer, self.settings)
        self.analyzer: StabilityAnalyzer | None = None  # looks at each step's gradients before they are held back
        self.novelty = Novelty()
        self.step = 0  # optimizer steps analyzed
        self.skips = 0  # that the scaler skipped
        self.events: list[int] = []  # the steps at which something was consolidated
        self.excess = 0.0  # log of how much farther than usual the last batch was
        self.measure = False  # whether to measure what this step holds back
        self.measured: dict[str, Tensor] = {}  # (held², whole²) of the gradient ("suppressed"), the update ("effect")
        self._reached: dict[Subspace | Tokens, None] = {}  # the eyes whose layer ran in this step, in order
        self._answer: Readback | None = None  # this step's surprise, on its way from the device
        self._known = set[Rule]()  # the eyes whose layer ever ran,
        self._forward = set[Rule]()  # and not only in a backward pass, as under reentrant checkpointing
        self._trusted: dict[Rule, Any] | None = None  # what was held before a change was suspected
        self._stepping: Stepping | None = None
        self._analyzed = self._protected = self._skipped = self._remembering = False
        self._listening: dict[Rule, RemovableHandle] = {}
        self._coverage.grow()
        self.attach()

    @property
    def rules(self) -> list[Rule]:
        """One a layer that is understood, one for all other parameters."""
        return self._coverage.rules

    @property
    def eyes(self) -> list[Subspace | Tokens]:
        """Those that listen to forward passes."""
        return self._coverage.eyes

    def analyze(self) -> None:
        """Ask, once a step after ``backward()``: what is the model used for now, and does it fit what came before?"""
        if (self._analyzed and self._in_step) or not self._has_gradients():
            return
        with _exactly(self._device):
            self._cover()
            unit = self._unit()
            self._skipped = unit is None
            if unit is None:
                self.skips += 1
                self.forget_step()
                return
            self._analyzed = True  # a closure may come several times in one step
            self.step += 1
            if self.analyzer is not None and self.step % STRIDE == 1:
                self.analyzer.observe(unit)
            surprise = self._surprise()
            self._hand_over_unreached()
            familiar = self._familiar(surprise)
            due = [rule for rule in self.rules if familiar and rule.due and rule in self._known]
            for rule in self._observers():
                rule.observe(unit) if familiar else rule.forget_step()
            self._share(due)
            for rule in due:
                rule.reopen()
            self.forget_step()
            every = self.settings.consolidate_on
            if isinstance(every, int) and self.step % every == 0:
                self.consolidate()

    def protect(self) -> None:
        """Hold the gradient back where it would overwrite what is held: ``G ← G − held(G)``."""
        if self._skipped:
            return
        self._protected = True
        with _exactly(self._device):
            if not self._in_step:
                self._forget_weights()  # of a step that was skipped
            for rule in self.rules:
                rule.snapshot()
            self._measure("suppressed", [rule.mask(self.measure) for rule in self.rules])
            self._measure("effect", [])  # until the optimizer has stepped: it may skip this one

    def restore(self) -> None:
        """Put back what the step moved and should not have; the optimizer's own hook calls this where it is known."""
        with _exactly(self._device):
            self._measure("effect", [rule.restore(self.measure) for rule in self.rules])
            self._keep_pace()

    def settle(self, together: bool = True) -> None:
        """Put back at once what ``restore()`` leaves for later: it looks along held directions every few steps.

        Not ``together``: other processes may be gone, and are not asked.
        """
        with _exactly(self._device):
            for rule in self.rules:
                if rule.holds:
                    rule.settle()
            if together:
                self._keep_pace()

    def consolidate(self) -> None:
        """By hand: what the network does now is worth keeping."""
        with _exactly(self._device):
            self._dismiss()
            self._consolidate()
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
                with _exactly(self._device):
                    for rule in self._observers():
                        rule.observe()
                    self.forget_step()
        finally:
            self._remembering = False
            self.model.train(training)
            for p, grad in zip(self.model.parameters(), grads, strict=True):
                p.grad = grad
        self._share(self.rules)
        self.consolidate()

    def spectrum(self) -> StabilitySpectrum:
        """Percent of the covered weights that the next update will meet as protected, neutral and volatile."""
        return spectrum(self.bands())

    def bands(self) -> Tensor:
        """Covered weights that are (protected, neutral, volatile): counts (3,)."""
        parts = [rule.bands().to(self._device) for rule in self.rules if rule.learns]
        return torch.stack(parts).sum(0) if parts else torch.zeros(3, device=self._device)

    def drift(self) -> Tensor:
        """Energy-weighted movement along held directions since they were consolidated, as (moved², size²): (2,)."""
        parts = [d for rule in self.rules if (d := rule.drift()) is not None]
        return torch.stack(parts).sum(0) if parts else torch.zeros(2, device=self._device)

    def coverage(self) -> dict[str, str]:
        """The grain at which each covered parameter is protected."""
        return self._coverage.grains()

    def memory(self) -> dict[str, float]:
        """Bytes: ``model`` (covered), ``state`` (kept), ``step`` (more in a step); ``ratio`` = state / model."""
        model = sum(p.nbytes for rule in self.rules for p in rule.parameters.values())
        state = sum(t.nbytes for rule in self._coverage.everybody() for t in rule.tensors())
        held = (rule for rule in self.rules if rule.holds and rule.restores)
        step = sum(p.nbytes for rule in held for p in rule.parameters.values())
        return {"model": model, "state": state, "step": step, "ratio": state / max(model, 1)}

    @property
    def attached(self) -> bool:
        """Whether it is listening."""
        return self._attached

    def attach(self) -> None:
        """Listen to the layers' forward passes and the optimizer's steps."""
        self.detach()
        self._attached = True
        for eye in self.eyes:
            self._listen(eye)
        if self.optimizer is not None:
            self._stepping = Stepping(self.optimizer, self)
        elif self.settings.protection != "tensor":
            warnings.warn(
                "CommunicationLayer was given no optimizer: only the gradient is held back, which protects under plain "
                "SGD but not under Adam, momentum or weight decay. Pass the optimizer as second argument.",
                stacklevel=3,
            )

    def detach(self) -> None:
        """Stop listening; what was learned stays."""
        for handle in self._listening.values():
            handle.remove()
        self._listening.clear()
        if self._stepping is not None:
            self._stepping.remove()
        self._stepping, self._attached = None, False

    def state_dict(self) -> State:
        """Tensors, numbers and strings only, so that ``torch.load(weights_only=True)`` takes it.

        Where parameters are sharded every process has to call it.
        """
        trusted = self._trusted
        return {
            "version": VERSION,
            "protection": self.settings.protection,
            "step": self.step,
            "events": list(self.events),
            "novelty": self.novelty.state_dict(),
            **self._coverage.state_dict(),
            "trusted": None if trusted is None else {rule.name: rule.pack(memory) for rule, memory in trusted.items()},
            # Rows of passes that another optimizer has stepped since.
            "pending": {eye.name: eye.pending() for eye in self._reached},
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
        self._coverage.load_state_dict(state)
        self.step, self.events = state["step"], list(state["events"])
        self.novelty.load_state_dict(state["novelty"])
        rules = {rule.name: rule for rule in self.rules}
        trusted = state["trusted"]
        if trusted is not None:
            self._trusted = {rules[name]: rules[name].unpack(kept) for name, kept in trusted.items() if name in rules}
        eyes = {eye.name: eye for eye in self.eyes}
        for name, seen in state.get("pending", {}).items():
            if name in eyes:
                eyes[name].resume(seen)
                self._reached[eyes[name]] = None

    # --- asking ---

    def _familiar(self, surprise: float | None) -> bool:
        """Whether the batch fits the window; the first that does not is protected against before its own update."""
        if surprise is None:
            return True
        if not math.isfinite(surprise):
            return False
        self.excess = self.novelty.excess(surprise)
        if self.settings.consolidate_on != "novelty":
            self._learn(surprise)
            return True
        evidence = self.novelty.weigh(surprise)
        if evidence < SUSPECT:
            self._dismiss()
            self._learn(surprise)
            return True
        if self._trusted is None:
            self._trusted = {rule: rule.memory for rule in self.rules}
            self._consolidate()
        if evidence >= CONFIRM:
            self._trusted = None
            self._begin_window()
        return False

    def _learn(self, surprise: float) -> None:
        if self.novelty.learn(surprise):
            for eye in self.eyes:
                eye.look()

    def _surprise(self) -> float | None:
        """How unusual the rows of all processes are on average; None while nobody can say."""
        answer, first = self._answer, self._first()
        parts = None if first is None else first.surprise
        if processes.count() > 1:
            return self._common_surprise(parts) if self.eyes else None
        if answer is None:
            answer = None if parts is None else Readback(parts)
        total, n = answer.read() if answer is not None else (0.0, 0.0)
        return total / n if n else None

    def _common_surprise(self, parts: Tensor | None) -> float | None:
        """The surprise of all processes; a layer that ran in one of them is known in all."""
        known = torch.tensor([float(eye in self._known) for eye in self.eyes], device=self._device)
        parts = known.new_zeros(2) if parts is None else parts
        total, n, *anywhere = processes.mean([torch.cat([parts, known])])[0].tolist()
        self._known.update(eye for eye, share in zip(self.eyes, anywhere, strict=True) if share)
        return total / n if n else None

    def _dismiss(self) -> None:
        """It was no change: hold again what was held before."""
        for rule, memory in (self._trusted or {}).items():
            rule.memory = memory
        self._trusted = None

    def _share(self, rules: Sequence[Rule]) -> None:
        """Give all processes one window: the mean of what they saw."""
        if processes.count() > 1:
            windows = [rule.window_tensors() for rule in rules]
            merged = iter(processes.mean([t for window in windows for t in window]))
            for rule, window in zip(rules, windows, strict=True):
                rule.set_window([next(merged) for _ in window])

    def _consolidate(self) -> None:
        """Add what was seen to what is held."""
        for rule in self.rules:
            rule.consolidate()

    def _begin_window(self) -> None:
        """What emerged is kept: note the event and look at what comes with fresh eyes."""
        self.events.append(self.step)
        self._clear_windows()

    def _clear_windows(self) -> None:
        self.novelty.clear()
        for rule in self._coverage.everybody():
            rule.clear()

    def _first(self) -> Subspace | Tokens | None:
        """The layer that the forward pass of this step reached first: novelty is asked there."""
        return next(iter(self._reached), None)

    def _observers(self) -> list[Rule]:
        first = self._first()
        return self.rules if first is None or first in self.rules else [*self.rules, first]

    def _unit(self) -> float | None:
        """What the gradients are multiplied by; None if the loss scaler will skip this step."""
        if self.scaler is None or not self.scaler.is_enabled():
            return 1.0
        grads = [g for rule in self.rules for g in rule.gradients() if g is not None]
        finite = torch.stack([torch.isfinite(g.coalesce().values() if g.is_sparse else g).all() for g in grads]).all()
        if processes.mean([finite.float()])[0] != 1:
            return None
        fused = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        return self.scaler.get_scale() if fused else 1.0

    # --- listening ---

    def _listen(self, eye: Subspace | Tokens) -> None:
        self._listening[eye] = _module(eye).register_forward_pre_hook(self._listener(eye), with_kwargs=True)

    def _listener(self, eye: Subspace | Tokens) -> Callable[..., None]:
        weight = next(iter(eye.parameters.values()))
        watched = _module(eye)

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            training = module.training and torch.is_grad_enabled() and weight.requires_grad
            if module is not watched or not (self._remembering or training):
                return  # evaluation, or a copy of the model: hooks are copied with it
            if in_backward():
                if eye in self._forward:
                    return  # run again for its activations
            else:
                self._forward.add(eye)
            if self._stepping is not None:
                self._stepping.forward_begins()
            self._known.add(eye)
            self._reached.setdefault(eye)
            ask = self._first() is eye
            if ask or (eye.due and eye in self.rules):
                with _exactly(self._device):
                    given = args + tuple(kwargs[k] for k in _INPUTS if k in kwargs)
                    eye.see(tuple(map(processes.local, given)), self.step, ask)
                if ask and eye.surprise is not None and processes.count() == 1:
                    self._answer = Readback(eye.surprise)

        listener: Callable[..., None] = listen
        return listener

    @property
    def _in_step(self) -> bool:
        return self._stepping is not None and self._stepping.depth > 0

    def gradients_begin(self) -> None:
        """The optimizer calls its closure: what it computes has to be held back anew."""
        self._protected = False

    def gradients_ready(self) -> None:
        """The optimizer is about to use the gradients: do what the loop did not."""
        with torch.no_grad():
            if not self._analyzed:
                self.analyze()
            if not self._protected:
                self.protect()

    def stepped(self) -> None:
        """The optimizer has moved the weights."""
        self.restore()

    def step_ended(self) -> None:
        """The optimizer is done, or fell."""
        self._analyzed = self._protected = self._skipped = False
        self._forget_weights()

    def _forget_weights(self) -> None:
        for rule in self.rules:
            rule.before = None

    def begin_anew(self) -> None:
        """Take the weights as they are: whatever moved them since the last step was meant."""
        with _exactly(self._device):
            for rule in self.rules:
                rule.anchor()
        self.forget_step()

    def forget_step(self) -> None:
        """Drop what was gathered since the last step."""
        for eye in self.eyes:
            eye.forget_step()
        self._reached.clear()
        self._answer = None

    # --- covering ---

    def _has_gradients(self) -> bool:
        if self.optimizer is None:
            return any(p.grad is not None for rule in self.rules for p in rule.parameters.values())
        return any(p.grad is not None for group in self.optimizer.param_groups for p in group["params"])

    def _cover(self) -> None:
        """Take in the parameters that began to learn."""
        new = self._coverage.grow()
        for eye in new or []:
            self._listen(eye)
        if new is not None and self.analyzer is not None:
            self.analyzer.watch(covering.owned(self.model, self.optimizer))

    def _hand_over_unreached(self) -> None:
        """Layers whose weights are used without calling the layer are protected weight by weight."""
        if self.step == 1 and not self._remembering:
            return  # the gradient may be older than these hooks
        lost: list[Rule] = [e for e in self.eyes if e in self.rules and e not in self._known]
        self._coverage.hand_over([r for r in lost if any(p.grad is not None for p in r.parameters.values())])

    def _keep_pace(self) -> None:
        moved = {r: r.moved for r in self.rules if isinstance(r, Subspace) and r.moved is not None}
        if moved:
            totals = processes.totals(list(moved.values()), [rule.layer.weight for rule in moved])
            for rule, total in zip(moved, totals, strict=True):
                rule.keep_pace(total)

    def _measure(self, name: str, parts: list[Tensor | None]) -> None:
        if self.measure:
            known = [part for part in parts if part is not None]
            self.measured[name] = torch.stack(known).sum(0) if known else torch.zeros(2, device=self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _module(eye: Subspace | Tokens) -> nn.Module:
    return eye.layer.module if isinstance(eye, Subspace) else eye.table


def in_backward() -> bool:
    """Whether a backward pass is running: under checkpointing it runs forward passes again."""
    return bool(torch._C._current_graph_task_id() != -1)  # as torch.utils.module_tracker asks


@contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """Without gradients, and in the tensors' own precision whatever the loop around it casts to."""
    casts = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
    with torch.no_grad(), casts:
        yield
