"""SALCallback: calls the communication layers from the hooks of a Lightning Trainer."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MaxMetric, MeanMetric, Metric
from typing_extensions import override

from sal_lightning.grad_scaler import scales
from sal_lightning.layers import AUTO
from sal_lightning.metrics import BandPercent, Coherence, EmergenceRate, NormShare, Novelty, Resonance
from sal_lightning.report import panels
from sal_lightning.report.histograms import views
from sal_lightning.report.naming import PREFIX, prefix
from sal_lightning.settings import Protection, Settings, Statistics, Trigger
from sal_lightning.stability import spectrum
from sal_lightning.trainer_callback import BANDS, FIELD, SHARES, BaseCallback

RESERVED = ("layers", "observed")  # log prefixes after sal/ that are already in use
# Strategies under which a process has neither whole gradients nor whole rows of them.
UNSUPPORTED_STRATEGIES = ("DeepSpeedStrategy", "FSDPStrategy", "XLAFSDPStrategy", "XLAStrategy")


class SALCallback(BaseCallback, Callback):
    """Measures which weights of a network have settled and protects them during further training.

    >>> callback = SALCallback()
    >>> print(callback.spectrum())
    {'protected': 0%, 'neutral': 0%, 'volatile': 100%}

    Args:
        protection: the grain of protection: ``"subspace"`` (directions of a layer's input; parameters without such
            inputs use ``"element"``), ``"element"`` (each weight) or ``"tensor"`` (the published formula; it freezes).
        consolidate_on: when to consolidate: ``"novelty"`` (on a change of the data), ``"fit"`` (at every new fit), a
            number of steps, or ``None`` (only by ``consolidate()`` and ``remember()``).
        strength: > 0; just after a consolidation a direction of mean energy is held with stability
            ``1 / (1 + 1/strength)``. The strength grows with the steps since then, by its initial value every 500
            steps, up to eight times that value. It is four times as large for recurrent layers and constant for the
            element rule.
        recall: >= 0; rate at which drift along held directions is undone, in units of the weights' own movement.
        share: in (0, 1]; directions are kept, in order of energy, up to this share of the total energy.
        name: distinguishes several of these callbacks in one Trainer: values are logged as ``sal/NAME/…``.
        field: name of the layer whose input the emergence field measures; ``"auto"`` is the last Linear, None disables
            the field.
        running_statistics: running statistics of batch normalization once something is held: ``"keep"`` (they keep
            their values of the last consolidation, and training normalises by them) or ``"update"`` (as without this
            callback).
        pull: >= 0; strength of the pull, which moves each weight towards its anchor after each step in proportion to
            the weight's importance, in units of the weights' own movement; 0 disables it.
        absent_prior: in (0, 1]; initial prior of an absent class (a target before a consolidation, not since) in the
            softmax whose gradient the layers before the last one receive; 1 disables the adjustment.
        histograms: whether Weights & Biases gets a histogram of each layer's stability on log steps, which makes two
            panels per layer.

    Raises:
        ValueError: at construction if an argument is outside its range; at ``fit`` if the model has no trainable
            parameter or lacks the field's layer.
    """

    def __init__(
        self,
        protection: Protection = Settings.protection,
        consolidate_on: Trigger = Settings.consolidate_on,
        strength: float = Settings.strength,
        recall: float = Settings.recall,
        share: float = Settings.share,
        name: str = "",
        field: str | None = AUTO,
        running_statistics: Statistics = Settings.running_statistics,
        pull: float = Settings.pull,
        absent_prior: float = Settings.absent_prior,
        histograms: bool = False,
    ) -> None:
        super().__init__(
            protection,
            consolidate_on,
            strength,
            recall,
            share,
            field,
            running_statistics,
            pull,
            absent_prior,
            histograms,
        )
        if name in RESERVED:
            raise ValueError(
                f"Expected name to be none of {RESERVED}, which are log prefixes already in use, got {name!r}."
            )
        self.name = name
        self.metrics: dict[str, Metric] = _metrics()
        self._logged_events = 0  # consolidations written to this fit's loggers
        self._backward = self._analyzed = False  # whether either has happened in this batch

    @property
    @override
    def state_key(self) -> str:
        return "SALCallback" + (f"[{self.name}]" if self.name else "")

    @property
    def prefix(self) -> str:
        """The prefix of all logged names."""
        return prefix(self.name)

    # --- the hooks, in order ---

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The tuner's searches for a learning rate or batch size also load a state: this callback's own.
        self._resumed = self._resumed and trainer.ckpt_path is not None
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        closed = _unsupported_strategy(trainer)
        if closed:
            self.user_warnings.closed(closed, waiting=bool(self.state_dict()))
        self.begin(pl_module, [] if closed else trainer.optimizers, scaler)
        for metric in self.metrics.values():
            metric.to(pl_module.device)
        self._logged_events = 0
        panels.begin(trainer.loggers, self.prefix)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # With accumulation or manual optimization it is not known in advance whether this batch ends its step.
        alone = pl_module.automatic_optimization and trainer.accumulate_grad_batches == 1
        self.expect(_is_log_step(trainer) and not trainer.barebones, alone)
        self._backward = self._analyzed = False
        for layer in self.layers:  # validation and checkpoints use the weights of the epoch's end
            layer.last = trainer.is_last_batch and pl_module.automatic_optimization

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Gradients are complete here: accumulated over the micro-batches, averaged over the processes, not yet masked
        # or clipped. In manual optimization the optimizer they belong to is known only at its step.
        if not pl_module.automatic_optimization:
            return
        self._backward = True
        for layer in self.layers:
            if layer.optimizer_step.running or (scales(layer.scaler) and _steps_next(trainer, pl_module)):
                layer.analyze(scaled=True)
                self._analyzed = True

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Gradients are already unscaled here, and not yet clipped.
        for layer in self.layers:
            if layer.optimizer is optimizer:
                if pl_module.automatic_optimization and scales(layer.scaler) and not self._backward:
                    layer.skip()  # `training_step` returned None: the scaler skips, even with accumulated gradients
                elif not self._analyzed:
                    layer.analyze()
                layer.protect()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Measured steps are logged once, and not again for the micro-batches of the next step.
        self.pause()
        self.update_field()
        if self._measured():
            self._log(trainer, pl_module)
        if trainer.is_last_batch:  # a checkpoint of this step resumes after the end of the epoch
            for layer in self.layers:
                layer.settle()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pause()  # a hook that skips the rest of the epoch also skips on_train_batch_end
        for layer in self.layers:
            layer.optimizer_step.check_observed()
            layer.settle()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end()
        if trainer.is_global_zero:
            self._log_events(trainer)
            panels.log_table(trainer.loggers, views(self.layers), self.prefix)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.end(together=False)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.end()

    # --- logging ---

    @override
    def choices(self) -> dict[str, Any]:
        return super().choices() | ({"name": self.name} if self.name else {})

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the values of a measured step."""
        held, observed = self.bands(), self.observed()
        values = dict.fromkeys(BANDS, held) | {f"observed/{band}": observed for band in BANDS} | self.values()
        if (seen := self.seen()) is not None:
            values |= dict.fromkeys(FIELD, seen)
        self.keep_measured(values)
        for name, value in values.items():
            metric = self.metrics[name]
            metric(value.to(metric.device))
            key = self.prefix + name
            # Without means over epochs, which would make a second panel of each value.
            pl_module.log(key, metric, metric_attribute=key.removeprefix(PREFIX), on_step=True, on_epoch=False)
        self._show(trainer, held)

    def _show(self, trainer: Trainer, held: Tensor) -> None:
        """Write every layer to the loggers and the spectrum to the progress bar; called on log steps only."""
        if not trainer.is_global_zero:
            return
        if trainer.progress_bar_callback is not None:
            shown: dict[str, Any] = trainer.progress_bar_metrics
            shown[self.prefix.rstrip("/")] = "/".join(f"{percent:.0f}" for percent in spectrum(held))
        if trainer.loggers:
            at = max(layer.step for layer in self.layers)
            step, shown_by = _logging_step(trainer), panels.layer_loggers(trainer.loggers, self.histograms)
            panels.log_layers(shown_by, views(self.layers) if shown_by else {}, at, step, self.prefix)
            self._log_events(trainer)

    def _log_events(self, trainer: Trainer) -> None:
        events = self.events[self._logged_events :]
        self._logged_events += len(events)
        panels.log_events(trainer.loggers, events, _logging_step(trainer), self.prefix)


