"""Change detection: of several signals it is known what is usual; a change is believed where one shows it."""

from collections.abc import Mapping
from typing import NamedTuple

from sal_lightning.consolidation_reasons import LOSS
from sal_lightning.jumps import Jumps
from sal_lightning.novelty import CONFIRM, SUSPECT, WARM, Novelty
from sal_lightning.rules.base import State

TRIAL = 16  # batches of a new fit that are judged together
DIFFERENT = 1.5  # mean standard score of these from which they are other data


class Judgement(NamedTuple):
    """Of one batch."""

    evidence: float  #: ``SUSPECT`` and more: a change is suspected, ``CONFIRM`` and more: it is believed
    signal: str  #: the name of the signal that gave it


class Detection:
    """What is usual of each signal, by its name: rows and samples of layers' inputs, and the loss.

    A signal is one number a step, the larger the more unusual; in one step some of them may be missing. That of the
    loss is judged by its jumps. While one of them is suspicious none of them learns.

    The first ``TRIAL`` batches of a new fit are suspicious in themselves: a small difference counts that is the same in
    all of them.
    """

    def __init__(self) -> None:
        self.signals: dict[str, Novelty] = {}
        self.jumps = Jumps()
        self.excess = 0.0  # log of how much farther than usual the last batch was
        self.trial: dict[str, list[float]] | None = None  # standard scores of each signal in a new fit so far
        self.tried = 0

    def clear(self) -> None:
        """Forget what was usual: a new window begins."""
        for novelty in self.signals.values():
            novelty.clear()
        self.jumps.clear()
        self.trial, self.tried = None, 0

    @property
    def ready(self) -> bool:
        """Whether anything is known to be usual."""
        return any(novelty.usual.n >= WARM for novelty in self.signals.values())

    def begin_fit(self) -> bool:
        """A new fit begins, perhaps with other data; whether enough is known to judge its first batches together."""
        self.jumps.begin_fit()
        if self.ready:
            self.trial, self.tried = {}, 0
        return self.ready

    def weigh(self, values: Mapping[str, float]) -> Judgement:
        """The evidence of a change, this batch included."""
        self._measure(values)
        found = {name: self._novelty(name).weigh(x) for name, x in values.items() if name != LOSS}
        if LOSS in values:
            found[LOSS] = self.jumps.weigh(values[LOSS])
        if self.trial is not None:
            self._try(values, found)
        signal = max(found, key=lambda name: found[name], default="")
        return Judgement(found.get(signal, 0.0), signal)

    def learn(self, values: Mapping[str, float]) -> list[str]:
        """This batch was familiar. Returns the signals that it is time to measure by all that was seen so far."""
        self._measure(values)
        if LOSS in values:
            self.jumps.learn(values[LOSS])
        return [name for name, x in values.items() if name != LOSS and self._novelty(name).learn(x)]

    def _measure(self, values: Mapping[str, float]) -> None:
        self.excess = max((self._novelty(n).excess(x) for n, x in values.items() if n != LOSS), default=0.0)

    def _novelty(self, name: str) -> Novelty:
        return self.signals.setdefault(name, Novelty())

    def _try(self, values: Mapping[str, float], found: dict[str, float]) -> None:
        """Judge the batches of a new fit together; until then each of them is suspicious."""
        assert self.trial is not None
        for name in found:
            if name != LOSS and (usual := self.signals[name].usual).n >= WARM:
                self.trial.setdefault(name, []).append((values[name] - usual.mean) / usual.deviation)
        self.tried += 1
        for name, scores in self.trial.items():
            least = SUSPECT if self.tried < TRIAL else 0.0
            if self.tried == TRIAL and sum(scores) / len(scores) >= DIFFERENT:
                least = CONFIRM
            found[name] = max(found.get(name, 0.0), least)
        if self.tried == TRIAL:
            self.trial = None

    def state_dict(self) -> State:
        """Plain numbers and lists of them."""
        return {
            "signals": {name: novelty.state_dict() for name, novelty in self.signals.items()},
            "jumps": self.jumps.state_dict(),
            "trial": self.trial,
            "tried": self.tried,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where another stood."""
        self.signals = {}
        for name, kept in state["signals"].items():
            self._novelty(name).load_state_dict(kept)
        self.jumps.load_state_dict(state["jumps"])
        self.trial, self.tried = state["trial"], state["tried"]
