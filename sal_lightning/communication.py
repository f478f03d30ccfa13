"""The communication layer: analyze stability, mask the gradient, restore held weights after the step."""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sal_lightning import averaged_weights, distributed, grad_scaler, state_validation
from sal_lightning.averaged_weights import evaluated
from sal_lightning.change_detection import Batch
from sal_lightning.change_monitor import ChangeMonitor
from sal_lightning.collector import Collector, has_gradients
from sal_lightning.consolidation_reasons import BY_HAND, EVERY_STEPS, REMEMBERED, with_evidence
from sal_lightning.coverage import Coverage, check
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

VERSION = 10  # of the state_dict


class CommunicationLayer:
    """Protects what a model has learned during further training; for plain PyTorch loops.

    If an optimizer is passed, the held part of its update is undone after each step, which protects under any optimizer
    (Adam, momentum, weight decay). Without one only the gradient is masked, which protects under plain SGD only. If a
    loop does not call ``analyze()`` or ``protect()``, the optimizer's step hooks call them.

    Under DDP and FSDP2 every process creates its own layer; the statistics are averaged over processes.

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
        model: the module to protect; its parameters that require a gradient and belong to ``optimizer`` are covered.
        optimizer: the optimizer of these parameters.
        protection: the grain: ``"subspace"``, ``"element"`` or ``"tensor"``, see ``sal_lightning.rules``.
        consolidate_on: when to consolidate: ``"novelty"`` (on a change of the data), ``"fit"`` (at every new fit of a
            ``SALCallback``; here the same as None), a number of steps, or ``None`` (only by ``consolidate()`` and
            ``remember()``).
        strength: > 0; just after a consolidation a direction of mean energy is held with stability
            ``1 / (1 + 1/strength)``. The strength grows with the steps since then, by its initial value every 500
            steps, up to eight times that value. It is four times as large for recurrent layers and constant for the
            element rule.
        recall: >= 0; rate at which drift along held directions is undone, in units of the weights' own movement.
        share: in (0, 1]; directions are kept, in order of energy, up to this share of the total energy.
        running_statistics: running statistics of batch normalization once something is held: ``"keep"`` (they keep
            their values of the last consolidation, and training normalises by them) or ``"update"`` (as without this
            layer).
        pull: >= 0; strength of the pull, which moves each weight towards its anchor after each step in proportion to
            the weight's importance, in units of the weights' own movement; 0 disables it.
        absent_prior: in (0, 1]; initial prior of an absent class (a target before a consolidation, not since) in the
            softmax whose gradient the layers before the last one receive; 1 disables the adjustment.
        scaler: the loss scaler of 16-bit training; steps that it skips are ignored. Call its ``unscale_(optimizer)``
            before ``analyze()``, except for a fused optimizer, which unscales by itself.
        user_warnings: the warnings given so far, if several layers share them.

    Raises:
        ValueError: an argument is outside its range, the model has no trainable parameter or was compiled with
            ``fullgraph=True``, or the optimizer belongs to another model.
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
        scaler = getattr(optimizer, "scaler", None) if scaler is None else scaler  # accelerate's wrapper has a scaler
        wrapper, optimizer = optimizer, unwrapped(optimizer)
        check(model, optimizer)
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.step = self.skips = 0  # optimizer steps: analyzed, and skipped by the scaler
        self.begun = 0  # the step at which the hooks were attached
        self.events: list[int] = []  # steps at which something was consolidated
        self.evidence: dict[int, str] = {}  # the reason for each consolidation
        self.measure = False  # whether to measure the held part of this step
        self.measured: dict[str, Tensor] = {}  # (held², whole²) of the gradient and of the update
        self.last = False  # whether this step is the last one before ``settle()`` is due
        self._coverage = coverage = Coverage(model, optimizer, self.settings)
        self.monitor = ChangeMonitor(coverage, consolidate_on)
        self.optimizer_step = OptimizerStep()
        self.collector = Collector(
            coverage, scaler, running_statistics == "keep", on_forward=self.optimizer_step.forward_begins
        )
        self.checks = SelfChecks(user_warnings or UserWarnings(), protection)
        self.attached = False
        if averaged_weights.hides(wrapper, optimizer):
            self.checks.warnings.hidden_average(type(wrapper).__name__)
        coverage.grow()
        self.checks.own_forward(coverage)
        self.checks.adapters(coverage)
        self.attach()

    @property
    def rules(self) -> list[Rule]:
        """One rule per layer of a supported type, and one for all other parameters."""
        return self._coverage.rules

    # --- one training step, in order ---

    def analyze(self, *, scaled: bool = False) -> None:
        """Update the statistics of this step and detect a change of the data; call it after ``backward()``.

        Args:
            scaled: whether the scaler's ``unscale_(optimizer)`` is still to come.
        """
        step, collector, monitor = self.optimizer_step, self.collector, self.monitor
        if (step.analyzed and step.running) or not has_gradients(self._coverage):
            return
        if not step.running:
            self.checks.forward_pass(collector, step.hooks, self.skips)
        with full_precision(self._coverage.device):
            if collector.cover_new():
                monitor.provisional.rebind()
            unit = grad_scaler.unit(self.scaler, self.optimizer, self.rules, scaled)
            if unit is None:
                self.skip()
                return
            step.analyzed, step.skipped = True, False
            signals = collector.signals(unit)
            self.step = collector.step
            if collector.replace_unreached():
                monitor.provisional.rebind()
            collector.steps += 1
            self.checks.step(collector)
            with evaluated(self.optimizer, self.rules):
                kind = monitor.compare(signals, collector.inputs)
                if monitor.change:
                    self._log(monitor.change)
            self._coverage.adjustment.update()
            collector.statistics.end_step(kind is Batch.FAMILIAR, monitor.suspects)
            due = [] if kind is Batch.UNUSABLE else collector.update(unit, kind)
            self.checks.pull(collector)
            share_windows(due)
            for rule in due:
                rule.adapt_hold()
            collector.discard_step()
            every = self.settings.consolidate_on
            if isinstance(every, int) and self.step % every == 0:
                self.consolidate(EVERY_STEPS)

    def skip(self) -> None:
        """Skip this step, whose gradients will not be used: no statistic is updated and no gradient masked."""
        self.optimizer_step.skipped = True
        self.skips += 1
        self.collector.discard_step()

    def protect(self) -> None:
        """Mask the gradient: remove the part along held directions and weights, ``G ← G − held(G)``."""
        step = self.optimizer_step
        if step.skipped:
            return
        step.protected = True
        with full_precision(self._coverage.device):
            if not step.running:
                self._coverage.forget_weights()  # the snapshot of a skipped step
            with evaluated(self.optimizer, self.rules):
                if not step.at_other_weights:
                    self._coverage.accept_changed_weights()
                self._coverage.snapshot()
            masked = [rule.mask(self.measure) for rule in self.rules]
            if self.measure:  # the optimizer may skip this step, whose effect is zero then
                self.measured = {"suppressed": self._coverage.total(masked), "effect": self._coverage.total([])}

    def restore(self) -> None:
        """Undo the held part of the optimizer's step; called by the optimizer hook."""
        with full_precision(self._coverage.device), evaluated(self.optimizer, self.rules):
            effect = self._coverage.restore(self.measure)
            if effect is not None:
                self.measured["effect"] = effect

    def settle(self, together: bool = True) -> None:
        """Complete ``restore()``, which undoes movement along held directions only every few steps.

        Args:
            together: whether all processes call it; if False, nothing is exchanged between processes.
        """
        with full_precision(self._coverage.device), evaluated(self.optimizer, self.rules):
            self._coverage.settle()
            if together:
                update_pace(self.rules)

    # --- what is held ---

    def consolidate(self, reason: str = BY_HAND) -> None:
        """Consolidate: add what the network does now to what is held.

        Args:
            reason: one of ``consolidation_reasons.ASKED``, for the log.
        """
        with full_precision(self._coverage.device), evaluated(self.optimizer, self.rules):
            self.monitor.provisional.roll_back()
            self._coverage.consolidate()
            self._coverage.clear()
            self._log(reason)

    def remember(
        self, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None, limit: int | None = None
    ) -> None:
        """Consolidate what a trained model does on these data, before further training. Labels are not needed.

        The importance of single weights is the Fisher information if the model is seen to predict classes or tokens:
        its output has ``logits``, as models of transformers do, or is of shape (samples, positions, n) and the model
        has an embedding of n tokens. Of other models, and of regressions, it is the gradient of the output's squared
        norm (MAS, Aljundi et al. 2018).

        Args:
            batches: inputs of the model: of a tuple or list the first entry is used, a mapping is passed as keyword
                arguments.
            forward: function that runs the model on a batch, if the default does not apply.
            limit: the largest number of batches to use.

        Raises:
            ValueError: ``batches`` is empty.
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
        if not used and distributed.count() == 1:  # other processes may have batches
            raise ValueError("Expected batches to have at least one to remember, got none.")
        share_windows(self.rules)
        self.consolidate(REMEMBERED)
        if used:
            self.checks.remembered(self.collector)

    def spectrum(self) -> StabilitySpectrum:
        """Percent of the trainable weights that are protected, neutral and volatile at the next update."""
        return spectrum(self._coverage.bands())

    def drift(self) -> Tensor:
        """Energy-weighted movement along held directions since they were consolidated, as (moved², size²): (2,)."""
        with torch.no_grad(), evaluated(self.optimizer, self.rules):
            return self._coverage.drift()

    def coverage(self) -> dict[str, str]:
        """The grain at which each covered parameter is protected."""
        return self._coverage.grains()

    def memory(self) -> dict[str, float]:
        """Bytes: ``model`` (covered), ``state`` (kept), ``step`` (more in a step); ``ratio`` = state / model."""
        return self._coverage.memory()

    # --- hooks ---

    def attach(self) -> None:
        """Hook the layers' forward passes and the optimizer's steps."""
        self.detach()
        self.attached, self.begun = True, self.step
        self.collector.attach()
        self.optimizer_step.attach(self)
        if self.optimizer is None and self.settings.protection != "tensor":
            warnings.warn(
                "CommunicationLayer was given no optimizer: only the gradient is masked, which protects under plain "
                "SGD but not under Adam, momentum or weight decay. Pass the optimizer as second argument.",
                stacklevel=3,
            )

    def detach(self) -> None:
        """Remove all hooks; what is held stays."""
        if self.attached:
            self._coverage.pull.leave()
        self.collector.detach()
        self.optimizer_step.detach()
        self.attached = False

    def begin_fit(self) -> None:
        """Start a new fit: accept weights that were changed outside of training since the last step."""
        with full_precision(self._coverage.device), evaluated(self.optimizer, self.rules):
            for rule in self.rules:
                rule.accept_weights()
            self._coverage.pull.come_back()
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
            **self._coverage.state_dict(),
            "trusted": self.monitor.provisional.state_dict(),
            "pending": self.collector.inputs.pending(),
            "output": self.collector.output.total,
            "statistics": sorted(self.collector.statistics.kept),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a saved state of the same model; if an error is raised, nothing has changed.

        Raises:
            ValueError: the state has an unknown version, belongs to another protection or model, lacks a part, or has
                values that are not finite or out of bounds.
        """
        state_validation.check_layer(state)
        if state["protection"] != self.settings.protection:
            raise ValueError(
                f"Expected the state of protection={self.settings.protection!r}, got that of {state['protection']!r}."
            )
        coverage = Coverage(self.model, self.optimizer, self.settings)
        coverage.grow()
        coverage.load_state_dict(state)
        inputs, monitor = StepInputs(coverage), ChangeMonitor(coverage, self.settings.consolidate_on)
        monitor.detector.load_state_dict(state["detection"])
        monitor.provisional.load_state_dict(state["trusted"])
        monitor.jumped = self.monitor.jumped
        inputs.load_state_dict(state["samples"])
        inputs.resume(state["pending"])
        self._coverage, self.monitor = coverage, monitor
        self.collector.replace(coverage, inputs)
        self.step = self.collector.step = state["step"]
        self.events = list(state["events"])
        self.evidence = dict(state["evidence"])
        self.collector.statistics.suspended = monitor.suspects
        if self.attached:
            self.begun = self.step
            self.collector.attach()
        self.collector.statistics.kept = set(state["statistics"])
        self.collector.output.resume(None if state["output"] is None else state["output"].to(coverage.device))

    # --- parts ---

    def _log(self, reason: str) -> None:
        """Log a consolidation, and start change detection anew."""
        self.events.append(self.step)
        self.evidence[self.step] = with_evidence(self.evidence.get(self.step, ""), reason)
        self.collector.statistics.keep()
        self.monitor.clear()
        self.collector.inputs.clear()


