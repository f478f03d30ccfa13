"""The communication layer: analyze what is stable, mask the gradient, restore what was held after the step."""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sal_lightning import averaged_weights, coverage, distributed, grad_scaler, state_validation
from sal_lightning.averaged_weights import evaluated
from sal_lightning.change_monitor import ChangeMonitor
from sal_lightning.collector import Collector, has_gradients
from sal_lightning.consolidation_reasons import BY_HAND, EVERY_STEPS, REMEMBERED, with_evidence
from sal_lightning.coverage import Coverage
from sal_lightning.optimizer_hooks import OptimizerHooks, unwrapped
from sal_lightning.precision import full_precision
from sal_lightning.remembering import evaluating, gradients_kept, run
from sal_lightning.rules.base import Rule, State, share_windows
from sal_lightning.rules.input_rule import InputRule
from sal_lightning.rules.subspace import update_pace
from sal_lightning.self_checks import SelfChecks
from sal_lightning.settings import Protection, Settings, Statistics, Trigger
from sal_lightning.stability import StabilitySpectrum, spectrum
from sal_lightning.step_inputs import StepInputs
from sal_lightning.user_warnings import UserWarnings

VERSION = 6  # of the state_dict


class CommunicationLayer:
    """Protects what a model has learned while it goes on learning; plain PyTorch.

    With an optimizer, protection holds under any of them (Adam, momentum, weight decay): movement that is held back is
    undone after its step. Without one only the gradient is masked, which protects under plain SGD alone. If a loop does
    not call ``analyze()`` or ``protect()``, they are called when the optimizer steps.

    Under DDP and FSDP2 every process makes its own layer; their statistics are averaged.

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
        user_warnings: the warnings that were given already, where several layers share them.

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
        user_warnings: UserWarnings | None = None,
    ) -> None:
        self.settings = Settings(
            protection, consolidate_on, strength, recall, share, running_statistics, pull, absent_prior
        )
        scaler = getattr(optimizer, "scaler", None) if scaler is None else scaler  # accelerate's wrapper has it
        wrapper, optimizer = optimizer, unwrapped(optimizer)
        coverage.check(model, optimizer)
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.step = self.skips = 0  # optimizer steps that were analyzed, and that the scaler skipped
        self.begun = 0  # the step at which it was attached
        self.events: list[int] = []  # steps at which something was consolidated
        self.evidence: dict[int, str] = {}  # the reason for each of these consolidations, in a few words
        self.measure = False  # whether to measure what is held back of this step
        self.measured: dict[str, Tensor] = {}  # (held², whole²) of the gradient and of the update
        self.last = False  # whether this step is the last one before ``settle()`` is due
        self.covered = Coverage(model, optimizer, self.settings)
        self.monitor = ChangeMonitor(self.covered, consolidate_on)
        self.optimizer_step = OptimizerStep()
        self.collector = Collector(
            self.covered, scaler, running_statistics == "keep", on_forward=self.optimizer_step.forward_begins
        )
        self.checks = SelfChecks(user_warnings or UserWarnings(), protection)
        self.attached = False
        if averaged_weights.hides(wrapper, optimizer):
            self.checks.warnings.hidden_average(type(wrapper).__name__)
        self.covered.grow()
        self.checks.own_forward(self.covered)
        self.attach()

    @property
    def rules(self) -> list[Rule]:
        """One rule per layer of a known kind, and one for all other parameters."""
        return self.covered.rules

    # --- one training step, in order ---

    def analyze(self, *, scaled: bool = False) -> None:
        """Update the statistics of this step and detect a change of the data; call it after ``backward()``.

        Args:
            scaled: whether the scaler's ``unscale_(optimizer)`` is still to come.
        """
        step, collector, monitor = self.optimizer_step, self.collector, self.monitor
        if (step.analyzed and step.running) or not has_gradients(self.covered):
            return
        if not step.running:
            self.checks.forward_pass(collector, step.hooks, self.skips)
        with full_precision(self.covered.device):
            if collector.cover_new():
                monitor.provisional.rebind()
            unit = grad_scaler.unit(self.scaler, self.optimizer, self.rules, scaled)
            if unit is None:
                self.skip()
                return
            step.analyzed, step.skipped = True, False
            self.step += 1
            signals = collector.signals(self.step, unit)
            if collector.replace_unreached():
                monitor.provisional.rebind()
            collector.steps += 1
            self.checks.step(collector)
            with evaluated(self.optimizer, self.rules):
                familiar = monitor.fits(signals, collector.inputs)
                if monitor.change:
                    self._start_window(monitor.change)
            self.covered.adjustment.update()
            collector.statistics.end_step(familiar, monitor.suspects)
            due = [rule for rule in self.rules if familiar and rule.due and rule in collector.inputs.known]
            if familiar:
                collector.update(unit)
            self.checks.pull(collector)
            share_windows(due)
            for rule in due:
                rule.adapt_hold()
            collector.discard_step()
            every = self.settings.consolidate_on
            if isinstance(every, int) and self.step % every == 0:
                self.consolidate(EVERY_STEPS)

    def skip(self) -> None:
        """Leave out this step, whose gradients will not be used: nothing is updated and nothing is held back."""
        self.optimizer_step.skipped = True
        self.skips += 1
        self.collector.discard_step()

    def protect(self) -> None:
        """Mask the gradient where it would overwrite what is held: ``G ← G − held(G)``."""
        step = self.optimizer_step
        if step.skipped:
            return
        step.protected = True
        with full_precision(self.covered.device):
            if not step.running:
                self.covered.forget_weights()  # those of a step that was skipped
            with evaluated(self.optimizer, self.rules):
                if not step.at_other_weights:
                    self.covered.accept_changed_weights()
                self.covered.snapshot()
            masked = [rule.mask(self.measure) for rule in self.rules]
            if self.measure:  # the optimizer may skip this step, which has no effect then
                self.measured = {"suppressed": self.covered.total(masked), "effect": self.covered.total([])}

    def restore(self) -> None:
        """Undo the part of the step that is held back; the optimizer hook calls it."""
        with full_precision(self.covered.device), evaluated(self.optimizer, self.rules):
            effect = self.covered.restore(self.measure)
            if self.measure:
                self.measured["effect"] = effect

    def settle(self, together: bool = True) -> None:
        """Undo now what ``restore()`` leaves for later: movement along held directions is undone every few steps.

        Args:
            together: whether all processes call it; otherwise the others may be gone, and nothing is exchanged.
        """
        with full_precision(self.covered.device), evaluated(self.optimizer, self.rules):
            self.covered.settle()
            if together:
                update_pace(self.rules)

    # --- what is held ---

    def consolidate(self, reason: str = BY_HAND) -> None:
        """Hold what the network does now.

        Args:
            reason: one of ``consolidation_reasons.ASKED``, for the log.
        """
        with full_precision(self.covered.device), evaluated(self.optimizer, self.rules):
            self.monitor.provisional.roll_back()
            self.covered.consolidate()
            self._start_window(reason)

    def remember(
        self, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None, limit: int | None = None
    ) -> None:
        """Hold what a trained model does on these data, before it is trained further. Labels are not needed.

        The importance of single weights is the gradient of the output's squared norm (MAS, Aljundi et al. 2018).

        Args:
            batches: what the model is run on: of a tuple or list the first entry, of a mapping all entries by name.
            forward: how to run the model on a batch, if not so.
            limit: the largest number of batches to use.

        Raises:
            ValueError: there is no batch.
        """
        used = 0
        forward = forward or partial(run, self.model)
        self.monitor.provisional.roll_back()
        self.monitor.clear()
        self.collector.clear()
        with self.collector.remembering(), evaluating(self.model), gradients_kept(self.model):
            for batch in islice(batches, limit):
                self.collector.collect_batch(batch, forward)
                used += 1
        if not used and distributed.count() == 1:  # other processes may have had some
            raise ValueError("Expected batches to have at least one to remember, got none.")
        share_windows(self.rules)
        self.consolidate(REMEMBERED)
        if used:
            self.checks.remembered(self.collector)

    def spectrum(self) -> StabilitySpectrum:
        """Percent of the weights in training that the next update will meet as protected, neutral and volatile."""
        return spectrum(self.covered.bands())

    def drift(self) -> Tensor:
        """Energy-weighted movement along held directions since they were consolidated, as (moved², size²): (2,)."""
        with torch.no_grad(), evaluated(self.optimizer, self.rules):
            return self.covered.drift()

    def coverage(self) -> dict[str, str]:
        """The grain at which each covered parameter is protected."""
        return self.covered.grains()

    def memory(self) -> dict[str, float]:
        """Bytes: ``model`` (covered), ``state`` (kept), ``step`` (more in a step); ``ratio`` = state / model."""
        return self.covered.memory()

    # --- hooks ---

    def attach(self) -> None:
        """Hook the layers' forward passes and the optimizer's steps."""
        self.detach()
        self.attached, self.begun = True, self.step
        self.collector.attach()
        self.optimizer_step.attach(self)
        if self.optimizer is None and self.settings.protection != "tensor":
            warnings.warn(
                "CommunicationLayer was given no optimizer: only the gradient is held back, which protects under plain "
                "SGD but not under Adam, momentum or weight decay. Pass the optimizer as second argument.",
                stacklevel=3,
            )

    def detach(self) -> None:
        """Remove all hooks; what is held stays."""
        if self.attached:
            self.covered.pull.leave()
        self.collector.detach()
        self.optimizer_step.detach()
        self.attached = False

    def begin_fit(self) -> None:
        """Start a new fit: accept the weights as they are, whatever has changed them since the last step."""
        with full_precision(self.covered.device), evaluated(self.optimizer, self.rules):
            for rule in self.rules:
                rule.accept_weights()
            self.covered.pull.come_back()
            self.monitor.begin_fit()
            self.collector.statistics.suspended = self.monitor.suspects
        self.collector.discard_step()

    # --- state ---

    def state_dict(self) -> State:
        """The state as tensors, numbers and strings only, so that ``torch.load(weights_only=True)`` loads it.

        Where parameters are sharded every process has to call it.
        """
        return {
            "version": VERSION,
            "protection": self.settings.protection,
            "step": self.step,
            "events": list(self.events),
            "evidence": dict(self.evidence),
            "detection": self.monitor.detector.state_dict(),
            "samples": self.collector.inputs.state_dict(),
            **self.covered.state_dict(),
            "trusted": self.monitor.provisional.state_dict(),
            "pending": self.collector.inputs.pending(),
            "statistics": sorted(self.collector.statistics.kept),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a saved state of the same model; if it is refused nothing was changed.

        Raises:
            ValueError: a state of an unknown version, of another rule or of another model, one that lacks a part, and
                one with numbers that cannot be: not finite, or beyond the bounds of what they stand for.
        """
        state_validation.check_layer(state)
        if state["protection"] != self.settings.protection:
            raise ValueError(
                f"Expected the state of protection={self.settings.protection!r}, got that of {state['protection']!r}."
            )
        covered = Coverage(self.model, self.optimizer, self.settings)
        covered.grow()
        covered.load_state_dict(state)
        inputs, monitor = StepInputs(covered), ChangeMonitor(covered, self.settings.consolidate_on)
        monitor.detector.load_state_dict(state["detection"])
        monitor.provisional.load_state_dict(state["trusted"])
        monitor.jumped = self.monitor.jumped
        inputs.load_state_dict(state["samples"])
        inputs.resume(state["pending"])
        self.covered, self.monitor = covered, monitor
        self.collector.replace(covered, inputs)
        self.step, self.events = state["step"], list(state["events"])
        self.evidence = dict(state["evidence"])
        self.collector.step = self.step
        self.collector.statistics.suspended = monitor.suspects
        if self.attached:
            self.begun = self.step
            self.collector.attach()
        self.collector.statistics.kept = set(state["statistics"])

    # --- parts ---

    def _start_window(self, reason: str) -> None:
        """Log a consolidation, and start new windows."""
        self.events.append(self.step)
        self.evidence[self.step] = with_evidence(self.evidence.get(self.step, ""), reason)
        self.monitor.jumped = False
        self.collector.statistics.keep()
        self.monitor.clear()
        self.collector.clear()


