"""The ASGI application: chat completions, audits, the model, health and metrics of one chain.

All that can be refused is refused before the chain is called: first a request without access, then one too many, then a
body that is too long, then a field that is not supported.
"""

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from langchain_core.messages import AIMessage
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from safi_agent.audit.finished import Audit
from safi_agent.chain import SafiChain
from safi_agent.errors import AuditFailedError, AuditTimeoutError, SafiError, UnknownTurnError, ViolationError
from safi_agent.serve import metrics
from safi_agent.serve.access import Access
from safi_agent.serve.api_errors import ApiError, failed_request
from safi_agent.serve.bearer_keys import BearerKey
from safi_agent.serve.chat_request import PARAMETERS, ChatRequest, check_model, read_chat_request
from safi_agent.serve.chat_response import ID_PREFIX, Completion
from safi_agent.serve.health import HealthCheck
from safi_agent.serve.json_response import AsciiJSONResponse
from safi_agent.serve.request_body import ClientGoneError, read_body, run_while_connected
from safi_agent.serve.request_parameters import request_parameters, takes_parameters
from safi_agent.unicode_text import is_name

DEFAULT_RATE = 60  # requests in a minute
DEFAULT_MAX_BYTES = 1_000_000
LEAST_BYTES = 1_000
MAX_WAIT = 60.0  # seconds that a request may wait for an audit
CLIENT_CLOSED = 499  # the status of a request whose client is gone, which nobody receives


