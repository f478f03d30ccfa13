"""Errors in OpenAI's format. No message quotes a model, a draft, an exception or the content of a request."""

from collections.abc import Mapping

from pydantic import ValidationError

from safi_agent.errors import BacklogError, ClosedError, IntellectError, OutboxError, SafiError
from safi_agent.serve.json_response import AsciiJSONResponse

REJECTED = (400, 413, 422)  # statuses of a provider: a parameter that its model does not take, too long a conversation
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_UNAVAILABLE: dict[type[SafiError], tuple[str, str]] = {
    IntellectError: ("model_failed", "The model returned no draft."),
    OutboxError: ("store_failed", "The store could not be read or written."),
    BacklogError: ("backlog_full", "Too many audits are open."),
    ClosedError: ("shutting_down", "The service is shutting down."),
}


class ApiError(Exception):
    """An error response.

    Attributes:
        status: the HTTP status.
        message: a sentence for the developer of the client.
        param: the field of the request that the error is about.
        code: a name for programs.
        headers: additional headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def response(self) -> AsciiJSONResponse:
        """The response, with the body that OpenAI's clients expect."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return AsciiJSONResponse({"error": error}, self.status, self.headers)


def failed_request(error: SafiError) -> ApiError:
    """The error for a turn or an audit that failed; its cause is in the logger ``safi_agent``.

    It is 400 if the model's provider has rejected the request, so that clients do not repeat it, otherwise 503.
    """
    if isinstance(error, IntellectError) and error.status_code in REJECTED:
        return ApiError(400, f"The model rejected the request (status {error.status_code}).", code="model_rejected")
    code, message = _UNAVAILABLE.get(type(error), ("turn_failed", "The request could not be processed."))
    return ApiError(503, message, code=code)


def invalid_request(error: ValidationError) -> ApiError:
    """The error 400 for the first thing that is wrong with a request."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "Body: expected an object in JSON.", code="invalid_json")
    param = _param(first["loc"])
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param}: this field is not supported.", param=param, code="unsupported_parameter")
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param or 'Body'}: {message}.", param=param or None, code="invalid_value")


def _param(location: tuple[int | str, ...]) -> str:
    """A location as ``messages[0].content``; tags of unions, which begin with "<", are left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith("<"):
            text += f".{part}" if text else part
    return text
