"""A log against all that is known of it: its chain, the anchor in the store, and the rows of its turns."""

from pathlib import Path
from typing import NamedTuple

from safi_agent.errors import LogError
from safi_agent.log.anchors import CHANGED, anchor_key_id, sealed_turns
from safi_agent.log.crosscheck import compare
from safi_agent.log.files import log_files
from safi_agent.log.key import key_id
from safi_agent.log.verify import MOST_TOLD, Fault, Verdict, verify
from safi_agent.store import Anchor, Store
from safi_agent.store.witness import Account

NO_LOG = Verdict((), 0, 0, 0, None)


class Checked(NamedTuple):
    """The verdict, with the faults of the store among its own; the anchor, if it is genuine.

    ``foreign`` counts lines of turns that the store does not have, ``waiting`` turns that were committed and are not in
    the log yet.
    """

    verdict: Verdict
    anchor: Anchor | None
    foreign: int
    waiting: int


def check(log: str | Path, key: bytes, store: Store, told: Account, first: int = 1) -> Checked:
    """Verify a log, and compare it with the store that wrote it.

    Args:
        log: its path; full files are found beside it.
        key: the key it was written with.
        store: the store that wrote it.
        told: what the store knows of it, read before the log (``account_of``).
        first: the number of the chain's first line here, where earlier files are kept elsewhere.

    Raises:
        FileNotFoundError: there is no such log, and the store does not expect one.
        LogError: the store remembers another key.
    """
    anchor, wrong = _anchor(told, key)
    gone = anchor is None and told.written and not log_files(log)
    verdict = NO_LOG if gone else verify(log, key, anchor, first)
    # Turns whose lines are missing are those that the chain misses, or in files that are elsewhere.
    compared = compare(log, key, store, told, whole=first == 1 and not verdict.faulty)
    named = {fault[:2] for fault in verdict.faults}  # a line is named once
    more = [Fault(str(log), 0, what) for what in (*wrong, *told.wrong)]
    more += [fault for fault in compared.faults if fault[:2] not in named]
    faults, faulty = [*verdict.faults, *more], verdict.faulty + len(more)
    return Checked(
        verdict._replace(faults=tuple(faults[:MOST_TOLD]), faulty=faulty), anchor, compared.foreign, compared.waiting
    )


def _anchor(told: Account, key: bytes) -> tuple[Anchor | None, list[str]]:
    """The anchor, if it can be relied on, and what is wrong with it."""
    anchor, there = told.anchor, len(told.written)
    if anchor is None:
        return None, [f"the store has {there:,} turns in it and no anchor of it: that was deleted"] if there else []
    if anchor_key_id(anchor) != key_id(key):
        raise LogError(
            f"expected the key with id {anchor_key_id(anchor)}, with which it was written, got {key_id(key)}."
        )
    if (sealed := sealed_turns(told.log, anchor, key)) is None:
        return None, [CHANGED]
    if sealed != there:
        what = (
            f"the store has {there:,} turns in it, and the sealed anchor says {sealed:,}: rows were deleted or changed"
        )
        return anchor, [what]
    return anchor, []
