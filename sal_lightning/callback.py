"""Self-Alignment Learning as one Lightning callback: it only says when; the communication layer does."""

from collections.abc import Iterable
from math import exp
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MaxMetric, MeanMetric, Metric
from typing_extensions import override

from sal_lightning.communication import CommunicationLayer
from sal_lightning.metrics import BandPercent, NormShare
from sal_lightning.settings import Protection, Settings, Trigger
from sal_lightning.stability import StabilityAnalyzer, StabilitySpectrum, spectrum

BANDS: tuple[Literal["protected", "neutral", "volatile"], ...] = ("protected", "neutral", "volatile")


class SALCallback(Callback):
    """Measures what a network has settled on and protects it while it goes on learning.

    >>> callback = SALCallback()
    >>> print(callback.spectrum())
    {'protected': 0%, 'neutral': 0%, 'volatile': 100%}

    Args:
        protection: at which grain stability is kept: ``"subspace"`` (directions of a layer's input; what has none, by
            ``"element"``), ``"element"`` (each weight) or ``"tensor"`` (the published formula; it freezes).
        consolidate_on: when what emerged is kept: ``"novelty"`` (the inputs change), ``"fit"`` (at every new fit), a
            number of steps, or ``None`` (only by ``consolidate()`` and ``remember()``).
        strength: > 0; a direction of mean energy is held with stability ``1 / (1 + 1/strength)``.
        recall: >= 0; how fast drift along held directions is taken back, in units of the weights' own movement.
        share: in (0, 1]; no more directions are kept than hold this share of the energy.
        name: tells several of these callbacks in one Trainer apart.

    Raises:
        ValueError: at construction for a choice outside its range; at ``fit`` for a model with nothing to train.
        NotImplementedError: at ``fit`` in several processes.
    """

    def __init__(
        self,
        protection: Protection = Settings.protection,
        consolidate_on: Trigger = Settings.consolidate_on,
        strength: float = Settings.strength,
        recall: float = Settings.recall,
        share: float = Settings.share,
        name: str = "",
    ) -> None:
        self.settings = Settings(protection, consolidate_on, strength, recall, share)
        self.name = name
        self.layers: list[CommunicationLayer] = []  # one an optimizer
        self.analyzer: StabilityAnalyzer | None = None
        self.metrics: dict[str, Metric] = _metrics()
        self._waiting: dict[str, Any] = {}  # a state to continue from once there is a model
        self._resumed = False

    # --- what a user asks ---

    @property
    def events(self) -> list[int]:
        """The steps (counted by this callback over all its fits) at which something was consolidated."""
        return sorted(step for layer in self.layers for step in layer.events)

    def spectrum(self, kind: Literal["held", "observed"] = "held") -> StabilitySpectrum:
        """Percent of the trainable weights that are protected, neutral and volatile.

        ``"held"``: what the next update will meet; ``"observed"``: what has settled by its own movement, held or not.
        """
        if kind not in ("held", "observed"):
            raise ValueError(f"Expected kind to be 'held' or 'observed', got {kind!r}.")
        if kind == "observed":
            return self.analyzer.classify() if self.analyzer else StabilitySpectrum(0.0, 0.0, 100.0)
        return spectrum(self._bands()) if self.layers else StabilitySpectrum(0.0, 0.0, 100.0)

    def consolidate(self) -> None:
        """By hand: what the network does now is worth keeping."""
        for layer in self.layers:
            layer.consolidate()

    def remember(self, model: nn.Module, batches: Iterable[Any], limit: int | None = None) -> None:
        """Protect what a trained model does on this data; call it before ``fit`` fine-tunes the model."""
        # Never stepped: it only says which parameters will be trained.
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        layer = CommunicationLayer(model, optimizer, **vars(self.settings))
        if self.state_dict():
            layer.load_state_dict(self.state_dict()["layers"][0])
        layer.remember(batches, limit=limit)
        layer.detach()
        self.layers, self._waiting = [layer], {}

    def coverage(self) -> dict[str, str]:
        """The grain at which each trainable parameter is protected; empty before the first fit."""
        return {name: grain for layer in self.layers for name, grain in layer.coverage().items()}

    def memory(self) -> dict[str, float]:
        """Bytes, as ``CommunicationLayer.memory``, summed over the optimizers."""
        parts = [layer.memory() for layer in self.layers]
        total = {key: sum(part[key] for part in parts) for key in ("model", "state", "step")}
        return total | {"ratio": total["state"] / total["model"] if parts else 0.0}

    # --- the hooks, in order ---

    @property
    @override
    def state_key(self) -> str:
        return "SALCallback" + (f"[{self.name}]" if self.name else "")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = self._waiting or self.state_dict()
        self._detach()
        self.layers = [CommunicationLayer(pl_module, o, **vars(self.settings)) for o in trainer.optimizers]
        self.analyzer = StabilityAnalyzer(pl_module)
        if state:
            self._bind(state)
        if state and self.settings.consolidate_on == "fit" and not self._resumed:
            self.consolidate()
        self._waiting, self._resumed = {}, False
        for metric in self.metrics.values():
            metric.to(pl_module.device)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Gradients are accumulated and unscaled here; clipping still follows.
        layer = next(layer for layer in self.layers if layer.optimizer is optimizer)
        layer.measure = _logs(trainer)
        if self.analyzer is not None and layer is self.layers[-1]:
            self.analyzer.observe()
        layer.analyze()
        layer.protect()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Measured steps are logged once: not again by the micro-batches that lead to the next step.
        if not all(layer.measured for layer in self.layers):
            return
        values = self._values()
        for layer in self.layers:
            layer.measured.clear()
        for name, value in values.items():
            metric = self.metrics[name]
            metric(value)
            pl_module.log(f"sal/{name}", metric, metric_attribute=name, on_step=True, on_epoch=True)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._detach()

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._waiting or not self.layers:
            return self._waiting
        return {
            "version": 1,
            "layers": [layer.state_dict() for layer in self.layers],
            "analyzer": self.analyzer.state_dict() if self.analyzer else {},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # There may be no model on its device yet: bound when training starts.
        self._waiting, self._resumed = state_dict, True

    # --- parts ---

    def _bind(self, state: dict[str, Any]) -> None:
        if len(state["layers"]) != len(self.layers):
            raise ValueError(
                f"Expected the state of {len(self.layers)} optimizers, got that of {len(state['layers'])}."
            )
        for layer, kept in zip(self.layers, state["layers"], strict=True):
            layer.load_state_dict(kept)
        if self.analyzer is not None and state["analyzer"]:
            self.analyzer.load_state_dict(state["analyzer"])

    def _detach(self) -> None:
        for layer in self.layers:
            layer.detach()

    def _bands(self) -> Tensor:
        return torch.stack([layer.bands() for layer in self.layers]).sum(0)

    def _values(self) -> dict[str, Tensor]:
        """What is logged, by name; each goes to the metric of the same name."""
        sums = {key: torch.stack([layer.measured[key] for layer in self.layers]).sum(0) for key in _MEASURED}
        excess = max(layer.excess for layer in self.layers)
        return (
            dict.fromkeys(BANDS, self._bands())
            | sums
            | {
                "drift": torch.stack([layer.drift() for layer in self.layers]).sum(0),
                "novelty": torch.tensor(1 - exp(-max(excess, 0.0))),
                "consolidations": torch.tensor(float(len(self.events))),
                "step": torch.tensor(float(max(layer.step for layer in self.layers))),
            }
        )

    def __getstate__(self) -> dict[str, Any]:
        # The layers hold the model, its optimizer and hooks on both; what they learned is a plain state.
        state = self.__dict__ | {"layers": [], "analyzer": None, "_waiting": self.state_dict()}
        return {key: value for key, value in state.items() if key not in ("log", "log_dict")}


_MEASURED = ("suppressed", "effect")


def _metrics() -> dict[str, Metric]:
    shares = {name: NormShare() for name in (*_MEASURED, "drift")}
    return {
        **{band: BandPercent(band) for band in BANDS},
        **shares,
        "novelty": MeanMetric(),
        "consolidations": MaxMetric(),
        "step": MaxMetric(),
    }


def _logs(trainer: Trainer) -> bool:
    """Whether this step's values are wanted: Lightning's own rhythm, and the last batch of an epoch."""
    return trainer._logger_connector.should_update_logs or trainer.is_last_batch
