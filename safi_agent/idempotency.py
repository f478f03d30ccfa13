"""Idempotent turns: a request with a ``safi_turn_id`` is answered once, and a repetition from the store.

``safi_turn_id`` is an idempotency key: a repeated request returns the stored answer. Several turns may share one key:
the prompts of a batch, the nodes of a graph, a governed agent that is called by a tool of another one. The turn that is
stored first has the key itself as its id. Every other turn has an id derived from the key and its request, and so has
every turn started within a governed one. If all of it is repeated, in any order and in any process, each turn is
found by its request.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.utils.utils import LC_AUTO_PREFIX

from safi_agent.inputs import SafiInput, read_input
from safi_agent.record import utc_now
from safi_agent.release import answer_message, is_same_turn, with_spare_id
from safi_agent.store import Store
from safi_agent.turn import Turn
from safi_agent.unicode_text import LONGEST_NAME, is_name

KEY, TURN_ID = "safi_key", "safi_turn_id"

# By ``safi_turn_id``: the prefix of the ids of turns that are started within a governed turn.
_scopes: ContextVar[Mapping[str, str]] = ContextVar("safi_scopes", default={})  # noqa: B039 (it is never changed)


class TurnName(NamedTuple):
    """The id of a turn; with a ``safi_turn_id`` also ``asked`` and ``spare`` of the turn.

    ``asked`` leaves out earlier attempts at the same prompt, which a conversation that is kept by a checkpointer or a
    message history contains when a request is sent again; ``spare`` is derived from exactly the given messages.
    """

    id: str
    asked: str = ""
    spare: str = ""

    @property
    def text(self) -> str:
        """The name as one string, for an agent's state; the plain id if there is nothing else."""
        return json.dumps(self) if self.asked else self.id

    @classmethod
    def read(cls, text: str) -> "TurnName":
        """Parse ``text``; any other string is an id."""
        try:
            return cls(*json.loads(text)) if text.startswith("[") else cls(text)
        except (ValueError, TypeError):
            return cls(text)


def turn_name(
    config: RunnableConfig, messages: Sequence[BaseMessage], key: str, value_set: str, place: Sequence[str] = ()
) -> TurnName:
    """The name of a turn, from the config's ``safi_turn_id``; a new id without one.

    Args:
        config: the config of the call.
        messages: the whole conversation.
        key: the memory key.
        value_set: the name of the value set.
        place: what distinguishes this turn from others with the same input, such as a node of a graph.

    Raises:
        ValueError: the name is not 1 to 200 printable characters.
    """
    turn_id = _named(config, TURN_ID, "")
    if not turn_id:
        return TurnName(str(uuid4()))
    scope = _scopes.get().get(turn_id)
    exactly = f"{scope or turn_id}/{_digest(messages, key, value_set, *place)}"
    if scope is not None:
        return TurnName(exactly, exactly)
    again = f"{turn_id}/{_digest(_without_attempts(messages), key, value_set, *place)}"
    return TurnName(turn_id, again, exactly)


def new_turn(
    input: SafiInput, config: RunnableConfig, value_set: str, note: str = "", name: TurnName | None = None
) -> Turn:
    """Create a turn; the default memory key is the name of the value set.

    ``note`` is the feedback note; ``name`` replaces the name that is derived from the config and the input.

    Raises:
        TypeError, ValueError: the input is of another form, has no text, or a name cannot be one.
    """
    request, key = read_input(input), memory_key(config, value_set)
    if name is None:
        name = turn_name(config, request.messages, key, value_set, ["chain", *node_path(config)])
    return {
        "id": name.id,
        "asked": name.asked,
        "spare": name.spare,
        "key": key,
        "time": utc_now(),
        "prompt": request.prompt,
        "messages": request.messages,
        "context": request.context,
        "not_shown": request.not_shown,
        "metadata": request.metadata,
        "feedback": note,
    }


def find_earlier_answer(turn: Turn, store: Store) -> tuple[Turn, AIMessage | None]:
    """The turn with its final id, and its earlier answer; None if it is new.

    Raises:
        ValueError: its id belongs to another turn, and it has no spare id.
    """
    while turn["asked"] and (before := store.find_turn(turn["id"])) is not None:
        number, body = before
        if is_same_turn(body, turn):
            return turn, answer_message(body, number)
        turn = with_spare_id(turn)
    return turn, None


@contextmanager
def derived_ids(config: RunnableConfig, asked: str, step: str = "") -> Iterator[None]:
    """Turns started within this context under the same ``safi_turn_id`` get ids derived from ``asked`` and ``step``."""
    turn_id = _asked(config).get(TURN_ID)
    if not turn_id or not asked:
        yield
        return
    token = _scopes.set({**_scopes.get(), turn_id: f"{asked}/{step}" if step else asked})
    try:
        yield
    finally:
        _scopes.reset(token)


def memory_key(config: RunnableConfig, usual: str) -> str:
    """The memory key of the config, or the default."""
    return _named(config, KEY, usual)


def has_turn_id(config: RunnableConfig) -> bool:
    """Whether the config has a ``safi_turn_id``, so that the turn may have been answered before."""
    return TURN_ID in _asked(config)


def node_path(config: RunnableConfig) -> list[str]:
    """The names of the LangGraph nodes in which a call is made, outermost first.

    A node's namespace also has the id of its task, which is another one each time.
    """
    namespace = str((config.get("metadata") or {}).get("langgraph_checkpoint_ns") or "")
    return [node.partition(":")[0] for node in namespace.split("|") if node]


def _without_attempts(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The messages without earlier attempts at exactly the same prompt."""
    last = next((n for n in reversed(range(len(messages))) if isinstance(messages[n], HumanMessage)), 0)
    first = last
    for n in reversed(range(last)):
        if isinstance(messages[n], HumanMessage):
            if messages[n].content != messages[last].content:
                break
            first = n
    earlier = [message.content for message in messages[:first]]
    between = [m for m in messages[first:last] if isinstance(m, SystemMessage) and m.content not in earlier]
    return [*messages[:first], *between, *messages[last:]]


def _digest(messages: Sequence[BaseMessage], *more: str) -> str:
    content = [[m.type, m.name, _content(m.content), _calls(m)] for m in messages]
    text = json.dumps([more, content], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:32]


def _content(content: Any) -> Any:
    """Content without the random ids that LangChain assigns to blocks."""
    if isinstance(content, str):
        return content
    has_generated_id = [isinstance(b, Mapping) and str(b.get("id", "")).startswith(LC_AUTO_PREFIX) for b in content]
    return [{**b, "id": None} if generated else b for b, generated in zip(content, has_generated_id, strict=True)]


def _calls(message: BaseMessage) -> list[Any]:
    return [[c["name"], c["args"]] for c in message.tool_calls] if isinstance(message, AIMessage) else []


def _asked(config: RunnableConfig) -> Mapping[str, Any]:
    return config.get("configurable") or {}


def _named(config: RunnableConfig, argument: str, default: str) -> str:
    configurable = _asked(config)
    name: str = configurable.get(argument, default)
    if argument in configurable and not (isinstance(name, str) and is_name(name)):
        raise ValueError(f"{argument}: expected 1 to {LONGEST_NAME} printable characters, got {name!r}.")
    return name
