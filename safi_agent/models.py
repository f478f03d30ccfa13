"""Create a model from its name, and find the name of a model for the records."""

import os
import re
from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import Runnable, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable

from safi_agent import defaults
from safi_agent.offline_model import LABEL, OfflineChatModel

OFFLINE = "offline"
LOCAL_PREFIX = "local:"  # of a name that is the folder of a local judge
Model = str | BaseChatModel | Runnable[Any, Any]  # a name, a chat model, or a runnable that returns a message
TIMEOUT = 60.0
LONGEST = 200  # characters of a name
_USAGE_KEY = re.compile(r"[a-z0-9_]{1,40}")
_INSIDE: dict[type, str] = {RunnableBindingBase: "bound", RunnableWithFallbacks: "runnable", DynamicRunnable: "default"}


def default_model() -> str:
    """The name of the default model, which needs an API key.

    Raises:
        ValueError: OPENAI_API_KEY is not set. The rehearsal model is never the default, because it would answer users.
    """
    if os.environ.get("OPENAI_API_KEY"):
        return defaults.MODEL
    raise ValueError(
        f"model: expected a chat model or the name of one, got none, and OPENAI_API_KEY for the default "
        f"{defaults.MODEL!r} is not set. Set it, pass a model, or pass {OFFLINE!r} for the offline rehearsal model."
    )


def is_local(model: object) -> bool:
    """Whether this is the name of a local judge, ``"local:FOLDER"``."""
    return isinstance(model, str) and model.startswith(LOCAL_PREFIX)


def resolve(model: object, argument: str, *, judge: bool = False) -> Runnable[Any, Any]:
    """Return a model, or create one from its name: ``"offline"`` or a name for ``init_chat_model``.

    A judge that is given by name is called at temperature 0.

    Raises:
        TypeError: it is neither a name nor a chat model.
        ValueError: no model can be created from the name, or it is that of a local judge.
    """
    if isinstance(model, BaseChatModel | Runnable):
        return model
    if not isinstance(model, str):
        raise TypeError(f"{argument}: expected a chat model or the name of one, got {type(model).__name__}.")
    if model == OFFLINE:
        return OfflineChatModel()
    if is_local(model):
        raise ValueError(
            f"{argument}: expected a chat model or the name of one, got a local judge, which can only be the "
            "conscience_model of a chain."
        )
    from langchain.chat_models import init_chat_model

    settings: dict[str, Any] = {"timeout": TIMEOUT, "temperature": 0} if judge else {"timeout": TIMEOUT}
    try:
        created: Runnable[Any, Any] = init_chat_model(model, **settings)
    except Exception as error:
        raise ValueError(
            f"{argument}: no model can be created from {model!r} ({error}). Set its API key, or pass a chat model or "
            f"{OFFLINE!r} for the offline rehearsal model."
        ) from None
    return created


def model_label(model: object) -> str:
    """The configured name of a model, or of the model inside its wrappers."""
    if isinstance(model, OfflineChatModel):
        return LABEL
    for wrapper, inside in _INSIDE.items():
        if isinstance(model, wrapper):
            return model_label(getattr(model, inside))
    names = (_attribute(model, name) for name in ("model_name", "model", "_llm_type"))
    return next((name for name in names if isinstance(name, str) and name), type(model).__name__)


def _attribute(model: object, name: str) -> Any:
    """``getattr`` with default None, also if the attribute raises, as for a model that is not configured yet."""
    try:
        return getattr(model, name, None)
    except Exception:
        return None


def reply_model(reply: object) -> str:
    """The model name in the metadata of a reply; empty if there is none."""
    metadata = reply.response_metadata if isinstance(reply, AIMessage) else {}
    names = (metadata.get(key) for key in ("model_name", "model", "model_id"))
    return next((n for n in names if isinstance(n, str) and n.isprintable() and 0 < len(n) <= LONGEST), "")


def token_counts(usage: object) -> UsageMetadata | None:
    """The numbers of a message's token usage, without anything else that the model's integration has put there."""
    return _numbers(usage) if isinstance(usage, Mapping) else None  # type: ignore[return-value]


def _numbers(usage: Mapping[Any, Any]) -> dict[str, Any]:
    named = {name: item for name, item in usage.items() if isinstance(name, str) and _USAGE_KEY.fullmatch(name)}
    return {
        name: _numbers(item) if isinstance(item, Mapping) else item
        for name, item in named.items()
        if isinstance(item, int | float | Mapping)
    }
