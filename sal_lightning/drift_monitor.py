"""How far a network's view of the same inputs moves while it trains on; for any run, with SAL or without."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn
from typing_extensions import override

from sal_lightning.metrics import NormShare
from sal_lightning.remembering import evaluating


class DriftMonitor(Callback):
    """Logs ``sal/feature_drift``: ``‖h − h₀‖ / ‖h₀‖`` of the features ``h`` of fixed inputs; ``h₀`` are those at first.

    The features are what goes into the last Linear. They are looked at on log steps, in evaluation mode; nothing is
    changed, so that a run without SAL is a fair comparison of one with it.

    Args:
        inputs: what the model is run on: a tensor, or of a tuple or list the first entry, of a mapping all by name.
        since: >= 0; steps after which ``h₀`` is taken: as many as what is to be kept takes to learn.
        layer: name of the module whose input is looked at instead.

    Raises:
        ValueError: at construction for ``since`` below 0; at ``fit`` for an unknown layer or a model without a Linear.
    """

    def __init__(self, inputs: Any, since: int = 0, layer: str | None = None) -> None:
        if isinstance(since, bool) or not isinstance(since, int) or since < 0:
            raise ValueError(f"Expected since to be a whole number >= 0, got {since!r}.")
        self.inputs, self.since, self.layer = inputs, since, layer
        self.first: Tensor | None = None  # h₀
        self.step = 0  # optimizer steps over all fits
        self.metric = NormShare()
        self._seen = 0  # the Trainer's own count

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watched(pl_module)
        self._seen = trainer.global_step
        self.metric.to(pl_module.device)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped, self._seen = trainer.global_step != self._seen, trainer.global_step
        self.step += stepped
        wanted = trainer._logger_connector.should_update_logs or trainer.is_last_batch
        if not stepped or self.step < self.since or not (wanted or self.first is None):
            return
        h = self.features(pl_module)
        self.first = h if self.first is None else self.first.to(h.device)
        if wanted and not trainer.barebones:
            self.metric(torch.stack([(h - self.first).square().sum(), self.first.square().sum()]))
            name = "sal/feature_drift"
            pl_module.log(name, self.metric, metric_attribute="feature_drift", on_step=True, on_epoch=False)
            pl_module.log("sal/feature_at", float(self.step), on_step=True, on_epoch=False)

    @torch.no_grad()
    def features(self, model: nn.Module) -> Tensor:
        """What goes into the watched module, as single precision."""
        seen: list[Tensor] = []
        handle = self.watched(model).register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
        try:
            with evaluating(model):
                inputs = move_data_to_device(self.inputs, next(model.parameters()).device)
                first = inputs[0] if isinstance(inputs, tuple | list) else inputs
                model(**first) if isinstance(first, Mapping) else model(first)
        finally:
            handle.remove()
        return torch.cat(seen).float()

    def watched(self, model: nn.Module) -> nn.Module:
        """The module whose input is looked at."""
        modules: dict[str, nn.Module] = dict(model.named_modules())
        if self.layer is not None and self.layer not in modules:
            raise ValueError(f"Expected layer to be one of {[name for name in modules if name]}, got {self.layer!r}.")
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        if self.layer is None and not linear:
            raise ValueError("Expected a model with a Linear, or the name of a layer, got neither.")
        return modules[self.layer if self.layer is not None else linear[-1]]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "step": self.step}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first, self.step = state_dict["first"], state_dict["step"]
