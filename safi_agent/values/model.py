"""Value and ValueSet: names, weights, hard gates, and the rules that are applied without a judge."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import override

from safi_agent.patterns import compiled
from safi_agent.unicode_text import LONGEST_NAME, is_name, visible_characters

TOLERANCE = 1e-6
MOST_VALUES = 1_000  # a judge scores all of them in one reply
REFUSAL = "I can't give an answer to this that keeps to the values I am held to."
_DASHES = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")


@lru_cache(maxsize=4 * MOST_VALUES)
def label(name: str) -> str:
    """The normalized name of a value, by which μ and ledgers are keyed.

    Case, width, kinds of dashes, spaces and invisible characters make no difference.

    >>> label("Non\u2013Discrimi\u200bnation   and Equity")
    'non-discrimination and equity'
    """
    folded = _DASHES.sub("-", unicodedata.normalize("NFKC", visible_characters(name))).casefold()
    return " ".join(visible_characters(unicodedata.normalize("NFKC", folded)).split())


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            compiled(pattern)
        except ValueError as error:
            raise ValueError(f"Expected regular expressions, got {pattern!r}: {error}.") from None
    return patterns


def wrong_names(keys: Sequence[str]) -> Iterator[str]:
    """Errors of the normalized names as a whole."""
    if twice := sorted(key for key, count in Counter(keys).items() if count > 1):
        yield f"Expected names that differ after normalisation, got more than once: {twice}."


def wrong_count(values: Any) -> str | None:
    """The error if there are too many values; None otherwise, or if it is not a list."""
    if isinstance(values, list | tuple) and len(values) > MOST_VALUES:
        return f"Expected at most {MOST_VALUES:,} values, got {len(values):,}."
    return None


def wrong_weights(weights: Sequence[float]) -> Iterator[str]:
    """Errors of the weights as a whole."""
    total = math.fsum(weights)
    if not any(weights):
        yield "Expected at least one value with a weight above 0, got none."
    elif abs(total - 1) > TOLERANCE:
        yield f"Expected weights that sum to 1 (within {TOLERANCE}), got {total}; see normalize=True."


class FrozenModel(BaseModel):
    """An immutable model; ``model_copy`` validates the copy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A validated copy with some fields changed; pydantic's own would keep the old fingerprint.

        Raises:
            ValueError: the copy is invalid.
        """
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **(update or {})})


class Value(FrozenModel):
    """One value. Weight 0 makes it a hard gate: never averaged, and broken once is a violation."""

    name: str  #: with letters in it; case, spaces and kinds of dashes make no difference
    description: str = ""  #: what it means
    weight: float = Field(ge=0, le=1, allow_inf_nan=False)  #: in [0, 1]; 0 makes a hard gate
    rubric: str = ""  #: replaces the description in the prompts of the model and the judges
    vetoes: tuple[str, ...] = ()  #: patterns; a draft that matches one is refused without asking a judge

    _vetoes = field_validator("vetoes")(_patterns)

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        if not label(name):
            raise ValueError(f"Expected a name with letters, got {name!r}.")
        return name

    @property
    def key(self) -> str:
        """The normalised name."""
        return label(self.name)

    @property
    def gate(self) -> bool:
        """Whether it is a hard gate."""
        return self.weight == 0


class ValueSet(FrozenModel):
    """A declared set of values whose weights sum to 1, with its refusal and its deterministic rules.

    Raises:
        ValueError: the weights do not sum to 1 within 1e-6, names are equal, there are more than 1,000 values, or a
            pattern is not a regular expression.
    """

    name: str  #: of 1 to 200 printable characters; also the memory key of turns that name none
    description: str = ""  #: for people
    values: tuple[Value, ...]  #: in the order in which judges are asked
    refusal: str = Field(default=REFUSAL, min_length=1)  #: what leaves in place of a draft that is not approved
    forbidden: tuple[str, ...] = ()  #: patterns that no draft may match
    disclaimers: tuple[str, ...] = ()  #: texts that every answer carries
    max_chars: int = Field(default=20_000, gt=0)  #: of a draft; a longer one is refused

    _forbidden = field_validator("forbidden")(_patterns)

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        if not is_name(name):
            raise ValueError(f"Expected 1 to {LONGEST_NAME} printable characters, got {name!r}.")
        return name

    @field_validator("values", mode="before")
    @classmethod
    def _counted(cls, values: Any) -> Any:
        """Check the number of values before each is validated."""
        if wrong := wrong_count(values):
            raise ValueError(wrong)
        return values

    @field_validator("disclaimers")
    @classmethod
    def _check_disclaimers(cls, disclaimers: tuple[str, ...]) -> tuple[str, ...]:
        if not all(text.strip() for text in disclaimers):
            raise ValueError(f"Expected disclaimers with text, got {disclaimers!r}.")
        return disclaimers

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        wrong = [*wrong_names([v.key for v in self.values]), *wrong_weights([v.weight for v in self.values])]
        if wrong:
            raise ValueError(" ".join(wrong))
        return self

    @property
    def scored(self) -> tuple[Value, ...]:
        """The values that count in the mean."""
        return tuple(value for value in self.values if not value.gate)

    @property
    def gates(self) -> tuple[Value, ...]:
        """The hard gates."""
        return tuple(value for value in self.values if value.gate)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content, cached since every record contains it."""
        return sha256(self.model_dump_json().encode()).hexdigest()
