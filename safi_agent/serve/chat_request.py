"""The body of a request for a completion: which fields of OpenAI's API are supported, and what they become.

A field that is not supported is refused, unless its value asks for nothing (``"n": 1``): to ignore it would give the
client something else than it has asked for.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from langchain_core.documents import Document
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from safi_agent.inputs import SafiRequest
from safi_agent.serve.api_errors import ApiError, invalid_request

# Values of fields that are not supported, or of ours, which mean the same as leaving them out.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "stop": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
PARAMETERS = ("temperature", "top_p", "max_tokens", "stop")  # of the model, as LangChain names them


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_neutral(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {name: item for name, item in data.items() if item is not None and item not in cls._neutral(name)}

    @classmethod
    def _neutral(cls, name: str) -> tuple[Any, ...]:
        return ()


class TextPart(_Strict):
    """A part of a message. The judges read text only, so images, audio and files are refused."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Field(min_length=1), Tag("<parts>")],
    Discriminator(lambda content: "<text>" if isinstance(content, str) else "<parts>"),
]


class ChatMessage(_Strict):
    """A message of the conversation. Calls and results of tools are refused."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = Field(None, pattern=r"\A[a-zA-Z0-9_-]{1,64}\z")

    @classmethod
    def _neutral(cls, name: str) -> tuple[Any, ...]:
        return () if name in cls.model_fields else ([], "")  # clients send back what they got: "annotations": []


class DocumentPart(_Strict):
    """A document for the answer, which the judges see too."""

    text: str
    title: str | None = Field(None, max_length=200)


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


class ChatRequest(_Strict):
    """A request for a completion."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4), BeforeValidator(_as_list)] = []
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        {}, max_length=16
    )
    user: str | None = Field(None, max_length=512)
    documents: list[DocumentPart] = []

    @classmethod
    def _neutral(cls, name: str) -> tuple[Any, ...]:
        return NEUTRAL.get(name, ())

    def chain_input(self) -> SafiRequest:
        """The input of the chain; ``metadata`` and ``user`` are logged with the turn."""
        messages = [message.model_dump(exclude_none=True) for message in self.messages]
        user = {} if self.user is None else {"user": self.user}
        documents = [Document(part.text, metadata={"title": part.title or ""}) for part in self.documents]
        return {"prompt": messages, "context": documents, "metadata": {**user, **self.metadata}}

    def parameters(self) -> dict[str, Any]:
        """The parameters for the model that drafts, without those that are not given."""
        longest = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        given = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": longest, "stop": self.stop or None}
        return {name: item for name, item in given.items() if item is not None}


def read_chat_request(body: bytes) -> ChatRequest:
    """Parse and validate a body.

    Raises:
        ApiError: 400, which names the first field that is wrong.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        wrong = invalid_request(error)
    raise wrong  # outside of the handler: its context would be the content of the request


def check_model(asked: ChatRequest, name: str) -> None:
    """Raise an ApiError, 404, if another model than the served one is asked for."""
    if asked.model != name:
        raise ApiError(
            404, f"model: expected {name!r}, the model of this service.", param="model", code="model_not_found"
        )
