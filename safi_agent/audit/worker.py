"""A queue worker: audits and commits the turns of a value set, from any process.

A job ends only when its work is done, and is retried after any error. The jobs of a worker without a heartbeat are
returned to the queue. Repeated work takes effect once, because the store enforces it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
from procrastinate import App, BaseRetryStrategy, JobContext, PsycopgConnector, RetryDecision
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from procrastinate.manager import JobManager
from procrastinate.worker import Worker as QueueWorker
from psycopg_pool import PoolTimeout

from safi_agent.audit.attempts import MAX_ATTEMPTS_RUNNING
from safi_agent.audit.group_commit import GroupCommit
from safi_agent.audit.hook_dispatcher import HookCall, HookDispatcher
from safi_agent.audit.plan import RECONNECT, Outcome, Plan
from safi_agent.store import Store, StoredTurn
from safi_agent.store.job_queue import conninfo, queue_name
from safi_agent.thread_pool import ThreadPool

log = logging.getLogger("safi_agent")
SILENT = 30.0  # seconds without a heartbeat after which a worker's jobs are returned to the queue
POLL = 1.0  # seconds between polls for due jobs, and between attempts to reconnect
SHUTDOWN_GRACE = 10.0  # seconds for running jobs when the database is lost
MAX_INTERRUPTIONS = 10  # interrupted attempts after which an audit fails: the turn may have crashed its workers
SWEEP = 0x5AF2  # advisory lock of the process that sweeps workers without a heartbeat
AT_THE_STORE = 8
MAX_POLL = 1.0  # seconds between checks of running hooks


class RetryLaterError(Exception):
    """The audit failed and is retried after ``wait`` seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"retry in {wait} s")
        self.wait = wait


