"""Let the Will and the Conscience judge labelled answers, concurrently; judgements are kept in a file as they come."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from langchain_core.messages import BaseMessage
from pydantic import BaseModel, ConfigDict

from safi_agent.calibration.labels import Case, Label
from safi_agent.errors import ConscienceError, SafiError
from safi_agent.faculties import conscience, will
from safi_agent.faculties.conscience import Calls, Conscience, ScoreMode
from safi_agent.faculties.judge import Judge
from safi_agent.faculties.structured_output import Model
from safi_agent.faculties.will import Will
from safi_agent.ledger import ContinuousFinding, Finding
from safi_agent.models import model_label
from safi_agent.prompts import DEFAULT_PROMPTS, Prompts
from safi_agent.turn import Decision, Draft, Turn
from safi_agent.values import ValueSet

MOST_FAILURES = 10  # cases in a row whose model failed, after which no further one is tried
log = logging.getLogger("safi_agent")


class Judgement(BaseModel):
    """What the judges say of one case. ``findings`` is empty if the Conscience's reply could not be used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str  #: ``Case.id``
    decision: Decision  #: of the Will
    code: str  #: the rule that decided, or "judge"
    findings: tuple[ContinuousFinding, ...]  #: of the Conscience, at most one per value
    asked: tuple[str, ...] | None = None  #: names of the values that the Conscience was asked about; None: all
    will_model: str = ""  #: name in the model's reply
    conscience_model: str = ""
    seconds: float  #: that the judges took, with other cases at the same time


@dataclass(frozen=True)
class Judges:
    """The judges of a chain with these models. With ``calls="each"`` only labelled values are asked about."""

    values: ValueSet
    will_model: Model
    conscience_model: Model
    calls: Calls = "all"
    score_mode: ScoreMode = "discrete"
    prompts: Prompts = DEFAULT_PROMPTS
    _single: dict[str, Conscience] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def will(self) -> Will:
        """The Will, without the reflection, which labelled answers do not have.

        Disclaimers are not required, since the chain adds them itself.
        """
        judge = Judge.of(self.will_model, will.schema(self.values), retry=False)
        values = self.values.model_copy(update={"disclaimers": ()})
        return Will(judge, values, show_reflection=False, system_prompt=self.prompts.will)

    @cached_property
    def conscience(self) -> Conscience:
        """The Conscience on all values in one call."""
        return self._conscience(self.values)

    def _conscience(self, values: ValueSet) -> Conscience:
        return Conscience(
            self._conscience_judge, values, score_mode=self.score_mode, system_prompt=self.prompts.conscience
        )

    def conscience_on(self, name: str) -> Conscience:
        """The Conscience on one value."""
        if name not in self._single:
            value = next(value for value in self.values.values if value.name == name)
            alone = self.values.model_copy(update={"values": (value.model_copy(update={"weight": 1.0}),)})
            self._single[name] = self._conscience(alone)
        return self._single[name]

    @cached_property
    def _conscience_judge(self) -> Judge:
        return Judge.of(self.conscience_model, conscience.SCHEMA, retry=True)

    @cached_property
    def description(self) -> dict[str, str]:
        """What judgements depend on: names of the models, value set, prompts, calls, scores."""
        return {
            "will": model_label(self.will_model),
            "conscience": model_label(self.conscience_model),
            "values": self.values.fingerprint,
            "prompts": self._prompts_sha256(),
            "calls": self.calls,
            "scores": self.score_mode,
        }

    def _prompts_sha256(self) -> str:
        """SHA-256 of all that the judges get for an empty case."""
        turn = _turn(Case("", "", ""))
        consciences = (
            [self.conscience] if self.calls == "all" else [self.conscience_on(v.name) for v in self.values.values]
        )
        messages: list[BaseMessage] = self.will._messages(turn)
        for asked in consciences:
            messages += asked._messages(turn, asked.values.values)
        return sha256(json.dumps([str(message.text) for message in messages]).encode()).hexdigest()

    def judge(self, case: Case, names: Sequence[str]) -> Judgement:
        """Judge a case; ``names`` are the values with labels.

        Raises:
            Exception: any exception of a model, and JudgeFailedError for one that the Will has caught.
        """
        turn, start = _turn(case), time.perf_counter()
        consciences = [self.conscience] if self.calls == "all" else [self.conscience_on(name) for name in names]
        verdict = self.will.compute(turn, {})
        if verdict.code == "judge_failed":
            raise JudgeFailedError(verdict.reason)
        ledgers = [_ledger(asked, turn) for asked in consciences]
        models = dict.fromkeys(model for _, model in ledgers if model)
        return Judgement(
            case=case.id,
            decision=verdict.decision,
            code=verdict.code,
            findings=tuple(
                ContinuousFinding(**finding.model_dump()) for findings, _ in ledgers for finding in findings
            ),
            asked=None if self.calls == "all" else tuple(names),
            will_model=verdict.model,
            conscience_model=", ".join(models),
            seconds=round(time.perf_counter() - start, 3),
        )


