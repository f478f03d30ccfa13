"""Conscience with a local judge: what it is sure of is its finding, the rest is asked of a language model."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from langchain_core.runnables import RunnableConfig
from typing_extensions import override

from safi_agent.calibration.labels import Case
from safi_agent.errors import ConscienceError
from safi_agent.faculties.base import Faculty
from safi_agent.faculties.conscience import Calls, Conscience, ScoreMode
from safi_agent.faculties.judge import Judge
from safi_agent.ledger import Finding, Findings, read_ledger
from safi_agent.models import LOCAL_PREFIX
from safi_agent.turn import Turn
from safi_agent.values import Value, ValueSet

if TYPE_CHECKING:
    from safi_agent.local.judge import LocalJudge, Opinion, Reading

LOCAL = "local"  # who gave a finding
SHORT = 12  # digits of a card's hash in the name of a model
LEAST_COMPARED = 20  # findings before there is a running disagreement
DECAY = 0.98  # of the running disagreement: about the last fifty findings


def load_local(name: object) -> "LocalJudge":
    """The local judge of a name for which ``is_local``.

    Raises:
        ImportError: torch or transformers is not installed.
        ValueError: there is no judge in the folder.
    """
    from safi_agent.local.judge import LocalJudge

    return LocalJudge.load(str(name).removeprefix(LOCAL_PREFIX))


def local_name(judge: "LocalJudge") -> str:
    """The name of a local judge in records: the first digits of its card's hash."""
    return f"{LOCAL_PREFIX}{judge.card_sha256[:SHORT]}"


class Disagreement:
    """The running share of findings on which the local judge was sure and the language model disagreed.

    It is of this process. Thread-safe.
    """

    def __init__(self) -> None:
        self._share, self._weight, self._count = 0.0, 0.0, 0
        self._lock = threading.Lock()

    def update(self, disagrees: Sequence[bool]) -> float | None:
        """Add some comparisons; returns the running share in [0, 1], None before there were twenty."""
        with self._lock:
            for one in disagrees:
                self._share = DECAY * self._share + (1 - DECAY) * one
                self._weight = DECAY * self._weight + (1 - DECAY)
                self._count += 1
            return round(self._share / self._weight, 4) if self._count >= LEAST_COMPARED else None


class _Plan(NamedTuple):
    """What the local judge says of a turn, and the values that the language model is asked about."""

    reading: "Reading"
    sure: frozenset[str]  # by normalized name
    asked: tuple[Value, ...]
    checked: bool


@dataclass(frozen=True, eq=False)
class LocalConscience(Faculty):
    """Adds ``ledger``: findings of a local judge, and of a language model where the local judge is not sure.

    It is not sure of values below the confidence of its card, of values that it was not trained on, and of any value
    if the prompt is new to it. Without a language model such values are not scored.

    Args:
        local: the local judge.
        values: the value set.
        model: the Conscience that is asked, with the same value set; None for none.
        check_share: share of the turns, in [0, 1], in which the language model is asked about all values, so that
            agreement can be measured where the local judge is sure too. Its findings are then the ledger's.
        disagreement: where comparisons are counted.

    Raises ConscienceError if the language model was asked and too few values could be scored, and any exception of it.
    """

    local: "LocalJudge"
    values: ValueSet
    model: Conscience | None = None
    check_share: float = 0.0
    disagreement: Disagreement = field(default_factory=Disagreement)

    output_key = "ledger"
    span_name = "Conscience"

    @override
    def compute(self, turn: Turn, config: RunnableConfig) -> Findings:
        plan = self._read(turn)
        return self._findings(
            plan, self.model.ask_about(turn, plan.asked, config) if plan.asked and self.model else None
        )

    @override
    async def acompute(self, turn: Turn, config: RunnableConfig) -> Findings:
        plan = await asyncio.to_thread(self._read, turn)
        asked = await self.model.aask_about(turn, plan.asked, config) if plan.asked and self.model else None
        return self._findings(plan, asked)

    def _read(self, turn: Turn) -> _Plan:
        (reading,) = self.local.read([Case(turn["prompt"], turn["context"], turn["draft"].answer)])
        opinions = {} if reading.new else reading.opinions
        sure = frozenset(key for key, one in opinions.items() if one.sure)
        checked = self.model is not None and self._is_checked(turn.get("id", ""))
        asked = tuple(value for value in self.values.values if checked or value.key not in sure)
        return _Plan(reading, sure, asked, checked)

    def _is_checked(self, turn_id: str) -> bool:
        """By the turn's id, so that a repeated attempt decides the same."""
        return int.from_bytes(sha256(f"check:{turn_id}".encode()).digest()[:8], "big") < self.check_share * 2**64

    def _findings(self, plan: _Plan, asked: Findings | None) -> Findings:
        """The ledger of both judges, and the ``localJudge`` of the record."""
        opinions = plan.reading.opinions
        given = read_ledger(asked or (), self.values).findings if asked is not None else {}
        own = {
            value.key: self._finding(opinions[value.key], value)
            for value in self.values.values
            if value.key in plan.sure and value.key not in given
        }
        ledger = read_ledger([*given.values(), *own.values()], self.values)
        if asked is not None and not ledger.covered:
            raise ConscienceError(f"No usable score for {len(ledger.unscored)} of {len(self.values.values)} values.")
        model = asked.model if asked is not None else ""
        compared = [
            (opinions[key].score < 0) != (given[key].score < 0) for key in plan.sure if key in given and plan.checked
        ]
        rows = [
            {
                "value": value.name,
                "score": opinions[value.key].score if value.key in opinions else None,
                "confidence": opinions[value.key].confidence if value.key in opinions else None,
                "sure": value.key in plan.sure,
                "judge": LOCAL if value.key in own else (model or "model") if value.key in given else None,
            }
            for value in self.values.values
        ]
        names = ", ".join(filter(None, [local_name(self.local), model]))
        made = Findings(ledger.findings.values(), names, None if asked is None else asked.usage)
        made.local = {
            "card": self.local.card_sha256,
            "novelty": plan.reading.novelty,
            "new": plan.reading.new,
            "checked": plan.checked,
            "disagreement": self.disagreement.update(compared) if compared else None,
            "findings": rows,
        }
        return made

    def _finding(self, one: "Opinion", value: Value) -> Finding:
        names = ("-1", "0", "0.5", "1")
        shown = ", ".join(f"{name}: {p:.2f}" for name, p in zip(names, one.probabilities, strict=True))
        return Finding(
            value=value.name, score=one.score, confidence=one.confidence, reason=f"Probabilities of the scores {shown}."
        )


def conscience_for(
    judge: Judge | None, local: "LocalJudge | None", calls: Calls, score_mode: ScoreMode, check_share: float
) -> Callable[[ValueSet, str], Faculty]:
    """Creates the Conscience of a value set and a system prompt: of a language model, of a local judge, or of both.

    Raises:
        ValueError: there is neither.
    """
    if judge is None and local is None:
        raise ValueError("judge: expected a language model or a local judge, got neither.")
    disagreement = Disagreement()

    def conscience(values: ValueSet, prompt: str) -> Faculty:
        model = None if judge is None else Conscience(judge, values, calls, score_mode, prompt)
        if local is None:
            assert model is not None
            return model
        return LocalConscience(local, values, model, check_share, disagreement)

    return conscience
