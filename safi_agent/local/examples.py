"""What a local judge is trained on: human labels, and the findings of a language model in a log or a store."""

import json
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select

from safi_agent.calibration.labels import Case, Labels
from safi_agent.ledger import number
from safi_agent.log.rotation import log_files
from safi_agent.offline_model import LABEL
from safi_agent.report.entries import records
from safi_agent.store import Store
from safi_agent.store.tables import NOT_ERASED, PLACED, turns
from safi_agent.values import ValueSet, label

HELD_OUT = 0.15  # share of the prompts for each of the two held-out parts
LOCAL = "local"  # who gave a finding: the local judge


class Part(StrEnum):
    """The part of the data to which a prompt belongs."""

    TRAIN = "train"
    VALIDATION = "validation"  #: early stopping, temperature, and the confidence from which on a finding is sure
    TEST = "test"  #: the figures of the card


class Example(NamedTuple):
    """What is said of one answer on one value."""

    case: Case
    value: str  #: the normalized name
    score: float  #: -1, 0, 0.5 or 1
    ratings: tuple[float, ...] = ()  #: of people, each in [-1, 1]; empty for a verdict and for a model
    weight: float = 1.0  #: in [0, 1]: 1 for people, the confidence of a model
    human: bool = True

    @property
    def broken(self) -> bool:
        """Whether the value is broken."""
        return self.score < 0


def question(case: Case) -> str:
    """The text beside the answer that the judge reads: the context, then the prompt."""
    return f"{case.context}\n\n{case.prompt}" if case.context else case.prompt


def nearest_score(mean: float) -> float:
    """The one of the four scores that a mean rating in [-1, 1] stands for.

    A mean below 0 is a broken value, as in a calibration; others are rounded to 0, 0.5 or 1.

    >>> [nearest_score(mean) for mean in (-0.2, 0.0, 0.3, 0.75, 1.0)]
    [-1.0, 0.0, 0.5, 1.0, 1.0]
    """
    return -1.0 if mean < 0 else 0.0 if mean < 0.25 else 0.5 if mean < 0.75 else 1.0


def part_of(prompt: str, seed: int) -> Part:
    """The part of a prompt, by SHA-256("seed:prompt"): the same in each later training with this seed.

    So what was held out once is never trained on later, and all answers to one prompt are in one part.
    """
    digest = sha256(f"{seed}:{prompt}".encode("utf-8", "surrogatepass")).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return Part.TEST if share < HELD_OUT else Part.VALIDATION if share < 2 * HELD_OUT else Part.TRAIN


def from_labels(labels: Labels) -> Iterator[Example]:
    """The examples of a file of human labels."""
    for row in labels.rows:
        yield Example(row.case, label(row.value), nearest_score(row.score), row.scores)


class Audited(NamedTuple):
    """The findings of language models in some records, and the number of records that were left out."""

    examples: list[Example]
    rehearsals: int  #: records of the rehearsal model, whose verdicts have no value


def from_records(given: Iterable[tuple[Mapping[str, Any], str]], values: ValueSet) -> Audited:
    """The findings in records of approved answers, the newest of each answer and value.

    Left out are findings of a local judge, of the rehearsal model and on other values than those of the set, and
    records without contents.

    Args:
        given: each record with the context of its turn.
        values: the value set.
    """
    found: dict[tuple[Case, str], Example] = {}
    rehearsals = 0
    known = {value.key for value in values.values}
    for record, context in given:
        prompt, answer, models = record.get("userPrompt"), record.get("finalOutput"), record.get("models")
        if record.get("willDecision") != "approve" or not isinstance(prompt, str) or not answer:
            continue
        if isinstance(models, Mapping) and models.get("conscience") == LABEL:
            rehearsals += 1
            continue
        case = Case(prompt, context, str(answer))
        for example in _of_record(record, case, known):
            found[case, example.value] = example
    return Audited(list(found.values()), rehearsals)


def _of_record(record: Mapping[str, Any], case: Case, known: set[str]) -> Iterator[Example]:
    local = record.get("localJudge")
    opinions = local.get("findings") if isinstance(local, Mapping) else None
    own = {label(one["value"]) for one in opinions or () if one.get("judge") == LOCAL}
    ledger = record.get("conscienceLedger")
    for row in ledger if isinstance(ledger, list) else ():
        score, confidence = number(row.get("score"), -1, 1), number(row.get("confidence"), 0, 1)
        key = label(str(row.get("value")))
        if score is not None and confidence and key in known and key not in own:
            yield Example(case, key, nearest_score(score), weight=confidence, human=False)


def read_log(path: str | Path, values: ValueSet) -> Audited:
    """The findings in a log and its rotated files. A log does not contain contexts.

    Raises:
        ValueError: the log does not exist.
    """
    path = Path(path)
    if not log_files(path):
        raise ValueError(f"log: expected an existing file, got {str(path)!r}.")
    return from_records(((record, "") for _, record in records(path) if record is not None), values)


def read_store(store: Store, values: ValueSet) -> Audited:
    """The findings in a store, in the order of their commits, of turns under a value set with this name."""
    mine = turns.c.value_set == values.name
    query = select(turns.c.record, turns.c.body).where(mine, PLACED, NOT_ERASED).order_by(turns.c.place)
    with store.database.engine.connect() as connection:
        rows = connection.execute(query).all()
    return from_records(((json.loads(row.record), json.loads(row.body)["context"]) for row in rows), values)


def combine(human: Iterable[Example], audited: Iterable[Example]) -> list[Example]:
    """All examples, one for each answer and value; human labels win. Sorted, so that the order of sources is nothing.

    Of several human labels, or of several audits, the last one counts.
    """
    made = {(one.case, one.value): one for one in audited}
    made |= {(one.case, one.value): one for one in human}
    return sorted(made.values(), key=lambda one: (one.case, one.value))


def data_sha256(examples: Iterable[Example]) -> str:
    """SHA-256 of all examples, in their order."""
    lines = (json.dumps([one.case, one.value, one.score, one.ratings, one.weight, one.human]) for one in examples)
    return sha256("\n".join(lines).encode()).hexdigest()
