"""Erase the contents of turns from the store and the log; figures, proofs and the order of turns remain."""

import logging
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from safi_agent.errors import LogError, SafiError
from safi_agent.log.erasure import erase_lines
from safi_agent.log.rotation import log_files
from safi_agent.log.writer import lock_log
from safi_agent.record import utc_now
from safi_agent.store import Store
from safi_agent.store.database_errors import EarlierRowsKeptError, raise_as
from safi_agent.store.erasure import batches, erase_turns, find_turns, open_erasures, written_logs
from safi_agent.store.log_state import read_anchor

log = logging.getLogger("safi_agent")


class Erased(NamedTuple):
    """The result of an erasure."""

    turns: int  #: number of turns whose contents were removed, repetitions of audits included
    earlier: int  #: number of turns that were to be erased and had been erased before
    lines: int  #: number of lines of logs whose contents were removed
    unfinished: tuple[str, ...]  #: where contents are left, one sentence each; erasing again continues there


def _store_failed(cause: str) -> SafiError:
    return SafiError(f"The store failed ({cause}). Details are in the logger 'safi_agent'.")


@raise_as(_store_failed, "The store failed")
def erase(
    store: Store,
    *,
    turn_ids: Iterable[str] | None = None,
    key: str | None = None,
    older_than: timedelta | None = None,
) -> Erased:
    """Remove the contents of turns from the store and from the logs that the store has written.

    Contents are the prompt and its context, draft, reflection, answer, reasons and metadata. Scores, decisions and
    times remain, with the order of turns, so that ``safi verify``, ``safi prove`` and ``safi replay`` still hold.
    Each log gets a line with the ids of the erased turns. A turn that is not audited yet gets a failed audit.

    Erasures that were interrupted before are completed too. To write the database anew takes time in proportion to its
    size, during which others cannot write.

    Args:
        store: the store of the turns.
        turn_ids: the ids of the turns to erase, with all repetitions of their audits.
        key: instead, all turns of this memory key.
        older_than: only turns that were answered longer ago than this; with ``key``, or for all keys.

    Raises:
        ValueError: not exactly one way to choose turns is given, or ``older_than`` is negative.
        UnknownTurnError: the store does not have a turn.
        SafiError: the store failed before anything was changed.
    """
    if (turn_ids is None) == (key is None and older_than is None):
        raise ValueError("expected either turn_ids, or key, older_than or both.")
    if older_than is not None and older_than < timedelta(0):
        raise ValueError(f"older_than: expected a duration of at least 0, got {older_than}.")
    before = None if older_than is None else time.time() - older_than.total_seconds()
    left, earlier = find_turns(store, None if turn_ids is None else list(turn_ids), key, before)
    count, unfinished = 0, list[str]()
    try:
        for ids in batches(left):
            count += erase_turns(store, ids, utc_now())
    except SQLAlchemyError as error:
        if not count:
            raise  # nothing was changed
        unfinished.append(f"The store: not all turns could be erased ({_cause_of(error)}).")
    erased = Erased(count, earlier, 0, tuple(unfinished))
    try:
        return _complete(store, erased)
    except SQLAlchemyError as error:
        if not count:
            raise
        unfinished.append(f"The store failed before the erasure was completed ({_cause_of(error)}).")
        return erased._replace(unfinished=tuple(unfinished))


def _cause_of(error: SQLAlchemyError) -> str:
    """The type of a database error, whose message may contain a row; its first line is logged."""
    own = getattr(error, "orig", None) or error
    log.error("The store failed: %s", str(own).partition("\n")[0])
    return type(own).__name__


def _complete(store: Store, erased: Erased) -> Erased:
    """Complete all erasures that are open: in the logs, then in the files of the store."""
    erasures = open_erasures(store)
    if not erasures and not erased.earlier:
        return erased
    store.database.checkpoint()  # the store has to survive a power failure before lines are changed
    counted, unfinished = 0, list(erased.unfinished)
    expected = dict.fromkeys(erasure.log for erasure in erasures)
    # A log may have been continued at another path, and lines of erased turns may have come back from a backup.
    for path in dict.fromkeys([*expected, *written_logs(store)]):
        try:
            if path in expected or log_files(path):
                counted += _erase_log(store, path)
        except (LogError, OSError, ValueError) as error:
            unfinished.append(f"The log {path}: {error}.")
        except SQLAlchemyError as error:
            unfinished.append(f"The log {path}: the store failed meanwhile ({_cause_of(error)}).")
    if erasures and (why := _purge(store)):
        unfinished.append(f"Free space in the files of the store: {why}")
    if not unfinished:
        # Others may have been added meanwhile, also for copies of lines; the next erasure settles them.
        try:
            store.mark_settled([erasure.id for erasure in erasures])
        except SQLAlchemyError as error:
            unfinished.append(f"The store: the erasure could not be marked as completed ({_cause_of(error)}).")
    return erased._replace(lines=counted, unfinished=tuple(unfinished))


def _purge(store: Store) -> str:
    """Remove what rows contained before from the files of the store; why some is left, empty if nothing is."""
    try:
        store.database.purge()
    except EarlierRowsKeptError as error:
        return str(error)
    except SQLAlchemyError as error:
        return f"they could not be written anew ({_cause_of(error)})."
    return ""


def _erase_log(store: Store, path: str) -> int:
    if not path:
        return 0
    if not _exists(path) and read_anchor(store, path) is not None:
        raise LogError(
            "it was written by this store, and does not exist there any more; put it back, or an empty file in its "
            "place if it was deleted"
        )
    return erase_lines(store, path)


def _exists(path: str) -> bool:
    """Whether a log has files. It may be rotated while they are listed: then its lock is needed."""
    if log_files(path):
        return True
    if not Path(path).parent.is_dir():
        return False
    with lock_log(path):
        return bool(log_files(path))