class RetryUntilDone(BaseRetryStrategy):
    """Retries a job after any error; a worker that is stopped returns its jobs to the queue at once."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision:
        """The time of the next attempt."""
        wait = RECONNECT[min(job.attempts, len(RECONNECT) - 1)]
        if isinstance(exception, RetryLaterError):
            wait = exception.wait
        elif isinstance(exception, asyncio.CancelledError):
            wait = 0.0
        return RetryDecision(retry_at=datetime.now(UTC) + timedelta(seconds=wait))


class Worker:
    """Runs on an event loop until it is stopped; reconnects when the database was unavailable."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self.done = 0
        self._queue = queue_name(plan.values.name)
        self._threads = ThreadPool(AT_THE_STORE, "safi-store")
        self._judges = ThreadPool(MAX_ATTEMPTS_RUNNING, "safi-judge")
        self._hooks = HookDispatcher(plan.timeout)
        self._group_commit = GroupCommit(plan, store, self._in_store_thread)
        self._queue_worker: QueueWorker | None = None
        self._stopped = False
        self._lost: int | None = None  # the worker's id before the connection was lost

    async def run(self) -> None:
        """Run until stopped."""
        while not self._stopped:
            try:
                await self._run_once()
            except Exception as error:
                log.error("The worker lost the connection to its queue and reconnects.", exc_info=error)
            if not self._stopped:
                await asyncio.sleep(POLL)
        self._hooks.stop()

    def stop(self, timeout: float) -> None:
        """Stop, and return jobs that are not done within ``timeout`` seconds. Call it on the worker's loop."""
        self._stopped = True
        if self._queue_worker is not None:
            self._queue_worker.shutdown_graceful_timeout = timeout
            self._queue_worker.stop()  # type: ignore[no-untyped-call]

    async def _run_once(self) -> None:
        connector = PsycopgConnector(conninfo=conninfo(self.store.database.engine), min_size=2, max_size=4)
        app = App(connector=connector)
        app.task(name="safi.judge", pass_context=True, retry=RetryUntilDone())(self._judge)
        app.task(name="safi.settle", retry=RetryUntilDone())(self._settle)
        async with app.open_async():
            if self._lost is not None:
                await app.job_manager.unregister_worker(self._lost)  # so that its jobs are returned to the queue
            self._lost = None
            self._queue_worker = self._create_worker(app)
            sweeping = asyncio.create_task(self._sweep(connector, app.job_manager))
            try:
                if not self._stopped:
                    await self._queue_worker.run()  # type: ignore[no-untyped-call]
            finally:
                sweeping.cancel()
                self._lost, self._queue_worker = self._queue_worker.worker_id, None

    def _create_worker(self, app: App) -> QueueWorker:
        return QueueWorker(
            app,
            queues=[self._queue],
            name="safi",
            concurrency=MAX_ATTEMPTS_RUNNING,
            fetch_job_polling_interval=POLL,
            shutdown_graceful_timeout=SHUTDOWN_GRACE,
            delete_jobs="successful",
            install_signal_handlers=False,
            update_heartbeat_interval=SILENT / 3,
            stalled_worker_timeout=SILENT,
        )

    async def _sweep(self, connector: PsycopgConnector, jobs: JobManager) -> None:
        """Return the jobs of workers without a heartbeat to the queue, in one process at a time."""
        while True:
            with contextlib.suppress(ConnectorException, PoolTimeout, psycopg.Error):  # the worker reports it itself
                async with connector.pool.connection() as c:
                    cursor = await c.execute("SELECT pg_try_advisory_xact_lock(%s)", [SWEEP])
                    if await cursor.fetchone() == (True,):
                        for job in await jobs.get_stalled_jobs(queue=self._queue, seconds_since_heartbeat=SILENT):
                            await jobs.retry_job(job)
            await asyncio.sleep(SILENT / 3)

    async def _judge(self, context: JobContext, key: str, turn: str) -> None:
        """Audit a turn, unless it already was; fail after ``MAX_INTERRUPTIONS`` interrupted attempts."""
        stored = (await self._in_store_thread(partial(self.store.load_turns, [turn]))).get(turn)
        if stored is None:
            log.error("Turn %s is no longer in the store; it is not audited.", turn)
            return
        if stored.status != "pending":
            return
        if context.job.attempts - stored.attempts >= MAX_INTERRUPTIONS:
            error = f"interrupted {MAX_INTERRUPTIONS} times"
            await self._in_store_thread(partial(self.store.save_ledger, turn, None, error))
            return
        after = self.plan.next_step(turn, key, stored.attempts, await self._attempt(turn, stored))
        if after.failed is not None:
            await self._in_store_thread(partial(self.store.save_attempts, turn, after.failed))
        if after.result is None:
            raise RetryLaterError(after.wait)
        result = after.result
        await self._in_store_thread(partial(self.store.save_ledger, turn, result.ledger, result.error, result.judge))

    async def _attempt(self, turn: str, stored: StoredTurn) -> Outcome:
        """One attempt on a thread; a timeout is a failed attempt."""
        if not self.plan.may_attempt(stored.attempts):
            return Outcome(None)
        try:
            future = self._judges.submit(partial(self.plan.judge, turn, stored))
        except RuntimeError:  # the pool has logged it
            raise RetryLaterError(RECONNECT[0]) from None
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.plan.timeout)
        except TimeoutError as error:
            self._judges.abandon(future)
            return Outcome(None, error)

    async def _settle(self, key: str, turn: str) -> None:
        """Commit the judged turns of a memory key, write their log lines and call hooks; one job of a key at a time."""
        for one in await self._group_commit.commit(key, turn):
            if one.calls:
                await self._call_hooks(one.calls)
                await self._in_store_thread(partial(self.store.mark_settled, [one.id]))
            self.done += one.is_audit

    async def _call_hooks(self, calls: list[HookCall]) -> None:
        called: Future[None] = Future()
        self._hooks.dispatch(calls, partial(called.set_result, None))
        waiting = asyncio.wrap_future(called)
        while not waiting.done():
            await asyncio.wait([waiting], timeout=min(MAX_POLL, self._hooks.expire()))

    def blocked(self) -> list[str]:
        """Why turns are not done, one sentence for each cause that is known here. Thread-safe."""
        return self._hooks.blocked()

    async def _in_store_thread(self, work: Callable[[], Any]) -> Any:
        """Run a store operation on a thread, so that it does not block the event loop."""
        return await asyncio.wrap_future(self._threads.submit(work))
