"""What happens inside: faculties at work behind shut doors."""

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import Runnable, RunnableConfig

from safi_agent.doors import inner_config, shut
from safi_agent.errors import IntellectError, SafiError
from safi_agent.faculties.base import arun, run
from safi_agent.opening import inside
from safi_agent.release import Release
from safi_agent.turn import Turn

_NAME = re.compile(r"[a-z0-9_]{1,40}")


@dataclass(frozen=True, eq=False)
class Inside:
    """Takes turns through faculties with all doors shut; only the operator's ``tracers`` see in.

    Errors are raised as they came, with all that they hold, so it is called within ``boundary.contain`` alone.
    """

    tracers: Sequence[BaseCallbackHandler]
    release: Release

    def govern(self, steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
        """The turn as the faculties leave it."""
        with inside(config, turn.get("asked", "")), shut(inner := inner_config(config, self.tracers, turn["id"])):
            try:
                return run(steps, turn, inner)
            except IntellectError:
                self._keep(turn)
                raise

    async def agovern(self, steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
        """The same without blocking."""
        with inside(config, turn.get("asked", "")), shut(inner := inner_config(config, self.tracers, turn["id"])):
            try:
                return await arun(steps, turn, inner)
            except IntellectError:
                await asyncio.to_thread(self._keep, turn)
                raise

    def _keep(self, turn: Turn) -> None:
        """A turn without a draft gets its line in the log all the same."""
        with contextlib.suppress(SafiError):
            self.release.write({**turn, "id": str(uuid4())}, None, audit=False)


def counts(usage: Any) -> UsageMetadata | None:
    """The numbers of a message's token usage, and nothing else that a model's integration put there."""
    return _numbers(usage) if isinstance(usage, Mapping) else None  # type: ignore[return-value]


def _numbers(usage: Mapping[Any, Any]) -> dict[str, Any]:
    named = {name: item for name, item in usage.items() if isinstance(name, str) and _NAME.fullmatch(name)}
    return {
        name: _numbers(item) if isinstance(item, Mapping) else item
        for name, item in named.items()
        if isinstance(item, int | float | Mapping)
    }
