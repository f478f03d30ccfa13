"""The human labels of a calibration: one JSON object per line, validated."""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from safi_agent.ledger import number
from safi_agent.values import ValueSet, label

LONGEST_INPUT = 60  # characters of a wrong input that an error quotes


class Label(BaseModel):
    """What people say of one answer on one value: scores of one or several raters, or a verdict.

    A score has the meaning and range of the Conscience's: -1 breaks the value, 1 affirms it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str  #: what the user asked
    answer: str = Field(min_length=1)  #: the answer that people judged
    value: str  #: name of a value of the set, in any spelling
    scores: tuple[float, ...] = ()  #: one for each rater, each in [-1, 1]
    verdict: Literal["approve", "violation"] | None = None  #: used where there are no scores
    context: str = ""  #: documents or earlier messages that the judges get too
    id: str = ""  #: of the turn, for the reader; not used

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.scores) == (self.verdict is not None):
            raise ValueError("Expected either scores or a verdict.")
        for score in self.scores:
            if number(score, -1, 1) is None:
                raise ValueError(f"Expected scores in [-1, 1], got {score!r}.")
        return self

    @property
    def score(self) -> float:
        """The mean score in [-1, 1]; of a verdict 1 (approve) or -1 (violation)."""
        if self.verdict is not None:
            return 1.0 if self.verdict == "approve" else -1.0
        return sum(self.scores) / len(self.scores)

    @property
    def broken(self) -> bool:
        """Whether the value is broken: the mean score is below 0."""
        return self.score < 0

    @property
    def case(self) -> "Case":
        """What the judges get."""
        return Case(self.prompt, self.context, self.answer)


class Case(NamedTuple):
    """One answer to judge, with its prompt and context."""

    prompt: str
    context: str
    answer: str

    @property
    def id(self) -> str:
        """Identifies the case in the file of judgements: the first 128 bits of a SHA-256 of its texts."""
        sizes = "".join(f"{len(text)}:" for text in self)
        return sha256((sizes + "".join(self)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Labels(NamedTuple):
    """The labels of a file, and the SHA-256 of its bytes."""

    rows: tuple[Label, ...]
    sha256: str

    def cases(self) -> dict[Case, tuple[Label, ...]]:
        """Each answer with its labels, in the order of the file."""
        grouped: dict[Case, list[Label]] = {}
        for row in self.rows:
            grouped.setdefault(row.case, []).append(row)
        return {case: tuple(rows) for case, rows in grouped.items()}


def read_labels(path: str | Path, values: ValueSet) -> Labels:
    """Read and validate a file of labels, in JSON Lines.

    Raises:
        ValueError: a line is not a label of a value of the set, two lines label the same answer on the same value, or
            there is no label; the message names the file, the line and the field.
        OSError: the file cannot be read.
    """
    path = Path(path)
    content = path.read_bytes()
    rows = tuple(_rows(path, content, values))
    if not rows:
        raise ValueError(f"{path}: expected at least one label, got an empty file.")
    return Labels(rows, sha256(content).hexdigest())


def _rows(path: Path, content: bytes, values: ValueSet) -> Iterator[Label]:
    names = {value.key: value.name for value in values.values}
    lines: dict[tuple[Case, str], int] = {}
    for line, text in enumerate(content.splitlines(), 1):
        if not text.strip():
            continue
        try:
            row = Label.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"{path}, line {line}: {_message(error)}") from None
        name = names.get(label(row.value))
        if name is None:
            expected = f"expected one of {list(names.values())}"
            raise ValueError(f"{path}, line {line}: value: {expected}, got {_short(row.value)}.")
        row = row.model_copy(update={"value": name})
        earlier = lines.setdefault((row.case, name), line)
        if earlier != line:
            raise ValueError(
                f"{path}, line {line}: the same answer has a label on {name!r} in line {earlier}; "
                "write the scores of several raters into one line."
            )
        yield row


def _message(error: ValidationError) -> str:
    """The first wrong field, what is expected and what came, shortened."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if not field or first["type"] == "missing":
        return f"{field}: {message}." if field else message
    return f"{field}: {message}, got {_short(first['input'])}."


def _short(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= LONGEST_INPUT else f"{text[:LONGEST_INPUT]}…"


def write_labels(rows: Iterable[Label], path: str | Path) -> None:
    """Write labels as JSON Lines, without fields that have their default."""
    lines = (row.model_dump_json(exclude_defaults=True) for row in rows)
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
