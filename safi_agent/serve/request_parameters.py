"""The parameters of a request (temperature, stop …) for the model that drafts, and for no other."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from typing_extensions import override

from safi_agent.models import Model, default_model, resolve

_current: ContextVar[Mapping[str, Any]] = ContextVar("safi_request_parameters", default={})  # noqa: B039


@contextmanager
def request_parameters(parameters: Mapping[str, Any]) -> Iterator[None]:
    """Within this context a ``RequestParameters`` passes these parameters to its model."""
    token = _current.set(parameters)
    try:
        yield
    finally:
        _current.reset(token)


class RequestParameters(RunnableBindingBase[Any, Any]):
    """A model that a service calls with the parameters of each request: temperature, top_p, max_tokens, stop.

    Pass it as ``model``, and the plain model as ``will_model`` and ``conscience_model``: a client must not set the
    parameters of the judges.

    Args:
        model: a chat model or its name, as for ``create_safi_chain``.

    Raises:
        TypeError, ValueError: no model can be created.
    """

    def __init__(self, model: Model | None = None) -> None:
        super().__init__(bound=resolve(default_model() if model is None else model, "model"))

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().invoke(input, config, **_current.get(), **kwargs)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await super().ainvoke(input, config, **_current.get(), **kwargs)

    @override
    def batch(self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any) -> Any:
        given = {**_current.get(), **kwargs}
        return super().batch(inputs, config, return_exceptions=return_exceptions, **given)

    @override
    async def abatch(
        self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        given = {**_current.get(), **kwargs}
        return await super().abatch(inputs, config, return_exceptions=return_exceptions, **given)


def takes_parameters(model: Model | Runnable[Any, Any] | None) -> bool:
    """Whether a chain's model takes the parameters of a request."""
    return isinstance(model, RequestParameters)
