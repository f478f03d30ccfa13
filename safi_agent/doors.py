"""The doors by which a draft could leave while the Will has not ruled on it, and how they are shut.

Everything that a caller hangs on a run, to watch it or to stream from it, sees the chain as one step: the input and the
approved answer. Only tracers of the operator see inside: LangSmith's, and those named by ``tracers=``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, var_child_runnable_config
from langchain_core.tracers import LangChainTracer
from langchain_core.tracers.context import _configure_hooks


def inner_config(config: RunnableConfig, tracers: Sequence[BaseCallbackHandler], turn_id: str) -> RunnableConfig:
    """The config for what happens inside: the caller's without handlers that are not tracers of the operator.

    What tracers are told carries the turn's id, as its audit's run does, so that the one is found from the other.
    """
    inner = ensure_config(config)
    inner["metadata"] = {**(inner.get("metadata") or {}), "safi_turn_id": turn_id}
    manager = inner.get("callbacks")
    handlers = manager.handlers if isinstance(manager, BaseCallbackManager) else manager or []
    kept = [h for h in handlers if isinstance(h, LangChainTracer) or h in tracers]
    kept += [tracer for tracer in tracers if tracer not in kept]
    inner["callbacks"] = kept
    if isinstance(manager, BaseCallbackManager):
        inner["callbacks"] = own = manager.copy()
        own.set_handlers(kept)
    inner["tags"] = [*(inner.get("tags") or []), "nostream"]  # what LangGraph passes over when it streams messages
    held = inner.get("configurable") or {}
    inner["configurable"] = {key: item for key, item in held.items() if not key.startswith("__pregel")}
    return inner


@contextmanager
def shut(inner: RunnableConfig) -> Iterator[None]:
    """Within it, handlers that come by way of a context variable are not there, and ``inner`` is the run's config.

    A bound model (``model.bind(...)``) adds the callbacks of the config that surrounds it to those that it is given.
    """
    before = [(variable, variable.set(None)) for variable, *_ in _configure_hooks if variable.get() is not None]
    surrounding = var_child_runnable_config.set(inner)
    try:
        yield
    finally:
        var_child_runnable_config.reset(surrounding)
        for variable, token in before:
            variable.reset(token)
