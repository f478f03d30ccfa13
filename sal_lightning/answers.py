"""What the layers of one training know together: asked by a user, and logged."""

from dataclasses import fields
from math import exp
from typing import Any, Literal

import torch
from torch import Tensor

from sal_lightning import consolidation_reasons
from sal_lightning.communication import CommunicationLayer
from sal_lightning.emergence.activations import AUTO, Watch
from sal_lightning.settings import Settings
from sal_lightning.stability import StabilitySpectrum, spectrum
from sal_lightning.summary import Account, short, text
from sal_lightning.user_warnings import Notices

BANDS: tuple[Literal["protected", "neutral", "volatile"], ...] = ("protected", "neutral", "volatile")
FIELD = ("coherence", "novelty", "resonance", "emergence")  # logged as means of one observation
SHARES = ("suppressed", "effect", "drift")  # logged as the root of a ratio of two sums


class Answers:
    """Sums over the layers."""

    layers: list[CommunicationLayer]  # one an optimizer
    watch: Watch | None
    settings: Settings
    notices: Notices
    shares: dict[str, Tensor]  # (held², whole²) of the gradient and the update, when last measured
    _waiting: dict[str, Any]  # a state that no training has taken up yet

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.choices().items())
        return f"{type(self).__name__}({given}): {short(self._account())}"

    def summary(self) -> str:
        """What was learned and is held, in at most 25 lines of plain text of at most 100 columns.

        The verdict in a sentence; then what is held and by which rules, the consolidations with their evidence, what
        was held back when it was last measured, the warnings that were given (their first sentences), and what is not
        observed. Costs nothing before it is asked for.
        """
        return text(self._account(), self.layers, self.settings, self.notices.given, self.shares)

    def choices(self) -> dict[str, Any]:
        """Those of its arguments that are not the defaults, by name."""
        settings = {f.name: getattr(self.settings, f.name) for f in fields(Settings)}
        choices = {name: value for name, value in settings.items() if value != getattr(Settings, name)}
        field = None if self.watch is None else self.watch.name
        return choices | ({} if field == AUTO else {"field": field})

    def _account(self) -> Account:
        """What the verdict is made from."""
        live = [(layer.step, layer.events, layer.evidence) for layer in self.layers]
        saved = [(one["step"], one["events"], one.get("evidence", {})) for one in self._waiting.get("layers", [])]
        known = saved or live
        parts = [consolidation_reasons.count(events, why) for _, events, why in known]
        counts = consolidation_reasons.Counts(*(sum(column) for column in zip(*parts, strict=True)))
        suspects = any(layer.suspects for layer in self.layers)
        return Account(
            # Trainers ask for the repr of their callbacks: no device is waited for where nothing can be held.
            self.spectrum() if any(counts) or suspects else StabilitySpectrum(0.0, 0.0, 100.0),
            counts,
            max((step for step, _, _ in known), default=0),
            self.settings.consolidate_on,
            suspects,
            waits=bool(saved),
        )

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
        return spectrum(self.bands() if kind == "held" else self.observed())

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
