"""Shared by drain() of all audit branches: refuse a call from an audit thread, and list why turns are not done."""

from collections.abc import Mapping

from safi_agent.store import Store
from safi_agent.store.backlog import blocking_reasons
from safi_agent.store.log_state import count_unlogged
from safi_agent.store.process_id import is_dead, this_process
from safi_agent.thread_pool import is_audit_thread
from safi_agent.unicode_text import many


def refuse_audit_thread(method: str = "drain") -> None:
    """Raise in a thread that audits, in which this method of a chain would wait for itself.

    Raises:
        RuntimeError: this thread belongs to the audit branch.
    """
    if is_audit_thread():
        raise RuntimeError(
            f"{method}: expected a thread outside of the audit branch, got one of its own. "
            "A hook cannot wait for itself."
        )


def unfinished_reasons(store: Store, value_set: str, left: Mapping[str, int]) -> list[str]:
    """The reasons why turns are not done, one sentence each, as far as the store contains them.

    Args:
        store: the store of the turns.
        value_set: the name of their value set.
        left: the number of unfinished turns, by owner.
    """
    lines = count_unlogged(store, value_set) if left else {}
    reasons = blocking_reasons(store.database, value_set)
    reasons += [f"{many(count, 'line')} of the log {log} could not be written." for log, count in lines.items()]
    others = {
        owner.rpartition(":")[0]: count
        for owner, count in left.items()
        if owner != this_process() and not is_dead(owner)
    }
    named = " ".join(reasons)
    for name, count in others.items():
        if name not in named:
            reasons.append(f"{many(count, 'turn')} of the process {name}, which has not finished.")
    return reasons
