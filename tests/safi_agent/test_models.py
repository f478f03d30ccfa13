"""From a name to a model, and the name of a model in records."""

from typing import Any

import pytest
from langchain.chat_models import init_chat_model
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_openai import ChatOpenAI

from safi_agent.models import model_label, reply_model, resolve
from safi_agent.offline_model import LABEL, OfflineChatModel

CHAT = ChatOpenAI(model="m-1", api_key="k")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model",
    [
        CHAT,
        CHAT.bind(stop=["x"]),
        CHAT.with_retry(),
        CHAT.with_fallbacks([ChatOpenAI(model="m-2", api_key="k")]),  # type: ignore[arg-type]
        CHAT.with_config(tags=["x"]).with_retry().bind(stop=["x"]),
        CHAT.configurable_fields(temperature=ConfigurableField(id="t")),
        init_chat_model("openai:m-1", configurable_fields=["temperature"], api_key="k"),
    ],
)
def test_a_model_has_its_own_name_in_any_wrapper(model: Any) -> None:
    assert model_label(model) == "m-1"


def test_a_model_that_the_config_of_a_run_names_has_no_name_before_it() -> None:
    for model in (init_chat_model(), init_chat_model(temperature=0)):
        assert resolve(model, "model") is model
        assert model_label(model) == "_ConfigurableModel"


def test_the_rehearsal_model_is_labelled_in_wrappers_too() -> None:
    assert model_label(OfflineChatModel().with_retry()) == LABEL
    assert model_label(RunnableLambda(lambda _: "x")) == "RunnableLambda"


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"model_name": "a"}, "a"),
        ({"model": "b"}, "b"),
        ({"model_id": "c"}, "c"),
        ({"model_name": "", "model": "b"}, "b"),
        ({"model_name": 1}, ""),
        ({"model_name": "a\nb"}, ""),
        ({"model_name": "a" * 201}, ""),
        ({}, ""),
    ],
)
def test_a_reply_says_which_model_gave_it(metadata: dict[str, Any], name: str) -> None:
    assert reply_model(AIMessage("x", response_metadata=metadata)) == name


def test_what_is_no_models_message_names_none() -> None:
    assert reply_model("x") == reply_model(None) == reply_model(HumanMessage("x")) == ""
