"""What the layers of one training know together: asked by a user, and logged."""

from math import exp
from typing import Literal

import torch
from torch import Tensor

from sal_lightning.communication import CommunicationLayer
from sal_lightning.stability import StabilitySpectrum, spectrum
from sal_lightning.watching import Watch

BANDS: tuple[Literal["protected", "neutral", "volatile"], ...] = ("protected", "neutral", "volatile")
FIELD = ("coherence", "novelty", "resonance", "emergence")  # logged as means of one observation
SHARES = ("suppressed", "effect", "drift")  # logged as the root of a ratio of two sums


class Answers:
    """Sums over the layers."""

    layers: list[CommunicationLayer]  # one an optimizer
    watch: Watch | None

    @property
    def events(self) -> list[int]:
        """The steps (counted by this callback over all its fits) at which something was consolidated."""
        return sorted(step for layer in self.layers for step in layer.events)

    def spectrum(self, kind: Literal["held", "observed"] = "held") -> StabilitySpectrum:
        """Percent of the trainable weights that are protected, neutral and volatile.

        ``"held"``: what the next update will meet; ``"observed"``: what has settled by its own movement, held or not.
        Above 0.7 is protected, below 0.3 volatile; before any training all is volatile.

        Raises:
            ValueError: another ``kind``.
        """
        if kind not in ("held", "observed"):
            raise ValueError(f"Expected kind to be 'held' or 'observed', got {kind!r}.")
        counts = self.bands() if kind == "held" else self.observed()
        return spectrum(counts) if counts.any() else StabilitySpectrum(0.0, 0.0, 100.0)

    def coverage(self) -> dict[str, str]:
        """The grain ("subspace", "element", "tensor") of each trainable parameter; empty before the first training."""
        return {name: grain for layer in self.layers for name, grain in layer.coverage().items()}

    def memory(self) -> dict[str, float]:
        """Bytes, as ``CommunicationLayer.memory``, summed over the optimizers, the emergence field among the state.

        ``model``, ``state`` and ``step``, and ``ratio`` = state / model.
        """
        parts = [layer.memory() for layer in self.layers]
        total = {key: sum(part[key] for part in parts) for key in ("model", "state", "step")}
        total["state"] += 0 if self.watch is None else self.watch.field.nbytes
        return total | {"ratio": total["state"] / total["model"] if total["model"] else 0.0}

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
