"""The audit branch: audits answers after they were returned, in this process or in workers."""

from dataclasses import replace
from typing import Literal, Protocol

from safi_agent.audit.local import LocalAuditor
from safi_agent.audit.plan import Plan
from safi_agent.lifecycle import DrainResult
from safi_agent.store import Job, Store
from safi_agent.store.sqlite import Sqlite

AuditMode = Literal["in_process", "worker"]


class AuditBranch(Protocol):
    """The interface of an audit branch."""

    plan: Plan
    store: Store

    def submit(self, job: Job) -> None:
        """Process a durable turn to its end."""

    def drain(self, timeout: float | None = None) -> DrainResult:
        """Wait until no turn is open; the number of audits finished since the last call, and what is left."""

    def stop(self, timeout: float) -> None:
        """Start no more work in this process."""


def open_audit_branch(plan: Plan, store: Store, mode: AuditMode) -> AuditBranch:
    """Create the audit branch for this store.

    Raises:
        ValueError: ``mode`` is "worker" with a store that is not on PostgreSQL.
    """
    plan = replace(plan, read_stored=store.read_values)
    store.save_values(plan.prompts.fingerprint, plan.prompts.model_dump_json())
    if isinstance(store.database, Sqlite):
        if mode == "worker":
            raise ValueError(
                "audit_mode: expected 'in_process' with this store, got 'worker': workers need one on PostgreSQL."
            )
        return LocalAuditor(plan, store)
    from safi_agent.audit.postgres import PostgresAuditor

    return PostgresAuditor(plan, store, has_worker=mode == "in_process")