class OptimizerStep:
    """The running optimizer step: a listener of optimizer hooks that calls the communication layer in order."""

    def __init__(self) -> None:
        self._layer: CommunicationLayer | None = None  # set only while attached, to avoid a reference cycle
        self.hooks: OptimizerHooks | None = None
        self.analyzed = self.protected = self.skipped = False  # in the running step

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
        assert self._layer is not None, "the layer is not attached"
        return self._layer

    @property
    def running(self) -> bool:
        """Whether the optimizer's ``step()`` is running: gradients of its closure belong to this step."""
        return self.hooks is not None and self.hooks.depth > 0

    @property
    def at_other_weights(self) -> bool:
        """Whether the gradient is computed at perturbed weights within a step, as in SAM."""
        return self.hooks is not None and bool(self.hooks.inner) and self.hooks.closure is not None

    def forward_begins(self, rule: InputRule) -> None:
        """A forward pass of this rule's layer that counts begins."""
        if self.hooks is not None:
            first = next(iter(self.layer.collector.coverage.input_rules), None)
            if rule is first:
                self.layer.checks.forward_pass(self.layer.collector, self.hooks, self.layer.skips)
            self.hooks.forward_begins()
            if self.hooks.inner:  # e.g. SAM's two partial steps: the gradients of each have to be masked
                self.protected = False

    def check_observed(self) -> None:
        """Warn once if the weights have changed and no step of the optimizer was observed."""
        if self._layer is not None:
            self._layer.checks.steps_observed(self._layer.collector, self.hooks, self._layer.skips)

    def gradients_begin(self) -> None:
        """The optimizer calls its closure, whose gradients have to be masked."""
        self.protected = False

    def gradients_ready(self) -> None:
        """The optimizer is about to use the gradients: analyze and mask them unless the loop has done so."""
        with torch.no_grad():
            if not self.analyzed:
                self.layer.analyze()
            if not self.protected:
                self.layer.protect()

    def inner_step_begins(self) -> None:
        """An inner optimizer is about to step: snapshot the weights, which may have been perturbed until now."""
        layer = self.layer
        if self.protected and self.at_other_weights:
            with full_precision(layer.collector.coverage.device), evaluated(layer.optimizer, layer.rules):
                layer.collector.coverage.forget_weights()
                layer.collector.coverage.accept_changed_weights()
                layer.collector.coverage.snapshot()

    def stepped(self) -> None:
        """The optimizer has updated the weights: restore them where they are held."""
        self.layer.restore()
        # An average moves even without a gradient.
        if self.layer.last or averaged_weights.averages(self.layer.optimizer):
            self.layer.settle()

    def step_ended(self) -> None:
        """The step has ended, possibly with an exception."""
        self.analyzed = self.protected = self.skipped = False
        self.layer.collector.coverage.forget_weights()
