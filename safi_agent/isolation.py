"""Hide drafts from the caller's callbacks, tracers and streams until the Will has ruled on them.

A caller's callback handlers and streams receive the chain as one step: the input and the approved answer. Only the
operator's tracers receive the inner runs: those given as ``tracers=``, and LangSmith's where the environment enables
it. A caller's handler is never one of them, whatever its class, and neither is a tracer that the caller has set for its
own context (``tracing_v2_enabled``, ``tracing_context``).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, var_child_runnable_config
from langchain_core.tracers import LangChainTracer
from langchain_core.tracers.context import _configure_hooks, tracing_v2_callback_var
from langsmith import utils as langsmith_utils
from langsmith.run_helpers import get_current_run_tree, tracing_context

from safi_agent.idempotency import derived_ids
from safi_agent.turn import Turn


@contextmanager
def isolated(config: RunnableConfig, tracers: Sequence[BaseCallbackHandler], turn: Turn) -> Iterator[RunnableConfig]:
    """Run the faculties of a turn within this context and with the config that it yields.

    Turns that are started within it under the caller's ``safi_turn_id`` get ids derived from this turn.
    """
    inner = inner_config(config, tracers, turn["id"])
    with derived_ids(config, turn.get("asked", "")), hidden_handlers(inner):
        yield inner


def environment_traces() -> bool:
    """Whether LANGSMITH_TRACING (or LANGCHAIN_TRACING_V2) is ``true``."""
    return langsmith_utils.get_env_var("TRACING_V2", default=langsmith_utils.get_env_var("TRACING", "")) == "true"


def inner_config(config: RunnableConfig, tracers: Sequence[BaseCallbackHandler], turn_id: str) -> RunnableConfig:
    """The config for the inner runs: the caller's config, with the operator's tracers as its only handlers.

    The metadata of inner runs contains the turn's id, as that of the audit's run does, so that the two can be matched.
    """
    inner = ensure_config(config)
    inner["metadata"] = {**(inner.get("metadata") or {}), "safi_turn_id": turn_id}
    manager = inner.get("callbacks")
    handlers = list(tracers)
    inner["callbacks"] = handlers
    if isinstance(manager, BaseCallbackManager):
        inner["callbacks"] = own = manager.copy()
        if environment_traces() and not any(isinstance(tracer, LangChainTracer) for tracer in tracers):
            handlers.append(_environment_tracer(manager, own))
        own.set_handlers(handlers)
    inner["tags"] = [*(inner.get("tags") or []), "nostream"]  # LangGraph does not stream messages of runs with this tag
    held = inner.get("configurable") or {}
    inner["configurable"] = {key: item for key, item in held.items() if not key.startswith("__pregel")}
    return inner


def _environment_tracer(manager: BaseCallbackManager, own: BaseCallbackManager) -> LangChainTracer:
    """A new LangSmith tracer as configured by the environment, whose runs are children of the caller's run.

    Only run ids are taken from the caller's tracers, and only from those that use the same client.
    """
    tracer, parent = LangChainTracer(), manager.parent_run_id
    for handler in manager.handlers:
        if isinstance(handler, LangChainTracer) and handler.client is tracer.client and parent in handler.order_map:
            tracer.order_map[parent] = handler.order_map[parent]
    run = get_current_run_tree()
    if run is not None and run.client is tracer.client:
        tracer.order_map[run.id] = (run.trace_id, run.dotted_order)
        if parent is None or str(parent) in run.dotted_order:
            own.parent_run_id = run.id  # LangChain's rule: the caller's run is this one or below it
    return tracer


@contextmanager
def hidden_handlers(inner: RunnableConfig) -> Iterator[None]:
    """Remove handlers that are set in context variables, and make ``inner`` the surrounding config.

    The config has to be replaced because a bound model (``model.bind(...)``) adds the callbacks of the surrounding
    config to those that it is given.
    """
    hooks = [variable for variable, *_ in _configure_hooks]
    variables: list[ContextVar[Any]] = [tracing_v2_callback_var, *hooks]
    before = [(variable, variable.set(None)) for variable in variables if variable.get() is not None]
    surrounding = var_child_runnable_config.set(inner)
    try:
        with tracing_context(parent=False, enabled=_traces(inner)):
            yield
    finally:
        with suppress(ValueError):  # an abandoned coroutine is closed in another context
            var_child_runnable_config.reset(surrounding)
            for variable, token in before:
                variable.reset(token)


def _traces(inner: RunnableConfig) -> bool:
    callbacks = inner.get("callbacks")
    handlers = callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks or []
    return environment_traces() or any(isinstance(handler, LangChainTracer) for handler in handlers)
