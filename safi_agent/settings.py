"""The settings of a chain: fields, defaults and validation."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.configurable import RunnableConfigurableFields
from langchain_core.runnables.utils import AnyConfigurableField, Input, Output
from pydantic import BeforeValidator, ConfigDict, Field, SkipValidation, ValidationError
from typing_extensions import override

from safi_agent import defaults
from safi_agent.audit import AuditMode
from safi_agent.audit.plan import Plan
from safi_agent.backpressure import WhenFull
from safi_agent.errors import validation_message
from safi_agent.faculties.conscience import Calls, ScoreMode
from safi_agent.faculties.judge import Judge
from safi_agent.faculties.local_conscience import conscience_for
from safi_agent.faculties.spirit import Map, identity, is_invalid_beta, linear
from safi_agent.hooks import Hook, callable_name
from safi_agent.inputs import SafiInput
from safi_agent.log import log_path
from safi_agent.models import Model, is_local
from safi_agent.prompts import DEFAULT_PROMPTS, Prompts, load_prompts
from safi_agent.record import Measure
from safi_agent.redaction import Redact
from safi_agent.release import RefusedRecord, WillMode
from safi_agent.sampling import EVERY_ANSWER, Sampling
from safi_agent.values import ValueSet, load_values

if TYPE_CHECKING:
    from safi_agent.local.judge import LocalJudge


class AsyncConfigurableFields(RunnableConfigurableFields[Input, Output]):
    """Configurable fields of a chain; the chain is created on a thread, because creating it opens its store."""

    @override
    async def ainvoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        runnable, prepared = await asyncio.to_thread(self.prepare, config)
        return await runnable.ainvoke(input, prepared, **kwargs)

    @override
    async def abatch(self, inputs: list[Input], config: Any = None, **kwargs: Any) -> list[Output]:
        return await Runnable.abatch(self, inputs, config, **kwargs)

    @override
    async def astream(
        self, input: Input, config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Output]:
        runnable, prepared = await asyncio.to_thread(self.prepare, config)
        async for piece in runnable.astream(input, prepared, **kwargs):
            yield piece

    @override
    async def atransform(
        self, input: AsyncIterator[Input], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Output]:
        runnable, prepared = await asyncio.to_thread(self.prepare, config)
        async for piece in runnable.atransform(input, prepared, **kwargs):
            yield piece


MOST_DRAFTS = 64
LEAST_BYTES = 4096  # minimum size of a log before it is rotated


def _full_log_path(path: str | Path | None) -> str | None:
    return None if path is None else log_path(path)


class Settings(RunnableSerializable[SafiInput, AIMessage]):
    """The immutable settings of a chain; a copy, an unpickled chain and a configured one are separate chains."""

    # A store's URL may contain a password, so errors do not quote the input.
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True)

    model: Annotated[Model | None, SkipValidation] = None
    values: Annotated[ValueSet, BeforeValidator(load_values)] = Field(default=defaults.VALUES, validate_default=True)
    will_model: Annotated[Model | None, SkipValidation] = None
    conscience_model: Annotated[Model | None, SkipValidation] = None
    escalation_model: Annotated[Model | None, SkipValidation] = None
    check_share: float = defaults.CHECK_SHARE
    judge_drift_above: float = defaults.JUDGE_DRIFT_ABOVE
    store: str | None = Field(default=defaults.STORE, repr=False)  # it may contain a password
    log: Annotated[str | None, BeforeValidator(_full_log_path)] = Field(default=defaults.LOG, validate_default=True)
    log_max_bytes: int | None = None
    hooks: tuple[Annotated[Hook, SkipValidation], ...] = ()
    beta: float = defaults.BETA
    review_below: float = defaults.REVIEW_BELOW
    drift_above: float = defaults.DRIFT_ABOVE
    phi: Map = identity
    sigma: Map = linear
    conscience_calls: Annotated[Calls, SkipValidation] = defaults.CONSCIENCE_CALLS
    score_mode: Annotated[ScoreMode, SkipValidation] = defaults.SCORE_MODE
    will_sees_reflection: bool = defaults.WILL_SEES_REFLECTION
    drafts: int = defaults.DRAFTS
    embeddings: Annotated[Embeddings | None, SkipValidation] = None
    drafts_alike: float | None = None
    min_agreement: float = defaults.MIN_AGREEMENT
    refuse_truncated: bool = defaults.REFUSE_TRUNCATED
    raise_on_violation: bool = defaults.RAISE_ON_VIOLATION
    audit_attempts: int = defaults.AUDIT_ATTEMPTS
    audit_backoff: float = defaults.AUDIT_BACKOFF
    audit_timeout: float = defaults.AUDIT_TIMEOUT
    audit_mode: Annotated[AuditMode, SkipValidation] = defaults.AUDIT_MODE
    max_pending: int | None = Field(default=defaults.MAX_PENDING, strict=True)
    when_full: Annotated[WhenFull, SkipValidation] = defaults.WHEN_FULL
    tracers: tuple[Annotated[BaseCallbackHandler, SkipValidation], ...] = Field(default=(), repr=False)
    trace_contents: bool = Field(default=defaults.TRACE_CONTENTS, strict=True)
    redact: Annotated[Redact | None, SkipValidation] = Field(default=None, repr=False)
    will_mode: Annotated[WillMode, SkipValidation] = defaults.WILL_MODE
    sampling: Annotated[Sampling, SkipValidation] = EVERY_ANSWER
    prompts: Annotated[Prompts, BeforeValidator(load_prompts)] = Field(default=DEFAULT_PROMPTS, repr=False)
    refused: Annotated[RefusedRecord, SkipValidation] = defaults.REFUSED
    outage_message: str | None = None

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
            return
        except ValidationError as error:
            message = validation_message(error)
        raise ValueError(message)  # outside of the handler: its context would be the values that were given

    @override
    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        check(self)

    def plan(self, judge: Judge | None, model: str, local: "LocalJudge | None" = None) -> Plan:
        """The audit plan, with the Conscience's judges, of which there is one at least, and the name of its model."""
        return Plan(
            values=self.values,
            conscience=conscience_for(judge, local, self.conscience_calls, self.score_mode, self.check_share),
            prompts=self.prompts,
            model=model,
            measure=Measure(
                self.beta, self.review_below, self.drift_above, self.phi, self.sigma, self.judge_drift_above
            ),
            log=log_path(self.log, self.store),
            log_max_bytes=self.log_max_bytes,
            hooks=self.hooks,
            attempts=self.audit_attempts,
            backoff=self.audit_backoff,
            timeout=self.audit_timeout,
            tracers=self.tracers,
            trace_contents=self.trace_contents,
        )

    @override
    def configurable_fields(self, **kwargs: AnyConfigurableField) -> RunnableSerializable[SafiInput, AIMessage]:
        """As for any Runnable; each combination of settings uses a separate chain."""
        configurable = super().configurable_fields(**kwargs)
        return AsyncConfigurableFields(default=self, fields=configurable.fields)  # type: ignore[attr-defined]

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields if name != "name"}

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self._settings())

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A separate chain with these settings and ``update``; models and the store are shared."""
        return type(self)(**{**self._settings(), **(update or {})})


def _rebuild(kind: type[Settings], settings: Mapping[str, Any]) -> Settings:
    return kind(**settings)


def check(settings: Settings) -> None:
    """Validate the settings.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: a hook or ``redact`` is not callable.
    """
    _check_choices(settings)
    _check_judges(settings)
    if is_invalid_beta(settings.beta):
        raise ValueError(f"beta: expected a number in [0, 1), got {settings.beta!r}.")
    for name, least in (("audit_attempts", 1), ("audit_backoff", 0), ("audit_timeout", 0), ("drift_above", 0)):
        number = getattr(settings, name)
        if not (math.isfinite(number) and number >= least):
            raise ValueError(f"{name}: expected a number of at least {least}, got {number!r}.")
    if not math.isfinite(settings.review_below):
        raise ValueError(f"review_below: expected a number, got {settings.review_below!r}.")
    _check_drafting(settings)
    _check_policies(settings)
    if settings.log_max_bytes is not None and settings.log_max_bytes < LEAST_BYTES:
        raise ValueError(f"log_max_bytes: expected None or at least {LEAST_BYTES}, got {settings.log_max_bytes!r}.")
    if settings.max_pending is not None and settings.max_pending < 1:
        raise ValueError(f"max_pending: expected None or a whole number of at least 1, got {settings.max_pending!r}.")
    if settings.redact is not None and (not callable(settings.redact) or asyncio.iscoroutinefunction(settings.redact)):
        raise TypeError(
            f"redact: expected a synchronous function of a text or None, got {callable_name(settings.redact)}."
        )
    for hook in settings.hooks:
        if not callable(hook):
            raise TypeError(f"hooks: expected callables, got {type(hook).__name__}.")


def _check_judges(settings: Settings) -> None:
    if settings.escalation_model is not None and not is_local(settings.conscience_model):
        raise ValueError("escalation_model: expected None without a local judge (conscience_model='local:FOLDER').")
    for name in ("check_share", "judge_drift_above"):
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"{name}: expected a share in [0, 1], got {getattr(settings, name)!r}.")


def _check_choices(settings: Settings) -> None:
    for name, field in type(settings).model_fields.items():
        choices, given = get_args(field.annotation), getattr(settings, name)
        if get_origin(field.annotation) is Literal and given not in choices:
            raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {given!r}.")


def _check_policies(settings: Settings) -> None:
    if not isinstance(settings.sampling, Sampling):
        raise TypeError(f"sampling: expected a Sampling, got {type(settings.sampling).__name__}.")
    if settings.outage_message is not None and not settings.outage_message.strip():
        raise ValueError(f"outage_message: expected None or a text, got {settings.outage_message!r}.")


def _check_drafting(settings: Settings) -> None:
    if isinstance(settings.drafts, bool) or not 1 <= settings.drafts <= MOST_DRAFTS:
        raise ValueError(f"drafts: expected a whole number from 1 to {MOST_DRAFTS}, got {settings.drafts!r}.")
    if settings.embeddings is not None and not isinstance(settings.embeddings, Embeddings):
        raise TypeError(
            f"embeddings: expected LangChain's Embeddings or None, got {type(settings.embeddings).__name__}."
        )
    if settings.drafts_alike is not None and not -1 <= settings.drafts_alike <= 1:
        raise ValueError(f"drafts_alike: expected a cosine similarity in [-1, 1], got {settings.drafts_alike!r}.")
    if not 0 <= settings.min_agreement <= 1:
        raise ValueError(f"min_agreement: expected a share in [0, 1], got {settings.min_agreement!r}.")
    if settings.min_agreement and settings.drafts == 1:
        raise ValueError(f"min_agreement: expected 0 with a single draft, got {settings.min_agreement!r}.")
