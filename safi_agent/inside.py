"""What happens inside: faculties at work behind shut doors, and errors that tell nothing of it."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import Runnable, RunnableConfig

from safi_agent.doors import inner_config, shut
from safi_agent.errors import IntellectError, SafiError
from safi_agent.faculties.base import arun, run
from safi_agent.opening import inside
from safi_agent.release import Release
from safi_agent.turn import Turn

log = logging.getLogger("safi_agent")


@dataclass(frozen=True, eq=False)
class Inside:
    """Takes turns through faculties with all doors shut; only the operator's ``tracers`` see in."""

    tracers: Sequence[BaseCallbackHandler]
    release: Release

    def govern(self, steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
        """The turn as the faculties leave it.

        Raises:
            SafiError: anything went wrong.
        """
        failed: SafiError
        try:
            with inside(config, turn.get("asked", "")), shut(inner := inner_config(config, self.tracers, turn["id"])):
                return run(steps, turn, inner)
        except Exception as error:
            failed = self._told(error, turn)
        raise failed

    async def agovern(self, steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
        """The same without blocking."""
        failed: SafiError
        try:
            with inside(config, turn.get("asked", "")), shut(inner := inner_config(config, self.tracers, turn["id"])):
                return await arun(steps, turn, inner)
        except Exception as error:
            failed = await asyncio.to_thread(self._told, error, turn)
        raise failed

    def _told(self, error: Exception, turn: Turn) -> SafiError:
        """The error to raise; a turn without a draft gets its line in the log all the same."""
        if isinstance(error, IntellectError):
            with contextlib.suppress(SafiError):
                self.release.write({**turn, "id": str(uuid4())}, None, audit=False)
        return clean(error)


def clean(error: Exception) -> SafiError:
    """What the caller may see of an error: none of the texts and none of the traces of what happened inside."""
    if not isinstance(error, SafiError):
        log.error("A turn failed.", exc_info=error)
        return SafiError(f"The turn failed ({type(error).__name__}). Details are in the logger 'safi_agent'.")
    return error.with_traceback(None)
