"""LangChain's standard tests for chat models, with ``ChatOpenAI(base_url=…)`` in front of a service.

The model of the service is a ChatOpenAI too, of a loopback server that reports its token usage. Tests of tools,
structured output, images, audio and files do not apply and skip themselves.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from safi_agent import create_safi_chain
from safi_agent.serve import RequestParameters, create_app
from tests.safi_agent.fakes import THREE
from tests.safi_agent.openai_server import serving
from tests.safi_agent.serve.running import connection_settings, running, upstream_model

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def benchmark() -> None:
    """For a test of stored responses, which skips itself."""


@pytest.fixture
def vcr() -> None:
    """The same."""


@pytest.fixture(scope="module", autouse=True)
def service() -> Iterator[None]:
    with serving() as upstream:
        model = upstream_model(upstream.url)
        chain = create_safi_chain(
            RequestParameters(model), THREE, will_model=model, conscience_model=model, store=None, log=None
        )
        with chain, running(create_app(chain, rate=None)) as TestServedModel.address:
            yield


class TestServedModel(ChatModelIntegrationTests):
    address: ClassVar[str]

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "m", "stream_usage": True, **connection_settings(f"{self.address}/v1")}

    has_tool_calling = False
    has_tool_choice = False
    has_structured_output = False
    supports_model_override = False
