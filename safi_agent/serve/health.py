"""Whether the service can answer: its chain is open, and its store can be read."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from safi_agent.chain import SafiChain
from safi_agent.errors import SafiError
from safi_agent.store.timeout_budget import shared_timeout_budget

VALID = 1.0  # seconds for which a result is valid, so that many requests read the store once
STORE_TIMEOUT = 2.0


class HealthCheck:
    """Reads the backlog of a chain's store on a thread of its own, since waiting turns may take all others."""

    def __init__(self, chain: SafiChain) -> None:
        self._chain = chain
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "safi-health")
        self._at = -VALID
        self._healthy = False

    async def is_healthy(self) -> bool:
        """Whether the store could be read within ``STORE_TIMEOUT``, now or at most ``VALID`` seconds ago."""
        async with self._lock:
            if time.monotonic() - self._at >= VALID:
                check = asyncio.get_running_loop().run_in_executor(self._thread, self._check)
                try:
                    self._healthy = await asyncio.wait_for(check, STORE_TIMEOUT)
                except TimeoutError:
                    self._healthy = False
                self._at = time.monotonic()
            return self._healthy

    def _check(self) -> bool:
        try:
            with shared_timeout_budget(STORE_TIMEOUT):
                self._chain.backlog()
        except SafiError:
            return False
        return True
