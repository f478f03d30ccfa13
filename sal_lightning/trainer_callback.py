"""Base of the callbacks of all trainers: settings, a communication layer per optimizer, state and logged values."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from math import exp
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sal_lightning import consolidation_reasons
from sal_lightning.communication import VERSION, CommunicationLayer
from sal_lightning.consolidation_reasons import NEW_FIT
from sal_lightning.coverage import check
from sal_lightning.emergence.activations import ActivationObserver
from sal_lightning.layers import AUTO, find_layer
from sal_lightning.settings import Protection, Settings, Statistics, Trigger
from sal_lightning.stability import StabilityAnalyzer, StabilitySpectrum, spectrum
from sal_lightning.state_validation import check_callback
from sal_lightning.summary import Account, short, text
from sal_lightning.user_warnings import UserWarnings

BANDS: tuple[Literal["protected", "neutral", "volatile"], ...] = ("protected", "neutral", "volatile")
FIELD = ("coherence", "novelty", "resonance", "emergence")  # logged as means, one value per observation
SHARES = ("suppressed", "effect", "drift")  # logged as the square root of a ratio of two sums


class CallbackValues:
    """Values over all communication layers of a callback: spectrum, coverage, memory, summary and logged values."""

    layers: list[CommunicationLayer]  # one per optimizer
    watch: ActivationObserver | None
    settings: Settings
    user_warnings: UserWarnings
    shares: dict[str, Tensor]  # (held², whole²) of the gradient and the update, when last measured
    _waiting: dict[str, Any]  # a loaded state, until training starts

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.choices().items())
        return f"{type(self).__name__}({given}): {short(self._account())}"

    def summary(self) -> str:
        """A report of what is held, in at most 25 lines of plain text of at most 100 columns.

        It contains a verdict in one sentence, the rules and what they hold, the consolidations with their evidence, the
        share of the last measured step that was held back, the first sentences of the warnings given, and what is not
        observed. It is computed only when called.
        """
        return text(self._account(), self.layers, self.settings, self.user_warnings.given, self.shares)

    def choices(self) -> dict[str, Any]:
        """The arguments that differ from their defaults, by name."""
        settings = {f.name: getattr(self.settings, f.name) for f in fields(Settings)}
        choices = {name: value for name, value in settings.items() if value != getattr(Settings, name)}
        field = None if self.watch is None else self.watch.name
        return choices | ({} if field == AUTO else {"field": field})

    def _account(self) -> Account:
        """The data of the verdict."""
        live = [(layer.step, layer.events, layer.evidence) for layer in self.layers]
        saved = [(one["step"], one["events"], one.get("evidence", {})) for one in self._waiting.get("layers", [])]
        known = saved or live
        parts = [consolidation_reasons.count(events, why) for _, events, why in known]
        counts = consolidation_reasons.Counts(*(sum(column) for column in zip(*parts, strict=True)))
        suspects = any(layer.monitor.suspects for layer in self.layers)
        return Account(
            # Trainers call repr() on callbacks: avoid a device synchronization if nothing can be held.
            self.spectrum() if any(counts) or suspects else StabilitySpectrum(0.0, 0.0, 100.0),
            counts,
            max((step for step, _, _ in known), default=0),
            self.settings.consolidate_on,
            suspects,
            waits=bool(saved),
        )

    @property
    def events(self) -> list[int]:
        """The steps at which something was consolidated, counted over all fits of this callback."""
        return sorted(step for layer in self.layers for step in layer.events)

    def spectrum(self, kind: Literal["held", "observed"] = "held") -> StabilitySpectrum:
        """Percent of the trainable weights that are protected, neutral and volatile.

        A stability above 0.7 is protected, below 0.3 volatile; before any training all weights are volatile.

        Args:
            kind: ``"held"``: stability at the next update; ``"observed"``: stability as measured by the movement of
                weights, held or not.

        Raises:
            ValueError: ``kind`` is neither.
        """
        if kind not in ("held", "observed"):
            raise ValueError(f"Expected kind to be 'held' or 'observed', got {kind!r}.")
        return spectrum(self.bands() if kind == "held" else self.observed())

    def coverage(self) -> dict[str, str]:
        """The grain ("subspace", "element", "tensor") of each trainable parameter; empty before the first training."""
        return {name: grain for layer in self.layers for name, grain in layer.coverage().items()}

    def memory(self) -> dict[str, float]:
        """Bytes, as ``CommunicationLayer.memory``, summed over the optimizers; the state includes the emergence field.

        Returns:
            ``model``, ``state`` and ``step`` in bytes, and ``ratio`` = state / model.
        """
        parts = [layer.memory() for layer in self.layers]
        total = {key: sum(part[key] for part in parts) for key in ("model", "state", "step")}
        total["state"] += 0 if self.watch is None else self.watch.field.nbytes
        return total | {"ratio": total["state"] / total["model"] if total["model"] else 0.0}

    def bands(self) -> Tensor:
        """Counts of weights that are (protected, neutral, volatile) by held stability: (3,)."""
        counts = [layer.collector.coverage.bands() for layer in self.layers]
        return torch.stack(counts).sum(0) if counts else torch.zeros(3)

    def observed(self) -> Tensor:
        """Counts of weights that are (protected, neutral, volatile) by observed stability: (3,)."""
        parts = [layer.collector.analyzer.bands() for layer in self.layers if layer.collector.analyzer is not None]
        return torch.stack(parts).sum(0) if parts else torch.zeros(3)

    def values(self) -> dict[str, Tensor]:
        """The values logged beside the bands, by name: two sums for each of SHARES, a scalar for the others."""
        sums = {key: [layer.measured[key] for layer in self.layers] for key in ("suppressed", "effect")}
        sums["drift"] = [layer.drift() for layer in self.layers]
        excess = max(layer.monitor.detector.excess for layer in self.layers)
        return {key: torch.stack(parts).sum(0) for key, parts in sums.items()} | {
            "surprise": torch.tensor(1 - exp(-max(excess, 0.0))),
            "consolidations": torch.tensor(float(len(self.events))),
            "step": torch.tensor(float(max(layer.step for layer in self.layers))),
        }

    def seen(self) -> Tensor | None:
        """The emergence field's values of this step, (4,) in the order of FIELD; None if nothing was measured."""
        return None if self.watch is None else self.watch.seen


