"""Who may use the service, and how often."""

import math
import time
from collections.abc import Sequence
from ipaddress import ip_address

from fastapi import Request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from safi_agent.serve.api_errors import ApiError
from safi_agent.serve.bearer_keys import BearerKey, find_memory_key


def is_loopback(host: str) -> bool:
    """Whether a host, as an address or a name, is this machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Access:
    """Maps each request to a memory key.

    Args:
        keys: the known bearer keys; without any, only clients on this machine have access.
        memory_key: the memory key of clients without a bearer key.
        rate: requests in a minute that each memory key may make to each endpoint; None for no limit.
    """

    def __init__(self, keys: Sequence[BearerKey], memory_key: str, rate: int | None) -> None:
        self._keys, self._memory_key = tuple(keys), memory_key
        self._item = None if rate is None else RateLimitItemPerMinute(rate)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def admit(self, request: Request, endpoint: str) -> str:
        """The memory key of a request, which is counted.

        Raises:
            ApiError: 401 without a known bearer key; 403 for a request from elsewhere to a service without keys; 429 if
                the memory key has made too many requests.
        """
        memory_key = self._authenticate(request)
        if self._item is not None and not self._limiter.hit(self._item, endpoint, memory_key):
            reset = self._limiter.get_window_stats(self._item, endpoint, memory_key).reset_time
            raise ApiError(
                429,
                f"Expected at most {self._item.amount} requests in a minute.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(max(1, math.ceil(reset - time.time())))},
            )
        return memory_key

    def _authenticate(self, request: Request) -> str:
        if not self._keys:
            self._check_loopback(request)
            return self._memory_key
        memory_key = find_memory_key(self._keys, request.headers.get("authorization", ""))
        if memory_key is None:
            raise ApiError(
                401,
                "Authorization: expected a known bearer key.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return memory_key

    @staticmethod
    def _check_loopback(request: Request) -> None:
        # The Host header too: a web page whose name was pointed to this machine sends its own.
        host = request.headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not is_loopback(name) or (request.client is not None and not is_loopback(request.client.host)):
            raise ApiError(403, "Without bearer keys this service is for clients on its machine.", code="not_loopback")
