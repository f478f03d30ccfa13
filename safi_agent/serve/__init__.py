"""A chain as an HTTP service with OpenAI's API: ``POST /v1/chat/completions`` returns approved answers only.

``safi serve`` starts it; ``create_app`` is the ASGI application for other servers.
"""

# ruff: noqa: E402 (what is missing is named before anything is imported)

from importlib.util import find_spec

REQUIRED = ("fastapi", "limits", "opentelemetry.sdk", "prometheus_client", "uvicorn")
if _missing := [name for name in REQUIRED if find_spec(name) is None]:
    raise ImportError(f'{", ".join(_missing)} not installed: pip install "sal-lightning[safi,serve]"', name=__name__)

from safi_agent.serve.app import create_app
from safi_agent.serve.bearer_keys import BearerKey, add_bearer_key, load_bearer_keys
from safi_agent.serve.request_parameters import RequestParameters

__all__ = ["BearerKey", "RequestParameters", "add_bearer_key", "create_app", "load_bearer_keys"]
