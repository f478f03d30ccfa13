"""What the callbacks of all trainers share: the choices, a layer an optimizer, when they listen, and the state."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sal_lightning.answers import Answers
from sal_lightning.communication import VERSION, CommunicationLayer
from sal_lightning.consolidation_reasons import NEW_FIT
from sal_lightning.coverage import check
from sal_lightning.emergence.activations import AUTO, Watch, find
from sal_lightning.settings import Protection, Settings, Statistics, Trigger
from sal_lightning.stability import StabilityAnalyzer
from sal_lightning.state_validation import check_callback
from sal_lightning.user_warnings import Notices


class Driver(Answers):
    """Owns the layers of one training, and what they learned between trainings."""

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
    ) -> None:
        super().__init__()
        self.settings = Settings(
            protection, consolidate_on, strength, recall, share, running_statistics, pull, absent_prior
        )
        self.layers = []
        self.watch = None if field is None else Watch(field)
        self.notices = Notices()
        self.shares: dict[str, Tensor] = {}  # (held², whole²) of the gradient and the update, when last measured
        self._counted = 0, 0  # steps, and skipped ones, when the field was last shown something
        self._waiting: dict[str, Any] = {}  # a state to continue from once there is a model
        self._resumed = False  # whether it came from a checkpoint

    # --- what a user does ---

    def consolidate(self) -> None:
        """By hand: what the network does now is worth keeping."""
        for layer in self.layers:
            layer.consolidate()

    def remember(self, model: nn.Module, batches: Iterable[Any], limit: int | None = None) -> None:
        """Protect what a trained model does on this data; call it before training goes on.

        Args:
            model: the trained model; covered are the parameters that require a gradient.
            batches: what it is run on: of a tuple or list the first entry, of a mapping all entries by name; no labels.
            limit: look at no more batches than this.

        Raises:
            TypeError: ``model`` is none.
            ValueError: it has nothing to train or no such layer as ``field``, or there is no batch.
        """
        check(model, None)
        # Never stepped: it only says which parameters will be trained.
        self.begin(model, [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)])
        for layer in self.layers:
            layer.remember(batches, limit=limit)
        self.end()

    def state_dict(self) -> dict[str, Any]:
        """What was learned so far, as tensors, numbers and strings; empty before the first training."""
        if self._waiting or not self.layers:
            return self._waiting
        analyzers = [layer.analyzer.state_dict() for layer in self.layers if layer.analyzer is not None]
        return {
            "version": VERSION,
            "layers": [layer.state_dict() for layer in self.layers],
            "analyzer": {
                key: {n: x for part in analyzers for n, x in part[key].items()} for key in ("places", "means")
            },
            "watch": None if self.watch is None else self.watch.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from this state when training begins: there may be no model on its device yet.

        A state of another model, rule or number of optimizers raises ValueError then.

        Raises:
            ValueError: the state lacks a part, is of an unknown version, or has numbers that cannot be.
        """
        if state_dict:
            check_callback(state_dict)
        self._waiting, self._resumed = state_dict, True

    # --- what a trainer's hooks call ---

    def begin(self, model: nn.Module, optimizers: Sequence[Optimizer], scaler: GradScaler | None = None) -> None:
        """Watch this model, and go on from where the last training stood.

        Raises:
            ValueError: a model with nothing to train or without the field's layer, or a state of another model or
                number of optimizers.
        """
        watched = None if self.watch is None else find(model, self.watch.name)
        self.end()
        state = self.state_dict()
        if not optimizers:  # what was learned waits for a training that can be watched
            self.layers, self._waiting = [], state
            return
        before, self.layers = self.layers, []
        try:
            for optimizer in optimizers:
                layer = CommunicationLayer(model, optimizer, **vars(self.settings), scaler=scaler, notices=self.notices)
                layer.analyzer = StabilityAnalyzer(model, layer.optimizer)
                self.layers.append(layer)
            if state:
                self._bind(state)
        except BaseException:  # nothing was changed: what was learned is there, and no hook stays
            for layer in self.layers:
                layer.detach()
            self.layers = before
            raise
        if state and not self._resumed:
            self._begin_anew()
        self._counted = sum(layer.step for layer in self.layers), 0
        if self.watch is not None:
            self.watch.begin(watched, next(model.parameters()).device, self.layers[0].padding)
        self._waiting, self._resumed = {}, False

    def end(self, together: bool = True) -> None:
        """Stop listening; what was learned stays. Not ``together``: other processes may still be training."""
        if together:  # the training came to its end
            self._look_back()
        for layer in self.layers:
            if layer.attached:
                layer.check_steps()
                layer.settle(together)
            layer.detach()
        if self.watch is not None:
            self.watch.end()

    def expect(self, measured: bool, alone: bool = True) -> None:
        """A step begins: whether it will be logged, and whether this batch ``alone`` makes the step."""
        for layer in self.layers:
            layer.measure = measured
        if self.watch is not None:
            self.watch.wanted = measured or not alone
        self._in_step(True)

    def pause(self) -> None:
        """The step is over: forward passes up to the next one are evaluation, whatever their mode."""
        self._in_step(False)

    def look(self) -> None:
        """Show what a step gathered to the emergence field, measured if it will be logged; nothing of a skipped one."""
        steps, skips = (sum(getattr(layer, name) for layer in self.layers) for name in ("step", "skips"))
        if self.watch is not None and steps > self._counted[0]:
            self.watch.look(self._measured())
        elif self.watch is not None and skips > self._counted[1]:
            self.watch.forget()
        self._counted = steps, skips

    def keep_measured(self, values: dict[str, Tensor]) -> None:
        """A measured step was logged as these ``values()``: keep its shares for ``summary()``, and measure anew."""
        self.shares = {name: values[name] for name in ("suppressed", "effect")}
        for layer in self.layers:
            layer.measured.clear()

    # --- parts ---

    def _look_back(self) -> None:
        """At the end of a fit: was something missed that its user should know of?"""
        every = self.settings.consolidate_on
        for layer in self.layers:
            if not layer.attached or layer.step == layer.begun:
                continue  # as after remember(): nothing was trained
            if layer.unbound:
                self.notices.unbound(layer.unbound)
            if every == "novelty" and layer.jumped:
                self.notices.no_event(layer.step - layer.begun, held=bool(layer.events))
            # Steps count on: a second fit as long may reach what the first did not.
            elif isinstance(every, int) and 2 * layer.step - layer.begun < every and not layer.events:
                self.notices.too_few_steps(every, layer.step)

    def _in_step(self, running: bool) -> None:
        for layer in self.layers:
            layer.in_step = running
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
            if layer.analyzer is not None and state["analyzer"]:
                layer.analyzer.load_state_dict(state["analyzer"])
        if self.watch is not None and state.get("watch"):
            self.watch.load_state_dict(state["watch"], next(self.layers[0].model.parameters()).device)

    def _begin_anew(self) -> None:
        for layer in self.layers:
            layer.begin_anew()
            if self.settings.consolidate_on == "fit":
                layer.consolidate_for(NEW_FIT)

    def __getstate__(self) -> dict[str, Any]:
        # The layers hold the model, its optimizer and hooks on both; what they learned is a plain state.
        watch = None if self.watch is None else Watch(self.watch.name)
        state = self.__dict__ | {"layers": [], "shares": {}, "watch": watch, "_waiting": self.state_dict()}
        return {key: value for key, value in state.items() if key not in ("log", "log_dict")}
