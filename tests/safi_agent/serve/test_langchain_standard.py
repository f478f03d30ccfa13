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
from tests.safi_agent.serve.running import running

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


class TestServedModel(ChatModelIntegrationTests):
    address: ClassVar[str] = ""

    @pytest.fixture(scope="class", autouse=True)
    def service(self) -> Iterator[None]:
        with serving() as upstream:
            model = ChatOpenAI(model="m", base_url=upstream.url, api_key="k", max_retries=0)
            chain = create_safi_chain(
                RequestParameters(model), THREE, will_model=model, conscience_model=model, store=None, log=None
            )
            with chain, running(create_app(chain, rate=None)) as address:
                type(self).address = address
                yield

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "m", "base_url": f"{self.address}/v1", "api_key": "k", "max_retries": 0, "stream_usage": True}

    has_tool_calling = False
    has_tool_choice = False
    has_structured_output = False
    supports_model_override = False
