"""The base class of faculties: a Runnable that adds one key to the turn and changes no other."""

from typing import Any, ClassVar

from langchain_core.callbacks import (
    AsyncCallbackManagerForChainRun,
    BaseCallbackManager,
    CallbackManagerForChainRun,
)
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence
from typing_extensions import override

from safi_agent.telemetry.spans import faculty_span
from safi_agent.turn import Turn


def has_handlers(config: RunnableConfig) -> bool:
    """Whether a run has callback handlers; without them no run is created, which saves time."""
    callbacks = config.get("callbacks")
    return not isinstance(callbacks, BaseCallbackManager) or bool(callbacks.handlers)


def run(steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
    """Run a sequence of faculties."""
    if has_handlers(config) or not isinstance(steps, RunnableSequence):
        return steps.invoke(turn, config)
    for step in steps.steps:
        turn = step.invoke(turn, config)
    return turn


async def arun(steps: Runnable[Turn, Turn], turn: Turn, config: RunnableConfig) -> Turn:
    """Asynchronous version."""
    if has_handlers(config) or not isinstance(steps, RunnableSequence):
        return await steps.ainvoke(turn, config)
    for step in steps.steps:
        turn = await step.ainvoke(turn, config)
    return turn


class Faculty(Runnable[Turn, Turn]):
    """A faculty: settings in the constructor, state in the turn.

    A faculty that calls a model has a span, which ``span_name`` names.
    """

    output_key: ClassVar[str]
    span_name: ClassVar[str] = ""

    def compute(self, turn: Turn, config: RunnableConfig) -> Any:
        """The value of ``output_key``."""
        raise NotImplementedError

    async def acompute(self, turn: Turn, config: RunnableConfig) -> Any:
        """Asynchronous version; a faculty that calls a model overrides it."""
        return self.compute(turn, config)

    @override
    def invoke(self, input: Turn, config: RunnableConfig | None = None, **kwargs: Any) -> Turn:
        if not self.span_name:
            return self._invoke(input, config)
        with faculty_span(self.span_name) as span:
            turn = self._invoke(input, config)
            if span is not None:
                span.set_result(turn[self.output_key])  # type: ignore[literal-required]
        return turn

    def _invoke(self, input: Turn, config: RunnableConfig | None) -> Turn:
        if config is not None and not has_handlers(config):
            return {**input, self.output_key: self.compute(input, config)}  # type: ignore[misc]
        return self._call_with_config(self._add, input, config)

    @override
    async def ainvoke(self, input: Turn, config: RunnableConfig | None = None, **kwargs: Any) -> Turn:
        if not self.span_name:
            return await self._ainvoke(input, config)
        with faculty_span(self.span_name) as span:
            turn = await self._ainvoke(input, config)
            if span is not None:
                span.set_result(turn[self.output_key])  # type: ignore[literal-required]
        return turn

    async def _ainvoke(self, input: Turn, config: RunnableConfig | None) -> Turn:
        if config is not None and not has_handlers(config):
            return {**input, self.output_key: await self.acompute(input, config)}  # type: ignore[misc]
        return await self._acall_with_config(self._aadd, input, config)

    def _add(self, turn: Turn, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Turn:
        return {**turn, self.output_key: self.compute(turn, config)}  # type: ignore[misc]

    async def _aadd(self, turn: Turn, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> Turn:
        return {**turn, self.output_key: await self.acompute(turn, config)}  # type: ignore[misc]
