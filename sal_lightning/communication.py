"""The communication layer: ask what is stable, hold it back from the gradient, restore it after the step."""

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sal_lightning import averaged_weights, coverage, distributed, state_validation, torch_compile
from sal_lightning.batch_norm import RunningStatistics
from sal_lightning.change_detection import CONFIRM, SUSPECT, ChangeDetector
from sal_lightning.consolidation_reasons import BY_HAND, EVERY_STEPS, REMEMBERED, with_evidence
from sal_lightning.coverage import Coverage, Eye, ProvisionalHold
from sal_lightning.forward_hooks import ForwardHooks, exactly
from sal_lightning.grad_scaler import unit
from sal_lightning.logit_adjustment import LogitAdjustment
from sal_lightning.optimizer_hooks import OptimizerHooks, UnobservedSteps, unwrapped
from sal_lightning.output_gradient import OutputGradient
from sal_lightning.padding import Padding
from sal_lightning.pull import Pull
from sal_lightning.remembering import energies, evaluating, gradients_kept, run
from sal_lightning.rules.base import Rule, State, share_windows
from sal_lightning.rules.subspace import update_pace
from sal_lightning.settings import Protection, Settings, Statistics, Trigger
from sal_lightning.stability import StabilityAnalyzer, StabilitySpectrum, spectrum
from sal_lightning.step_inputs import StepInputs
from sal_lightning.user_warnings import UserWarnings