class OptimizerStep:
    """The optimizer step under way: calls the communication layer at its points, in order; a listener of hooks."""

    def __init__(self) -> None:
        self._layer: CommunicationLayer | None = None  # only while it is attached: a cycle would not be freed at once
        self.hooks: OptimizerHooks | None = None
        self.analyzed = self.protected = self.skipped = False  # in the step that is under way

    def attach(self, layer: CommunicationLayer) -> None:
        """Hook the steps of the layer's optimizer."""
        self._layer = layer
        self.hooks = None if layer.optimizer is None else OptimizerHooks(layer.optimizer, self)

    def detach(self) -> None:
        """Remove the hooks."""
        if self.hooks is not None:
            self.hooks.remove()
        self.hooks = self._layer = None

    @property
    def layer(self) -> CommunicationLayer:
        """The communication layer that is called."""
        assert self._layer is not None, "a step of a layer that is not attached"
        return self._layer

    @property
    def running(self) -> bool:
        """Whether the optimizer's ``step()`` is running: gradients of its closure belong to this step."""
        return self.hooks is not None and self.hooks.depth > 0

    @property
    def at_other_weights(self) -> bool:
        """Whether the weights were moved for this gradient alone, in the midst of a step, as SAM does."""
        return self.hooks is not None and bool(self.hooks.inner) and self.hooks.closure is not None

    def forward_begins(self, rule: InputRule) -> None:
        """A forward pass of this rule's layer counts."""
        if self.hooks is not None:
            first = next(iter(self.layer.covered.input_rules), None)
            if rule is first:
                self.layer.checks.forward_pass(self.layer.collector, self.hooks, self.layer.skips)
            self.hooks.forward_begins()
            if self.hooks.inner:  # two partial steps, each with gradients of its own, which have to be masked anew
                self.protected = False

    def check_observed(self) -> None:
        """Warn, once, if the weights have moved and no step of the optimizer was observed."""
        if self._layer is not None:
            self._layer.checks.steps_observed(self._layer.collector, self.hooks, self._layer.skips)

    def gradients_begin(self) -> None:
        """The optimizer calls its closure, whose gradients have to be masked anew."""
        self.protected = False

    def gradients_ready(self) -> None:
        """The optimizer is about to use the gradients: analyze and mask them unless the loop has done so."""
        with torch.no_grad():
            if not self.analyzed:
                self.layer.analyze()
            if not self.protected:
                self.layer.protect()

    def inner_step_begins(self) -> None:
        """The weights are back from where the gradient was computed: the step begins here."""
        layer = self.layer
        if self.protected and self.at_other_weights:
            with full_precision(layer.covered.device), evaluated(layer.optimizer, layer.rules):
                layer.covered.forget_weights()
                layer.covered.accept_changed_weights()
                layer.covered.snapshot()

    def stepped(self) -> None:
        """The optimizer has moved the weights."""
        self.layer.restore()
        # An average moves also where there is no gradient.
        if self.layer.last or averaged_weights.averages(self.layer.optimizer):
            self.layer.settle()

    def step_ended(self) -> None:
        """The step is over, perhaps by an exception."""
        self.analyzed = self.protected = self.skipped = False
        self.layer.covered.forget_weights()