class JudgeFailedError(SafiError):
    """The Will's model failed, so that a case has no judgement."""


def _turn(case: Case) -> Turn:
    return {"prompt": case.prompt, "context": case.context, "draft": Draft(case.answer)}


def _ledger(asked: Conscience, turn: Turn) -> tuple[list[Finding], str]:
    """The findings and the model's name; none if the reply could not be used."""
    try:
        findings = asked.compute(turn, {})
    except ConscienceError:
        return [], ""
    return list(findings), findings.model


def judge_cases(
    cases: Mapping[Case, Iterable[Label]],
    judges: Judges,
    file: str | Path,
    at_once: int = 8,
    advance: Callable[[], None] = lambda: None,
) -> dict[Case, Judgement]:
    """Judge all cases that the file has no judgement of, and append each judgement to it at once.

    A case with labels on further values is judged again where a call is about one value.

    Args:
        cases: each case with its labels.
        judges: the judges.
        file: JSON Lines; the first line describes the judges. It is created if there is none.
        at_once: largest number of cases that are judged concurrently.
        advance: called for each case when it is judged, has failed or was judged before.

    Returns:
        The judgements by case, without cases whose model failed; a later call tries those again.

    Raises:
        ValueError: ``at_once`` is below 1, or the file is of other judges or of something else.
        SafiError: the models of ``MOST_FAILURES`` cases in a row failed.
    """
    if at_once < 1:
        raise ValueError(f"at_once: expected at least 1, got {at_once}.")
    by_id = {case.id: case for case in cases}
    with _opened(Path(file), judges.description) as (output, judged):
        names = {case: tuple(dict.fromkeys(row.value for row in rows)) for case, rows in cases.items()}
        known = {by_id[one.case]: one for one in judged if one.case in by_id}
        found = {case: one for case, one in known.items() if one.asked is None or set(names[case]) <= set(one.asked)}
        for _ in found:
            advance()
        lock, failures = threading.Lock(), [0]

        def one(case: Case) -> None:
            if failures[0] >= MOST_FAILURES:
                return
            try:
                judgement = judges.judge(case, names[case])
            except Exception as error:
                log.warning("A judge's model failed on a case, which is left out: %s", type(error).__name__)
                with lock:
                    failures[0] += 1
                    advance()
                return
            with lock:
                failures[0] = 0
                found[case] = judgement
                output.write(judgement.model_dump_json().encode() + b"\n")
                output.flush()
                advance()

        pool = ThreadPoolExecutor(at_once, "safi-calibrate")
        try:
            list(pool.map(one, [case for case in cases if case not in found]))
        finally:  # after Ctrl-C, cases that are being judged are completed and kept
            pool.shutdown(cancel_futures=True)
    if failures[0] >= MOST_FAILURES:
        raise SafiError(
            f"The judges' models failed on {failures[0]} cases in a row; {len(found)} of {len(cases)} are judged and "
            f"kept in {file}. Causes are in the logger 'safi_agent'; the same command continues."
        )
    return found


@contextmanager
def _opened(file: Path, description: Mapping[str, str]) -> Iterator[tuple[BinaryIO, list[Judgement]]]:
    """The file, open to be appended to, and its judgements; an incomplete last line is removed.

    Raises:
        ValueError: the file is not one of judgements, or of other judges.
    """
    header = json.dumps({"judges": description}).encode() + b"\n"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)  # reasons quote answers
    with os.fdopen(descriptor, "r+b") as output:
        content = output.read()
        whole = content[: content.rfind(b"\n") + 1]
        judged = _parsed(file, whole, description) if whole else []
        if not whole and not header.startswith(content):
            raise ValueError(f"{file}: expected a file of judgements, got something else.")
        output.seek(len(whole))
        output.truncate()
        if not whole:
            output.write(header)
            output.flush()
        yield output, judged


def _parsed(file: Path, content: bytes, description: Mapping[str, str]) -> list[Judgement]:
    first, *lines = content.splitlines()
    try:
        given = dict(json.loads(first)["judges"])
        judged = [Judgement.model_validate_json(line) for line in lines]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{file}: expected a file of judgements, got something else.") from None
    if changed := [name for name, text in description.items() if given.get(name) != text]:
        raise ValueError(
            f"{file}: its judgements are of judges with other {', '.join(changed)}; name another file or move this one."
        )
    return judged
