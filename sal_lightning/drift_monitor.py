"""Feature drift of a network on fixed inputs during training, with or without SAL."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn
from typing_extensions import override

from sal_lightning.layers import AUTO, collected_inputs, find_layer, plain_name
from sal_lightning.metrics import NormShare
from sal_lightning.remembering import evaluating
from sal_lightning.torch_compile import eagerly


class DriftMonitor(Callback):
    """Logs ``sal/feature_drift``: ``‖h − h₀‖ / ‖h₀‖`` of the features ``h`` of fixed inputs; ``h₀`` is their reference.

    The features are the input of one layer, by default of the last Linear that is called. They are computed on log
    steps, in evaluation mode and without compiled code. Training is not affected, so runs with and without SAL can be
    compared.

    Args:
        inputs: inputs of the model: a tensor, a tuple or list whose first entry is used, or a mapping of keyword
            arguments.
        since: >= 0; number of steps after which ``h₀`` is computed, for example the length of the first task.
        layer: name of the layer whose input is used; None is the last Linear that is called.

    Raises:
        ValueError: at construction if ``since`` is below 0; when ``fit`` begins if the layer is unknown or the model
            has no Linear; at the first measurement if the model does not call the layer.
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
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watched(pl_module)  # raises before validation begins

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
        """The input of the layer, in single precision.

        Raises:
            ValueError: the model does not call the layer, or the layer's input is no tensor.
        """
        layer = self.watched(model)
        with collected_inputs(layer) as found, evaluating(model), eagerly():
            inputs = move_data_to_device(self.inputs, next(model.parameters()).device)
            first = inputs[0] if isinstance(inputs, tuple | list) else inputs
            model(**first) if isinstance(first, Mapping) else model(first)
        if not found:
            name = next(plain_name(name) for name, module in model.named_modules() if module is layer)
            raise ValueError(
                f"Expected the model to call the layer {name!r} with a real-valued tensor when it is given inputs, got "
                "no such call. Set layer= to the name of a layer that its forward pass calls."
            )
        return torch.cat(found).float()

    def watched(self, model: nn.Module) -> nn.Module:
        """The layer whose input is used.

        Raises:
            ValueError: the layer is unknown, or the model has no Linear.
        """
        layer = find_layer(model, AUTO if self.layer is None else self.layer, "layer")
        if layer is None:
            raise ValueError("Expected a model with a Linear, or the name of a layer, got neither.")
        return layer

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "step": self.step}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first, self.step = state_dict["first"], state_dict["step"]
