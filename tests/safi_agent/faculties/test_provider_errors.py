"""Errors as providers word them: which say that a schema or a temperature is not supported."""

from typing import Any

import httpx
import pytest

from safi_agent.faculties.provider_errors import unsupported_features


class StatusError(Exception):
    def __init__(self, text: str, status_code: int | None = None, body: Any = None) -> None:
        super().__init__(text)
        self.status_code, self.body = status_code, body


def over_http(status: int, text: str) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/v1")
    response = httpx.Response(status, text=text, request=request)
    return httpx.HTTPStatusError(f"Error response {status}", request=request, response=response)


SCHEMA: list[Exception] = [
    StatusError("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.", 400),
    StatusError("Invalid schema for response_format 'verdict': 'gates' is a required property", 400),
    StatusError("response_format value as json_schema is enabled only for api versions 2024-08-01 and later", 400),
    StatusError("This response_format type is unavailable now", 400),
    StatusError("This model does not support response format `json_schema`", 400),
    StatusError("registry.ollama.ai/library/gemma:2b does not support tools", 400),
    StatusError('"auto" tool choice requires --enable-auto-tool-choice', 400),
    StatusError("Thinking may not be enabled when tool_choice forces tool use.", 400),
    StatusError(
        "bad request", 422, {"detail": [{"loc": ["response_format"], "msg": "Extra inputs are not permitted"}]}
    ),
    over_http(422, '{"detail": [{"loc": ["body", "response_format"], "msg": "Extra inputs are not permitted"}]}'),
    Exception("Invalid argument provided to Gemini: 400 Unknown name \"response_schema\" at 'generation_config'"),
    Exception("JSON mode is not enabled for models/gemini-1.0-pro"),
    Exception("An error occurred (ValidationException): This model doesn't support tool use."),
    TypeError("create() got an unexpected keyword argument 'response_format'"),
    ValueError("Structured output is not supported by this endpoint."),
    NotImplementedError(),
]
TEMPERATURE: list[Exception] = [
    StatusError("Unsupported parameter: 'temperature' is not supported with this model.", 400),
    StatusError("Unsupported value: 'temperature' does not support 0 with this model. Only the default (1).", 400),
    StatusError("bad request", 400, {"message": "Unsupported parameter", "param": "temperature"}),
    ValueError("temperature: extra fields not permitted, unexpected"),
]
OTHER: list[Exception] = [
    StatusError("status 400", 400),
    StatusError("Bad request", 422),
    StatusError("", 400),
    ValueError(),
    ValueError("x"),
    KeyError("choices"),
    StatusError(
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens (8000 in the messages, "
        "1000 in the functions). Please reduce the length of the messages or functions.",
        400,
    ),
    StatusError("The response was filtered due to the prompt triggering the content management policy.", 400),
    StatusError("Invalid content_filter result for response_format", 400),
    StatusError("Incorrect API key provided: tools are not supported", 400),
    StatusError("Unsupported parameter: 'response_format'", 401),
    StatusError("response_format is not supported at this rate", 429),
    StatusError("response_format is temporarily unavailable", 503),
    StatusError("tool call validation failed: parameters for tool verdict did not match schema", 400),
    StatusError("The model `o9` does not exist, model_not_found", 404),
    StatusError("Invalid 'messages[1].content': string too long.", 400),
    StatusError("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", 400),
    TimeoutError("Request timed out."),
    ConnectionError("refused"),
]


@pytest.mark.parametrize("error", SCHEMA, ids=str)
def test_a_schema_that_is_refused_is_known_by_what_the_error_says(error: Exception) -> None:
    assert unsupported_features(error) == {"schema"}


@pytest.mark.parametrize("error", TEMPERATURE, ids=str)
def test_a_temperature_that_is_refused_is_known_by_what_the_error_says(error: Exception) -> None:
    assert unsupported_features(error) == {"temperature"}


def test_both_may_be_refused_at_once() -> None:
    assert unsupported_features(StatusError("Unsupported parameters: temperature, response_format", 400)) == {
        "schema",
        "temperature",
    }


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_an_error_about_something_else_is_neither(error: Exception) -> None:
    assert unsupported_features(error) == frozenset()


def test_a_long_error_is_read_up_to_a_bound() -> None:
    assert unsupported_features(StatusError("x" * 30_000 + " unsupported response_format", 400)) == frozenset()