class Service:
    """The endpoints of a chain. See ``create_app``."""

    def __init__(
        self, chain: SafiChain, access: Access, name: str, max_bytes: int, registry: CollectorRegistry | None
    ) -> None:
        self._chain, self._access, self._name = chain, access, name
        self._max_bytes, self._registry = max_bytes, registry
        self._health = HealthCheck(chain)

    async def complete(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        memory_key = self._access.admit(request, "completions")
        asked = read_chat_request(await read_body(request, self._max_bytes))
        check_model(asked, self._name)
        with request_parameters(self._parameters(asked)):
            answer = await run_while_connected(request, self._answer(asked, _config(request, memory_key)))
        completion = Completion(answer, self._name, self._chain.outage_message)
        if not asked.stream:
            return AsciiJSONResponse(completion.body(), headers=completion.headers)
        events = completion.events(include_usage=asked.stream_options.include_usage)
        return Response(events, headers=completion.headers, media_type="text/event-stream")

    def _parameters(self, asked: ChatRequest) -> dict[str, Any]:
        given = asked.parameters()
        if given and not takes_parameters(self._chain.model):
            (first, *_) = (name for name in PARAMETERS if name in given)
            raise ApiError(
                400, f"{first}: this service does not support it.", param=first, code="unsupported_parameter"
            )
        return given

    async def _answer(self, asked: ChatRequest, config: Any) -> AIMessage:
        try:
            return await self._chain.ainvoke(asked.chain_input(), config)
        except ViolationError as error:
            return AIMessage(error.refusal, response_metadata={"safi": error.metadata})
        except SafiError as error:
            failed = failed_request(error)
        except (TypeError, ValueError) as error:  # about the input
            failed = ApiError(400, str(error), param="messages", code="invalid_value")
        raise failed

    async def audit(
        self, request: Request, turn_id: str, timeout: Annotated[float, Query(ge=0, le=MAX_WAIT)] = 0.0
    ) -> Response:
        """``GET /audits/{id}``; waits for the audit for at most ``timeout`` seconds."""
        memory_key = self._access.admit(request, "audits")
        turn_id = turn_id.removeprefix(ID_PREFIX)
        try:
            await self._check_owner(turn_id, memory_key)
            audit = await run_while_connected(request, self._chain.aaudit(turn_id, timeout))
        except AuditTimeoutError:
            return AsciiJSONResponse({"turn_id": turn_id, "status": "pending"})
        except AuditFailedError:
            return AsciiJSONResponse({"turn_id": turn_id, "status": "failed"})
        except UnknownTurnError:
            raise ApiError(404, "No such turn.", code="turn_not_found") from None
        except SafiError as error:
            raise failed_request(error) from None
        return AsciiJSONResponse(_audit_body(audit, turn_id))

    async def _check_owner(self, turn_id: str, memory_key: str) -> None:
        """Raise UnknownTurnError for a turn of another memory key or value set, as for one that does not exist."""
        found = await asyncio.to_thread(self._chain.find_turn, turn_id) if is_name(turn_id) else None
        if found is None or (found[1].get("key"), found[1].get("valueSet")) != (memory_key, self._chain.values.name):
            raise UnknownTurnError(turn_id)

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        self._access.admit(request, "models")
        model = {"id": self._name, "object": "model", "created": 0, "owned_by": "safi"}
        return AsciiJSONResponse({"object": "list", "data": [model]})

    async def healthz(self) -> Response:
        """``GET /healthz``, without a bearer key."""
        healthy = await self._health.is_healthy()
        return AsciiJSONResponse({"status": "ok" if healthy else "unavailable"}, 200 if healthy else 503)

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``."""
        self._access.admit(request, "metrics")
        if self._registry is None:
            raise ApiError(404, "Metrics are not configured.", code="not_found")
        text = await asyncio.to_thread(metrics.collect, self._registry)
        return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})


def create_app(
    chain: SafiChain,
    keys: Sequence[BearerKey] = (),
    *,
    name: str | None = None,
    rate: int | None = DEFAULT_RATE,
    max_bytes: int = DEFAULT_MAX_BYTES,
    registry: CollectorRegistry | None = None,
) -> FastAPI:
    """Create an ASGI application that serves a chain with OpenAI's API for chat completions.

    The caller closes the chain after the server has stopped.

    Args:
        chain: the chain. Its model gets the parameters of requests if it is a ``RequestParameters``; otherwise requests
            with parameters are refused.
        keys: the bearer keys of clients. Without keys, only clients on this machine have access.
        name: the name of the model in requests and responses. Default: the name of the chain's model.
        rate: requests in a minute that each memory key may make to each endpoint, at least 1; None for no limit. Each
            process counts its own.
        max_bytes: maximum size of a request's body, at least 1,000.
        registry: the registry of the metrics, from ``metrics.configure_metrics``; None for no metrics.

    Raises:
        ValueError: an argument is out of range, a judge of the chain would get the parameters of requests, or tools are
            bound to its model.
    """
    if rate is not None and rate < 1:
        raise ValueError(f"rate: expected None or a whole number of at least 1, got {rate!r}.")
    if max_bytes < LEAST_BYTES:
        raise ValueError(f"max_bytes: expected a whole number of at least {LEAST_BYTES}, got {max_bytes!r}.")
    if chain.tools:
        raise ValueError(
            f"chain: expected a model without bound tools, whose calls clients would not get; got "
            f"{', '.join(sorted(chain.tools))}."
        )
    for argument in ("will_model", "conscience_model"):
        judge = getattr(chain, argument)
        if takes_parameters(judge) or (judge is None and takes_parameters(chain.model)):
            raise ValueError(f"{argument}: expected a model without RequestParameters, which are for `model` only.")
    name = chain.release.models["intellect"] if name is None else name
    service = Service(chain, Access(keys, chain.values.name, rate), name, max_bytes, registry)
    app = FastAPI(title="SAFi", openapi_url=None)
    app.post("/v1/chat/completions", response_model=None)(service.complete)
    app.get("/v1/models", response_model=None)(service.models)
    app.get("/audits/{turn_id:path}", response_model=None)(service.audit)
    app.get("/healthz", response_model=None)(service.healthz)
    app.get("/metrics", response_model=None)(service.metrics)
    _handle_errors(app)
    return app


def _config(request: Request, memory_key: str) -> dict[str, Any]:
    """The config of a turn. A client that repeats a request with its ``Idempotency-Key`` gets the same answer."""
    names = {"safi_key": memory_key}
    if given := request.headers.get("idempotency-key"):
        # Hashed with the memory key, so that clients cannot use each other's.
        names["safi_turn_id"] = sha256(f"{memory_key}\n{given}".encode()).hexdigest()
    return {"configurable": names}


def _audit_body(audit: Audit, turn_id: str) -> dict[str, Any]:
    """An audit as JSON. Prompt, drafts, answer and the Will's reason stay in the log."""
    record = audit.record
    return {
        "turn_id": turn_id,
        "status": audit.status,
        "reason": record.get("auditReason"),
        "time": record["timestamp"],
        "value_set": record["valueSet"],
        "decision": record["willDecision"],
        "score": audit.score,
        "drift": audit.drift,
        "ledger": [finding.model_dump() for finding in audit.ledger],
    }


def _handle_errors(app: FastAPI) -> None:
    """Return all errors in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = error.detail.lower().replace(" ", "_")
        return ApiError(error.status_code, f"{error.detail}.", code=code, headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def query_error(request: Request, error: RequestValidationError) -> Response:
        param = str(error.errors()[0]["loc"][-1])
        message = f"{param}: expected a number from 0 to {MAX_WAIT:g}."
        return ApiError(400, message, param=param, code="invalid_value").response()

    @app.exception_handler(ClientGoneError)
    @app.exception_handler(ClientDisconnect)
    async def client_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        return ApiError(500, "The request could not be processed.", code="internal_error").response()
