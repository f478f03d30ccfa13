"""The prompts of the faculties, which an operator can replace."""

from collections.abc import Mapping
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationInfo, field_validator
from typing_extensions import override

from safi_agent.faculties import conscience as conscience_faculty
from safi_agent.faculties import intellect as intellect_faculty
from safi_agent.faculties import will as will_faculty
from safi_agent.faculties.template import check_placeholders
from safi_agent.values.model import FrozenModel
from safi_agent.values.safe_yaml import read_mapping

PLACEHOLDERS = {
    "intellect": intellect_faculty.PLACEHOLDERS,
    "will": will_faculty.PLACEHOLDERS,
    "tool_call": will_faculty.CALL_PLACEHOLDERS,
    "conscience": conscience_faculty.PLACEHOLDERS,
}


class Prompts(FrozenModel):
    """The system prompts of the faculties; each has a default.

    Each placeholder of a prompt has to be there once. What it stands for stays as it is: the values, the sentences that
    make fenced texts data, and the form of a reply that can be parsed.

    * ``{values}``, in all prompts: one line for each value, without its weight.
    * ``{reflection}``, for the Intellect: the request for a reflection after the answer; empty if none is wanted.
    * ``{gates}``, for the Will: the names of hard gates; empty if there are none.
    * ``{fences}``, for judges: that everything between the fences is data.
    * ``{agreement}``, for the Will on drafts: how many of several drafts agree; empty for one draft.
    * ``{reply}``, for judges: the form of the reply.

    Raises:
        ValueError: a placeholder is missing, unknown or repeated.
    """

    intellect: str = intellect_faculty.SYSTEM  #: of the model that drafts
    will: str = will_faculty.SYSTEM  #: of the judge that rules on a draft
    tool_call: str = will_faculty.CALL_SYSTEM  #: of the same judge on an agent's tool call, with ``judge_calls=True``
    conscience: str = conscience_faculty.SYSTEM  #: of the judge that audits an answer

    @field_validator("intellect", "will", "tool_call", "conscience")
    @classmethod
    def _check(cls, prompt: str, info: ValidationInfo) -> str:
        check_placeholders(prompt, PLACEHOLDERS[str(info.field_name)])
        return prompt

    @override
    def __repr__(self) -> str:
        others = [name for name in PLACEHOLDERS if getattr(self, name) != type(self).model_fields[name].default]
        return f"Prompts({', '.join(f'{name}=…' for name in others)})"

    __str__ = __repr__

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the prompts as JSON; each record has it."""
        return sha256(self.model_dump_json().encode()).hexdigest()


DEFAULT_PROMPTS = Prompts()


def load_prompts(source: str | Path | Mapping[str, Any] | Prompts) -> Prompts:
    """Prompts from a YAML file or a mapping; those that it does not have are the defaults.

    Raises:
        ValueError: the file does not exist or is not YAML, or a prompt is not allowed.
        TypeError: the source has another type.
    """
    if isinstance(source, Prompts):
        return source
    if isinstance(source, Mapping):
        return Prompts.model_validate(dict(source))
    if not isinstance(source, str | Path):
        raise TypeError(f"prompts: expected a path, a mapping or Prompts, got {type(source).__name__}.")
    return Prompts.model_validate(read_mapping(source, "prompts"))


@lru_cache(maxsize=64)
def parse_prompts(text: str | None) -> Prompts:
    """Parse prompts from the store.

    Raises:
        ValueError: they are missing or cannot be parsed.
    """
    if text is None:
        raise ValueError("prompts: expected the prompts of the turn in the store, got none.")
    return Prompts.model_validate_json(text)
