"""A turn begins: what was asked, under the id and the memory key that the config names."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

from safi_agent.inputs import SafiInput, read_input
from safi_agent.record import now
from safi_agent.release import check_same, message
from safi_agent.store import Store
from safi_agent.text import LONGEST_NAME, is_name
from safi_agent.turn import Turn

KEY, TURN_ID = "safi_key", "safi_turn_id"


def new_turn(given: SafiInput, config: RunnableConfig, store: Store, usual_key: str) -> Turn:
    """A turn of its own id where none is named, and of the usual key.

    Raises:
        TypeError, ValueError: the input is of another form, has no text, or a name cannot be one.
    """
    request, key = read_input(given), key_of(config, usual_key)
    return {
        "id": _named(config, TURN_ID, "") or str(uuid4()),
        "key": key,
        "time": now(),
        "prompt": request.prompt,
        "messages": request.messages,
        "context": request.context,
        "metadata": request.metadata,
        "coaching": store.note(key),
    }


def answered_before(turn: Turn, config: RunnableConfig, store: Store) -> AIMessage | None:
    """The answer that a named turn has had; None for one that is new.

    Raises:
        ValueError: its id was used for another prompt or key.
    """
    before = store.find(turn["id"]) if is_named(config) else None
    if before is None:
        return None
    number, kept = before
    check_same(kept, turn)
    return message(kept, number)


def key_of(config: RunnableConfig, usual: str) -> str:
    """The memory key that the config names."""
    return _named(config, KEY, usual)


def is_named(config: RunnableConfig) -> bool:
    """Whether the config names the turn, which may then have been answered before."""
    return TURN_ID in _asked(config)


def _asked(config: RunnableConfig) -> Mapping[str, Any]:
    return config.get("configurable") or {}


def _named(config: RunnableConfig, argument: str, default: str) -> str:
    asked = _asked(config)
    name: str = asked.get(argument, default)
    if argument in asked and not (isinstance(name, str) and is_name(name)):
        raise ValueError(f"{argument}: expected 1 to {LONGEST_NAME} printable characters, got {name!r}.")
    return name
