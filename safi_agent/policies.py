"""The policies of an operator in a YAML file, for commands that create a chain."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from safi_agent import defaults
from safi_agent.prompts import DEFAULT_PROMPTS, Prompts, load_prompts
from safi_agent.release import RefusedRecord, WillMode
from safi_agent.sampling import EVERY_ANSWER, Sampling
from safi_agent.values.model import FrozenModel
from safi_agent.values.safe_yaml import read_mapping


class Policies(FrozenModel):
    """Settings of a chain, under the same names and with the same defaults."""

    will_mode: WillMode = defaults.WILL_MODE
    outage_message: str | None = None
    refused: RefusedRecord = defaults.REFUSED
    sampling: Sampling = EVERY_ANSWER
    prompts: Annotated[Prompts, BeforeValidator(load_prompts)] = DEFAULT_PROMPTS

    def settings(self) -> dict[str, Any]:
        """The arguments for ``create_safi_chain``."""
        return {name: getattr(self, name) for name in type(self).model_fields}


def load_policies(path: str | Path | None) -> Policies:
    """The policies in a YAML file; the defaults for None.

    Raises:
        ValueError: the file does not exist or is not YAML, or a policy is unknown or not allowed.
    """
    return Policies() if path is None else Policies.model_validate(read_mapping(path, "policies"))
