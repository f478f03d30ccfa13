"""Why turns are left, by what the store says."""

from collections.abc import Mapping

from safi_agent.store import Store
from safi_agent.store.backlog import blocking_reasons
from safi_agent.store.log_state import count_unlogged
from safi_agent.store.process_id import is_dead, me
from safi_agent.unicode_text import many


def why_left(store: Store, value_set: str, left: Mapping[str, int]) -> list[str]:
    """A sentence for each cause that can be known without being the process that audits.

    Args:
        store: asked for what it knows.
        value_set: the name of the set whose turns are left.
        left: how many there are, by owner.
    """
    lines = count_unlogged(store, value_set) if left else {}
    said = blocking_reasons(store.database, value_set)
    said += [f"{many(count, 'line')} of the log {log} could not be written." for log, count in lines.items()]
    others = {owner.rpartition(":")[0]: count for owner, count in left.items() if owner != me() and not is_dead(owner)}
    named = " ".join(said)
    for name, count in others.items():
        if name not in named:
            said.append(f"{many(count, 'turn')} of the process {name}, which has not finished.")
    return said
