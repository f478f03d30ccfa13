"""What the callbacks of all trainers share: the choices, a layer an optimizer, what a user asks, and the state."""

from collections.abc import Iterable, Sequence
from math import exp
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sal_lightning.communication import VERSION, CommunicationLayer
from sal_lightning.settings import Protection, Settings, Trigger
from sal_lightning.stability import StabilityAnalyzer, StabilitySpectrum, spectrum
from sal_lightning.watching import AUTO, Watch, find

BANDS: tuple[Literal["protected", "neutral", "volatile"], ...] = ("protected", "neutral", "volatile")
FIELD = ("coherence", "novelty", "resonance", "emergence")  # logged as means of one observation
SHARES = ("suppressed", "effect", "drift")  # logged as the root of a ratio of two sums


class Driver:
    """Owns the layers of one training, and what they learned between trainings."""

    def __init__(
        self,
        protection: Protection = Settings.protection,
        consolidate_on: Trigger = Settings.consolidate_on,
        strength: float = Settings.strength,
        recall: float = Settings.recall,
        share: float = Settings.share,
        field: str | None = AUTO,
    ) -> None:
        super().__init__()
        self.settings = Settings(protection, consolidate_on, strength, recall, share)
        self.layers: list[CommunicationLayer] = []  # one an optimizer
        self.watch = None if field is None else Watch(field)
        self._counted = 0, 0  # steps, and skipped ones, when the field was last shown something
        self._waiting: dict[str, Any] = {}  # a state to continue from once there is a model
        self._resumed = False  # whether it came from a checkpoint

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
        counts = self.bands() if kind == "held" else self.observed()
        return spectrum(counts) if counts.any() else StabilitySpectrum(0.0, 0.0, 100.0)

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
            ValueError: a model with nothing to train, or without the field's layer.
        """
        # Never stepped: it only says which parameters will be trained.
        self.begin(model, [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)])
        for layer in self.layers:
            layer.remember(batches, limit=limit)
        self.end()

    def coverage(self) -> dict[str, str]:
        """The grain at which each trainable parameter is protected; empty before the first training."""
        return {name: grain for layer in self.layers for name, grain in layer.coverage().items()}

    def memory(self) -> dict[str, float]:
        """Bytes, as ``CommunicationLayer.memory``, summed over the optimizers, the emergence field among the state."""
        parts = [layer.memory() for layer in self.layers]
        total = {key: sum(part[key] for part in parts) for key in ("model", "state", "step")}
        total["state"] += 0 if self.watch is None else self.watch.field.nbytes
        return total | {"ratio": total["state"] / total["model"] if total["model"] else 0.0}

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
        """
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
        self.layers = [CommunicationLayer(model, o, **vars(self.settings), scaler=scaler) for o in optimizers]
        for layer in self.layers:
            layer.analyzer = StabilityAnalyzer(model, layer.optimizer)
        if state:
            self._bind(state)
            if not self._resumed:
                self._begin_anew()
        self._counted = sum(layer.step for layer in self.layers), 0
        if self.watch is not None:
            self.watch.begin(watched, next(model.parameters()).device)
        self._waiting, self._resumed = {}, False

    def end(self, together: bool = True) -> None:
        """Stop listening; what was learned stays. Not ``together``: other processes may still be training."""
        for layer in self.layers:
            if layer.attached:
                layer.settle(together)
            layer.detach()
        if self.watch is not None:
            self.watch.end()

    def look(self) -> None:
        """Show what a step gathered to the emergence field, measured if it will be logged; nothing of a skipped one."""
        steps, skips = (sum(getattr(layer, name) for layer in self.layers) for name in ("step", "skips"))
        if self.watch is not None and steps > self._counted[0]:
            self.watch.look(self._measured())
        elif self.watch is not None and skips > self._counted[1]:
            self.watch.forget()
        self._counted = steps, skips

    def bands(self) -> Tensor:
        """Weights that are (protected, neutral, volatile) as held: counts (3,)."""
        return torch.stack([layer.bands() for layer in self.layers]).sum(0) if self.layers else torch.zeros(3)

    def observed(self) -> Tensor:
        """Weights that have settled, are between, still search, by their own movement: counts (3,)."""
        parts = [layer.analyzer.bands() for layer in self.layers if layer.analyzer is not None]
        return torch.stack(parts).sum(0) if parts else torch.zeros(3)

    def values(self) -> dict[str, Tensor]:
        """What is logged beside the bands, by name: of SHARES the two sums, of the others the number."""
        sums = {key: [layer.measured[key] for layer in self.layers] for key in ("suppressed", "effect")}
        sums["drift"] = [layer.drift() for layer in self.layers]
        excess = max(layer.excess for layer in self.layers)
        return {key: torch.stack(parts).sum(0) for key, parts in sums.items()} | {
            "surprise": torch.tensor(1 - exp(-max(excess, 0.0))),
            "consolidations": torch.tensor(float(len(self.events))),
            "step": torch.tensor(float(max(layer.step for layer in self.layers))),
        }

    def seen(self) -> Tensor | None:
        """What the emergence field found in this step, (4,) as in FIELD; None if there was nothing to measure."""
        return None if self.watch is None else self.watch.seen

    # --- parts ---

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
            self.consolidate()

    def __getstate__(self) -> dict[str, Any]:
        # The layers hold the model, its optimizer and hooks on both; what they learned is a plain state.
        watch = None if self.watch is None else Watch(self.watch.name)
        state = self.__dict__ | {"layers": [], "watch": watch, "_waiting": self.state_dict()}
        return {key: value for key, value in state.items() if key not in ("log", "log_dict")}
