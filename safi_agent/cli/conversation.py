"""A conversation with a chain: each turn is given the turns before it."""

from typing import TYPE_CHECKING, Any

from safi_agent.errors import IntellectError

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage

    from safi_agent import SafiChain

# With these statuses every further call fails too: the key, the permission, or the name of the model is wrong.
_LASTING = frozenset({401, 403, 404})


class Conversation:
    """The messages so far; a turn that fails leaves them unchanged."""

    def __init__(self, safi: "SafiChain") -> None:
        self._safi = safi
        self._messages: list[Any] = []
        self.turns = 0  #: number of turns that were answered or refused, also before ``forget``

    def ask(self, prompt: str) -> "AIMessage":
        """The answer, or the refusal.

        Raises:
            SafiError: the turn failed.
        """
        asked = ("user", prompt)
        answer = self._safi.invoke([*self._messages, asked])
        self._messages += [asked, ("assistant", str(answer.text))]
        self.turns += 1
        return answer

    def forget(self) -> None:
        """Begin a new conversation. What the chain keeps for its memory key, such as μ, stays."""
        self._messages.clear()

    def is_unreachable(self, error: Exception) -> bool:
        """Whether the model has not answered anything and cannot be expected to: no connection, a wrong key or name."""
        return (
            self.turns == 0
            and isinstance(error, IntellectError)
            and (error.status_code is None or error.status_code in _LASTING)
        )
