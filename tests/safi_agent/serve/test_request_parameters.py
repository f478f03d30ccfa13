"""Which model gets the parameters of a request."""

import asyncio
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from safi_agent.models import model_label
from safi_agent.serve import RequestParameters, create_app
from safi_agent.serve.request_parameters import request_parameters
from tests.safi_agent.fakes import Fake


class Noting(BaseChatModel):
    _given: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "noting"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self._given.append({"stop": stop, **kwargs})
        return ChatResult(generations=[ChatGeneration(message=AIMessage("x"))])


def test_in_every_way_of_calling_and_only_within_the_context() -> None:
    model = Noting()
    wrapped = RequestParameters(model)
    assert model_label(wrapped) == "noting"
    with request_parameters({"temperature": 0.3, "stop": ["x"]}):
        wrapped.invoke("a")
        wrapped.batch(["a"])
        asyncio.run(wrapped.ainvoke("a"))
        asyncio.run(wrapped.abatch(["a"]))
    wrapped.invoke("a")
    assert model._given == [{"stop": ["x"], "temperature": 0.3}] * 4 + [{"stop": None}]


def test_requests_at_once_do_not_mix() -> None:
    model = Noting()
    wrapped = RequestParameters(model)

    async def one(number: int) -> None:
        with request_parameters({"temperature": number}):
            await asyncio.sleep(0)
            await wrapped.ainvoke("a")

    async def many() -> None:
        await asyncio.gather(*map(one, range(20)))

    asyncio.run(many())
    assert sorted(given["temperature"] for given in model._given) == list(range(20))


@pytest.mark.parametrize("judge", ["will_model", "conscience_model"])
def test_a_judge_that_would_get_them_is_refused(make: Any, judge: str) -> None:
    other = {"will_model", "conscience_model"} - {judge}
    safi = make(RequestParameters(Fake()), **{name: Fake() for name in other})
    with pytest.raises(ValueError, match=f"{judge}: expected a model without RequestParameters"):
        create_app(safi)
    wrapped = make(Fake(), **{judge: RequestParameters(Fake())})
    with pytest.raises(ValueError, match=f"{judge}: expected a model without RequestParameters"):
        create_app(wrapped)


@pytest.mark.parametrize(("setting", "value"), [("rate", 0), ("max_bytes", 999)])
def test_a_limit_out_of_range_is_refused(make: Any, setting: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{setting}: expected"):
        create_app(make(), **{setting: value})
