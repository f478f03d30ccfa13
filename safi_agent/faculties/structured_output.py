"""Structured output of a judge's model: never cached, and retried without features that the provider refuses."""

import logging
from collections.abc import Callable, Generator, Mapping
from typing import Any
from uuid import uuid4

from langchain.chat_models.base import _ConfigurableModel
from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableParallel,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import ensure_config
from langchain_core.runnables.configurable import DynamicRunnable
from typing_extensions import override

from safi_agent.faculties.provider_errors import Feature, unsupported_features
from safi_agent.generator_driver import adrive, drive

log = logging.getLogger("safi_agent")
Model = Runnable[Any, Any]
Schema = dict[str, Any]
Request = tuple[Model, dict[str, Any]]


def as_judge_model(model: Model, schema: Schema | None) -> Model:
    """The model with each chat model in it replaced by a ``JudgeCall`` in this schema, if one is given.

    It goes through ``bind``, ``with_config``, ``with_retry``, ``with_fallbacks``, ``configurable_fields``,
    ``configurable_alternatives`` and what ``init_chat_model`` makes configurable. A runnable of another kind is called
    as it is, without the schema.
    """
    if isinstance(model, BaseChatModel):
        return JudgeCall(model, schema)
    if isinstance(model, RunnableWithFallbacks):
        fallbacks = [as_judge_model(fallback, schema) for fallback in model.fallbacks]
        return model.model_copy(update={"runnable": as_judge_model(model.runnable, schema), "fallbacks": fallbacks})
    if isinstance(model, RunnableBindingBase):  # bind, with_config, with_retry
        return model.model_copy(update={"bound": as_judge_model(model.bound, schema)})
    if isinstance(model, DynamicRunnable):
        return ConfigurableJudgeCall(model.prepare, schema)
    if isinstance(model, _ConfigurableModel):
        return ConfigurableJudgeCall(lambda config: (model._model(config), config), schema)
    return UncachedCall(model)


def is_unresolved(model: Model, configurable: Mapping[str, Any] | None = None) -> bool:
    """Whether the model is named only by the config of a run, as by ``init_chat_model()`` without a default.

    ``configurable`` is what wrappers around it have bound.
    """
    parameters = configurable or {}
    if isinstance(model, RunnableBindingBase):
        return is_unresolved(model.bound, {**(model.config.get("configurable") or {}), **parameters})
    if isinstance(model, _ConfigurableModel):
        return "model" not in {**model._default_config, **model._model_params({"configurable": dict(parameters)})}
    return False


class JudgeCall(Runnable[Any, Any]):
    """A chat model that is called with a schema and without its cache.

    If the provider refuses the schema or the temperature, the call is retried without it: at most three requests, and
    one request from then on, because refused features are remembered. This is logged once.

    If the model has a cache, a copy without it is called.
    """

    def __init__(self, model: BaseChatModel, schema: Schema | None) -> None:
        self._model, self._schema = model, schema
        self._without: frozenset[Feature] = frozenset()
        self._variants: dict[tuple[bool, frozenset[Feature]], Model] = {}

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        def perform(request: Request) -> Any:
            model, arguments = request
            try:
                return model.invoke(input, config, **arguments)
            except Exception as error:
                return error

        return drive(self._attempts(kwargs), perform)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        async def perform(request: Request) -> Any:
            model, arguments = request
            try:
                return await model.ainvoke(input, config, **arguments)
            except Exception as error:
                return error

        return await adrive(self._attempts(kwargs), perform)

    def _attempts(self, kwargs: dict[str, Any]) -> Generator[Request, Any, Any]:
        without = self._without
        while True:
            model = self._prepared(without)
            own = model.kwargs if isinstance(model, RunnableBindingBase) else {}
            left_out = {*own, *(("temperature",) if "temperature" in without else ())}
            reply = yield model, {name: value for name, value in kwargs.items() if name not in left_out}
            if not isinstance(reply, Exception):
                self._remember(without)
                return reply
            refused = unsupported_features(reply) & self._sent(kwargs) - without
            if not refused:
                raise reply
            without |= refused

    def _sent(self, kwargs: dict[str, Any]) -> frozenset[Feature]:
        """The features that a full request of this call uses."""
        warm = kwargs.get("temperature", getattr(self._model, "temperature", None)) is not None
        sent: list[Feature] = ["schema"] if self._schema is not None else []
        return frozenset([*sent, "temperature"] if warm else sent)

    def _remember(self, without: frozenset[Feature]) -> None:
        if new := sorted(without - self._without):
            self._without |= without
            log.warning(
                "The provider of a judge's model does not support: %s. Further calls omit it.",
                ", ".join(new),
            )

    def _prepared(self, without: frozenset[Feature]) -> Model:
        cached = _is_cached(self._model)
        if (cached, without) not in self._variants:
            changed: dict[str, Any] = {"cache": False} if cached else {}
            changed |= {"temperature": None} if "temperature" in without and hasattr(self._model, "temperature") else {}
            model = self._model.model_copy(update=changed) if changed else self._model
            variant = model if self._schema is None or "schema" in without else with_schema(model, self._schema)
            self._variants.setdefault((cached, without), variant)
        return self._variants[cached, without]


class ConfigurableJudgeCall(Runnable[Any, Any]):
    """A model that is chosen by the config of the run; ``resolve`` creates it."""

    def __init__(
        self, resolve: Callable[[RunnableConfig], tuple[Model, RunnableConfig]], schema: Schema | None
    ) -> None:
        self._resolve, self._schema = resolve, schema

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        model, config = self._prepare_call(config)
        return model.invoke(input, config, **kwargs)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        model, config = self._prepare_call(config)
        return await model.ainvoke(input, config, **kwargs)

    def _prepare_call(self, config: RunnableConfig | None) -> tuple[Model, RunnableConfig]:
        model, config = self._resolve(ensure_config(config))
        return as_judge_model(model, self._schema), config


class UncachedCall(Runnable[Any, Any]):
    """Calls a runnable of an unknown kind past the cache of a chat model in it, whose keys are the messages.

    The last message gets a unique id, in a field that is not sent to providers.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._model.invoke(_numbered(input), config, **kwargs)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await self._model.ainvoke(_numbered(input), config, **kwargs)


def _numbered(messages: list[BaseMessage]) -> list[BaseMessage]:
    last = messages[-1]
    metadata = {**last.response_metadata, "safi_call": uuid4().hex}
    return [*messages[:-1], last.model_copy(update={"response_metadata": metadata})]


def _is_cached(model: BaseChatModel) -> bool:
    if model.cache is None:
        return get_llm_cache() is not None
    return model.cache is True or isinstance(model.cache, BaseCache)


def with_schema(model: BaseChatModel, schema: Schema) -> Model:
    """The model with structured output, without LangChain's parsing of the reply; the model itself if unsupported."""
    try:
        structured = model.with_structured_output(schema, include_raw=True)
    except (NotImplementedError, ValueError, TypeError, AttributeError):
        return model
    if isinstance(structured, RunnableSequence) and isinstance(structured.first, RunnableParallel):
        return structured.first.steps__.get("raw", structured)
    return structured
