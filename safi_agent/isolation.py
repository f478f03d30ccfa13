"""The doors by which a draft could leave while the Will has not ruled on it, and how they are shut.

Everything that a caller hangs on a run, to watch it or to stream from it, sees the chain as one step: the input and the
approved answer. Only tracers of the operator see inside: those named by ``tracers=``, and LangSmith's where the
environment turned it on. A caller's handler is not one of them, of whatever class it is, and neither is what a caller
set for its own context (``tracing_v2_enabled``, ``tracing_context``).
"""

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, var_child_runnable_config
from langchain_core.tracers import LangChainTracer
from langchain_core.tracers.context import _configure_hooks, tracing_v2_callback_var
from langsmith import utils as langsmith_utils
from langsmith.run_helpers import get_current_run_tree, tracing_context

from safi_agent.errors import IntellectError, SafiError
from safi_agent.faculties.base import arun, run
from safi_agent.idempotency import inside
from safi_agent.release import Release
from safi_agent.turn import Turn


def environment_traces() -> bool:
    """Whether LANGSMITH_TRACING (or LANGCHAIN_TRACING_V2) is ``true``."""
    return langsmith_utils.get_env_var("TRACING_V2", default=langsmith_utils.get_env_var("TRACING", "")) == "true"


def inner_config(config: RunnableConfig, tracers: Sequence[BaseCallbackHandler], turn_id: str) -> RunnableConfig:
    """The config for what happens inside: the caller's without handlers that are not tracers of the operator.

    What tracers are told carries the turn's id, as its audit's run does, so that the one is found from the other.
    """
    inner = ensure_config(config)
    inner["metadata"] = {**(inner.get("metadata") or {}), "safi_turn_id": turn_id}
    manager = inner.get("callbacks")
    kept = list(tracers)
    inner["callbacks"] = kept
    if isinstance(manager, BaseCallbackManager):
        inner["callbacks"] = own = manager.copy()
        if environment_traces() and not any(isinstance(tracer, LangChainTracer) for tracer in tracers):
            kept.append(_environments(manager, own))
        own.set_handlers(kept)
    inner["tags"] = [*(inner.get("tags") or []), "nostream"]  # what LangGraph passes over when it streams messages
    held = inner.get("configurable") or {}
    inner["configurable"] = {key: item for key, item in held.items() if not key.startswith("__pregel")}
    return inner


def _environments(manager: BaseCallbackManager, own: BaseCallbackManager) -> LangChainTracer:
    """A tracer as the environment asks for, which no caller has in hand; its runs are below the run outside.

    Of a tracer outside it takes ids alone, and those only where that sends to the same place.
    """
    tracer, parent = LangChainTracer(), manager.parent_run_id
    for handler in manager.handlers:
        if isinstance(handler, LangChainTracer) and handler.client is tracer.client and parent in handler.order_map:
            tracer.order_map[parent] = handler.order_map[parent]
    run = get_current_run_tree()
    if run is not None and run.client is tracer.client:
        tracer.order_map[run.id] = (run.trace_id, run.dotted_order)
        if parent is None or str(parent) in run.dotted_order:
            own.parent_run_id = run.id  # LangChain's own rule: the run outside is this one, or one below it
    return tracer


@contextmanager
def shut(inner: RunnableConfig) -> Iterator[None]:
    """Within it, handlers that come by way of a context variable are not there, and ``inner`` is the run's config.

    A bound model (``model.bind(...)``) adds the callbacks of the config that surrounds it to those that it is given.
    """
    hooks = [variable for variable, *_ in _configure_hooks]
    variables: list[ContextVar[Any]] = [tracing_v2_callback_var, *hooks]
    before = [(variable, variable.set(None)) for variable in variables if variable.get() is not None]
    surrounding = var_child_runnable_config.set(inner)
    try:
        with tracing_context(parent=False, enabled=_traces(inner)):
            yield
    finally:
        with suppress(ValueError):  # a coroutine that was given up is closed in another context
            var_child_runnable_config.reset(surrounding)
            for variable, token in before:
                variable.reset(token)


def _traces(inner: RunnableConfig) -> bool:
    callbacks = inner.get("callbacks")
    handlers = callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks or []
    return environment_traces() or any(isinstance(handler, LangChainTracer) for handler in handlers)


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
