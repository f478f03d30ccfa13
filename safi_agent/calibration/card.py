"""A calibration card: how far judges agree with people, value by value, and on what that was measured."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from safi_agent.calibration.agreement import Interval
from safi_agent.errors import validation_message

Faculty = Literal["will", "conscience"]
FACULTIES: tuple[Faculty, ...] = get_args(Faculty)
ALL = "all values"
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class Agreement(BaseModel):
    """Agreement of one faculty with people on one value, or on all. Figures are None where they are undefined."""

    model_config = _FROZEN

    value: str  #: name, or "all values"
    faculty: Faculty
    labels: int  #: number of labels, of the Will on all values number of answers
    unscored: int  #: labels without a finding, which are not among ``labels``
    true_positives: int  #: people and judge say broken
    false_positives: int  #: the judge alone says so
    false_negatives: int  #: people alone say so
    true_negatives: int
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    alpha: float | None  #: Krippendorff's, nominal, of broken or not
    alpha_scores: float | None = None  #: ordinal, of the mean human score and the Conscience's
    alpha_raters: float | None = None  #: ordinal, of people among themselves, where several scored the same answer
    intervals: dict[str, Interval] = {}  #: 95 %, by the name of the figure

    @property
    def broken(self) -> int:
        """Number of labels by which the value is broken."""
        return self.true_positives + self.false_negatives


class Card(BaseModel):
    """What was measured, on what, and with what result."""

    model_config = _FROZEN

    format: Literal[1] = 1
    created: str  #: in UTC
    version: str  #: of the package
    labels_file: str  #: its name
    labels_sha256: str  #: of its bytes
    labels: int  #: number of labels
    answers: int  #: number of labelled answers
    prompts: int  #: number of different prompts
    judges: dict[str, str]  #: configured names, fingerprint of the values, hash of the prompts, settings
    models: dict[Faculty, list[str]]  #: names in the models' replies
    value_set: str  #: its name
    failed: int  #: answers without a judgement, since a model failed
    unclear: int  #: answers whose ruling by the Will was unclear, which is a violation
    unusable: int  #: answers whose ledger could not be used
    seconds: float  #: median time of a judgement, with others beside
    seed: int  #: of the division into halves and of the intervals
    threshold: float  #: a value counts as broken if the Conscience's score × confidence is below it
    chosen_on: int  #: labels on which the threshold was chosen, which are not in the Conscience's rows
    rows: list[Agreement]
    warnings: list[str] = []


def read_card(path: str | Path) -> Card:
    """Read a card.

    Raises:
        ValueError: the file is not a card.
        OSError: it cannot be read.
    """
    try:
        return Card.model_validate_json(Path(path).read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: expected a calibration card: {validation_message(error)[:200]}") from None