class BaseCallback(CallbackValues):
    """Creates a communication layer per optimizer at the start of a fit, and keeps their state between fits."""

    def __init__(
        self,
        protection: Protection = Settings.protection,
        consolidate_on: Trigger = Settings.consolidate_on,
        strength: float = Settings.strength,
        recall: float = Settings.recall,
        share: float = Settings.share,
        field: str | None = AUTO,
        running_statistics: Statistics = Settings.running_statistics,
        pull: float = Settings.pull,
        absent_prior: float = Settings.absent_prior,
        histograms: bool = False,
    ) -> None:
        super().__init__()
        self.settings = Settings(
            protection, consolidate_on, strength, recall, share, running_statistics, pull, absent_prior
        )
        self.layers = []
        self.histograms = histograms
        self.watch = None if field is None else ActivationObserver(field)
        self.user_warnings = UserWarnings()
        self.shares: dict[str, Tensor] = {}  # (held², whole²) of the gradient and the update, when last measured
        self._field_counts = 0, 0  # step and skip counts at the last field update
        self._waiting: dict[str, Any] = {}  # a loaded state, until training starts
        self._resumed = False  # whether `_waiting` was loaded from a checkpoint

    # --- for users ---

    def consolidate(self) -> None:
        """Consolidate: add what the network does now to what is held."""
        for layer in self.layers:
            layer.consolidate()

    def remember(self, model: nn.Module, batches: Iterable[Any], limit: int | None = None) -> None:
        """Consolidate what a trained model does on this data; call it before further training.

        Args:
            model: the trained model; its parameters that require a gradient are covered.
            batches: inputs of the model: of a tuple or list the first entry is used, a mapping is passed as keyword
                arguments. Labels are not needed.
            limit: the largest number of batches to use.

        Raises:
            TypeError: ``model`` is not a module.
            ValueError: the model has no trainable parameter or no layer named ``field``, or ``batches`` is empty.
        """
        check(model, None)
        # Never stepped: it only selects the trainable parameters.
        self.begin(model, [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)])
        for layer in self.layers:
            layer.remember(batches, limit=limit)
        self.end()

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors, numbers and strings; empty before the first training."""
        if self._waiting or not self.layers:
            return self._waiting
        analyzers = [
            layer.collector.analyzer.state_dict() for layer in self.layers if layer.collector.analyzer is not None
        ]
        return {
            "version": VERSION,
            "layers": [layer.state_dict() for layer in self.layers],
            "analyzer": {
                key: {n: x for part in analyzers for n, x in part[key].items()} for key in ("places", "means")
            },
            "watch": None if self.watch is None else self.watch.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; it is applied when training starts, since the model may not be on its device yet.

        A state of another model, protection or number of optimizers raises ValueError at that point.

        Raises:
            ValueError: the state lacks a part, has an unknown version, or has values that are not finite or out of
                bounds.
        """
        if state_dict:
            check_callback(state_dict)
        self._waiting, self._resumed = state_dict, True

    # --- for trainers' hooks ---

    def begin(self, model: nn.Module, optimizers: Sequence[Optimizer], scaler: GradScaler | None = None) -> None:
        """Start a fit: hook the model and its optimizers, and continue from the state of the last training.

        Args:
            model: the model to train.
            optimizers: its optimizers; empty if gradients cannot be masked, so that nothing is protected.
            scaler: the loss scaler of 16-bit training.

        Raises:
            ValueError: the model has no trainable parameter or lacks the field's layer, or the state belongs to another
                model or number of optimizers.
        """
        watched = None if self.watch is None else find_layer(model, self.watch.name, "field")
        self.end()
        state = self.state_dict()
        if not optimizers:  # keep the state for a fit whose gradients can be masked
            self.layers, self._waiting = [], state
            return
        before, self.layers = self.layers, []
        try:
            for optimizer in optimizers:
                layer = CommunicationLayer(
                    model, optimizer, **vars(self.settings), scaler=scaler, user_warnings=self.user_warnings
                )
                layer.collector.analyzer = StabilityAnalyzer(model, layer.optimizer)
                self.layers.append(layer)
            if state:
                self._bind(state)
        except BaseException:  # restore the layers of the last fit and remove all hooks
            for layer in self.layers:
                layer.detach()
            self.layers = before
            raise
        if state and not self._resumed:
            self._begin_fit()
        self._field_counts = sum(layer.step for layer in self.layers), 0
        if self.watch is not None:
            self.watch.begin(watched, next(model.parameters()).device, self.layers[0].collector.hooks.padding)
        self._waiting, self._resumed = {}, False

    def end(self, together: bool = True) -> None:
        """End a fit: remove all hooks and keep the state.

        Args:
            together: whether all processes call it; if False, nothing is exchanged between processes.
        """
        if together:
            self._warn_at_end()
        for layer in self.layers:
            if layer.attached:
                layer.optimizer_step.check_observed()
                layer.settle(together)
            layer.detach()
        if self.watch is not None:
            self.watch.end()

    def expect(self, measured: bool, alone: bool = True) -> None:
        """Begin a step.

        Args:
            measured: whether the step will be logged.
            alone: whether this batch is the only one of the step.
        """
        for layer in self.layers:
            layer.measure = measured
        if self.watch is not None:
            self.watch.wanted = measured or not alone
        self._set_in_step(True)

    def pause(self) -> None:
        """End a step: forward passes until the next one count as evaluation, in any mode."""
        self._set_in_step(False)

    def update_field(self) -> None:
        """Update the emergence field with a step, and measure it if the step is logged; skipped steps are discarded."""
        steps, skips = (sum(getattr(layer, name) for layer in self.layers) for name in ("step", "skips"))
        if self.watch is not None and steps > self._field_counts[0]:
            self.watch.update_field(self._measured())
        elif self.watch is not None and skips > self._field_counts[1]:
            self.watch.discard_step()
        self._field_counts = steps, skips

    def keep_measured(self, values: dict[str, Tensor]) -> None:
        """After logging: keep the shares of these ``values()`` for ``summary()``, and clear the measurements."""
        self.shares = {name: values[name] for name in ("suppressed", "effect")}
        for layer in self.layers:
            layer.measured.clear()

    # --- parts ---

    def _warn_at_end(self) -> None:
        """At the end of a fit: warn about loaded state that was not used and about missing consolidations."""
        every = self.settings.consolidate_on
        for layer in self.layers:
            if not layer.attached or layer.step == layer.begun:
                continue  # no step was taken, as in remember()
            if unbound := layer.collector.coverage.unbound():
                self.user_warnings.unbound(unbound)
            if every == "novelty" and layer.monitor.jumped:
                self.user_warnings.no_event(layer.step - layer.begun, held=bool(layer.events))
            # Steps are counted over fits: a second fit of the same length may reach the number.
            elif isinstance(every, int) and 2 * layer.step - layer.begun < every and not layer.events:
                self.user_warnings.too_few_steps(every, layer.step)

    def _set_in_step(self, running: bool) -> None:
        for layer in self.layers:
            layer.collector.in_step = running
        if self.watch is not None:
            self.watch.in_step = running

    def _measured(self) -> bool:
        """Whether this step will be logged."""
        return bool(self.layers) and all(layer.measured for layer in self.layers)

    def _bind(self, state: dict[str, Any]) -> None:
        if len(state["layers"]) != len(self.layers):
            raise ValueError(
                f"Expected the state of {len(self.layers)} optimizers, got that of {len(state['layers'])}."
            )
        for layer, kept in zip(self.layers, state["layers"], strict=True):
            layer.load_state_dict(kept)
            if layer.collector.analyzer is not None and state["analyzer"]:
                layer.collector.analyzer.load_state_dict(state["analyzer"])
        if self.watch is not None and state.get("watch"):
            self.watch.load_state_dict(state["watch"], next(self.layers[0].model.parameters()).device)

    def _begin_fit(self) -> None:
        for layer in self.layers:
            layer.begin_fit()
            if self.settings.consolidate_on == "fit":
                layer.consolidate(NEW_FIT)

    def __getstate__(self) -> dict[str, Any]:
        # The layers refer to the model, its optimizer and hooks on both; their state is plain data.
        watch = None if self.watch is None else ActivationObserver(self.watch.name)
        state = self.__dict__ | {"layers": [], "shares": {}, "watch": watch, "_waiting": self.state_dict()}
        return {key: value for key, value in state.items() if key not in ("log", "log_dict")}
