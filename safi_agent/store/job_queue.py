"""The job queue (procrastinate): jobs are enqueued in the transaction that makes them necessary."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import psycopg
from procrastinate import App, SyncPsycopgConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.schema import SchemaManager
from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.exc import DBAPIError

from safi_agent.store.database import Task

SETTLE: Task = "safi.settle"
PRIORITY = 1  # of jobs to settle a turn
LONGEST = 32  # bytes; PostgreSQL limits the channel's name to 63
DUE = 5.0  # seconds after which a free worker would have taken a due job
GONE = 30.0  # seconds without a heartbeat after which a worker is dead
_app = App(connector=SyncPsycopgConnector())  # never opened: it uses the store's connections


def queue_name(value_set: str) -> str:
    """The name of the queue for the turns of a value set.

    >>> queue_name("unesco")
    'safi:unesco'
    """
    name = value_set if len(value_set.encode()) <= LONGEST else sha256(value_set.encode()).hexdigest()[:LONGEST]
    return f"safi:{name}"


def conninfo(engine: Engine) -> str:
    """The database's address as psycopg takes it, for the connections of a worker to its queue.

    On them a commit does not wait for the server's disk. If the server crashes, the fetching or the end of a job may
    be lost: it runs again, and the store accepts its work once.
    """
    arguments = engine.dialect.create_connect_args(engine.url)[1]
    given = arguments.get("options", ())
    options = " ".join([*((given,) if isinstance(given, str) else given), "-c synchronous_commit=off"])
    own = {name: value for name, value in arguments.items() if name != "context"}
    return make_conninfo(**{**own, "options": options})


def enqueue_job(c: Connection, task: Task, value_set: str, key: str, turn_id: str) -> None:
    """Enqueue a job in the caller's transaction.

    "safi.judge" jobs take long and run concurrently. "safi.settle" jobs run one at a time for each memory key, in
    order, and with a higher priority, so that judged turns do not wait for others.
    """
    settle = task == SETTLE
    job = _app.configure_task(
        task,
        queue=queue_name(value_set),
        lock=f"safi:{key}" if settle else None,
        priority=PRIORITY if settle else 0,
        connection=c.connection.driver_connection,
    )
    try:
        job.defer(key=key, turn=turn_id)
    except ConnectorException as error:
        raise _dbapi_error(error.__cause__ or error) from None


# Jobs that are overdue while no live worker is busy with others.
_UNTAKEN = text("""
    SELECT count(*) FROM procrastinate_jobs AS job WHERE queue_name = :queue AND status = 'todo'
    AND coalesce(scheduled_at, '-infinity') < now() - make_interval(secs => :due)
    AND NOT EXISTS (
        SELECT 1 FROM procrastinate_events AS event
        WHERE event.job_id = job.id AND event.at > now() - make_interval(secs => :due)
    )
    AND NOT EXISTS (
        SELECT 1 FROM procrastinate_jobs AS other JOIN procrastinate_workers AS worker ON worker.id = other.worker_id
        WHERE other.queue_name = :queue AND other.status = 'doing'
        AND worker.last_heartbeat > now() - make_interval(secs => :gone)
    )
""")
_DROP = text("DELETE FROM procrastinate_jobs WHERE queue_name = :queue AND args->>'turn' IN :turns").bindparams(
    bindparam("turns", expanding=True)
)

# The priority finds them by the queue's index of waiting jobs.
_DROP_SETTLED = text(
    "DELETE FROM procrastinate_jobs WHERE status = 'todo' AND priority = :priority AND task_name = :task "
    "AND args->>'turn' IN :turns"
).bindparams(bindparam("turns", expanding=True))


def count_untaken(c: Connection, value_set: str) -> int:
    """The number of due jobs of a value set that no worker has taken, while no live worker is busy."""
    return c.scalar(_UNTAKEN, {"queue": queue_name(value_set), "gone": GONE, "due": DUE}) or 0


def delete_jobs(c: Connection, value_set: str, turn_ids: Sequence[str]) -> None:
    """Delete the jobs of these turns from the queue of a value set."""
    c.execute(_DROP, {"queue": queue_name(value_set), "turns": list(turn_ids)})


def delete_settle_jobs(c: Connection, turn_ids: Sequence[str]) -> None:
    """Delete the jobs to settle these turns that no worker has taken."""
    c.execute(_DROP_SETTLED, {"priority": PRIORITY, "task": SETTLE, "turns": list(turn_ids)})


def create_queue_tables(c: Connection) -> None:
    """Create the queue's tables, unless they exist.

    Raises:
        ValueError: they exist, but were created by a version of procrastinate that is too old.
        DBAPIError: they cannot be created.
    """
    there, works = c.execute(
        text("SELECT to_regclass('procrastinate_jobs'), to_regproc('procrastinate_retry_job_v2')")
    ).one()
    if there is None:
        driver: Any = c.connection.driver_connection
        try:
            # Bypasses SQLAlchemy, which would take the percent signs for parameters.
            driver.execute(SchemaManager.get_schema())
        except psycopg.Error as error:
            raise _dbapi_error(error) from None
    elif works is None:
        raise ValueError(
            "store: expected the tables of procrastinate 3.10 or newer, got older ones. Migrate them first."
        )


def _dbapi_error(error: BaseException) -> DBAPIError:
    """The driver's error as SQLAlchemy would have raised it, without a statement."""
    return DBAPIError(None, None, error, hide_parameters=True)