VERSION = 5  # of the state_dict
STRIDE = 4  # steps from one look of the analyzer to the next


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
        strength: > 0; just after a consolidation a direction of mean energy is held with stability
            ``1 / (1 + 1/strength)``. It grows with the steps since then, by its own value every 500 steps, up to
            eight times that, and is four times as large for recurrent layers. The element rule keeps it constant.
        recall: >= 0; how fast drift along held directions is taken back, in units of the weights' own movement.
        share: in (0, 1]; no more directions are kept than hold this share of the energy.
        running_statistics: of batch normalization where something is held: ``"keep"`` (they stay as they were when it
            was consolidated, and training normalises by them) or ``"update"`` (as without this layer).
        pull: >= 0; how strongly each weight goes back, after each step, to what it was when it was consolidated, by how
            much the outputs depend on it, in units of the weights' own movement; 0 does without.
        absent_prior: in (0, 1]; the prior, in the softmax that the layers before the last learn by, at which a class
            starts that was a target when something was consolidated and has not been since; 1 does without.
        scaler: the loss scaler of 16-bit training: a step that it skips observes nothing and restores nothing. Call its
            ``unscale_(optimizer)`` before ``analyze()``, but for a fused optimizer, which unscales by itself.
        notices: the warnings that were given already, where layers share them.

    Raises:
        ValueError: a choice outside its range, a model with nothing to train or compiled with ``fullgraph=True``, an
            optimizer of another model.
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
        running_statistics: Statistics = Settings.running_statistics,
        pull: float = Settings.pull,
        absent_prior: float = Settings.absent_prior,
        scaler: GradScaler | None = None,
        notices: UserWarnings | None = None,
    ) -> None:
        self.settings = Settings(
            protection, consolidate_on, strength, recall, share, running_statistics, pull, absent_prior
        )
        scaler = getattr(optimizer, "scaler", None) if scaler is None else scaler  # accelerate's wrapper has it
        wrapper, optimizer = optimizer, unwrapped(optimizer)
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        coverage.check(model, optimizer)
        self._coverage = Coverage(model, optimizer, self.settings)
        self.analyzer: StabilityAnalyzer | None = None  # looks at each step's gradients before they are held back
        self.detection = ChangeDetector()
        self.step = 0  # optimizer steps analyzed,
        self.begun = 0  # and when it began to listen
        self.skips = 0  # that the scaler skipped
        self.events: list[int] = []  # the steps at which something was consolidated,
        self.evidence: dict[int, str] = {}  # and what each of these consolidations followed from, in a few words
        self.jumped = False  # whether the loss or a deeper layer jumped in this fit, and no event came of it
        self.last = False  # whether the step that is under way is the last one before what moved has to be put back
        self.measure = False  # whether to measure what this step holds back
        self.measured: dict[str, Tensor] = {}  # (held², whole²) of the gradient ("suppressed"), the update ("effect")
        self._hearing, self._reached = ForwardHooks(), StepInputs(self._coverage)
        self._output = OutputGradient(scaler, self._pull.fisher, self._adjustment)
        self._provisional = ProvisionalHold(self._coverage)
        self._stepping: OptimizerHooks | None = None
        self._attached = False
        self._analyzed = self._protected = self._skipped = False  # in the step that is under way
        self._new = set[Eye]()  # eyes that came since the last step
        self.notices = notices or UserWarnings()
        if averaged_weights.hides(wrapper, optimizer):
            self.notices.hidden_average(type(wrapper).__name__)
        self._statistics = RunningStatistics()
        self._unstepped = UnobservedSteps()
        self._looks = 0  # steps analyzed since it was attached
        self._coverage.grow()
        self._say_other()
        self.attach()

    @property
    def rules(self) -> list[Rule]:
        """One a layer that is understood, one for all other parameters."""
        return self._coverage.rules

    @property
    def eyes(self) -> list[Eye]:
        """Those that listen to forward passes."""
        return self._coverage.eyes

    def analyze(self, *, scaled: bool = False) -> None:
        """Ask, once a step after ``backward()``: what is the model used for now, and does it fit what came before?

        Args:
            scaled: whether the scaler's ``unscale_(optimizer)`` is still to come.
        """
        if (self._analyzed and self.stepping) or not self._has_gradients():
            return
        if not self.stepping:
            self._look_for_steps()
        with exactly(self._device):
            self._cover()
            size = unit(self.scaler, self.optimizer, self.rules, scaled)
            self._skipped = size is None
            if size is None:
                self.skip()
                return
            self._analyzed = True  # a closure may come several times in one step
            self.step += 1
            if self.analyzer is not None and self.step % STRIDE == 1:
                self.analyzer.update(size)
            self._reached.gather()
            signals = self._reached.surprises(self._output)
            self._follow_output()
            self._hand_over_unreached()
            self._look_at_itself()
            with self._evaluated():
                familiar = self._familiar(signals)
            self._adjustment.update()
            self._statistics.suspended = self.suspects
            if not familiar:
                self._statistics.put_back()
            self._statistics.discard_step()
            due = [rule for rule in self.rules if familiar and rule.due and rule in self._reached.known]
            if familiar:
                self._reached.update(size)
                self._pull.fisher.update()
            self._say_no_pull()
            share_windows(due)
            for rule in due:
                rule.adapt_hold()
            self.discard_step()
            every = self.settings.consolidate_on
            if isinstance(every, int) and self.step % every == 0:
                self.consolidate_for(EVERY_STEPS)

    def skip(self) -> None:
        """Observe and protect nothing of this step: its gradients will not be used."""
        self._skipped = True
        self.skips += 1
        self.discard_step()

    def protect(self) -> None:
        """Hold the gradient back where it would overwrite what is held: ``G ← G − held(G)``."""
        if self._skipped:
            return
        self._protected = True
        with exactly(self._device):
            if not self.stepping:
                self._forget_weights()  # of a step that was skipped
            with self._evaluated():
                if not self._moved_already:
                    self._notice()
                self._snapshot()
            self._measure("suppressed", [rule.mask(self.measure) for rule in self.rules])
            self._measure("effect", [])  # until the optimizer has stepped: it may skip this one

    def restore(self) -> None:
        """Put back what the step moved and should not have; the optimizer's own hook calls this where it is known."""
        with exactly(self._device), self._evaluated():
            restored = [rule for rule in self.rules if rule.before is not None]
            if restored:  # not in a step that the scaler skipped
                self._pull.measure(restored)
            touched = {n: rule.touched for rule in restored for n in rule.parameters if rule.touched is not None}
            settling = {n for rule in restored if rule.settles for n in rule.parameters}
            self._measure("effect", [rule.restore(self.measure) for rule in self.rules])
            if restored:
                self._pull.apply(touched)
            for name in settling & touched.keys():
                self._pull.set_anchor([name], touched[name])
            for rule in restored:
                rule.record_weights()
            update_pace(self.rules)

    def _notice(self) -> None:
        """What somebody else moved since the last step is taken as it is."""
        for rule in self.rules:
            if rule.detect_external_change():
                self._pull.set_anchor(rule.parameters)

    def _snapshot(self) -> None:
        for rule in self.rules:
            rule.snapshot()
        self._pull.begin_step()

    def settle(self, together: bool = True) -> None:
        """Put back at once what ``restore()`` leaves for later: it looks along held directions every few steps.

        Not ``together``: other processes may be gone, and are not asked.
        """
        with exactly(self._device), self._evaluated():
            for rule in self.rules:
                if rule.holds:
                    if rule.detect_external_change():
                        self._pull.set_anchor(rule.parameters)
                    touched = rule.touched
                    rule.settle()
                    if touched is not None:
                        self._pull.set_anchor(rule.parameters, touched)
            if together:
                update_pace(self.rules)

    def consolidate(self) -> None:
        """By hand: what the network does now is worth keeping."""
        self.consolidate_for(BY_HAND)

    def consolidate_for(self, evidence: str) -> None:
        """Consolidate, and note what this follows from: one of ``evidence.ASKED``."""
        with exactly(self._device), self._evaluated():
            self._provisional.dismiss()
            self._coverage.consolidate()
            self._begin_window(evidence)

    def remember(
        self, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None, limit: int | None = None
    ) -> None:
        """Keep what a trained model does on this data, before it is trained further; needs no labels.

        Importance of single weights is the gradient of the output's squared norm (MAS, Aljundi et al. 2018).

        Args:
            batches: what the model is run on: of a tuple or list the first entry, of a mapping all entries by name.
            forward: how to run the model on a batch, if not so.
            limit: look at no more batches than this.

        Raises:
            ValueError: there is no batch.
        """
        looked = 0
        forward = forward or partial(run, self.model)
        self._provisional.dismiss()
        self._clear_windows()
        self._hearing.always = self._output.predicts = True
        try:
            with evaluating(self.model), gradients_kept(self.model):
                for batch in islice(batches, limit):
                    self._look_at(batch, forward)
                    looked += 1
        finally:
            self._hearing.always = self._output.predicts = False
        if not looked and distributed.count() == 1:  # others may have seen some
            raise ValueError("Expected batches to have at least one to remember, got none.")
        share_windows(self.rules)
        self.consolidate_for(REMEMBERED)
        if looked and self._had_eyes and not self._reached.known and self.settings.protection == "subspace":
            self.notices.not_remembered()

    def spectrum(self) -> StabilitySpectrum:
        """Percent of the weights in training that the next update will meet as protected, neutral and volatile."""
        return spectrum(self.bands())

    def bands(self) -> Tensor:
        """Weights in training that are (protected, neutral, volatile): counts (3,)."""
        parts = [rule.bands().to(self._device) for rule in self.rules if rule.learns]
        return torch.stack(parts).sum(0) if parts else torch.zeros(3, device=self._device)

    def drift(self) -> Tensor:
        """Energy-weighted movement along held directions since they were consolidated, as (moved², size²): (2,)."""
        with torch.no_grad(), self._evaluated():
            parts = [d for rule in self.rules if (d := rule.drift()) is not None]
        return torch.stack(parts).sum(0) if parts else torch.zeros(2, device=self._device)

    def coverage(self) -> dict[str, str]:
        """The grain at which each covered parameter is protected."""
        return self._coverage.grains()

    def memory(self) -> dict[str, float]:
        """Bytes: ``model`` (covered), ``state`` (kept), ``step`` (more in a step); ``ratio`` = state / model."""
        model = sum(p.nbytes for rule in self.rules for p in rule.parameters.values())
        kept = [t for rule in self._coverage.all_rules() for t in rule.tensors()]
        kept += self._pull.tensors() + self._adjustment.tensors()
        state = sum(t.nbytes for t in kept)
        held = (rule for rule in self.rules if rule.holds and rule.restores)
        step = sum(p.nbytes for rule in held for p in rule.parameters.values()) + self._pull.working
        return {"model": model, "state": state, "step": step, "ratio": state / max(model, 1)}

    @property
    def suspects(self) -> bool:
        """Whether a change is suspected, so that more is held than was consolidated."""
        return self._provisional.before is not None

    @property
    def unreached(self) -> list[str]:
        """Layers that are protected by their inputs and did not run since training began; empty before any did."""
        known = self._reached.known
        return [eye.name for eye in self.eyes if eye in self.rules and eye not in known] if known else []

    @property
    def unbound(self) -> list[str]:
        """Parameters that are trained now, while what a loaded state holds of them waits."""
        return self._coverage.unbound()

    @property
    def pulled(self) -> int:
        """Bytes of the covered weights that are pulled back to what they were when they were consolidated."""
        return self._pull.bytes

    @property
    def absent(self) -> int:
        """How many classes were targets when something was consolidated and have not been since."""
        return self._adjustment.absent()

    @property
    def no_pull(self) -> str:
        """Why nothing is pulled that should be; empty if all is well."""
        return self._pull.failure or self._pull.fisher.failure

    @property
    def padding(self) -> Padding:
        """The masks that are in force in the model."""
        return self._hearing.padding

    @property
    def attached(self) -> bool:
        """Whether it is listening."""
        return self._attached

    def attach(self) -> None:
        """Listen to the layers' forward passes and the optimizer's steps."""
        self.detach()
        self._attached = True
        self._hook_layers()
        if self.optimizer is not None:
            self._stepping = OptimizerHooks(self.optimizer, self)
        elif self.settings.protection != "tensor":
            warnings.warn(
                "CommunicationLayer was given no optimizer: only the gradient is held back, which protects under plain "
                "SGD but not under Adam, momentum or weight decay. Pass the optimizer as second argument.",
                stacklevel=3,
            )

    def _hook_layers(self) -> None:
        self._hearing.remove()
        self.begun = self.step
        self._new, self._had_eyes, self._looks = set(self.eyes), bool(self.eyes), 0
        self._output.follow(self._reached.last)
        torch_compile.renew()
        self._follow_modules()
        for eye in self.eyes:
            self._hearing.listen(eye, self.heard, self.defer)

    def _follow_modules(self) -> None:
        """Know the modules that take masks or have running statistics, those that came last too."""
        self.padding.begin(self.model)
        if self.settings.running_statistics == "keep":
            self._statistics.begin(self.model)

    def detach(self) -> None:
        """Stop listening; what was learned stays."""
        if self.attached:
            self._pull.leave()
        self._hearing.remove()
        self._output.remove()
        self._statistics.end()
        if self._stepping is not None:
            self._stepping.remove()
        self._stepping, self._attached = None, False

    def state_dict(self) -> State:
        """Tensors, numbers and strings only, so that ``torch.load(weights_only=True)`` takes it.

        Where parameters are sharded every process has to call it.
        """
        return {
            "version": VERSION,
            "protection": self.settings.protection,
            "step": self.step,
            "events": list(self.events),
            "evidence": dict(self.evidence),
            "detection": self.detection.state_dict(),
            "samples": self._reached.state_dict(),
            **self._coverage.state_dict(),
            "trusted": self._provisional.state_dict(),
            "pending": self._reached.pending(),
            "statistics": sorted(self._statistics.kept),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where another layer on the same model stood; if it is refused nothing was changed.

        Raises:
            ValueError: a state of an unknown version, of another rule or of another model, one that lacks a part, and
                one with numbers that cannot be: not finite, or beyond the bounds of what they stand for.
        """
        state_validation.check_layer(state)
        if state["protection"] != self.settings.protection:
            raise ValueError(
                f"Expected the state of protection={self.settings.protection!r}, got that of {state['protection']!r}."
            )
        coverage = Coverage(self.model, self.optimizer, self.settings)
        coverage.grow()
        coverage.load_state_dict(state)
        reached, provisional, detection = StepInputs(coverage), ProvisionalHold(coverage), ChangeDetector()
        detection.load_state_dict(state["detection"])
        provisional.load_state_dict(state["trusted"])
        reached.load_state_dict(state["samples"])
        reached.resume(state["pending"])
        self._coverage, self._reached, self._provisional, self.detection = coverage, reached, provisional, detection
        self._output.fisher, self._output.adjustment = self._pull.fisher, self._adjustment
        self.step, self.events = state["step"], list(state["events"])
        self.evidence = dict(state["evidence"])
        self._statistics.suspended = provisional.before is not None
        if self.attached:
            self._hook_layers()
        self._statistics.kept = set(state["statistics"])

    def _evaluated(self) -> AbstractContextManager[None]:
        """Inside, the weights are those that are evaluated, under an optimizer that trains at others."""
        return averaged_weights.evaluated(self.optimizer, self.rules)

    # --- asking ---

    def _familiar(self, signals: dict[str, float]) -> bool:
        """Whether the batch fits the window; the first that does not is protected against before its own update.

        One that overflowed, or is all padding, does not, and is no sign of a change either.
        """
        if not all(map(math.isfinite, signals.values())):
            return False
        if self.settings.consolidate_on != "novelty":
            self._learn(signals)
            return True
        evidence, signal = self.detection.detect(signals)
        self.jumped = self.jumped or self.detection.loss.long
        if evidence < SUSPECT:
            self._provisional.dismiss()
            self._learn(signals)
            return True
        self._provisional.hold()
        if evidence >= CONFIRM:
            self._provisional.confirm()
            self._begin_window(signal)
        return False

    def _learn(self, signals: dict[str, float]) -> None:
        if due := self.detection.update(signals):
            self._reached.refresh(due)

    def _begin_window(self, evidence: str) -> None:
        """What emerged is kept: note the event and look at what comes with fresh eyes."""
        self.events.append(self.step)
        self.evidence[self.step] = with_evidence(self.evidence.get(self.step, ""), evidence)
        self.jumped = False
        self._statistics.keep()
        self._clear_windows()

    def _clear_windows(self) -> None:
        self.detection.clear()
        self._reached.clear()
        self._coverage.clear()

    def _look_at(self, batch: Any, forward: Callable[[Any], Any]) -> None:
        """Take in what the model does on this batch."""
        self.model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            each = energies(forward(batch), self.padding)
            self._pull.fisher.collect_importance(each)
            torch.autograd.backward(each.mean())
        self._hand_over_unreached()
        with exactly(self._device):
            self._reached.update()
            self._pull.fisher.update()
            self._adjustment.update()
            self.discard_step()

    # --- what its hooks tell ---

    def heard(self, eye: Eye, given: tuple[Any, ...]) -> None:
        """A layer is called in training."""
        self._forward_begins(eye)
        self._reached.collect(eye, given, self.step)

    def defer(self, eye: Eye, given: tuple[Any, ...]) -> Callable[[], None]:
        """A layer is called in evaluation mode; what is returned is called when its backward pass comes."""
        confirm = self._reached.defer(eye, given, self.step)

        def confirmed() -> None:
            self._forward_begins(eye)
            confirm()

        return confirmed

    @property
    def in_step(self) -> bool:
        """Whether forward passes belong to a training step; a trainer's callback says so, a plain loop need not."""
        return self._hearing.in_step

    @in_step.setter
    def in_step(self, running: bool) -> None:
        self._hearing.in_step = self._output.in_step = running

    def _forward_begins(self, eye: Eye) -> None:
        if self._stepping is not None:
            if self.eyes and eye is self.eyes[0]:
                self._look_for_steps()
            self._stepping.forward_begins()
            if self._stepping.inner:  # stepped in two parts, each by its own gradients: these have to be held back anew
                self._protected = False

    @property
    def stepping(self) -> bool:
        """Whether a step of the optimizer is running: what its closure computes are this step's gradients."""
        return self._stepping is not None and self._stepping.depth > 0

    @property
    def _moved_already(self) -> bool:
        """Whether the weights may stand elsewhere for this gradient alone: in the midst of a step, as with SAM."""
        return self._stepping is not None and bool(self._stepping.inner) and self._stepping.closure is not None

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

    def inner_step_begins(self) -> None:
        """The weights are back from where their gradient was taken: this is where the step begins."""
        if self._protected and self._moved_already:
            with exactly(self._device), self._evaluated():
                self._forget_weights()
                self._notice()
                self._snapshot()

    def stepped(self) -> None:
        """The optimizer has moved the weights."""
        self.restore()
        if self.last or averaged_weights.averages(self.optimizer):  # an average moves where no gradient asks for it
            self.settle()

    def step_ended(self) -> None:
        """The optimizer is done, or fell."""
        self._analyzed = self._protected = self._skipped = False
        self._forget_weights()

    def _forget_weights(self) -> None:
        for rule in self.rules:
            rule.before = None

    def begin_anew(self) -> None:
        """Take the weights as they are: whatever moved them since the last step was meant."""
        with exactly(self._device), self._evaluated():
            for rule in self.rules:
                rule.accept_weights()
            self._pull.come_back()
            if self.settings.consolidate_on == "novelty" and self.detection.begin_fit():
                self._provisional.hold()
                self._statistics.suspended = True
        self.discard_step()

    @property
    def excess(self) -> float:
        """Log of how much farther than usual the last batch was."""
        return self.detection.excess

    def discard_step(self) -> None:
        """Drop what was gathered since the last step."""
        self._reached.discard_step()
        self._output.discard_step()
        self._pull.fisher.discard_step()
        self._adjustment.discard_step()
        self.padding.discard_step()

    # --- covering ---

    def _has_gradients(self) -> bool:
        if self.optimizer is None:
            return any(p.grad is not None for rule in self.rules for p in rule.parameters.values())
        return any(p.grad is not None for group in self.optimizer.param_groups for p in group["params"])

    def _cover(self) -> None:
        """Take in the parameters that began to learn."""
        new = self._coverage.grow()
        if new is None:
            return
        self._looks = 0
        for rule in self._coverage.gone:
            self._hearing.forget(rule)
        self._say_other()
        self._reached.drop(self._coverage.gone)
        self._provisional.follow()
        replaced = {rule.name for rule in self._coverage.gone}
        for rule in self.rules:
            if rule.name in replaced:
                rule.accept_weights()  # the new weights are taken as they are
                self._pull.set_anchor(rule.parameters)
        if new:
            torch_compile.renew()
            self._follow_modules()
            self._new.update(new)
        for eye in new:
            self._hearing.listen(eye, self.heard, self.defer)
        if self.analyzer is not None:
            self.analyzer.watch(coverage.owned(self.model, self.optimizer))

    def _hand_over_unreached(self) -> None:
        """Layers whose weights are used without calling the layer are protected weight by weight."""
        # Of an eye that is new the gradient may be older than its hooks.
        new = set() if self._hearing.always else self._new
        unreached = (e for e in self.eyes if e in self.rules and e not in self._reached.known and not e.used)
        lost: list[Rule] = [e for e in unreached if e not in new]
        self._new = set()
        if lost := [r for r in lost if any(p.grad is not None for p in r.parameters.values())]:
            self._coverage.use_element_rule(lost)
            self._provisional.follow()

    def _say_other(self) -> None:
        if self._coverage.other:
            self.notices.own_forward(self._coverage.other)

    def _look_for_steps(self) -> None:
        """A forward pass, or a step of a loop of its own: have the weights moved without a step?"""
        if self._unseen and self._unstepped.due(self._some_weight):
            self.check_steps()

    def check_steps(self) -> None:
        """Warn, once, if the weights have moved and no step of the optimizer was seen."""
        if self._unseen and self._unstepped.moved(self._some_weight):
            self.notices.no_step(type(self.optimizer).__name__, self._unstepped.passes)

    @property
    def _unseen(self) -> bool:
        return self._stepping is not None and not self._stepping.steps and not self.skips and bool(self.rules)

    @property
    def _some_weight(self) -> Tensor:
        rule = next((rule for rule in self.rules if rule.learns), self.rules[0])
        return rule.weights()[0]

    def _look_at_itself(self) -> None:
        """In the second step: was any layer reached, and are most weights protected by directions?"""
        self._looks += 1
        if self._looks != 2 or self.settings.protection == "tensor":
            return
        if self._had_eyes and not self._reached.known:
            self.notices.unreached()
        elif self.settings.protection == "subspace":
            single = {n: p for rule in self.rules if rule.grain == "element" for n, p in rule.parameters.items()}
            sizes = {n: p.numel() for n, p in single.items() if coverage.learns(p)}
            # Of all that is trained: biases alone may have an optimizer of their own.
            total = sum(p.numel() for p in self.model.parameters() if coverage.learns(p))
            if sum(sizes.values()) > total / 2:
                self.notices.elements(sum(sizes.values()) / total, sizes)

    def _follow_output(self) -> None:
        """The loss is known by the gradient at the output of the layer that ran last in the first steps."""
        if self._looks < 2 and self._output.total is None and self._reached.last is not self._output.module:
            self._output.follow(self._reached.last)
            torch_compile.renew()

    def _measure(self, name: str, parts: list[Tensor | None]) -> None:
        if self.measure:
            known = [part for part in parts if part is not None]
            self.measured[name] = torch.stack(known).sum(0) if known else torch.zeros(2, device=self._device)

    def _say_no_pull(self) -> None:
        if self.no_pull:
            self.notices.no_pull(self.no_pull)

    @property
    def _pull(self) -> Pull:
        return self._coverage.pull

    @property
    def _adjustment(self) -> LogitAdjustment:
        return self._coverage.adjustment

    @property
    def _device(self) -> torch.device:
        return self._coverage.device