def _metrics() -> dict[str, Metric]:
    return {
        **{band: BandPercent(band) for band in BANDS},
        **{f"observed/{band}": BandPercent(band) for band in BANDS},
        **{name: NormShare() for name in SHARES},
        **dict(zip(FIELD, (Coherence(), Novelty(), Resonance(), EmergenceRate()), strict=True)),
        "surprise": MeanMetric(),
        "consolidations": MaxMetric(),
        "step": MaxMetric(),
    }


def _is_log_step(trainer: Trainer) -> bool:
    """Whether this step is logged: every ``log_every_n_steps``, and at the last batch of an epoch."""
    return trainer._logger_connector.should_update_logs or trainer.is_last_batch


def _steps_next(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether the optimizer steps after this micro-batch; False if a user's hook or the strategy decides that."""
    own = getattr(pl_module.optimizer_step, "__qualname__", "") != "LightningModule.optimizer_step"
    if own or trainer.strategy.handles_gradient_accumulation:
        return False
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def _logging_step(trainer: Trainer) -> int:
    """The step under which Lightning logs its own values, read as Lightning's monitors read it."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _unsupported_strategy(trainer: Trainer) -> str:
    """The name of the strategy if gradients cannot be masked under it, else empty."""
    names = {kind.__name__ for kind in type(trainer.strategy).__mro__}
    return "" if names.isdisjoint(UNSUPPORTED_STRATEGIES) else type(trainer.strategy).__name__
